"""What protects the trail when an import goes wrong: a typo, a changed file, an interrupted undo."""

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from commands.importer.records import Record
from dev.service import PROGRAM, wait_for
from tests.commands.importing import events, import_, ndjson, write
from tests.support import Account, command, igris, json_lines


@pytest.mark.parametrize(
    ("name", "content"), [("a.ndjson", ndjson(events(3))), ("a.json", json.dumps(events(3))), ("a.csv", None)]
)
def test_a_column_that_no_row_has_is_named_with_the_nearest(
    account: Account, tmp_path: Path, name: str, content: str | None
) -> None:
    lines = "".join(",".join(event.values()) + "\n" for event in events(3))
    file = write(tmp_path, name, content or f"type,toolName,timestamp\n{lines}")
    for given, nearest in (
        ("toolName=toolNam", "toolName"),
        ("timestamp=timestmp", "timestamp"),
        ("type=tipe.x", "type"),
    ):
        done = import_(account, str(file), "--map", given)
        assert done.returncode == 1
        assert f"did you mean {nearest!r}?" in done.stderr
        assert "(there are 'type', 'toolName', 'timestamp')" in done.stderr
    assert account.rows() == []


@pytest.mark.parametrize(
    ("name", "text"), [("a.ndjson", '{"type": "custom", "toolName": "x"}'), ("a.csv", "type,toolName\ncustom,x\n")]
)
def test_a_file_without_times_is_dated_now_only_if_asked_to(
    account: Account, tmp_path: Path, name: str, text: str
) -> None:
    file = write(tmp_path, name, text)
    done = import_(account, str(file))
    assert (done.returncode, account.rows()) == (1, [])
    assert "no row has a timestamp" in done.stderr
    assert import_(account, str(file), "--timestamp-now").returncode == 0
    assert account.rows('"timestamp" = received_at') == [(True,)]


def test_a_file_that_was_fixed_in_place_is_not_stored_twice(account: Account, tmp_path: Path) -> None:
    rows = events(2500)
    file = write(tmp_path, "a.ndjson", ndjson(rows))
    assert import_(account, str(file)).returncode == 0
    rows[1700]["toolName"] = "fixed"
    file.write_text(ndjson(rows))
    done = import_(account, str(file))
    assert done.returncode == 1
    assert "from about line 1001 on, its rows are not those that its last import stored" in done.stderr
    assert account.count() == 2500
    assert "stored 1500, already stored 1000" in import_(account, str(file), "--changed-file").stdout


def test_a_complete_file_is_known_by_its_content(account: Account, tmp_path: Path) -> None:
    file = write(tmp_path, "a.ndjson", ndjson(events(50)))
    assert import_(account, str(file)).returncode == 0
    (tmp_path / "b.ndjson").write_text(file.read_text())
    for name in (file, tmp_path / "b.ndjson"):
        assert import_(account, str(name)).stdout == "read 50, stored 0, already stored 50, rejected 0\n"
    other = import_(account, str(file), "--set", "action=deny")
    assert (other.returncode, account.count()) == (1, 50)
    for table in ("idempotency_keys", "audit_events"):
        account.execute(f"DELETE FROM {table} WHERE org_id = %s", account.org_id)
    assert import_(account, str(file)).stdout == "read 50, stored 50, already stored 0, rejected 0\n"


def test_an_import_is_on_record_and_can_be_undone(new_account: Callable[..., Account], tmp_path: Path) -> None:
    account, other = new_account(), new_account()
    file = write(tmp_path, "a.ndjson", ndjson([*events(1200), {}]))
    again = write(tmp_path, "b.ndjson", ndjson(events(10, first=5000)))
    for each in (account, other):
        each.post(events(1)[0])
        assert import_(each, str(file)).returncode == 3
        assert import_(each, str(again)).returncode == 0
    listed = command("imports", "list", "--org", account.org_id, "--json", database_url=account.service.database_url)
    first, second = json_lines(listed.stdout)
    assert [first[name] for name in ("file", "read", "stored", "skipped", "rejected")] == [str(file), 1201, 1200, 0, 1]
    assert first["began"] < first["ended"] < second["began"]
    account.execute(
        "UPDATE imports SET ended_at = NULL WHERE org_id = %s AND id = %s", account.org_id, first["id"]
    )  # killed
    undo = ["imports", "undo", str(first["id"]), "--yes"]
    done = command(*undo, database_url=account.service.database_url)
    assert done.stdout == f"deleted 1200 events of import {first['id']}\n"
    assert (account.count(), other.count(), account.used()) == (11, 1211, 1211)
    done = command(*undo, database_url=account.service.database_url)
    assert (done.returncode, done.stderr) == (1, f"Error: import {first['id']} is undone already\n")
    assert "stored 1200, already stored 0" in import_(account, str(file)).stdout
    assert "stored 0, already stored 10" in import_(account, str(again)).stdout


def test_a_file_of_which_nothing_fits_ends_early(account: Account, tmp_path: Path) -> None:
    rows = [{"type": "chat", "toolName": "x", "timestamp": "2026-03-19T10:00:00Z"}] * 5000
    done = import_(account, str(write(tmp_path, "a.ndjson", ndjson(rows))))
    assert done.returncode == 3
    assert done.stdout == "read 1000, stored 0, already stored 0, rejected 1000\n"
    assert [path.name for path in tmp_path.iterdir()] == ["a.ndjson"]  # the options are at fault, and not the rows
    assert "  1,000 x type: Invalid enum value." in done.stderr
    assert "the first 1000 rows are all rejected" in done.stderr


# Times


@pytest.mark.parametrize(
    ("rows", "options"),
    [
        ([{"type": "custom", "toolName": "x", "timestamp": None}], []),
        ([{"type": "custom", "toolName": "x", "time": {"at": "2026-03-19"}}], ["--map", "timestamp=time.aat"]),
        ([{"type": "custom", "toolName": "x", "time": "2026-03-19"}], ["--map", "timestamp=@.tiem"]),
        ([{"type": "custom", "toolName": "x", "time": ""}], ["--map", "timestamp=time || maybe(none)"]),
    ],
    ids=["null", "below the root", "current node", "empty"],
)
def test_a_row_without_a_timestamp_is_dated_now_only_if_asked_to(
    account: Account, tmp_path: Path, rows: list[object], options: list[str]
) -> None:
    file = write(tmp_path, "a.ndjson", ndjson([*rows, *rows]))
    done = import_(account, str(file), *options)
    assert (done.returncode, account.rows()) == (3, []), done.stderr
    assert "  2 x timestamp: Is missing; --timestamp-now dates such rows" in done.stderr
    assert import_(account, str(file), *options, "--timestamp-now").returncode == 0
    assert account.rows('"timestamp" = received_at') == [(True,), (True,)]


def test_a_time_format_has_a_year(account: Account, tmp_path: Path) -> None:
    done = import_(account, str(write(tmp_path, "a.ndjson", ndjson(events(1)))), "--time-format", "%H:%M %%Y")
    assert (done.returncode, "has no year, such as %Y" in done.stderr) == (2, True)


# Columns


def test_the_header_of_csv_says_all_columns_however_empty_they_are(account: Account, tmp_path: Path) -> None:
    lines = ["custom,x,2026-03-19T10:00:00Z,,,"] * 1000 + ["custom,x,2026-03-19T10:00:00Z,,deny,why"]
    file = write(tmp_path, "a.csv", "\n".join(["type,toolName,timestamp,a,a.b,note", *lines]))
    done = import_(account, str(file), "--map", "action=a.b", "--drop", "note")
    assert done.returncode == 0, done.stderr
    assert account.rows("action, metadata")[-1] == ("deny", {})


def test_an_optional_column_of_an_expression_may_be_missing_in_the_first_rows(account: Account, tmp_path: Path) -> None:
    file = write(tmp_path, "a.ndjson", ndjson(events(2)))
    done = import_(account, str(file), "--map", "action=errorCode && 'alert' || 'log'")
    assert (done.returncode, account.count()) == (1, 0)
    assert "no column is called 'errorCode', as --map action=errorCode" in done.stderr
    assert "If rows may lack it, write maybe(errorCode)" in done.stderr
    done = import_(account, str(file), "--map", "action=maybe(errorCode) && 'alert' || 'log'")
    assert (done.returncode, account.rows("action")) == (0, [("log",), ("log",)])
    assert "Note: no row at the beginning has 'errorCode', as --map action=" in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--map", "toolName=lenght(type)"], "Unknown function: lenght()"),
        (["--map", "toolName=" + "[" * 2000], "no column is called '[["),
        (["--map", "toolName=type", "--map", "tool_name=x"], "--map names a field twice"),
        (["--encoding", "hex"], "'hex' is not an encoding"),
    ],
)
def test_invalid_options(account: Account, tmp_path: Path, options: list[str], message: str) -> None:
    done = import_(account, str(write(tmp_path, "a.ndjson", ndjson(events(1)))), *options)
    assert (done.returncode in (1, 2), account.rows()) == (True, [])
    assert message in done.stderr
    assert len(done.stderr) < 5000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"type,toolName\rcustom,x\r", "its lines end with CR alone"),
        ("type,toolName\r\ncustom,x\r\n".encode("utf-16-le"), "it has NULs, as UTF-16 without a mark has them"),
    ],
)
def test_lines_that_are_none(account: Account, tmp_path: Path, content: bytes, message: str) -> None:
    done = import_(account, str(write(tmp_path, "a.csv", content)))
    assert (done.returncode, message in done.stderr) == (1, True)


def test_values_that_only_python_takes_for_equal_are_both_kept(account: Account, tmp_path: Path) -> None:
    row = {**events(1)[0], "a": 1, "b": [0], "c": "same", "metadata": {"a": True, "b": [False], "c": "same"}}
    assert import_(account, str(write(tmp_path, "a.ndjson", ndjson([row])))).returncode == 0
    assert account.rows("metadata") == [({"a": True, "b": [False], "c": "same", "column_a": 1, "column_b": [0]},)]


# Files that change


@pytest.mark.parametrize(
    "fix", [lambda rows: [*rows[:-1], events(1, 77)[0]], lambda rows: [*rows[:-1], events(1, 77)[0], rows[-1]]]
)
@pytest.mark.parametrize("count", [1, 3])
def test_the_last_row_is_protected_too(
    account: Account, tmp_path: Path, fix: Callable[[list[object]], list[object]], count: int
) -> None:
    file = write(tmp_path, "a.ndjson", ndjson(events(count)))
    assert import_(account, str(file)).returncode == 0
    file.write_text(ndjson(fix(list(events(count)))))
    link = tmp_path / "link.ndjson"
    link.symlink_to(file)
    for name in (file, link):
        assert (import_(account, str(name)).returncode, account.count()) == (1, count)


def test_a_file_that_changes_during_its_import_is_not_known_by_its_content(account: Account, tmp_path: Path) -> None:
    file = write(tmp_path, "a.ndjson", ndjson(events(1)))
    with psycopg.connect(account.service.database_url, autocommit=True) as connection:
        for content in (ndjson(events(1)), ndjson(events(2))):
            record = Record(connection, account.org_id, str(file), "{}")
            file.write_text(content)
            os.utime(file, ns=(0, 0))
            record.end({"read": 1, "stored": 1, "skipped": 0, "rejected": 0})
    assert account.execute("SELECT sha256 FROM imports WHERE org_id = %s", account.org_id) == [(None,), (None,)]


def test_a_pipe_is_never_the_same_file(account: Account) -> None:
    for first in (0, 10):
        pipe = ["import", "/dev/stdin", "--format", "ndjson", "--org", account.org_id]
        done = igris(*pipe, database_url=account.service.database_url, stdin=ndjson(events(3, first)))
        assert done.returncode == 0, done.stderr
    assert account.count() == 6


def test_rejects_are_read_as_they_are_with_the_options_of_the_file(account: Account, tmp_path: Path) -> None:
    rows = b"type;name;when;reason\nbad;g\xe9;19.03.2026;\ncustom;x;19.03.2026;deny\n"
    file = write(tmp_path, "a.txt", rows)
    options = ["--format", "csv", "--encoding", "cp1252", "--map", "toolName=name", "--map", "timestamp=when"]
    options += ["--map", "action=reason", "--time-format", "%d.%m.%Y", "--timezone", "UTC"]
    assert import_(account, str(file), *options).returncode == 3
    rejects = Path(f"{file}.rejects.ndjson")
    fixed = json.dumps([json.loads(rejects.read_text().replace("bad", "custom"))], indent=2)  # as jq -s makes it
    rejects.write_text(fixed)
    done = import_(account, str(rejects), *options)
    assert done.returncode == 0, done.stderr
    assert account.rows("tool_name, action") == [("x", "deny"), ("gé", "log")]


# Undoing


def test_an_interrupted_undo_has_to_be_ended_before_the_next_import(account: Account, tmp_path: Path) -> None:
    file = write(tmp_path, "a.ndjson", ndjson(events(6000)))
    assert import_(account, str(file)).returncode == 0
    [[import_id]] = account.execute("SELECT id FROM imports WHERE org_id = %s", account.org_id)
    url = account.service.database_url
    environ = {**os.environ, "DATABASE_URL": url}
    with psycopg.connect(url) as blocker:
        last = "SELECT FROM audit_events WHERE org_id = %s AND tool_name = 'tool-5999' FOR UPDATE"
        blocker.execute(last, [account.org_id])
        undoing = subprocess.Popen([PROGRAM, "imports", "undo", str(import_id), "--yes"], env=environ)
        wait_for(lambda: account.count() < 6000)
        undoing.send_signal(signal.SIGKILL)
        undoing.wait()
        account.execute("""
            SELECT pg_terminate_backend(pid)
            FROM pg_stat_activity
            WHERE wait_event_type = 'Lock' AND datname = current_database()
        """)
        held = "SELECT FROM pg_locks WHERE locktype = 'advisory' AND objid = hashtext(%s)::oid::bigint::oid"
        wait_for(lambda: not account.execute(held, account.org_id))
    done = import_(account, str(file))
    assert (done.returncode, done.stderr) == (
        1,
        f"Error: import {import_id} was undone only in part: first run `imports undo {import_id}` again\n",
    )
    done = command("imports", "undo", str(import_id), "--yes", database_url=url)
    assert (done.returncode, account.count()) == (0, 0), done.stderr
    assert "stored 6000, already stored 0" in import_(account, str(file)).stdout


def test_an_earlier_part_of_a_file_can_be_undone_and_imported_again(account: Account, tmp_path: Path) -> None:
    file = write(tmp_path, "a.ndjson", ndjson(events(2)))
    assert import_(account, str(file)).returncode == 0
    file.write_text(ndjson(events(4)))
    assert import_(account, str(file)).returncode == 0
    [[first]] = account.execute("SELECT min(id) FROM imports WHERE org_id = %s", account.org_id)
    assert command("imports", "undo", str(first), "--yes", database_url=account.service.database_url).returncode == 0
    assert "stored 2, already stored 2" in import_(account, str(file)).stdout
    assert account.count() == 4


def test_a_dropped_field_is_not_stored(account: Account, tmp_path: Path) -> None:
    row = {"type": "custom", "toolName": "x", "timestamp": "2026-03-19T10:00:00Z", "metadata": {"name": "Ada"}}
    file = write(tmp_path, "a.ndjson", ndjson([row]))
    assert import_(account, str(file), "--drop", "metadata").returncode == 0
    assert account.rows("metadata") == [({},)]


def test_the_end_of_an_import_that_was_killed_is_that_of_its_events(account: Account, tmp_path: Path) -> None:
    file = write(tmp_path, "a.ndjson", ndjson(events(3)))
    import_(account, str(file), "--timestamp-now")
    account.execute("UPDATE imports SET ended_at = NULL, stored = 0 WHERE org_id = %s", account.org_id)
    account.execute("UPDATE audit_events SET source = 'raw' WHERE org_id = %s", account.org_id)  # it stored none
    import_(account, str(write(tmp_path, "b.ndjson", ndjson(events(5, 10)))), "--timestamp-now")
    account.execute("UPDATE imports SET began_at = began_at - interval '1 day' WHERE org_id = %s", account.org_id)
    account.execute("UPDATE imports SET ended_at = ended_at - interval '1 day' WHERE org_id = %s", account.org_id)
    account.execute(
        "UPDATE audit_events SET received_at = received_at - interval '1 day' WHERE org_id = %s", account.org_id
    )
    url = account.service.database_url
    assert command("seal", "--org", account.org_id, database_url=url).returncode == 0
    [first, _] = json_lines(command("imports", "list", "--org", account.org_id, "--json", database_url=url).stdout)
    assert first["options"] == {"--timestamp-now": True}
    undone = command("imports", "undo", str(first["id"]), "--yes", database_url=url)
    assert (undone.returncode, undone.stdout) == (0, f"deleted 0 events of import {first['id']}\n")
