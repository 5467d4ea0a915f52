"""The trail as evidence: what is exported, sealed, verified and pruned."""

import csv
import hashlib
import io
import json
import os
import pty
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from commands.base import exclusive
from commands.evidence.trail import LINE, Filters, lines
from dev.service import PROGRAM, ROOT, Service, at_once, set_up, wait_for
from schemas import Event
from tests.support import Account, command

ODD = [
    {"type": "tool_call", "toolName": "=1+1", "action": "deny", "timestamp": "0001-01-01T00:00:00Z"},
    {"type": "completion", "toolName": "'quoted\"\n\t\u0001\u2028😀\x7f", "timestamp": "9999-12-31T23:59:59.999999Z"},
    {"type": "custom", "toolName": "-", "action": "alert", "timestamp": "2026-03-19T10:00:00.123456+14:00"},
    {
        "type": "embedding",
        "toolName": "\\x",
        "timestamp": "2026-03-19T10:00:00Z",
        "metadata": {"b": [], "a": {"c": None}},
    },
]
EXACT = (
    b'{"type": "custom", "toolName": "x", "timestamp": "2026-03-19T10:00:00Z", "metadata": {"n": 1.50, "big": 1e40}}'
)


def run(account: Account, *arguments: str) -> subprocess.CompletedProcess[str]:
    return command(*arguments, database_url=account.service.database_url)


def export(account: Account, folder: Path, *options: str, name: str = "trail.ndjson") -> bytes:
    file = folder / name
    file.unlink(missing_ok=True)
    done = run(account, "export", "--org", account.org_id, "--output", str(file), *options)
    assert done.returncode == 0, done.stderr
    return file.read_bytes()


def receive(account: Account, *moments: str) -> None:
    """Stores three events for each moment, as if they had been received then, and nothing else."""
    for moment in moments:
        account.post([{"type": "tool_call", "toolName": f"{moment} {n}", "metadata": {"n": n}} for n in range(3)])
        query = "UPDATE audit_events SET received_at = %s WHERE org_id = %s AND tool_name LIKE %s"
        account.execute(query, moment, account.org_id, f"{moment}%")


def seals(account: Account) -> list[dict[str, Any]]:
    done = run(account, "seal", "--org", account.org_id, "--json")
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def verify(account: Account, *options: str) -> tuple[int, dict[str, Any]]:
    done = run(account, "verify", "--org", account.org_id, "--json", *options)
    return done.returncode, json.loads(done.stdout)


# export


def test_a_line_of_the_export_is_canonical(account: Account, tmp_path: Path) -> None:
    account.post(ODD)
    account.post(EXACT)
    exported = export(account, tmp_path)
    [(key_id,)] = account.execute("SELECT id FROM api_keys WHERE org_id = %s", account.org_id)
    ids = [id_ for (id_,) in account.rows("id")]
    received = [at for (at,) in account.rows("""to_char(received_at, 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')""")]
    receipts = [
        f'"receipt": {{"id": {id_}, "organization": "{account.org_id}", "apiKeyId": {key_id}, "source": "raw", '
        f'"receivedAt": "{at}"}}}}'
        for id_, at in zip(ids, received, strict=True)
    ]
    assert exported.decode().split("\n") == [
        '{"type": "tool_call", "toolName": "=1+1", "action": "deny", "timestamp": "0001-01-01T00:00:00.000000Z", '
        f'"metadata": {{}}, {receipts[0]}',
        '{"type": "completion", "toolName": "\'quoted\\"\\n\\t\\u0001\u2028😀\x7f", "action": "log", '
        f'"timestamp": "9999-12-31T23:59:59.999999Z", "metadata": {{}}, {receipts[1]}',
        '{"type": "custom", "toolName": "-", "action": "alert", "timestamp": "2026-03-18T20:00:00.123456Z", '
        f'"metadata": {{}}, {receipts[2]}',
        '{"type": "embedding", "toolName": "\\\\x", "action": "log", "timestamp": "2026-03-19T10:00:00.000000Z", '
        f'"metadata": {{"a": {{"c": null}}, "b": []}}, {receipts[3]}',
        '{"type": "custom", "toolName": "x", "action": "log", "timestamp": "2026-03-19T10:00:00.000000Z", '
        f'"metadata": {{"n": 1.50, "big": {10**40}}}, {receipts[4]}',
        "",
    ]


def test_the_line_does_not_depend_on_settings_of_the_session(account: Account) -> None:
    account.post(ODD)
    made = []
    for options in (
        "",
        "-c timezone=Asia/Kathmandu -c DateStyle=German -c extra_float_digits=-5 -c bytea_output=escape",
    ):
        with (
            psycopg.connect(account.service.database_url, options=options) as connection,
            lines(connection, Filters(account.org_id)) as found,
        ):
            made.append(list(found))
    assert made[0] == made[1]
    assert len(made[0]) == len(ODD)


def test_the_line_has_every_field_of_the_event() -> None:
    for name in Event().fields:
        assert f'"{name}": ' in LINE


@pytest.mark.parametrize("file_format", ["ndjson", "csv"])
def test_what_is_exported_is_imported_as_what_was_sent(
    account: Account, new_account: Callable[..., Account], tmp_path: Path, file_format: str
) -> None:
    other = new_account()
    account.post(ODD)
    account.post(EXACT)
    export(account, tmp_path, "--format", file_format, name=f"trail.{file_format}")
    done = run(other, "import", str(tmp_path / f"trail.{file_format}"), "--org", other.org_id)
    assert (done.returncode, done.stdout) == (0, "read 5, stored 5, already stored 0, rejected 0\n"), done.stderr
    columns = 'type, tool_name, action, "timestamp"::text, metadata::text'
    assert account.rows(columns) == other.rows(columns)


def test_csv_runs_nothing_in_a_spreadsheet(account: Account, tmp_path: Path) -> None:
    names = ["=1", "+1", "-1", "@1", "\t=1", "\r=1", "\n=1", "  =1", "\uff1d1", "'=1", "1=1"]
    account.post([{"type": "custom", "toolName": name} for name in names])
    rows = list(csv.DictReader(io.StringIO(export(account, tmp_path, "--format", "csv").decode(), newline="")))
    assert [row["toolName"] for row in rows] == [*(f"'{name}" for name in names[:-1]), "1=1"]


def test_the_events_of_an_export_can_be_chosen(account: Account, tmp_path: Path) -> None:
    receive(account, "2026-03-01T00:00:00Z", "2026-03-02T00:00:00Z")
    account.post(ODD)

    def names(*options: str) -> list[str]:
        return [json.loads(line)["toolName"] for line in export(account, tmp_path, *options).splitlines()]

    assert names("--since", "2026-03-01", "--until", "2026-03-02") == [f"2026-03-01T00:00:00Z {n}" for n in range(3)]
    assert names("--since", "2026-03-02", "--type", "tool_call", "--action", "log") == [
        f"2026-03-02T00:00:00Z {n}" for n in range(3)
    ]
    assert names("--tool", "=1+1") == names("--action", "deny") == ["=1+1"]
    [(key_id,)] = account.execute("SELECT id FROM api_keys WHERE org_id = %s", account.org_id)
    assert len(names("--key", str(key_id))) == 6 + len(ODD)
    assert names("--key", str(key_id + 1)) == []


def test_an_export_gets_its_name_when_it_is_whole(account: Account, tmp_path: Path) -> None:
    account.post(ODD)
    file = tmp_path / "trail.ndjson"
    file.write_text("mine")
    done = run(account, "export", "--org", account.org_id, "--output", str(file))
    assert (done.returncode, file.read_text()) == (1, "mine")
    done = run(account, "export", "--org", "nobody", "--output", str(tmp_path / "b"))
    assert (done.returncode, sorted(path.name for path in tmp_path.iterdir())) == (1, ["trail.ndjson"])
    (tmp_path / "c.part").touch()
    done = run(account, "export", "--org", account.org_id, "--output", str(tmp_path / "c"))
    assert "c.part: another export writes it, or was killed; then remove it" in done.stderr


def test_an_output_that_is_full_or_gone_is_said(account: Account) -> None:
    account.post([ODD[0]] * 3000)
    environ = {**os.environ, "DATABASE_URL": account.service.database_url}
    for path, name, status, said in (
        ("/dev/full", "export", 1, "Error: standard output: No space left on device\n"),
        ("/dev/full", "events", 1, "Error: standard output: No space left on device\n"),
        ("/dev/full", "verify", 1, "Error: standard output: No space left on device\n"),
        ("/dev/null", "export", 0, "exported 3000 events\n"),
    ):
        with Path(path).open("wb") as output:
            arguments = [PROGRAM, name, "--org", account.org_id]
            done = subprocess.run(arguments, env=environ, stdout=output, stderr=subprocess.PIPE, text=True, check=False)
        assert (done.returncode, done.stderr) == (status, said)
    piped = f"{PROGRAM} export --org {account.org_id} | head -1"
    done = subprocess.run(["sh", "-c", piped], env=environ, capture_output=True, text=True, check=False)
    assert (done.stdout.count("\n"), done.stderr) == (1, "")


# seal and verify


def test_the_digest_of_a_seal_is_that_of_the_exported_period(account: Account, tmp_path: Path) -> None:
    receive(account, "2026-03-01T10:00:00Z", "2026-03-01T11:00:00Z", "2026-03-03T10:00:00Z")
    first, second = seals(account)
    assert (first["number"], first["since"], first["until"], first["events"]) == (
        1,
        "1970-01-01T00:00:00.000000Z",
        "2026-03-02T00:00:00.000000Z",
        6,
    )
    assert (second["number"], second["since"], second["until"], second["events"], second["previous"]) == (
        2,
        first["until"],
        "2026-03-04T00:00:00.000000Z",
        3,
        first["seal"],
    )
    for seal in (first, second):
        period = export(account, tmp_path, "--since", seal["since"], "--until", seal["until"])
        assert hashlib.sha256(period).hexdigest() == seal["digest"]
        text = " ".join(str(seal[name]) for name in ("number", "since", "until", "events", "digest", "previous"))
        assert hashlib.sha256(f"{text} {account.org_id}\n".encode()).hexdigest() == seal["seal"]
    assert first["previous"] == "0" * 64
    assert seals(account) == []


def test_what_was_received_in_the_last_minute_is_sealed_later(account: Account) -> None:
    account.post(ODD)
    assert seals(account) == []
    assert verify(account)[1]["unsealedEvents"] == len(ODD)
    account.execute("UPDATE audit_events SET received_at = now() - interval '61 s' WHERE org_id = %s", account.org_id)
    [seal] = seals(account)
    assert seal["events"] == len(ODD)
    account.post(ODD)
    assert verify(account) == (
        0,
        {
            "organization": account.org_id,
            "seals": 1,
            "pruned": 0,
            "prunedUntil": None,
            "wholeEvents": len(ODD),
            "unsealedEvents": len(ODD),
            "head": seal["seal"],
            "problems": [],
        },
    )


def test_several_at_once_seal_everything_once(account: Account) -> None:
    receive(account, *(f"2026-03-{day:02}T10:00:00Z" for day in range(1, 11)))
    arguments = [PROGRAM, "seal", "--org", account.org_id, "--json"]
    environ = {**os.environ, "DATABASE_URL": account.service.database_url}
    done = at_once(3, lambda _: subprocess.run(arguments, env=environ, capture_output=True, text=True, check=True))
    numbers = [json.loads(line)["number"] for each in done for line in each.stdout.splitlines()]
    assert sorted(numbers) == list(range(1, 11))
    assert verify(account)[0] == 0


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
    "a seal is rewritten": "UPDATE seals SET events = 4 WHERE org_id = %(org)s AND number = 2",
    "a seal is gone": "DELETE FROM seals WHERE org_id = %(org)s AND number = 2",
    "a seal in between is marked as pruned": """
        UPDATE seals SET pruned_at = now() WHERE org_id = %(org)s AND number = 2
    """,
}
FOUND = {
    "the era of a timestamp": ["seal 2 (PERIOD): not all of 3 events are what they were"],
    "a timestamp is infinite": ["seal 2 (PERIOD): not all of 3 events are what they were"],
    "a digit of metadata": ["seal 2 (PERIOD): not all of 3 events are what they were"],
    "a row is gone": ["seal 2 (PERIOD): 1 of 3 events are missing"],
    "a row is added": ["seal 2 (PERIOD): 1 events were added to 3"],
    "a row is added before all": ["1 events are older than the first seal's beginning"],
    "two rows swap their tools": ["seal 2 (PERIOD): not all of 3 events are what they were"],
    "a seal is rewritten": ["seal 2 (PERIOD) was changed itself", "seal 2 (PERIOD): 1 of 4 events are missing"],
    "a seal is gone": ["seal 2 is missing"],
    "a seal in between is marked as pruned": [
        "seal 2 (PERIOD) is marked as pruned, and the one before it is not",
        "seal 2 (PERIOD) was pruned by `None`, and 3 events are there: run that again if it was interrupted",
    ],
}
PERIOD = "2026-03-02T00:00:00.000000Z to 2026-03-03T00:00:00.000000Z"


@pytest.fixture
def sealed(account: Account) -> Account:
    receive(account, *(f"2026-03-0{day}T10:00:00Z" for day in (1, 2, 3)))
    assert len(seals(account)) == 3
    return account


def change(account: Account, query: str) -> None:
    with psycopg.connect(account.service.database_url) as connection:
        assert connection.execute(query.encode(), {"org": account.org_id}).rowcount > 0


@pytest.mark.parametrize("name", CHANGES)
def test_what_was_changed_is_found(sealed: Account, name: str) -> None:
    assert verify(sealed)[0] == 0
    change(sealed, CHANGES[name])
    status, report = verify(sealed)
    assert status == 3
    assert report["problems"] == [problem.replace("PERIOD", PERIOD) for problem in FOUND[name]]
    if "seal" not in name and "before" not in name:
        assert verify(sealed, "--until", "2026-03-02")[0] == verify(sealed, "--since", "2026-03-03")[0] == 0
    text = run(sealed, "verify", "--org", sealed.org_id)
    assert (text.returncode, "NOT WHOLE" in text.stdout) == (3, True)


@pytest.mark.parametrize(
    ("name", "difference"),
    [
        ("a digit of metadata", "line 5 of the file is another one in the trail"),
        ("a row is gone", "line 5 of the file is missing in the trail"),
        ("a row is added", "1 events are not in the file, the first of them is event ID"),
    ],
)
def test_with_an_exported_file_the_lines_are_named(sealed: Account, tmp_path: Path, name: str, difference: str) -> None:
    export(sealed, tmp_path)
    change(sealed, CHANGES[name])
    newest = sealed.execute("SELECT max(id) FROM audit_events WHERE org_id = %s", sealed.org_id)[0][0]
    _, report = verify(sealed, "--export", str(tmp_path / "trail.ndjson"))
    assert report["problems"][1:] == [difference.replace("ID", str(newest))]
    assert (report["linesCompared"], report["linesNotCompared"]) == (9, 0)
    (tmp_path / "other").write_text("{}\n")
    done = run(sealed, "verify", "--org", sealed.org_id, "--export", str(tmp_path / "other"))
    assert (done.returncode, "line 1 of the file is not what `export` writes" in done.stderr) == (1, True)


def test_a_chain_that_was_rewritten_as_a_whole_is_found_by_a_head_that_was_kept(sealed: Account) -> None:
    head = verify(sealed)[1]["head"]
    receive(sealed, "2026-03-04T10:00:00Z")
    seals(sealed)
    assert verify(sealed, "--head", head)[0] == 0
    change(sealed, CHANGES["a digit of metadata"])
    sealed.execute("DELETE FROM seals WHERE org_id = %s", sealed.org_id)
    seals(sealed)
    assert verify(sealed)[0] == 0  # nobody can tell from the database alone
    status, report = verify(sealed, "--head", head)
    assert (status, report["problems"]) == (3, [f"no seal is {head}: the chain is another one than it was"])
    assert run(sealed, "verify", "--head", "x" * 64, "--org", sealed.org_id).returncode == 2


def test_a_file_that_was_changed_is_found_also_if_the_trail_is_whole(sealed: Account, tmp_path: Path) -> None:
    file = ["--export", str(tmp_path / "trail.ndjson")]
    lines = export(sealed, tmp_path).splitlines(keepends=True)
    assert verify(sealed, *file)[0] == 0
    for changed, differences in (
        (
            [*lines[:4], lines[4].replace(b'"log"', b'"deny"'), *lines[5:]],
            ["line 5 of the file is another one in the trail"],
        ),
        (
            [*lines[:2], lines[2].replace(b'"id": ', b'"id": 9'), *lines[3:]],
            ["line 3 of the file is missing in the trail"],
        ),
        (lines[2:7], []),  # an export of some events
        (
            [lines[0].replace(b'"id": ', b'"id": %d' % n) for n in range(100, 300)],
            ["line 1 of the file is missing in the trail", "100 more lines differ"],
        ),
        ([lines[2].replace(b"2026-", b"1969-"), *lines[:2]], ["line 1 of the file is missing in the trail"]),
        ([lines[0], lines[1].replace(b"2026-", b"2027-")], ["line 2 of the file is missing in the trail"]),
    ):
        (tmp_path / "trail.ndjson").write_bytes(b"".join(changed))
        status, report = verify(sealed, *file)
        assert (status, report["problems"][:1] + report["problems"][100:]) == (3 if differences else 0, differences)
        assert (report["linesCompared"], report["linesNotCompared"]) == (len(changed), 0)
    for unreadable, said in (
        ([lines[1], lines[0]], "line 2 of the file is not in the order that `export` writes"),
        ([lines[0], lines[0]], "line 2 of the file is not in the order that `export` writes"),
        ([lines[0].replace(b"2026-", b"~~~~-")], "line 1 of the file is not what `export` writes"),
        ([b', "receipt": {"id": 1, "organization": "' * 10_000], "line 1 of the file is not what `export` writes"),
    ):
        (tmp_path / "trail.ndjson").write_bytes(b"".join(unreadable))
        done = run(sealed, "verify", "--org", sealed.org_id, *file)
        assert (done.returncode, said in done.stderr) == (1, True)


def test_a_number_of_any_length_is_exported_verified_and_imported(
    account: Account, new_account: Callable[..., Account], tmp_path: Path
) -> None:
    account.post(b'{"type": "custom", "toolName": "x", "metadata": {"n": 1e5000, "more": "%s"}}' % (b"x" * 50))
    account.execute("UPDATE audit_events SET received_at = '2026-03-01' WHERE org_id = %s", account.org_id)
    seals(account)
    export(account, tmp_path)
    assert verify(account, "--export", str(tmp_path / "trail.ndjson"))[0] == 0
    other = new_account()
    done = run(other, "import", str(tmp_path / "trail.ndjson"), "--org", other.org_id)
    assert done.stdout == "read 1, stored 1, already stored 0, rejected 0\n", done.stdout
    assert other.rows("metadata::text") == account.rows("metadata::text")


def test_one_spoilt_row_does_not_stop_the_others(sealed: Account, new_account: Callable[..., Account]) -> None:
    other = new_account()
    receive(other, "2026-03-01T10:00:00Z")
    for column, moment in (("until", "infinity"), ("sealed_at", "0044-03-15 BC")):
        sealed.execute(f"UPDATE seals SET {column} = '{moment}' WHERE org_id = %s AND number = 3", sealed.org_id)
    sealed.execute("UPDATE audit_events SET \"timestamp\" = '-infinity' WHERE org_id = %s", sealed.org_id)
    done = run(sealed, "seal")
    assert (done.returncode, f"{sealed.org_id}: nothing is sealed: the last seal ends at 9999" in done.stderr) == (
        0,
        True,
    )
    assert verify(other)[1]["seals"] == 1
    assert (
        "seal 3 (2026-03-03T00:00:00.000000Z to 9999-12-31T23:59:59.999999Z) was changed itself"
        in verify(sealed)[1]["problems"]
    )
    assert run(sealed, "events", "--org", sealed.org_id).stdout.count("\n") == 10
    sealed.execute("DELETE FROM seals WHERE org_id = %s", sealed.org_id)


def test_seals_are_printed_again_as_seal_did(account: Account) -> None:
    receive(account, "2026-03-01T10:00:00Z", "2026-03-02T10:00:00Z")
    unsealed = run(account, "verify", "--org", account.org_id)
    assert f"{account.org_id}: nothing to verify; 0 seals" in unsealed.stdout
    printed = run(account, "seal", "--org", account.org_id).stdout
    assert printed.count("\n") == 2
    assert run(account, "seals", "--org", account.org_id).stdout == printed
    [first, _] = run(account, "seals", "--org", account.org_id, "--json").stdout.splitlines()
    assert json.loads(first)["number"] == 1


# other transactions, and other commands


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
        assert verify(account)[1]["wholeEvents"] == 4
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
    receive(sealed, "2026-03-04T10:00:00Z")
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
        assert verify(sealed)[1]["wholeEvents"] == 12
    elif name == "verify":
        assert "whole; 3 seals; 9 events as they were sealed, 3 not sealed yet" in shown
    else:
        assert shown.count("\n") == 12


def test_seals_whose_output_nobody_reads_hold_no_lock(account: Account) -> None:
    query = """
        INSERT INTO audit_events (org_id, type, tool_name, action, "timestamp", metadata, received_at)
        SELECT %s, 'custom', 'x', 'log', now(), '{}', now() - i * interval '1 day' FROM generate_series(1, 300) AS i
    """
    account.execute(query, account.org_id)
    process = start(account, "seal", "--org", account.org_id, "--json")  # more than a pipe takes
    wait_for(lambda: account.execute("SELECT FROM seals WHERE org_id = %s AND number = 100", account.org_id))
    assert run(account, "prune", "--org", account.org_id, "--yes", "--before", "250d").returncode == 0
    process.kill()
    process.communicate()
    seals(account)
    assert verify(account)[0] == 0


def test_what_is_sealed_while_prune_asks_is_pruned_by_whole_seals(account: Account) -> None:
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
    assert b"deleted 3 events received before 2026-03-02T12:00:00Z, and marked" in shown
    assert b"marked 1 seal as pruned" in shown
    status, report = verify(account)
    assert (status, report["pruned"], report["wholeEvents"]) == (0, 1, 3)


def test_the_commands_of_the_page_work_as_they_stand(
    create_schema: Callable[[], str], start_service: Callable[..., Service], tmp_path: Path
) -> None:
    page = (ROOT / "docs/evidence.md").read_text()
    url = create_schema()
    account = Account(start_service(url), "acme", set_up(url, "acme", None))
    receive(account, "2026-03-01T10:00:00Z")
    values: dict[str, str] = {}

    def shell(text: str) -> str:
        for name, value in values.items():
            text = text.replace(name, value)
        environ = {**os.environ, "DATABASE_URL": url, "PATH": f"{ROOT}:{os.environ['PATH']}"}
        command = ["sh", "-ec", text]
        return subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=True).stdout

    blocks = re.findall(r"^```(\w*)\n(.+?)\n```$", page, re.MULTILINE | re.DOTALL)
    sealing, _, _, checking, exporting, verifying, keeping = [block for language, block in blocks if not language]
    seal, line = shell(sealing).rstrip("\n").split("  ")
    names = ("SINCE", "UNTIL", "EVENTS", "DIGEST", "PREVIOUS")
    values = dict(zip(names, line.split()[1:-1], strict=True)) | {"SEAL": seal}
    shell(exporting)
    digests = [text.split()[0] for text in shell(checking).splitlines()]
    assert digests == [values["DIGEST"], seal]
    assert shell(verifying).count("acme: whole; 1 seal; 3 events") == 3
    shell(keeping.splitlines()[0])
    assert seal in (tmp_path / "heads.ndjson").read_text()


# prune and undo


def test_pruning_keeps_to_whole_seals_and_marks_them(sealed: Account) -> None:
    head = verify(sealed)[1]["head"]
    account_prune = ["prune", "--org", sealed.org_id, "--yes", "--before"]
    assert run(sealed, *account_prune, "2026-03-02T12:00Z").stdout.startswith("deleted 3 events received before")
    status, report = verify(sealed, "--head", head)
    assert status == 0
    assert (report["pruned"], report["prunedUntil"], report["wholeEvents"]) == (1, "2026-03-02T00:00:00.000000Z", 6)
    assert sealed.execute(
        "SELECT number, pruned_by FROM seals WHERE org_id = %s AND pruned_at IS NOT NULL", sealed.org_id
    ) == [(1, "prune --before 2026-03-02T12:00:00Z")]
    sealed.execute("DELETE FROM audit_events WHERE org_id = %s AND received_at < '2026-03-03'", sealed.org_id)
    assert verify(sealed)[0] == 3  # such as a partition that was dropped
    assert run(sealed, *account_prune, "2026-03-03").stdout.startswith("deleted 0 events received before")
    assert (verify(sealed)[0], sealed.count()) == (0, 3)
    change(sealed, CHANGES["a row is added"])
    assert verify(sealed)[1]["problems"] == [
        f"seal 2 ({PERIOD}) was pruned by `prune --before 2026-03-03T00:00:00Z`, and 1 events are there: "
        "run that again if it was interrupted"
    ]


def test_what_is_not_sealed_is_not_pruned_where_there_are_seals(
    sealed: Account, new_account: Callable[..., Account]
) -> None:
    other = new_account()
    for account in (sealed, other):
        receive(account, "2026-03-05T10:00:00Z")
    run(sealed, "prune", "--yes", "--before", "2026-03-06")
    assert (sealed.count(), other.count()) == (3, 0)
    assert verify(sealed)[0] == 0


def test_an_import_that_is_sealed_is_not_undone_by_accident(account: Account, tmp_path: Path) -> None:
    file = tmp_path / "a.ndjson"
    file.write_text("".join(json.dumps(event) + "\n" for event in ODD))
    assert run(account, "import", str(file), "--org", account.org_id).returncode == 0
    for table, column in (
        ("audit_events", "received_at"),
        ("imports", "began_at"),
        ("imports", "ended_at"),
        ("idempotency_keys", "stored_at"),
    ):
        account.execute(f"UPDATE {table} SET {column} = {column} - interval '1 hour' WHERE org_id = %s", account.org_id)
    assert len(seals(account)) in (1, 2)
    [[import_id]] = account.execute("SELECT id FROM imports WHERE org_id = %s", account.org_id)
    undo = ["imports", "undo", str(import_id), "--yes"]
    refused = run(account, *undo)
    assert (refused.returncode, "seal 1 covers events of import" in refused.stderr) == (1, True)
    assert verify(account)[0] == 0
    assert run(account, *undo, "--sealed").returncode == 0
    assert (verify(account)[0], account.count()) == (3, 0)
