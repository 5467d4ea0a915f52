"""Day two: pruning, looking at what arrived, upgrading the schema."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
import wcwidth

from commands.events import newest
from commands.evidence.trail import Filters
from commands.prune import BATCH, find_prunable, prune_events
from database import Connection
from dev.service import EVENT, PROGRAM, Service, set_up
from storage import key_hash
from tests.support import Account, command, igris, json_lines


def run(account: Account, *arguments: str) -> subprocess.CompletedProcess[str]:
    return igris(*arguments, database_url=account.service.database_url)


def receive(account: Account, *moments: str) -> None:
    """Stores an event for each moment, as if it had been received then."""
    for moment in moments:
        account.post({**EVENT, "toolName": moment})
    account.execute("UPDATE audit_events SET received_at = tool_name::timestamptz WHERE org_id = %s", account.org_id)


# prune


def test_old_events_are_pruned(account: Account, new_account: Callable[..., Account]) -> None:
    other = new_account()
    for each in (account, other):
        receive(each, "2026-02-28T23:59:59Z", "2026-03-01T00:00:00Z", "2026-03-01T00:30:00+01:00", "2026-11-01T00:00Z")
    arguments = ["prune", "--before", "2026-03-01", "--org", account.org_id]
    counted = run(account, *arguments, "--dry-run").stdout.splitlines()
    assert counted[1].split() == [account.org_id, "2", "2026-03-01", "00:00:00Z"]
    assert counted[-1] == "2 events received before 2026-03-01 would be deleted"
    assert account.count() == 4

    pruned = run(account, *arguments)
    assert (pruned.returncode, pruned.stderr) == (0, "")
    assert pruned.stdout == "deleted 2 events received before 2026-03-01\ndeleted 0 expired idempotency keys\n"
    assert (account.count(), account.used(), other.count()) == (2, 4, 4)

    assert run(account, "prune", "--before", "2026-03-01T00:00:01Z").returncode == 0
    assert (account.count(), other.count()) == (1, 1)
    assert run(account, "prune", "--before", "9000d", "--org", account.org_id).stdout.startswith("deleted 0 events")


def test_pruning_goes_in_batches_past_what_stays(new_account: Callable[..., Account], connection: Connection) -> None:
    account = new_account(quota=None)
    for _ in range(3):
        account.post([EVENT] * 9000)
    account.execute(
        "UPDATE audit_events SET received_at = '2020-01-01Z' WHERE org_id = %s AND id %% 2 = 0", account.org_id
    )
    before = datetime(2025, 1, 1, tzinfo=UTC)
    [prunable] = find_prunable(connection, before, account.org_id)
    batches = list(prune_events(connection, prunable))
    assert batches == [BATCH, BATCH, 13_500 - 2 * BATCH]
    assert account.count() == 13_500


def test_expired_idempotency_keys_are_pruned(account: Account, new_account: Callable[..., Account]) -> None:
    other = new_account()
    for each in (account, other):
        for key in "abc":
            each.post(EVENT, Idempotency_Key=key)
        each.execute("UPDATE idempotency_keys SET expires_at = now() WHERE key <> 'b' AND org_id = %s", each.org_id)
    pruned = run(account, "prune", "--before", "2020-01-01", "--org", account.org_id)
    assert pruned.stdout.endswith("deleted 2 expired idempotency keys\n")
    query = "SELECT key FROM idempotency_keys WHERE org_id = %s ORDER BY key"
    assert account.execute(query, account.org_id) == [("b",)]
    assert len(account.execute(query, other.org_id)) == 3
    assert account.post(EVENT, Idempotency_Key="b").headers["Idempotency-Replayed"] == "true"


def test_what_is_pruned_can_be_imported_again(account: Account, tmp_path: Path) -> None:
    file = tmp_path / "a.ndjson"
    file.write_text((json.dumps(EVENT) + "\n") * 1003)
    import_ = ["import", str(file), "--timestamp-now", "--org", account.org_id]
    assert "stored 1003," in run(account, *import_).stdout
    run(account, "prune", "--before", "2025-01-01", "--org", account.org_id)
    assert "stored 0, already stored 1003" in run(account, *import_).stdout  # it goes by the receipt
    run(account, "prune", "--before", "0d", "--org", account.org_id)
    assert account.execute("SELECT ingested FROM idempotency_keys WHERE org_id = %s", account.org_id) == []
    assert "stored 1003, already stored 0" in run(account, *import_).stdout


def test_without_a_date_only_expired_keys_are_deleted(account: Account) -> None:
    for key in ("a", "b"):
        account.post(EVENT, Idempotency_Key=key)
    account.execute("UPDATE idempotency_keys SET expires_at = now() WHERE org_id = %s AND key = 'a'", account.org_id)
    assert run(account, "prune", "--org", account.org_id).stdout == "deleted 1 expired idempotency keys\n"
    assert run(account, "prune", "--before", "", "--org", account.org_id).returncode == 2  # PRUNE_BEFORE is not set
    assert account.count() == 2


# events, usage


@pytest.mark.measures
@pytest.mark.parametrize(
    "arguments", [["events", "--limit", "60"], ["events", "--json", "--limit", "60"], ["export"], ["seal"]]
)
def test_long_numbers_take_neither_memory_nor_the_disk_of_postgresql(
    create_schema: Callable[[], str], start_service: Callable[..., Service], arguments: list[str], tmp_path: Path
) -> None:
    """128 numbers of 131,072 digits are 260 kB to send, some kB to store, and 16 MB to read."""
    url = create_schema()
    account = Account(start_service(url), "acme", set_up(url, "acme", None))
    metadata = {"pad": "x" * 262_144, "n": 0}
    event = json.dumps({**EVENT, "metadata": metadata}).replace('"n": 0', f'"n": [{",".join(["1e131071"] * 128)}]')
    for _ in range(20):
        assert account.post(event.encode()).status == 200
    account.execute("UPDATE audit_events SET received_at = '2026-03-01'")
    program = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)\n"
    program += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    organization = [] if arguments[0] == "events" else ["--org", "acme"]
    command = [sys.executable, "-c", program, PROGRAM, *arguments, *organization]
    done = subprocess.run(command, env={**os.environ, "DATABASE_URL": url}, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 300_000
    [(written,)] = account.execute("SELECT temp_bytes FROM pg_stat_database WHERE datname = current_database()")
    assert written < 2**20


def test_events_shows_the_newest_last(account: Account) -> None:
    account.post([{**EVENT, "toolName": f"tool-{i}", "metadata": {"n": i}} for i in range(30)])
    [header, *lines] = run(account, "events", "--org", account.org_id).stdout.splitlines()
    assert header.split() == ["received_at", "type", "action", "tool_name", "metadata"]
    assert len(lines) == 20
    assert re.search(r"Z  tool_call  log +tool-29 +\{\"n\": 29\}$", lines[-1])
    everybody = run(account, "events").stdout.splitlines()
    assert everybody[0].split() == ["received_at", "org_id", "type", "action", "tool_name", "metadata"]
    newest = [json.loads(line) for line in run(account, "events", "--limit", "2", "--json").stdout.splitlines()]
    assert [event["toolName"] for event in newest] == ["tool-28", "tool-29"]
    assert newest[1]["metadata"] == {"n": 29}
    assert newest[1]["receipt"]["organization"] == account.org_id
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", newest[1]["receipt"]["receivedAt"])


def test_events_finds_what_came_long_ago(account: Account) -> None:
    account.post(EVENT)
    account.execute("UPDATE audit_events SET received_at = '2020-01-01' WHERE org_id = %s", account.org_id)
    assert len(run(account, "events", "--org", account.org_id, "--json").stdout.splitlines()) == 1


def test_events_of_all_organizations_are_found_however_old(
    create_schema: Callable[[], str], start_service: Callable[..., Service]
) -> None:
    url = create_schema()
    account = Account(start_service(url), "acme", set_up(url, "acme", None))
    account.post([EVENT] * 3)
    account.execute("UPDATE audit_events SET received_at = now() - (4 - id) * interval '20 days'")
    with psycopg.connect(url) as connection:
        assert newest(connection, Filters(), 10) == [("acme", 1), ("acme", 2), ("acme", 3)]
        assert newest(connection, Filters(), 1) == [("acme", 3)]


def test_metadata_keeps_its_digits_and_can_not_touch_the_terminal(account: Account) -> None:
    account.post(b'{"type": "custom", "toolName": "a\\u001b[2J\\u0085b", "metadata": {"n": 1.10000000000000000001}}')
    shown = run(account, "events", "--org", account.org_id)
    assert r"a\x1b[2J\x85b" in shown.stdout
    account.post('{"type": "custom", "toolName": "x", "metadata": {"c1": "\x9b31m\x7f", "n": "ü"}}'.encode())
    assert '{"n": "\\u00fc", "c1": "\\u009b31m\\u007f"}' in run(account, "events", "--limit", "1", "--json").stdout
    exact = run(account, "events", "--org", account.org_id, "--json").stdout.splitlines()[0]
    assert '"metadata": {"n": 1.10000000000000000001}' in exact
    assert json.loads(exact)["toolName"] == "a\x1b[2J\x85b"


def test_events_can_be_followed_also_when_one_is_committed_late(account: Account) -> None:
    account.post({**EVENT, "toolName": "before"})
    process = subprocess.Popen(
        [PROGRAM, "events", "--org", account.org_id, "--follow", "--json"],
        env={**os.environ, "DATABASE_URL": account.service.database_url, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout

    def next_tool() -> str:
        return str(json.loads(process.stdout.readline())["toolName"])  # type: ignore[union-attr]

    assert next_tool() == "before"
    with psycopg.connect(account.service.database_url) as slow:
        slow.execute(
            """
            INSERT INTO audit_events (org_id, type, tool_name, action, "timestamp", metadata, received_at)
            VALUES (%s, 'custom', 'late', 'log', now(), '{}', now())
            """,
            [account.org_id],
        )
        account.post([{**EVENT, "toolName": name} for name in ("first", "second")])
        assert [next_tool(), next_tool()] == ["first", "second"]
        slow.commit()
    assert next_tool() == "late"
    account.post({**EVENT, "toolName": "last"})
    assert next_tool() == "last"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=15)
    assert (process.returncode, errors) == (130, "")


@pytest.mark.parametrize("is_plain", [False, True])
def test_on_a_terminal_events_fit_its_width(account: Account, is_plain: bool) -> None:
    account.post(
        [
            {**EVENT, "toolName": "検索" * 20, "action": "deny"},
            {**EVENT, "toolName": "deny", "metadata": {"long": "x" * 200}},
        ]
    )
    environ = {**os.environ, "DATABASE_URL": account.service.database_url, "COLUMNS": "80", "TERM": "xterm"}
    environ |= {"NO_COLOR": "1"} if is_plain else {}
    for options in (["--org", account.org_id], []):
        terminal, end = pty.openpty()
        command = [PROGRAM, "events", "--limit", "2", *options]
        subprocess.run(command, env=environ, stdout=end, stderr=subprocess.PIPE, check=True)
        os.close(end)
        shown = os.read(terminal, 10_000).decode()
        os.close(terminal)
        assert shown.count("\x1b[31mdeny") == (0 if is_plain else 1)
        lines = re.sub(r"\x1b\[\d*m", "", shown).split("\r\n")[:-1]
        assert len(lines) == 3
        assert max(wcwidth.width(line) for line in lines) <= 80
        assert "検索検" in lines[1]
        assert lines[2].endswith("…")


def test_events_can_be_chosen_by_the_filters_of_export(account: Account) -> None:
    account.post([{**EVENT, "toolName": f"tool-{i}", "action": "deny" if i % 2 else "log"} for i in range(6)])
    chosen = ["events", "--org", account.org_id, "--json", "--since", "2020-01-01"]

    def tools(*options: str) -> list[str]:
        return [json.loads(line)["toolName"] for line in run(account, *chosen, *options).stdout.splitlines()]

    assert tools("--action", "deny") == ["tool-1", "tool-3", "tool-5"]
    assert tools("--action", "deny", "--limit", "1") == ["tool-5"]
    assert tools("--tool", "tool-2") == ["tool-2"]
    assert tools("--until", "2021-01-01") == tools("--type", "embedding") == []


def test_usage_is_a_table_of_all_organizations(new_account: Callable[..., Account]) -> None:
    limited, unlimited = new_account(quota=8), new_account(quota=None)
    for account in (limited, unlimited):
        account.post([EVENT] * 3)
    lines = {line.split()[0]: line.split()[1:] for line in run(limited, "usage").stdout.splitlines()}
    assert lines["organization"] == ["stored", "quota", "share"]
    assert lines[limited.org_id] == ["3", "8", "37.5%"]
    assert lines[unlimited.org_id] == ["3", "unlimited", "-"]
    rows = {row["organization"]: row for row in json_lines(run(limited, "usage", "--json").stdout)}
    assert rows[limited.org_id] == {"organization": limited.org_id, "stored": 3, "quota": 8, "share": 0.375}
    assert rows[unlimited.org_id] == {"organization": unlimited.org_id, "stored": 3, "quota": None, "share": None}
    assert re.search(rf"^{limited.org_id} +0 ", run(limited, "usage", "--month", "2020-02").stdout, re.MULTILINE)


def test_keys_are_listed_for_scripts(account: Account) -> None:
    [key] = json_lines(run(account, "keys", "list", account.org_id, "--json").stdout)
    assert key["organization"] == account.org_id
    assert key["revoked"] is None
    assert key["created"].endswith("Z")
    assert account.key[7:] not in str(key)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prune", "--before", "2026-W10"], "'2026-W10' is not a date"),
        (["prune", "--before", "9999-12-31T23:59:59-12:00"], "'9999-12-31T23:59:59-12:00' is not a date"),
        (["prune", "--before", "2126-03-01"], "2126-03-01 is in the future"),
        (["prune", "--before", "yesterday"], "'yesterday' is not a date; use 2026-03-01"),
        (["prune", "--before", "2026-03-01T10:00"], "has no time zone; add Z for UTC"),
        (["prune", "--before", "2026-03-01", "--org", "nobody"], "there is no organization 'nobody'"),
        (["events", "--org", "nobody"], "there is no organization 'nobody'"),
        (["events", "--org", "nobody", "--follow"], "there is no organization 'nobody'"),
        (["events", "--limit", "0"], "0 is not in the range"),
        (["usage", "--month", "2026-13"], "'2026-13' is not a month; use YYYY-MM"),
    ],
)
def test_a_wrong_argument_is_one_clear_line(database_url: str, arguments: list[str], message: str) -> None:
    done = igris(*arguments, database_url=database_url)
    assert done.returncode in (1, 2)
    assert message in done.stderr.splitlines()[-1]


# init-db


def catalog(url: str) -> Any:
    """The tables as PostgreSQL describes them."""
    with psycopg.connect(url) as connection:
        return [
            connection.execute(query.encode()).fetchall()
            for query in (
                """
                SELECT table_name, column_name, data_type, is_nullable, column_default
                FROM information_schema.columns WHERE table_schema = 'public' ORDER BY table_name, ordinal_position
                """,
                "SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1",
                "SELECT conrelid::regclass::text, pg_get_constraintdef(oid) FROM pg_constraint ORDER BY 1, 2",
                "SELECT relname, reloptions FROM pg_class WHERE relnamespace = 'public'::regnamespace ORDER BY 1",
                "SELECT version FROM schema_version",
            )
        ]


def test_an_older_schema_is_upgraded_with_its_rows(
    create_database: Callable[[], str], create_schema: Callable[[], str], add_step: Callable[[], None]
) -> None:
    url = create_schema()
    key = set_up(url, "acme", 10)
    add_step()
    for _ in range(2):
        done = command("init-db", database_url=url)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "the schema is ready\n")
    new = create_database()
    command("init-db", database_url=new)
    assert catalog(url) == catalog(new)
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT org_id FROM api_keys WHERE key_hash = %s", [key_hash(key)]).fetchall()


def test_a_step_that_fails_changes_nothing(create_schema: Callable[[], str], add_step: Callable[[], None]) -> None:
    url = create_schema()
    before = catalog(url)
    add_step()
    with psycopg.connect(url) as connection:
        connection.execute("CREATE INDEX organizations_note_idx ON organizations (created_at)")
        connection.execute("ALTER TABLE organizations ADD COLUMN note text")
    changed = catalog(url)
    with pytest.raises(RuntimeError, match="already exists"):
        command("init-db", database_url=url)
    assert changed != before
    assert catalog(url) == changed


def test_an_upgrade_does_not_wait_behind_a_long_transaction(
    create_schema: Callable[[], str], add_step: Callable[[], None]
) -> None:
    url = create_schema()
    add_step()
    with psycopg.connect(url) as reader:
        reader.execute("SELECT * FROM organizations")
        done = command("init-db", database_url=url)
        assert (done.returncode, done.stderr.startswith("Error: PostgreSQL took too long")) == (1, True)
    assert command("init-db", database_url=url).returncode == 0


def test_a_schema_of_before_the_first_release_is_one_clear_line(create_schema: Callable[[], str]) -> None:
    url = create_schema()
    with psycopg.connect(url) as connection:
        connection.execute("ALTER FUNCTION store_events_v1 RENAME TO store_events_3")
        connection.execute("UPDATE schema_version SET version = 5")
    done = command("init-db", database_url=url)
    line = "Error: the schema is older than 1.0.0: use an empty database (for `make run`, delete var/)\n"
    assert (done.returncode, done.stderr) == (1, line)


def test_a_newer_schema_is_rejected(create_schema: Callable[[], str]) -> None:
    url = create_schema()
    with psycopg.connect(url) as connection:
        connection.execute("UPDATE schema_version SET version = version + 1")
    before = catalog(url)
    done = igris("init-db", database_url=url)
    assert done.returncode == 1
    assert re.fullmatch(r"Error: the schema has version 2, and the program 1: upgrade the program\n", done.stderr)
    assert catalog(url) == before
