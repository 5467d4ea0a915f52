"""The commands, run as their users run them."""

import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

import config
from dev.service import EVENT, ROOT, Service, at_once, set_up
from tests.support import Account, assert_rejected, command, igris, json_lines


@pytest.fixture
def empty_database(create_database: Callable[[], str]) -> str:
    return create_database()


def test_a_key_is_printed_alone_and_works(service: Service, database_url: str) -> None:
    made = igris("keys", "create", "commands", "--label", "CI", database_url=database_url)
    assert made.returncode == 0
    key = made.stdout.strip()
    assert re.fullmatch(r"ig_[A-Za-z0-9]{40}", key)
    assert made.stdout == key + "\n"
    response = service.post(EVENT, key)
    assert response.json == {"data": {"ingested": 1, "rejected": 0}, "meta": {"remainingQuota": 49_999}}

    listed = igris("keys", "list", "commands", database_url=database_url).stdout
    [header, row] = listed.splitlines()
    assert header.split() == ["id", "prefix", "label", "organization", "created", "expires", "revoked"]
    assert key[:7] in row
    assert "CI" in row
    assert key[7:] not in listed
    assert row.split()[-1] == "-"

    revoked = igris("keys", "revoke", row.split()[0], database_url=database_url)
    assert revoked.returncode == 0
    assert_rejected(service.post(EVENT, key), 401, "Unauthorized")
    assert igris("keys", "list", "commands", database_url=database_url).stdout.splitlines()[1].split()[-1] != "-"


def test_only_the_hash_of_a_key_is_stored(account: Account, database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        rows = connection.execute("SELECT api_keys::text FROM api_keys WHERE org_id = %s", [account.org_id]).fetchall()
        assert account.key[7:] not in str(rows)
        query = "SELECT count(*) FROM api_keys WHERE key_hash = sha256(%s::bytea)"
        assert connection.execute(query, [account.key.encode()]).fetchone() == (1,)


def test_a_key_can_expire(database_url: str) -> None:
    assert igris("keys", "create", "expiring", "--expires-in-days", "30", database_url=database_url).returncode == 0
    [_, row] = igris("keys", "list", "expiring", database_url=database_url).stdout.splitlines()
    assert len(re.findall(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ", row)) == 2


def test_a_quota_is_shown_and_set(new_account: Callable[..., Account], database_url: str) -> None:
    account = new_account(quota=10)
    account.post([EVENT] * 3)
    shown = igris("quota", account.org_id, database_url=database_url).stdout
    assert re.fullmatch(rf"{account.org_id}: 3 of 10 events stored in \d{{4}}-\d\d, 7 remaining\n", shown)
    assert "3 of 5 events" in igris("quota", account.org_id, "5", database_url=database_url).stdout
    assert "unlimited" in igris("quota", account.org_id, "unlimited", database_url=database_url).stdout
    assert account.post(EVENT).json["meta"] == {"remainingQuota": None}


def test_a_key_can_come_with_a_quota(service: Service, database_url: str) -> None:
    for quota, remaining in (("3", 2), ("unlimited", None)):
        org = f"with-quota-{quota}"
        made = igris("keys", "create", org, "--monthly-quota", quota, database_url=database_url)
        assert made.stderr.startswith(
            f"made the organization {org!r}, with a quota of {quota} events a month\nmade key "
        )
        assert service.post(EVENT, made.stdout.strip()).json["meta"] == {"remainingQuota": remaining}
        again = igris("keys", "create", org, "--monthly-quota", "5", database_url=database_url)
        assert (again.returncode, again.stdout) == (2, "")
        assert "is there already: change its quota with `quota`" in again.stderr
        assert re.fullmatch(
            rf"made key \d+ of '{org}'\n", igris("keys", "create", org, database_url=database_url).stderr
        )


def test_the_default_quota_is_a_setting(service: Service, database_url: str) -> None:
    made = igris("keys", "create", "default-quota", database_url=database_url, DEFAULT_MONTHLY_QUOTA="7")
    assert service.post(EVENT, made.stdout.strip()).json["meta"] == {"remainingQuota": 6}


def test_init_db_is_safe_to_run_again_and_by_several_at_once(empty_database: str) -> None:
    for done in at_once(4, lambda _: igris("init-db", database_url=empty_database)):
        assert (done.returncode, done.stdout) == (0, "")
    igris("keys", "create", "kept", database_url=empty_database)
    assert igris("init-db", database_url=empty_database).returncode == 0
    assert "kept" in igris("keys", "list", database_url=empty_database).stdout


def test_a_database_without_a_schema_is_one_clear_line(
    empty_database: str, start_service: Callable[..., Service]
) -> None:
    done = igris("keys", "list", database_url=empty_database)
    assert done.returncode == 1
    assert "init-db" in done.stderr
    service = start_service(empty_database)
    response = service.get("/readyz")
    assert (response.status, response.json["status"]) == (503, "unavailable")
    assert "init-db" in response.json["reason"]
    assert_rejected(service.post(EVENT, "ig_" + "x" * 40), 503, "Service unavailable")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["quota", "nobody"], "there is no organization 'nobody'"),
        (["quota", "nobody", "5"], "there is no organization 'nobody'"),
        (["keys", "list", "nobody"], "there is no organization 'nobody'"),
        (["keys", "revoke", "999999999"], "there is no API key 999999999"),
        (["keys", "revoke", "x"], "'x' is not a valid integer"),
        (["keys", "create", ""], "1 to 255 printable characters"),
        (["keys", "create", "a\nb"], "1 to 255 printable characters"),
        (["keys", "create", "x", "--expires-in-days", "0"], "0 is not in the range"),
        (["keys", "create", "x", "--monthly-quota", "-1"], "must be a whole number"),
        (["quota", "x", "many"], "or unlimited"),
    ],
)
def test_a_wrong_argument_is_one_clear_line(database_url: str, arguments: list[str], message: str) -> None:
    done = igris(*arguments, database_url=database_url)
    assert done.returncode in (1, 2)
    assert message in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_database_that_is_unavailable_is_one_clear_line() -> None:
    done = igris("keys", "list", database_url="postgresql://igris:hunter2@127.0.0.1:1/igris")
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith("Error: PostgreSQL can't be reached: ")
    assert "hunter2" not in line


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("DATABASE_URL", ""),
        ("DATABASE_URL", "hunter2"),
        ("DATABASE_URL", "postgresql://igris:hun/hunter2@127.0.0.1/igris"),
        ("DATABASE_URL", "postgresql://igris:123/hunter2@127.0.0.1/igris"),
        ("DATABASE_URL", "postgresql://igris:x@hunter2@127.0.0.1/igris"),
        ("DATABASE_URL", "postgresql://igris:%hunter2@127.0.0.1/igris"),
        ("PORT", "http"),
        ("PORT", "0"),
        ("WEB_CONCURRENCY", "0"),
        ("THREADS", "0"),
        ("THREADS", "²"),
        ("MAX_BODY_BYTES", "10MB"),
        ("MAX_BATCH_EVENTS", "0"),
        ("DEFAULT_MONTHLY_QUOTA", "lots"),
        ("IDEMPOTENCY_DAYS", "0"),
        ("LOG_LEVEL", "loud"),
        ("PREPARED_STATEMENTS", "maybe"),
        ("STATSD_HOST", "8125"),
        ("STATSD_HOST", "127.0.0.1:udp"),
    ],
)
def test_an_invalid_setting_stops_the_start(database_url: str, setting: str, value: str, tmp_path: Path) -> None:
    done = igris("keys", "list", database_url=database_url, **{setting: value})
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith(f"igris-ingest: {setting} ")
    assert "hunter2" not in line
    with pytest.raises(RuntimeError, match=re.escape(line)):
        Service(database_url, tmp_path / "log", **{setting: value}).start()


def test_without_a_database_url_it_names_make_run() -> None:
    done = igris("init-db", database_url=None)
    assert done.returncode == 1
    assert done.stderr == "igris-ingest: DATABASE_URL is not set: name a PostgreSQL, or let `make run` start one\n"


def test_a_key_can_be_renamed(account: Account) -> None:
    [(key_id,)] = account.execute("SELECT id FROM api_keys WHERE org_id = %s", account.org_id)
    url = account.service.database_url
    assert command("keys", "rename", str(key_id), "nightly", database_url=url).returncode == 0
    assert account.execute("SELECT label FROM api_keys WHERE id = %s", key_id) == [("nightly",)]
    unknown = command("keys", "rename", "999999999", "x", database_url=url)
    assert (unknown.returncode, unknown.stderr) == (1, "Error: there is no API key 999999999\n")


def test_an_organization_is_made_listed_and_deleted(
    service: Service, database_url: str, new_account: Callable[..., Account], tmp_path: Path
) -> None:
    other = new_account()
    other.post(EVENT)
    made = command("organizations", "create", "short-lived", "--monthly-quota", "unlimited", database_url=database_url)
    assert (made.returncode, "with a quota of unlimited" in made.stderr) == (0, True)
    assert command("organizations", "create", "short-lived", database_url=database_url).returncode == 1
    key = command("keys", "create", "short-lived", database_url=database_url).stdout.strip()
    account = Account(service, "short-lived", key)
    account.post([EVENT] * 6000, Idempotency_Key="a")
    (tmp_path / "a.ndjson").write_text(json.dumps(EVENT) + "\n")
    file = ["import", str(tmp_path / "a.ndjson"), "--timestamp-now", "--org", "short-lived"]
    assert command(*file, database_url=database_url).returncode == 0
    account.execute("UPDATE audit_events SET received_at = '2026-03-01' WHERE org_id = 'short-lived'")
    assert command("seal", "--org", "short-lived", database_url=database_url).returncode == 0
    listed = json_lines(command("organizations", "list", "--json", database_url=database_url).stdout)
    [row] = [row for row in listed if row["organization"] == "short-lived"]
    assert (row["quota"], row["keys"]) == (None, 1)
    rejected = command("organizations", "delete", "short-lived", database_url=database_url)
    assert rejected.returncode == 1
    [[entries]] = account.execute("SELECT count(*) FROM chain_entries WHERE org_id = 'short-lived'")
    assert (
        f"Delete the organization 'short-lived' with 6001 events, {entries} chain entries and 1 key?" in rejected.stderr
    )
    assert account.count() == 6001
    done = command("organizations", "delete", "short-lived", "--yes", database_url=database_url)
    assert done.stdout == "deleted the organization 'short-lived' and 6001 events\n", done.stderr
    assert account.post(EVENT).status == 401
    for table in ("audit_events", "api_keys", "monthly_usage", "idempotency_keys", "imports", "chain_entries"):
        assert account.execute(f"SELECT count(*) FROM {table} WHERE org_id = 'short-lived'") == [(0,)], table
    assert other.count() == 1


def test_an_organization_without_events_can_be_renamed(service: Service, database_url: str) -> None:
    key = command("keys", "create", "acmee", database_url=database_url).stdout.strip()
    assert command("organizations", "rename", "acmee", "renamed", database_url=database_url).returncode == 0
    account = Account(service, "renamed", key)
    assert account.post(EVENT).status == 200
    assert account.count() == 1
    for name, reason in (("acmee", "there is no organization 'acmee'"), ("renamed", "'renamed' has stored events")):
        done = command("organizations", "rename", name, "other", database_url=database_url)
        assert (done.returncode, reason in done.stderr) == (1, True)


def test_renaming_waits_for_requests_that_have_found_their_key(create_schema: Callable[[], str]) -> None:
    url = create_schema()
    set_up(url, "acmee", None)
    with psycopg.connect(url) as request:
        request.execute("SELECT FROM api_keys")
        done = command("organizations", "rename", "acmee", "acme", database_url=url)
        assert (done.returncode, "PostgreSQL took too long" in done.stderr) == (1, True)
    assert command("organizations", "rename", "acmee", "acme", database_url=url).returncode == 0


def test_names_that_look_the_same_are_the_same(database_url: str) -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    assert command("organizations", "create", composed, database_url=database_url).returncode == 0
    done = command("organizations", "create", decomposed, database_url=database_url)
    assert (done.returncode, done.stderr) == (1, f"Error: there is an organization '{composed}' already\n")


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("'postgresql://igris@127.0.0.1/igris'", "begins with a quote: write it without quotes"),
        ("postgresql+psycopg://igris@127.0.0.1/igris", "begins with postgresql+psycopg://; write postgresql://"),
        ("jdbc:postgresql://127.0.0.1/igris", "begins with jdbc:postgresql://; write postgresql://"),
        ("postgresql://igris@127.0.0.1/igris?pgbouncer=true", "has the parameter pgbouncer, which is another driver's"),
        ("postgresql://igris@127.0.0.1/igris?sslmode=require&schema=public", "has the parameter schema, which"),
        ("postgresql://127.0.0.1/igris?password=a&hunter2=x", "must be a URL"),
    ],
)
def test_a_connection_string_of_another_program_is_named(url: str, problem: str) -> None:
    done = igris("keys", "list", database_url=url)
    assert (done.returncode, problem in done.stderr, "hunter2" in done.stderr) == (1, True, False), done.stderr


def test_white_space_around_a_connection_string_is_ignored(database_url: str) -> None:
    assert command("keys", "list", database_url=f" {database_url}\r\n").returncode == 0


def test_the_settings_in_force_are_shown_without_passwords() -> None:
    url = "postgresql://igris:pass%2Fword@db.example.com/igris?sslmode=require&oauth_client_secret=word"
    shown = command("config", database_url=url, THREADS="7").stdout
    assert re.search(r"^THREADS +7 +in the environment +threads", shown, re.MULTILINE)
    assert re.search(r"^IDEMPOTENCY_DAYS +7 +by default", shown, re.MULTILINE)
    assert "word" not in re.sub("password=|[pP]asswords", "", shown)
    [values] = json_lines(command("config", "--json", database_url=url).stdout)
    assert "password=***" in values["DATABASE_URL"]
    assert "host=db.example.com" in values["DATABASE_URL"]
    assert set(values) == {setting.name for setting in config.SETTINGS}


def test_the_program_works_from_any_folder(account: Account, tmp_path: Path) -> None:
    link = tmp_path / "bin"
    link.symlink_to(ROOT / "igris-ingest")
    environ = {"DATABASE_URL": account.service.database_url, "PATH": os.environ["PATH"]}

    def run(*arguments: str) -> str:
        line = [str(link), *arguments]
        return subprocess.run(line, cwd=tmp_path, env=environ, capture_output=True, text=True, check=True).stdout

    assert run("--version") == f"{config.VERSION}\n"
    listed = run("--help")
    assert " import " in listed
    account.post(EVENT)
    assert json.loads(run("events", "--org", account.org_id, "--json"))["receipt"]["organization"] == account.org_id


def test_the_version_is_the_same_everywhere() -> None:
    assert f"\n  version: {config.VERSION}\n" in (ROOT / "openapi.yaml").read_text()


def test_an_organization_of_which_a_request_was_rejected_can_be_renamed(new_account: Callable[..., Account]) -> None:
    account = new_account(0)
    assert account.post(EVENT).status == 429
    done = command("organizations", "rename", account.org_id, "globe", database_url=account.service.database_url)
    assert done.returncode == 0, done.stderr
