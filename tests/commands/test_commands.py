"""The commands, run as their users run them."""

import re
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from dev.service import EVENT, Service, at_once
from tests.support import Account, assert_refused, flask


@pytest.fixture
def empty_database(create_database: Callable[[], str]) -> str:
    return create_database()


def test_a_key_is_printed_alone_and_works(service: Service, database_url: str) -> None:
    made = flask("keys", "create", "commands", "--label", "CI", database_url=database_url)
    assert made.returncode == 0
    key = made.stdout.strip()
    assert re.fullmatch(r"ig_[A-Za-z0-9]{40}", key)
    assert made.stdout == key + "\n"
    answer = service.post(EVENT, key)
    assert answer.json == {"data": {"ingested": 1, "rejected": 0}, "meta": {"remainingQuota": 49_999}}

    listed = flask("keys", "list", "commands", database_url=database_url).stdout
    [header, row] = listed.splitlines()
    assert header.split() == ["id", "prefix", "label", "organization", "created", "expires", "revoked"]
    assert key[:7] in row
    assert "CI" in row
    assert key[7:] not in listed
    assert row.split()[-1] == "-"

    revoked = flask("keys", "revoke", row.split()[0], database_url=database_url)
    assert revoked.returncode == 0
    assert_refused(service.post(EVENT, key), 401, "Unauthorized")
    assert flask("keys", "list", "commands", database_url=database_url).stdout.splitlines()[1].split()[-1] != "-"


def test_only_the_hash_of_a_key_is_stored(account: Account, database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        rows = connection.execute("SELECT api_keys::text FROM api_keys WHERE org_id = %s", [account.org_id]).fetchall()
        assert account.key[7:] not in str(rows)
        query = "SELECT count(*) FROM api_keys WHERE key_hash = sha256(%s::bytea)"
        assert connection.execute(query, [account.key.encode()]).fetchone() == (1,)


def test_a_key_can_expire(database_url: str) -> None:
    assert flask("keys", "create", "expiring", "--expires-in-days", "30", database_url=database_url).returncode == 0
    [_, row] = flask("keys", "list", "expiring", database_url=database_url).stdout.splitlines()
    assert len(re.findall(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ", row)) == 2


def test_a_quota_is_shown_and_set(new_account: Callable[..., Account], database_url: str) -> None:
    account = new_account(quota=10)
    account.post([EVENT] * 3)
    shown = flask("quota", account.org_id, database_url=database_url).stdout
    assert re.fullmatch(rf"{account.org_id}: 3 of 10 events stored in \d{{4}}-\d\d, 7 remaining\n", shown)
    assert "3 of 5 events" in flask("quota", account.org_id, "5", database_url=database_url).stdout
    assert "unlimited" in flask("quota", account.org_id, "unlimited", database_url=database_url).stdout
    assert account.post(EVENT).json["meta"] == {"remainingQuota": None}


def test_a_key_can_come_with_a_quota(service: Service, database_url: str) -> None:
    for quota, remaining in (("3", 2), ("unlimited", None)):
        key = flask("keys", "create", "with-quota", "--monthly-quota", quota, database_url=database_url).stdout.strip()
        assert service.post(EVENT, key).json["meta"] == {"remainingQuota": remaining}


def test_the_default_quota_is_a_setting(service: Service, database_url: str) -> None:
    made = flask("keys", "create", "default-quota", database_url=database_url, DEFAULT_MONTHLY_QUOTA="7")
    assert service.post(EVENT, made.stdout.strip()).json["meta"] == {"remainingQuota": 6}


def test_init_db_is_safe_to_run_again_and_by_several_at_once(empty_database: str) -> None:
    for done in at_once(4, lambda _: flask("init-db", database_url=empty_database)):
        assert (done.returncode, done.stdout) == (0, "")
    flask("keys", "create", "kept", database_url=empty_database)
    assert flask("init-db", database_url=empty_database).returncode == 0
    assert "kept" in flask("keys", "list", database_url=empty_database).stdout


def test_a_database_without_a_schema_is_said_so(empty_database: str, start_service: Callable[..., Service]) -> None:
    done = flask("keys", "list", database_url=empty_database)
    assert done.returncode == 1
    assert "init-db" in done.stderr
    service = start_service(empty_database)
    answer = service.get("/readyz")
    assert (answer.status, answer.json["status"]) == (503, "unavailable")
    assert "init-db" in answer.json["reason"]
    assert_refused(service.post(EVENT, "ig_" + "x" * 40), 503, "Service unavailable")


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
    done = flask(*arguments, database_url=database_url)
    assert done.returncode in (1, 2)
    assert message in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_database_that_is_away_is_one_clear_line() -> None:
    done = flask("keys", "list", database_url="postgresql://igris:hunter2@127.0.0.1:1/igris")
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
def test_a_setting_that_makes_no_sense_stops_the_start(
    database_url: str, setting: str, value: str, tmp_path: Path
) -> None:
    done = flask("keys", "list", database_url=database_url, **{setting: value})
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith(f"igris-ingest: {setting} ")
    assert "hunter2" not in line
    with pytest.raises(RuntimeError, match=re.escape(line)):
        Service(database_url, tmp_path / "log", **{setting: value}).start()


def test_without_a_database_url_it_names_make_run() -> None:
    done = flask("init-db", database_url=None)
    assert done.returncode == 1
    assert done.stderr == "igris-ingest: DATABASE_URL is not set: name a PostgreSQL, or let `make run` start one\n"
