"""The trail as evidence: what is sealed, verified, and amended when events are deleted."""

import hashlib
import json
import os
import pty
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from commands.base import connect, exclusive
from commands.evidence import chain
from commands.evidence.chain import midnight
from commands.evidence.seals import SEALING_DELAY
from commands.organizations import delete_organization
from commands.output import exact
from database import Connection
from dev.service import PROGRAM, at_once, set_up, wait_for
from tests.commands.trail import ODD, change, entries, export, receive, run, seals, verify
from tests.support import Account, igris, json_lines

NOTHING = hashlib.sha256(b"").hexdigest()

# seal


def test_an_entry_is_a_line_of_json_and_its_digest_that_of_the_exported_period(
    account: Account, tmp_path: Path
) -> None:
    receive(account, "2026-03-01T10:00:00Z", "2026-03-01T11:00:00Z", "2026-03-03T10:00:00Z")
    first, quiet, second = entries(account)[:3]
    assert list(first) == [
        *("number", "since", "until", "events", "digest", "previous", "organization", "reason"),
        *("entryDigest", "madeAt"),
    ]
    assert (first["number"], first["since"], first["until"], first["events"]) == (
        1,
        "1970-01-01T00:00:00.000000Z",
        "2026-03-02T00:00:00.000000Z",
        6,
    )
    assert (first["previous"], first["organization"], first["reason"]) == ("0" * 64, account.org_id, None)
    assert (quiet["since"], quiet["events"], quiet["digest"]) == (first["until"], 0, NOTHING)
    assert (second["number"], second["since"], second["until"], second["events"], second["previous"]) == (
        3,
        quiet["until"],
        "2026-03-04T00:00:00.000000Z",
        3,
        quiet["entryDigest"],
    )
    for entry in (first, second):
        period = export(account, tmp_path, "--since", entry["since"], "--until", entry["until"])
        assert hashlib.sha256(period).hexdigest() == entry["digest"]


def test_an_auditor_checks_the_chain_with_coreutils_alone(account: Account, tmp_path: Path) -> None:
    receive(account, "2026-03-01T10:00:00Z", "2026-03-03T10:00:00Z")
    seals(account)
    (tmp_path / "chain").write_text(run(account, "seals", "--org", account.org_id).stdout)
    script = """
        previous=$(printf '%064d' 0)
        while IFS= read -r entry; do
            digest=${entry%%  *}
            line=${entry#*  }
            [ "$(printf '%s\\n' "$line" | sha256sum)" = "$digest  -" ]
            case $line in *'"previous": "'"$previous"'"'*) ;; *) exit 1 ;; esac
            previous=$digest
        done < chain
        echo "$previous"
    """
    done = subprocess.run(["sh", "-ec", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == verify(account)[1]["head"]["entryDigest"]
    (tmp_path / "chain").write_text((tmp_path / "chain").read_text().replace('"events": 3', '"events": 4', 1))
    assert subprocess.run(["sh", "-ec", script], cwd=tmp_path, check=False).returncode == 1


def test_each_day_that_has_ended_is_sealed_also_without_events(account: Account) -> None:
    day = midnight(datetime.now(UTC) - SEALING_DELAY)
    account.execute("UPDATE organizations SET created_at = %s WHERE id = %s", day - timedelta(days=3), account.org_id)
    made = entries(account)
    assert [(entry["events"], entry["digest"]) for entry in made] == [(0, NOTHING)] * 3
    assert [entry["until"] for entry in made] == [exact(day - timedelta(days=days)) for days in (2, 1, 0)]
    assert entries(account) == []  # of today only what was received
    assert verify(account)[0] == 0
    account.execute("DELETE FROM chain_entries WHERE org_id = %s", account.org_id)
    status, report = verify(account)
    assert (status, "nothing was sealed yet, for over a day, and no event waits" in report["problems"][0]) == (3, True)


def test_what_was_received_in_the_last_minute_is_sealed_later(account: Account) -> None:
    account.post(ODD)
    assert seals(account) == []
    assert verify(account)[1]["unsealedEvents"] == len(ODD)
    account.execute("UPDATE audit_events SET received_at = now() - interval '61 s' WHERE org_id = %s", account.org_id)
    [seal] = seals(account)
    assert seal["events"] == len(ODD)
    account.post(ODD)
    status, report = verify(account)
    assert (status, report["intact"], report["problems"], report["amendments"]) == (0, True, [], [])
    assert (report["events"], report["unsealedEvents"], report["head"]) == (len(ODD), len(ODD), seal)


def test_several_at_once_seal_everything_once(account: Account) -> None:
    receive(account, *(f"2026-03-{day:02}T10:00:00Z" for day in range(1, 11)))
    arguments = [PROGRAM, "seal", "--org", account.org_id, "--json"]
    environ = {**os.environ, "DATABASE_URL": account.service.database_url}
    done = at_once(3, lambda _: subprocess.run(arguments, env=environ, capture_output=True, text=True, check=True))
    made = [entry for each in done for entry in json_lines(each.stdout)]
    assert sorted(entry["number"] for entry in made) == list(range(1, len(made) + 1))
    assert sorted(entry["number"] for entry in made if entry["events"]) == list(range(1, 11))
    assert verify(account)[0] == 0


def test_entries_are_printed_again(account: Account) -> None:
    receive(account, "2026-03-01T10:00:00Z", "2026-03-02T10:00:00Z")
    printed = run(account, "seal", "--org", account.org_id).stdout
    assert run(account, "seals", "--org", account.org_id).stdout == printed
    [first, *_] = json_lines(run(account, "seals", "--org", account.org_id, "--json").stdout)
    assert first["number"] == 1


@pytest.mark.skipif(not shutil.which("faketime"), reason="needs faketime")
def test_nothing_is_sealed_if_the_clocks_differ(account: Account) -> None:
    arguments = ["faketime", "+2 minutes", PROGRAM, "seal", "--org", account.org_id]
    environ = {**os.environ, "DATABASE_URL": account.service.database_url}
    done = subprocess.run(arguments, env=environ, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "Error: PostgreSQL's clock is at" in done.stderr
    assert "Set the clock that is wrong" in done.stderr


def test_after_a_clock_that_was_ahead_the_chain_goes_on_with_a_trace(account: Account) -> None:
    receive(account, "2026-03-01T10:00:00Z")
    entries(account)
    ahead = datetime.now(UTC) + timedelta(days=400)
    with connect(account.service.database_url) as connection:
        begun = chain.entries_of(connection, account.org_id)[-1].until
        chain.append(connection, chain.following(connection, account.org_id, [(begun, ahead, 0, chain.NO_EVENTS)]))
    rejected = run(account, "seal", "--org", account.org_id)
    assert (rejected.returncode, "in the future: nothing is sealed" in rejected.stderr) == (1, True)
    assert "in the future: PostgreSQL's clock was ahead" in verify(account)[1]["problems"][0]
    assert run(account, "seal", "--clock-was-ahead").returncode == 2
    set_back = ["seal", "--org", account.org_id, "--clock-was-ahead", "--reason", "NTP was off", "--json"]
    account.post(ODD)
    received = datetime.now(UTC) - timedelta(minutes=3)
    account.execute(
        "UPDATE audit_events SET received_at = %s WHERE org_id = %s AND received_at > '2026-04-01'",
        max(received, begun),
        account.org_id,
    )
    [made, *_] = json_lines(run(account, *set_back).stdout)
    assert (made["events"], made["reason"]) == (len(ODD), "seal --clock-was-ahead: NTP was off")
    status, report = verify(account)
    assert (status, report["problems"], report["events"]) == (0, [], 3 + len(ODD))
    assert "NTP was off: sealed again up to 20" in report["amendments"][0]
    assert f": {len(ODD)} events instead of 0 events up to {exact(ahead)}" in report["amendments"][0]
    assert run(account, *set_back).returncode == 1  # once is enough
    change(account, CHANGES["a row is gone"].replace("2026-03-02T10:00:00Z 1", "=1+1"))
    assert verify(account)[0] == 3


# verify

CHANGES = {
    "the era of a timestamp": """
        UPDATE audit_events
        SET "timestamp" = ("timestamp"::text || ' BC')::timestamptz
        WHERE org_id = %(org)s AND tool_name = '2026-03-02T10:00:00Z 1'
    """,
    "a timestamp is infinite": """
        UPDATE audit_events SET "timestamp" = 'infinity' WHERE org_id = %(org)s AND tool_name = '2026-03-02T10:00:00Z 1'
    """,
    "a digit of metadata": """
        UPDATE audit_events SET metadata = '{"n": 7}' WHERE org_id = %(org)s AND tool_name = '2026-03-02T10:00:00Z 1'
    """,
    "a row is gone": "DELETE FROM audit_events WHERE org_id = %(org)s AND tool_name = '2026-03-02T10:00:00Z 1'",
    "a row is added": """
        INSERT INTO audit_events (org_id, type, tool_name, action, "timestamp", metadata, received_at)
        VALUES (%(org)s, 'custom', 'x', 'log', now(), '{}', '2026-03-02T12:00:00Z')
    """,
    "a row is added before all": """
        INSERT INTO audit_events (org_id, type, tool_name, action, "timestamp", metadata, received_at)
        VALUES (%(org)s, 'custom', 'x', 'log', now(), '{}', '1969-03-02T12:00:00Z')
    """,
    "two rows swap their tools": """
        UPDATE audit_events e SET tool_name = o.tool_name
        FROM audit_events o
        WHERE e.org_id = %(org)s AND o.org_id = %(org)s
          AND e.tool_name IN ('2026-03-02T10:00:00Z 1', '2026-03-02T10:00:00Z 2')
          AND o.tool_name IN ('2026-03-02T10:00:00Z 1', '2026-03-02T10:00:00Z 2')
          AND e.id <> o.id
    """,
    "an entry is rewritten": "UPDATE chain_entries SET events = 4 WHERE org_id = %(org)s AND number = 2",
    "an entry is gone": "DELETE FROM chain_entries WHERE org_id = %(org)s AND number = 2",
    "an event is dated back into a quiet day": """
        INSERT INTO audit_events (org_id, type, tool_name, action, "timestamp", metadata, received_at)
        VALUES (%(org)s, 'custom', 'x', 'log', now(), '{}', '2026-03-15T12:00:00Z')
    """,
    "a time of receipt is infinite": """
        UPDATE audit_events SET received_at = 'infinity'
        WHERE org_id = %(org)s AND tool_name = '2026-03-02T10:00:00Z 1'
    """,
    "an event never had a time of receipt": """
        INSERT INTO audit_events (org_id, type, tool_name, action, "timestamp", metadata, received_at)
        VALUES (%(org)s, 'custom', 'x', 'log', now(), '{}', '-infinity')
    """,
    "all events are gone": "DELETE FROM audit_events WHERE org_id = %(org)s",
}
TIMELESS = (
    "1 event without a time of receipt that a period has: before 1970, infinite or none. The service stores no such "
    "event: ask who has written to audit_events"
)
COMPARE = "An export or a backup of the period shows which: --export"
CHANGED = f"entry 2 (PERIOD): some of 3 events changed after they were sealed. {COMPARE}"
MISSING = f"entry 2 (PERIOD): 1 event of 3 missing from the trail. {COMPARE}"
FOUND = {
    "the era of a timestamp": [CHANGED],
    "a timestamp is infinite": [CHANGED],
    "a digit of metadata": [CHANGED],
    "a row is gone": [MISSING],
    "a row is added": [f"entry 2 (PERIOD): 1 event added to 3 after they were sealed. {COMPARE}"],
    "a row is added before all": [TIMELESS],
    "two rows swap their tools": [CHANGED],
    "an entry is rewritten": [
        "entry 2 (PERIOD) was changed itself",
        f"entry 2 (PERIOD): 1 event of 4 missing from the trail. {COMPARE}",
    ],
    "an entry is gone": ["entry 2 is missing from the chain"],
    "an event is dated back into a quiet day": [
        f"entry 15 (2026-03-15 to 2026-03-16): 1 event added to 0 after they were sealed. {COMPARE}"
    ],
    "a time of receipt is infinite": [TIMELESS, MISSING],
    "an event never had a time of receipt": [TIMELESS],
    "all events are gone": [
        f"entry {day} ({'1970-01-01' if day == 1 else f'2026-03-0{day}'} to 2026-03-0{day + 1}): 3 events of 3 missing "
        f"from the trail. {COMPARE}"
        for day in (1, 2, 3)
    ],
}
PERIOD = "2026-03-02 to 2026-03-03"


@pytest.mark.parametrize("name", CHANGES)
def test_what_was_changed_is_found(sealed: Account, name: str) -> None:
    assert verify(sealed)[0] == 0
    change(sealed, CHANGES[name])
    status, report = verify(sealed)
    assert (status, report["intact"]) == (3, False)
    assert report["problems"] == [problem.replace("PERIOD", PERIOD) for problem in FOUND[name]]
    if FOUND[name] in ([CHANGED], [MISSING]):
        assert verify(sealed, "--until", "2026-03-02")[0] == verify(sealed, "--since", "2026-03-03")[0] == 0
    text = run(sealed, "verify", "--org", sealed.org_id)
    sealed.execute("DELETE FROM audit_events WHERE org_id = %s AND received_at = 'infinity'", sealed.org_id)
    problems = len(FOUND[name])
    assert f"{sealed.org_id}: NOT INTACT: {problems} problem{'s' * (problems > 1)}, above\n" in text.stdout


def test_an_event_without_a_time_of_receipt_is_found(
    create_schema: Callable[[], str], start_service: Callable[..., Any]
) -> None:
    url = create_schema()
    account = Account(start_service(url), "acme", "")
    account.execute("INSERT INTO organizations (id) VALUES ('acme')")
    account.execute("ALTER TABLE audit_events ALTER received_at DROP NOT NULL")
    account.execute("""
        INSERT INTO audit_events (org_id, type, tool_name, action, "timestamp", metadata)
        VALUES ('acme', 'custom', 'x', 'log', now(), '{}')
    """)
    assert verify(account)[1]["problems"] == [TIMELESS]


def test_an_event_that_waits_for_a_seal_for_over_a_day_is_found(account: Account) -> None:
    receive(account, "2026-03-01T10:00:00Z")
    status, report = verify(account)
    assert (status, len(report["problems"])) == (3, 1)
    assert "nothing was sealed yet, for over a day, and the oldest of 2026-03-01T10:00:00.000000Z waits" in str(report)
    seals(account)
    assert verify(account)[0] == 0


def test_events_of_an_organization_that_is_in_no_table_are_found(sealed: Account) -> None:
    try:
        change(sealed, "UPDATE audit_events SET org_id = 'in-no-table' WHERE org_id = %(org)s")
        done = run(sealed, "verify")
        assert done.returncode == 3
        assert "in-no-table: 3 events and 0 entries of an organization that is not in the table" not in done.stdout
        assert "in-no-table: 9 events and 0 entries of an organization that is not in the table" in done.stdout
    finally:
        sealed.execute("DELETE FROM audit_events WHERE org_id = 'in-no-table'")


def keep_heads(account: Account, folder: Path, *options: str) -> list[str]:
    file = folder / "heads.ndjson"
    with file.open("a") as opened:
        opened.write(run(account, "verify", "--org", account.org_id, "--json", *options).stdout)
    return ["--heads", str(file)]


def test_a_chain_that_was_made_again_is_found_by_kept_entries(sealed: Account, tmp_path: Path) -> None:
    kept = keep_heads(sealed, tmp_path)
    (tmp_path / "seals").write_text(run(sealed, "seals", "--org", sealed.org_id, "--json").stdout)
    status, report = verify(sealed, "--heads", str(tmp_path / "seals"))
    assert (status, report["vouched"]) == (
        0,
        f"kept entries vouch for what was received before {report['head']['until'][:10]} (entry {report['entries']}); "
        "after that entry came 0 events and 0 amendments",
    )
    change(sealed, CHANGES["a digit of metadata"])
    sealed.execute("DELETE FROM chain_entries WHERE org_id = %s", sealed.org_id)
    seals(sealed)
    assert verify(sealed)[0] == 0  # the database alone does not show it
    status, report = verify(sealed, *kept)
    assert (status, report["vouched"]) == (
        3,
        "no kept entry of this organization is in the chain: nothing vouches for it",
    )
    assert report["problems"][0].startswith(f"1 kept entry not in the chain: entry {report['entries']} (")
    assert "differs from the entry of that number in the chain" in report["problems"][0]
    _, report = verify(sealed, "--heads", str(tmp_path / "seals"))
    assert report["problems"][0].startswith("entry 1 (1970-01-01 to 2026-03-02): kept as made at 20")
    assert f"{report['entries'] - 1} kept entries not in the chain: entry 2 (" in report["problems"][1]


def test_an_organization_that_vanished_is_found_by_kept_entries(sealed: Account, tmp_path: Path) -> None:
    kept = keep_heads(sealed, tmp_path)
    assert run(sealed, "organizations", "delete", sealed.org_id, "--yes").returncode == 0
    assert run(sealed, "verify", "--org", sealed.org_id).returncode == 1
    status, report = verify(sealed, *kept)
    assert (status, len(report["problems"])) == (3, 2)
    assert "the organization is gone, with its events and its chain" in report["problems"][0]


@pytest.mark.parametrize(
    "line", ["{", "[]", "{}", '{"head": 1}', "1", '{"head": {"number": 1}}', "CHANGED", "[" * 100_000]
)
def test_a_line_that_is_not_an_entry_accuses_no_organization(sealed: Account, tmp_path: Path, line: str) -> None:
    kept = keep_heads(sealed, tmp_path)
    text = (tmp_path / "heads.ndjson").read_text()
    changed = text.replace('"head": {"number": ', '"head": {"number": 1') if line == "CHANGED" else line
    (tmp_path / "heads.ndjson").write_text(f"{text}\n{changed}\n")
    done = run(sealed, "verify", *kept)
    assert (done.returncode, done.stdout) == (1, "")
    assert "heads.ndjson, line 3: not a line that `seal --json` or `verify --json` printed" in done.stderr


def append(account: Account, since: datetime, until: datetime, events: int, digest: bytes, reason: str) -> None:
    """Appends an entry that is right in itself, as the owner of the database can."""
    with connect(account.service.database_url) as connection:
        chain.append(connection, chain.following(connection, account.org_id, [(since, until, events, digest)], reason))


@pytest.mark.parametrize("since", [chain.BEGINNING, datetime(2026, 3, 2, tzinfo=UTC)])
def test_a_set_back_can_not_replace_what_kept_entries_vouch_for(
    sealed: Account, tmp_path: Path, since: datetime
) -> None:
    kept = keep_heads(sealed, tmp_path)
    change(sealed, "DELETE FROM audit_events WHERE org_id = %(org)s AND received_at >= '2026-03-02'")
    until = datetime(2026, 3, 1, 12, tzinfo=UTC) if since == chain.BEGINNING else since + timedelta(seconds=1)
    append(sealed, since, until, 0, chain.NO_EVENTS, f"{chain.CLOCK_WAS_AHEAD}: leap second")
    entries(sealed)
    status, report = verify(sealed, *kept)
    assert (status, report["problems"][0].split(": ")[1]) == (3, "6 events sealed before missing")
    assert "kept entries vouch for, the first entry " in report["problems"][1]
    assert f"vouch for what was received before {chain.brief(since)} (entry" in report["vouched"]


def test_functions_and_views_of_the_owner_do_not_hide_a_forgery(
    create_schema: Callable[[], str], start_service: Callable[..., Any]
) -> None:
    url = create_schema()
    account = Account(start_service(url), "acme", set_up(url, "acme", None))
    receive(account, "2026-03-01T10:00:00Z")
    seals(account)
    account.execute("UPDATE audit_events SET tool_name = 'FORGED' WHERE tool_name LIKE '%% 1'")
    account.execute("""
        CREATE SCHEMA evil;
        CREATE FUNCTION evil.to_json(t text) RETURNS json LANGUAGE sql AS
            $$SELECT pg_catalog.to_json(CASE WHEN t = 'FORGED' THEN '2026-03-01T10:00:00Z 1' ELSE t END)$$;
    """)
    search_path = "-c search_path=evil,pg_catalog,public"
    assert igris("verify", database_url=url, PGOPTIONS=search_path).returncode == 3
    account.execute("""
        ALTER TABLE audit_events RENAME TO hidden;
        CREATE VIEW audit_events AS
        SELECT id, org_id, api_key_id, source, type,
            replace(tool_name, 'FORGED', '2026-03-01T10:00:00Z 1') AS tool_name,
            action, "timestamp", metadata, received_at
        FROM hidden
    """)
    done = igris("verify", database_url=url)
    assert (done.returncode, "audit_events is not the plain table of init-db" in done.stdout) == (3, True)


@pytest.mark.parametrize(
    "change",
    [
        "CREATE RULE hiding AS ON DELETE TO audit_events DO INSTEAD NOTHING",
        "ALTER TABLE audit_events ENABLE ROW LEVEL SECURITY",
    ],
)
def test_rules_and_row_security_are_reported(create_schema: Callable[[], str], change: str) -> None:
    url = create_schema()
    set_up(url, "acme", None)
    with psycopg.connect(url) as connection:
        connection.execute(change.encode())
    done = igris("verify", database_url=url)
    assert (done.returncode, "audit_events is not the plain table of init-db" in done.stdout) == (3, True)


def forged(account: Account, **changes: Any) -> None:
    """Appends an amendment of the second period that is right in itself."""
    with connect(account.service.database_url) as connection:
        second = chain.entries_of(connection, account.org_id)[1]
        period = (second.since, second.until, 2, b"x" * 32)
        [entry] = chain.following(connection, account.org_id, [period], "erase: a request")
        entry = replace(entry, **{**changes, "entry_digest": b""})
        chain.append(connection, [entry])


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"events": 3}, "changes events, or adds some, where it may only delete"),
        ({"events": 4}, "changes events, or adds some, where it may only delete"),
        ({"since": datetime(2026, 3, 2, 10, tzinfo=UTC)}, "amends no sealed period"),
        ({"until": datetime(2026, 3, 2, 10, tzinfo=UTC)}, "amends no sealed period"),
        ({"until": datetime(2026, 3, 4, tzinfo=UTC)}, "amends no sealed period"),  # two periods, and events are left
        ({"reason": None}, "does not begin where the period before it ends"),
        ({"previous": bytes(32)}, "does not follow from the entry before it"),
        ({"until": datetime(2026, 3, 1, tzinfo=UTC), "reason": "seal --clock-was-ahead"}, "amends no sealed period"),
        ({}, "1 event more than entry"),  # nothing was deleted
    ],
)
def test_an_amendment_that_no_command_makes_is_found(sealed: Account, changes: dict[str, Any], problem: str) -> None:
    forged(sealed, **changes)
    status, report = verify(sealed)
    assert (status, problem in str(report["problems"])) == (3, True), report


def test_one_spoilt_row_does_not_stop_the_others(sealed: Account, new_account: Callable[..., Account]) -> None:
    other = new_account()
    receive(other, "2026-03-01T10:00:00Z")
    last = "number = (SELECT max(number) FROM chain_entries WHERE org_id = %s)"
    for column, moment in (("until", "infinity"), ("made_at", "0044-03-15 BC")):
        query = f"UPDATE chain_entries SET {column} = '{moment}' WHERE org_id = %s AND {last}"
        sealed.execute(query, sealed.org_id, sealed.org_id)
    sealed.execute("UPDATE audit_events SET \"timestamp\" = '-infinity' WHERE org_id = %s", sealed.org_id)
    done = run(sealed, "seal")
    assert (done.returncode, f"Error: {sealed.org_id}: the last seal ends at 9999" in done.stderr) == (1, True)
    assert verify(other)[1]["events"] == 3
    assert "to 9999-12-31T23:59:59.999999Z) was changed itself" in str(verify(sealed)[1]["problems"])
    assert run(sealed, "events", "--org", sealed.org_id).stdout.count("\n") == 10
    sealed.execute("DELETE FROM chain_entries WHERE org_id = %s", sealed.org_id)


INSERT_LATE = """
    INSERT INTO audit_events (org_id, type, tool_name, action, "timestamp", metadata, received_at)
    VALUES (%s, 'custom', 'late', 'log', now(), '{}', now() - interval '2 minutes')
"""


def start(account: Account, *arguments: str) -> subprocess.Popen[str]:
    environ = {**os.environ, "DATABASE_URL": account.service.database_url}
    return subprocess.Popen(
        [PROGRAM, *arguments], env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("arguments", [["seal", "--org"], ["organizations", "delete", "--yes"]])
def test_a_transaction_that_is_storing_is_waited_for(account: Account, arguments: list[str]) -> None:
    receive(account, "2026-03-01T10:00:00Z")
    with psycopg.connect(account.service.database_url) as late:
        late.execute(INSERT_LATE, [account.org_id])
        process = start(account, *arguments, account.org_id)
        is_waiting = "SELECT FROM pg_stat_activity WHERE query LIKE '%%FROM pg_locks%%' AND pid <> pg_backend_pid()"
        wait_for(lambda: account.execute(is_waiting))
        late.commit()
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (0, "")
    if "seal" in arguments:
        assert verify(account)[1]["events"] == 4
    else:
        assert account.count() == 0


def undo(account: Account, folder: Path) -> list[str]:
    (folder / "a.ndjson").write_text(json.dumps(ODD[0]))
    assert run(account, "import", str(folder / "a.ndjson"), "--org", account.org_id).returncode == 0
    [[import_id]] = account.execute("SELECT id FROM imports WHERE org_id = %s", account.org_id)
    return ["imports", "undo", "--yes", str(import_id)]


@pytest.mark.parametrize(
    "arguments",
    [
        lambda account, _: ["organizations", "delete", "--yes", account.org_id],
        lambda account, _: ["prune", "--yes", "--before", "1d", "--org", account.org_id],
        undo,
    ],
)
def test_nothing_is_deleted_while_it_is_sealed(
    account: Account, arguments: Callable[[Account, Path], list[str]], tmp_path: Path
) -> None:
    receive(account, "2026-03-01T10:00:00Z")
    command = arguments(account, tmp_path)
    before = account.count()
    with psycopg.connect(account.service.database_url) as connection, exclusive(connection, "seal", account.org_id):
        process = start(account, *command)
        wait_for(lambda: account.execute("SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"))
        assert account.count() == before
    _, errors = process.communicate(timeout=30)
    waiting = f"{account.org_id!r}: another process holds the lock `seal`: waiting\n"
    assert (process.returncode, errors) == (0, waiting)
    assert account.count() < before


@pytest.mark.parametrize("name", ["seal", "verify", "export"])
def test_events_that_are_moved_to_another_partition_are_waited_for(sealed: Account, name: str) -> None:
    sealed.post([ODD[0]] * 3)
    sealed.execute(
        "UPDATE audit_events SET received_at = now() - interval '2 min' WHERE org_id = %s AND tool_name = '=1+1'",
        sealed.org_id,
    )
    with psycopg.connect(sealed.service.database_url) as move:
        move.execute("CREATE TABLE moved AS SELECT * FROM audit_events")
        move.execute("TRUNCATE audit_events")  # as deploy/partitions.sql does with the default partition
        process = start(sealed, name, "--org", sealed.org_id)
        wait_for(lambda: sealed.execute("SELECT FROM pg_locks WHERE locktype = 'relation' AND NOT granted"))
        move.execute("INSERT INTO audit_events SELECT * FROM moved")
        move.execute("DROP TABLE moved")
        move.commit()
    shown, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (0, "exported 12 events\n" if name == "export" else "")
    if name == "seal":
        assert verify(sealed)[1]["events"] == 12
    elif name == "verify":
        assert "intact: 9 events since 2026-03-01; 3 events not sealed yet" in shown
    else:
        assert shown.count("\n") == 12


def test_seals_whose_output_is_not_read_hold_no_lock(account: Account) -> None:
    query = """
        INSERT INTO audit_events (org_id, type, tool_name, action, "timestamp", metadata, received_at)
        SELECT %s, 'custom', 'x', 'log', now(), '{}', now() - i * interval '1 day' FROM generate_series(1, 300) AS i
    """
    account.execute(query, account.org_id)
    process = start(account, "seal", "--org", account.org_id, "--json")  # more than a pipe takes
    wait_for(lambda: account.execute("SELECT FROM chain_entries WHERE org_id = %s AND number = 100", account.org_id))
    assert run(account, "prune", "--org", account.org_id, "--yes", "--before", "250d").returncode == 0
    process.kill()
    process.communicate()
    seals(account)
    assert verify(account)[0] == 0


def test_events_sealed_while_prune_asks_are_pruned_by_complete_periods(account: Account) -> None:
    receive(account, "2026-03-01T10:00:00Z", "2026-03-02T10:00:00Z")
    terminal, end = pty.openpty()
    environ = {**os.environ, "DATABASE_URL": account.service.database_url}
    command = [PROGRAM, "prune", "--org", account.org_id, "--before", "2026-03-02T12:00Z"]
    process = subprocess.Popen(command, env=environ, stdin=end, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    os.close(end)
    assert process.stderr
    assert process.stderr.read(1)  # it asks
    seals(account)
    os.write(terminal, b"y\n")
    shown, _ = process.communicate(timeout=30)
    os.close(terminal)
    assert b"deleted 3 events received before 2026-03-02T12:00:00.000000Z" in shown
    status, report = verify(account)
    assert (status, report["since"], report["events"]) == (0, "2026-03-02T00:00:00.000000Z", 3)


# amendments


def prune(account: Account, before: str, *options: str) -> str:
    done = run(account, "prune", "--org", account.org_id, "--yes", "--before", before, *options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_pruning_keeps_to_complete_periods_and_amends_the_chain(sealed: Account, tmp_path: Path) -> None:
    kept = keep_heads(sealed, tmp_path)
    assert prune(sealed, "2026-03-02T12:00Z", "--reason", "270 days").startswith("deleted 3 events received before")
    status, report = verify(sealed, *kept)
    number = report["entries"]
    made = f"{datetime.now(UTC):%Y-%m-%d}"
    reason = "prune --before 2026-03-02T12:00:00.000000Z: 270 days"
    assert (status, report["events"], report["since"], report["amendments"]) == (
        0,
        6,
        "2026-03-02T00:00:00.000000Z",
        [
            f"entry {number} ({made}): {reason}: 3 events deleted of those received before 2026-03-02; made after "
            "the newest kept entry"
        ],
    )
    head = report["head"]
    assert (head["events"], head["digest"], head["reason"]) == (0, NOTHING, reason)
    assert (
        f"{sealed.org_id}: intact: 6 events since 2026-03-02; before that the trail was pruned (entry {number}, {made}"
        f": {reason}); 0 events not sealed yet; the last entry is {number}, {head['entryDigest']}\n"
    ) in run(sealed, "verify", "--org", sealed.org_id).stdout
    assert prune(sealed, "2026-03-02T12:00Z").startswith("deleted 0 events")
    assert verify(sealed)[1]["entries"] == number  # there was nothing left to say
    assert verify(sealed, "--kept-for", "1d")[0] == 0
    status, report = verify(sealed, "--kept-for", "40000d")
    assert (status, "deleted what is younger than --kept-for: prune --before" in report["problems"][0]) == (3, True)
    change(sealed, CHANGES["a row is added"].replace("2026-03-02", "2026-03-01"))
    assert "1 event more than entry" in verify(sealed)[1]["problems"][0]
    assert "was interrupted, run it again; else they were added" in verify(sealed)[1]["problems"][0]
    prune(sealed, "2026-03-02")
    assert verify(sealed)[0] == 0


def test_a_prune_does_not_hide_that_events_were_missing(sealed: Account) -> None:
    change(sealed, CHANGES["all events are gone"])
    prune(sealed, "0d")
    status, report = verify(sealed)
    assert status == 0
    assert "Z (0 of 9 sealed events were there): 9 events deleted" in report["amendments"][0]


def test_all_that_was_pruned_is_named(sealed: Account, tmp_path: Path) -> None:
    kept = keep_heads(sealed, tmp_path)
    prune(sealed, "0d")
    status, report = verify(sealed, *kept, "--kept-for", "400d")
    assert (status, report["events"], sealed.count()) == (3, 0, 0)
    assert "9 events deleted of those received before" in report["amendments"][0]


def test_what_is_not_sealed_is_not_pruned_where_there_is_a_chain(
    sealed: Account, new_account: Callable[..., Account]
) -> None:
    other = new_account()
    receive(other, "2026-03-05T10:00:00Z")
    sealed.post(ODD)
    run(sealed, "prune", "--yes", "--before", "0d")
    assert (sealed.count(), other.count()) == (len(ODD), 0)
    assert verify(sealed)[0] == 0


def test_an_import_that_is_sealed_is_undone_only_on_purpose(account: Account, tmp_path: Path) -> None:
    account.post(ODD)
    file = tmp_path / "a.ndjson"
    file.write_text("".join(json.dumps(event) + "\n" for event in [*ODD[:1], *ODD[2:]]))
    assert run(account, "import", str(file), "--org", account.org_id).returncode == 0
    for table, column in (
        ("audit_events", "received_at"),
        ("imports", "began_at"),
        ("imports", "ended_at"),
        ("idempotency_keys", "stored_at"),
    ):
        account.execute(f"UPDATE {table} SET {column} = {column} - interval '1 hour' WHERE org_id = %s", account.org_id)
    assert sum(entry["events"] for entry in entries(account)) == 2 * len(ODD) - 1
    kept = keep_heads(account, tmp_path)
    [[import_id]] = account.execute("SELECT id FROM imports WHERE org_id = %s", account.org_id)
    undo = ["imports", "undo", str(import_id), "--yes"]
    rejected = run(account, *undo)
    assert (rejected.returncode, f"{len(ODD) - 1} events of import {import_id} sealed" in rejected.stderr) == (1, True)
    assert verify(account)[0] == 0
    assert run(account, *undo, "--sealed", "--reason", "wrong file").returncode == 0
    status, report = verify(account, *kept)
    assert (status, report["events"], account.count()) == (0, len(ODD), len(ODD))
    assert f"imports undo {import_id}: wrong file: {len(ODD) - 1} events deleted" in report["amendments"][0]


def erase(account: Account, *options: str) -> subprocess.CompletedProcess[str]:
    return run(account, "erase", "--org", account.org_id, "--yes", *options)


def test_a_person_is_erased_and_the_rest_stays_proved(account: Account, tmp_path: Path) -> None:
    for user in ("user_42", 42, "42", {"id": "user_42"}):
        account.post([{"type": "tool_call", "toolName": "t", "metadata": {"userId": user, "n": n}} for n in range(2)])
    account.execute("UPDATE audit_events SET received_at = '2026-03-01T10:00Z' WHERE org_id = %s", account.org_id)
    account.post({"type": "tool_call", "toolName": "not sealed", "metadata": {"userId": "user_42"}})
    seals(account)
    kept = keep_heads(account, tmp_path)
    reason = ["--reason", "request 17"]
    assert erase(account, "--metadata", "userId=user_42").returncode == 2  # without a reason
    assert erase(account, "--metadata", "userId", *reason).returncode == 2
    assert erase(account, "--metadata", "{}", *reason).returncode == 2
    dry = erase(account, "--metadata", "userId=user_42", "--dry-run")
    assert dry.stdout == f"would delete 3 events of '{account.org_id}', and amend 1 sealed period\n"
    assert (account.count(), verify(account)[1]["amendments"]) == (9, [])
    done = erase(account, "--metadata", "userId=user_42", *reason)
    assert done.stdout == f"deleted 3 events of '{account.org_id}', and amended 1 sealed period\n", done.stderr
    for contained, left in (
        (["userId=42", "--metadata", "n=1"], 4),  # a number or a text
        (['{"userId": {"id": "user_42"}}', "--since", "2026-03-02"], 4),
        (['{"userId": {"id": "user_42"}}'], 2),
        (["userId=nobody"], 2),
    ):
        assert erase(account, "--metadata", *contained, *reason).returncode == 0
        assert account.count() == left
    status, report = verify(account, *kept)
    assert (status, report["events"], report["unsealedEvents"]) == (0, 2, 0)
    assert "erase: request 17: 6 events deleted of those received before" in report["amendments"][0]
    assert "user_42" not in run(account, "seals", "--org", account.org_id).stdout
    change(account, "UPDATE audit_events SET tool_name = 'x' WHERE org_id = %(org)s")
    assert verify(account)[0] == 3


def test_an_erasure_that_was_interrupted_ends_when_it_is_run_again(sealed: Account) -> None:
    with psycopg.connect(sealed.service.database_url) as blocker:
        blocker.execute("SELECT FROM audit_events WHERE org_id = %s FOR UPDATE", [sealed.org_id])
        process = start(sealed, "erase", "--org", sealed.org_id, "--metadata", "n=1", "--reason", "request 17")
        wait_for(lambda: sealed.execute("SELECT FROM pg_locks WHERE locktype = 'transactionid' AND NOT granted"))
        process.kill()
        process.communicate()
        sealed.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'transactionid' AND NOT granted"
        )
    assert "If `erase: request 17` was interrupted, run it again" in verify(sealed)[1]["problems"][0]
    wait_for(lambda: "amended 0 sealed periods" in erase(sealed, "--metadata", "n=1", "--reason", "request 17").stdout)
    status, report = verify(sealed)
    assert (status, report["events"], len(report["amendments"])) == (0, 6, 1)


def test_a_command_that_was_interrupted_is_ended_before_another_one(sealed: Account) -> None:
    erased = (
        "DELETE FROM audit_events WHERE org_id = %(org)s AND metadata @> '{\"n\": 1}' AND received_at < '2026-03-02'"
    )
    assert erase(sealed, "--metadata", "n=1", "--until", "2026-03-02", "--reason", "A").returncode == 0
    forged_back = """
        INSERT INTO audit_events (org_id, type, tool_name, action, "timestamp", metadata, received_at)
        VALUES (%(org)s, 'tool_call', 'x', 'log', now(), '{"n": 1}', '2026-03-01T10:00Z')
    """
    change(sealed, forged_back)  # as if the command had been killed before it deleted the event
    rejected = erase(sealed, "--metadata", "n=2", "--reason", "B")
    assert rejected.returncode == 1
    assert "more events than `erase: A` left: that command was interrupted: run it again first" in rejected.stderr
    change(sealed, erased)
    assert erase(sealed, "--metadata", "n=2", "--reason", "B").returncode == 0
    assert verify(sealed)[0] == 0


def test_an_erasure_before_a_prune_has_ended_leaves_the_trail_intact(sealed: Account) -> None:
    with psycopg.connect(sealed.service.database_url) as blocker:
        blocker.execute("SELECT FROM audit_events WHERE org_id = %s FOR UPDATE", [sealed.org_id])
        process = start(sealed, "prune", "--org", sealed.org_id, "--before", "2026-03-03")
        wait_for(lambda: sealed.execute("SELECT FROM pg_locks WHERE locktype = 'transactionid' AND NOT granted"))
        process.kill()
        process.communicate()
        sealed.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'transactionid' AND NOT granted"
        )
    wait_for(lambda: erase(sealed, "--metadata", "n=1", "--reason", "request 17").returncode == 0)
    assert "was interrupted, run it again" in str(verify(sealed)[1]["problems"])
    prune(sealed, "2026-03-03")
    status, report = verify(sealed)
    assert (status, report["problems"], report["events"], sealed.count()) == (0, [], 2, 2)


def test_each_prune_after_a_dropped_partition_amends_the_chain(sealed: Account) -> None:
    for day in (2, 3):
        change(sealed, f"DELETE FROM audit_events WHERE org_id = %(org)s AND received_at < '2026-03-0{day}'")
        prune(sealed, f"2026-03-0{day}")
        status, report = verify(sealed)
        assert (status, len(report["amendments"])) == (0, day - 1)


def test_an_erasure_does_not_hide_a_forgery(sealed: Account) -> None:
    change(sealed, CHANGES["a digit of metadata"])
    assert erase(sealed, "--metadata", "n=2", "--reason", "request 17").returncode == 0
    status, report = verify(sealed)
    assert (status, sealed.count()) == (3, 6)
    assert "the events of the period were not as they were sealed before" in report["problems"][0]
    assert len(report["problems"]) == 1


def test_an_erasure_within_a_period_counts_what_it_deletes(sealed: Account) -> None:
    query = "UPDATE audit_events SET received_at = received_at + %s * interval '1 h' WHERE org_id = %s AND id = %s"
    account = sealed
    change(account, "DELETE FROM chain_entries WHERE org_id = %(org)s")
    for hours, (number,) in enumerate(account.rows("id")[:3]):
        account.execute(query, hours, account.org_id, number)
    seals(account)
    erase = ["erase", "--org", account.org_id, "--metadata", '{"n": 1}', "--reason", "request 17"]
    assert run(account, *erase, "--since", "2026-03-01T12:00Z", "--until", "2026-03-02").stdout.startswith("deleted 0")
    assert run(account, *erase, "--until", "2026-03-01T11:30Z").stdout.startswith("deleted 1 event")
    assert verify(account)[1]["problems"] == []
    both = [*erase, "--metadata", '{"m": 1}']
    assert run(account, *both).stdout.startswith("deleted 0 events")
    assert "a key is given twice" in run(account, *erase, "--metadata", "n=2").stderr


def test_an_organization_that_is_deleted_meanwhile_gets_no_chain(account: Account) -> None:
    receive(account, "2026-03-01T10:00:00Z")
    url = account.service.database_url
    with connect(url) as connection, connect(url) as other:
        with exclusive(connection, "seal", account.org_id):
            sealing = start(account, "seal", "--org", account.org_id)
            wait_for(lambda: waiting_for_advisory_locks(other))
            list(delete_organization(connection, account.org_id))
        output, errors = sealing.communicate()
        assert (sealing.returncode, output) == (0, ""), errors
        assert chain.entries_of(connection, account.org_id) == []


def waiting_for_advisory_locks(connection: Connection) -> int:
    query = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    return int(connection.execute(query).fetchall()[0][0])


@pytest.mark.parametrize("times", ["until = 'infinity'", "since = '-infinity'", "until = '-infinity'"])
def test_an_entry_without_a_possible_period_is_found(sealed: Account, times: str, tmp_path: Path) -> None:
    (tmp_path / "heads").write_text(run(sealed, "verify", "--org", sealed.org_id, "--json").stdout)
    change(sealed, f"UPDATE chain_entries SET {times} WHERE org_id = %(org)s AND number = 2")
    status, report = verify(sealed, "--heads", str(tmp_path / "heads"))
    assert status == 3
    assert any(problem.startswith("entry 2 (") for problem in report["problems"])
    change(sealed, "DELETE FROM chain_entries WHERE org_id = %(org)s AND number <> 2")
    assert verify(sealed, "--heads", str(tmp_path / "heads"))[0] == 3
    assert run(sealed, "check").returncode == 2
    assert run(sealed, "seal", "--org", sealed.org_id).returncode == ("until" in times)
    change(sealed, "DELETE FROM chain_entries WHERE org_id = %(org)s")
