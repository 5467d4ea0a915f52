"""`import`, on real files: what rows become, and that they are stored exactly once."""

import csv
import gzip
import hashlib
import io
import json
import math
import os
import pty
import random
import re
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

import backfill
from admin import Admin
from tests.service import EVENT, FLASK, ROOT, Account, assert_refused, flask, wait_for

LONGEST = 10_000


def events(count: int, first: int = 0) -> list[dict[str, Any]]:
    return [
        {"type": "tool_call", "toolName": f"tool-{number}", "timestamp": "2026-03-19T10:00:00Z"}
        for number in range(first, first + count)
    ]


def ndjson(rows: list[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def read(tmp_path: Path, name: str, content: str | bytes, columns: backfill.Columns | None = None) -> list[Any]:
    """What a file's rows become, without a database."""
    file = tmp_path / name
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    with backfill.Source(str(file), None) as source:
        return list(backfill.events(source, backfill.FORMATS[file.suffix], columns or backfill.Columns(), LONGEST))


def texts(items: list[Any]) -> list[Any]:
    return [json.loads(item.text) for item in items]


def run(account: Account, *arguments: str, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    return flask("import", *arguments, "--org", account.org_id, database_url=account.service.database_url, **kwargs)


# Files of all kinds


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "tests/exports").iterdir()))
def test_exports_of_other_programs_are_understood(account: Account, name: str, tmp_path: Path) -> None:
    """The same three rows, written by SQLite 3.40, psql 15 (of other time zones), pandas 3.1 and DuckDB 2.0."""
    file = tmp_path / name
    file.write_bytes((ROOT / "tests/exports" / name).read_bytes())
    options = ["--map", "toolName=model", "--map", "type=kind", "--map", "timestamp=created_at"]
    if name.startswith("sqlite"):
        without_zone = run(account, str(file), *options)
        assert (without_zone.returncode, account.rows()) == (3, [])
        assert "--timezone" in (tmp_path / f"{name}.rejects.ndjson").read_text()
        options += ["--timezone", "UTC"]
    done = run(account, str(file), *options)
    assert (done.returncode, done.stdout) == (0, "read 3, stored 3, already stored 0, rejected 0\n"), done.stderr
    assert not (tmp_path / f"{name}.rejects.ndjson").exists()
    assert account.rows('type, tool_name, action, source, api_key_id, "timestamp"::text') == [
        ("completion", "gpt-4o", "log", "import", None, "2026-03-19 10:00:00+00"),
        ("tool_call", "claude-sonnet-4-20250514", "log", "import", None, "2026-03-19 10:00:01.25+00"),
        ("embedding", "embed, large", "log", "import", None, "2026-03-19 10:00:02+00"),
    ]
    metadata = [row[0] for row in account.rows("metadata")]
    assert [str(each["call_id"]) for each in metadata] == ["1", "2", "3"]
    assert metadata[0]["userId"] == "user_42"
    assert metadata[1]["note"] == 'says "hi", twice'
    assert metadata[2]["note"] == "two\nlines — ünïcode 🙂"
    digits = "0.0125" if name in ("duckdb.json", "duckdb-array.json") else "0.012500000000000000001"
    assert account.rows("metadata ->> 'cost'")[0] == (digits,)
    assert account.used() == 3


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.ndjson", ndjson(events(3))),
        ("a.jsonl", "\ufeff" + ndjson(events(3)).replace("\n", "\r\n\r\n")),
        ("a.json", json.dumps(events(3), indent=1)),
        ("a.json", json.dumps({"next": [1, {"events": []}], "events": events(3), "more": {"a": "]"}})),
        ("a.json", ndjson(events(3))),
        ("a.csv", "type,toolName,timestamp\n" + "".join(",".join(event.values()) + "\n" for event in events(3))),
        (
            "a.csv",
            "\ufefftimestamp,tool_name,type\r\n"
            + "".join(f'{event["timestamp"]},"{event["toolName"]}",{event["type"]}\r\n' for event in events(3)),
        ),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_formats(account: Account, name: str, content: str, zipped: bool, tmp_path: Path) -> None:
    file = tmp_path / (f"{name}.gz" if zipped else name)
    file.write_bytes(gzip.compress(content.encode()) if zipped else content.encode())
    done = run(account, str(file))
    assert (done.returncode, done.stdout) == (0, "read 3, stored 3, already stored 0, rejected 0\n"), done.stderr
    assert [row[0] for row in account.rows("tool_name")] == ["tool-0", "tool-1", "tool-2"]


def test_standard_input_needs_a_format(account: Account, tmp_path: Path) -> None:
    done = run(account, "-", "--format", "ndjson", stdin=ndjson([*events(2), {}]), cwd=tmp_path)
    assert (done.returncode, account.count()) == (3, 2)
    assert done.stdout.endswith(": see stdin.rejects.ndjson\n")
    done = run(account, "-", stdin="")
    assert (done.returncode, done.stderr.splitlines()[-1]) == (
        2,
        "Error: The name does not say the format: add --format csv, ndjson or json.",
    )


def test_an_event_of_http_stays_as_it_is_written(tmp_path: Path) -> None:
    line = '{"type":"custom", "toolName":"x","metadata":{"n":1.10000000000000000001, "big":12345678901234567890123}}'
    assert [event.text for event in read(tmp_path, "a.ndjson", line)] == [line]
    assert [event.text for event in read(tmp_path, "a.json", f"[{line}]")] == [line]


def test_other_members_join_metadata_with_all_their_digits(tmp_path: Path) -> None:
    line = (
        '{"type": "custom", "n" : 1.10000000000000000001 , "tool_name": "x", "metadata":  {"a": 1e400}, "note": null}'
    )
    [event] = read(tmp_path, "a.ndjson", line)
    assert event.text.endswith('"metadata": {"n": 1.10000000000000000001, "note": null, "a": 1e400}}')
    csv_file = 'type,toolName,metadata,n\ncustom,x,"{""a"": 0.10000000000000000001}",007\n'
    [event] = read(tmp_path, "a.csv", csv_file)
    assert event.text.endswith('"metadata": {"n": "007", "a": 0.10000000000000000001}}')


def test_columns_are_renamed_and_constants_set(tmp_path: Path) -> None:
    columns = backfill.Columns({"toolName": "type"}, {"type": "completion", "metadata": '{"batch": 7}'})
    rows = read(tmp_path, "a.csv", "type,action,,toolName,empty\ngpt-4o,deny,3,old name,\n", columns)
    assert texts(rows) == [
        {
            "type": "completion",
            "toolName": "gpt-4o",
            "action": "deny",
            "metadata": {"toolName": "old name", "batch": 7},
        }
    ]
    assert texts(read(tmp_path, "a.ndjson", '{"type": "gpt-4o", "action": null}', columns)) == [
        {"type": "completion", "toolName": "gpt-4o", "metadata": {"batch": 7}}
    ]


@pytest.mark.parametrize(
    ("exported", "stored"),
    [
        ("2026-03-19T10:00:00.000Z", "2026-03-19T10:00:00.000Z"),
        ("2026-03-19 10:00:00+00", "2026-03-19T10:00:00+00:00"),
        ("2026-03-19 10:00:00.123456-0330", "2026-03-19T10:00:00.123456-0330"),
        ("2026-03-19 10:00:00.1234567 UTC", "2026-03-19T10:00:00.1234567Z"),
        ("2026-03-19 10:00 +05:30", "2026-03-19T10:00+05:30"),
        ("1773914400", "2026-03-19T10:00:00Z"),
        ("1773914400.25", "2026-03-19T10:00:00.25Z"),
        ("1773914400250", "2026-03-19T10:00:00.250Z"),
        ("1773914400250.5", "2026-03-19T10:00:00.2505Z"),
        ("2026-03-19 10:00:00", "2026-03-19T10:00:00+0100"),
        ("2026-07-19T10:00:00.5", "2026-07-19T10:00:00.5+0200"),
        ("2026-10-25 02:30:00", "2026-10-25T02:30:00+0200"),  # of the two, the first
    ],
)
def test_timestamps_of_exports_are_instants(tmp_path: Path, exported: str, stored: str) -> None:
    columns = backfill.Columns(zone=ZoneInfo("Europe/Berlin"))
    rows = read(tmp_path, "a.csv", f"type,toolName,timestamp\ncustom,x,{exported}\n", columns)
    assert texts(rows) == [{"type": "custom", "toolName": "x", "timestamp": stored}]
    for value in [exported, float(exported)] if exported.replace(".", "").isdigit() else [exported]:
        row = {"type": "custom", "toolName": "x", "timestamp": value}
        assert texts(read(tmp_path, "a.ndjson", json.dumps(row), columns))[0]["timestamp"].startswith(stored[:-1])


@pytest.mark.parametrize(
    ("exported", "reason"),
    [
        ("2026-03-19", "timestamp: Invalid datetime"),
        ("20260319", "timestamp: Invalid datetime"),
        ("202603191000", "timestamp: Invalid datetime"),
        ("2026-02-30 10:00:00+00", "timestamp: Invalid datetime"),
        ("2026-02-30 10:00:00", "timestamp: Invalid datetime"),
        ("2026-03-19 10:00.5+00", "timestamp: Invalid datetime"),
        ("19/03/2026 10:00", "timestamp: Invalid datetime"),
        ("2026-03-29 02:30:00", "timestamp: There was no such time in Europe/Berlin, where clocks went forward"),
    ],
)
def test_what_is_no_instant_is_rejected(tmp_path: Path, exported: str, reason: str) -> None:
    columns = backfill.Columns(zone=ZoneInfo("Europe/Berlin"))
    [reject] = read(tmp_path, "a.csv", f"type,toolName,timestamp\ncustom,x,{exported}\n", columns)
    assert reject.reason == reason


# Rows that can't be events


def test_a_bad_row_of_csv_does_not_stop_the_rest(tmp_path: Path) -> None:
    content = (
        b"type,toolName,metadata\n"
        b"custom,1,\n"
        b"custom\n"
        b'"custom"x,2,\n'
        b"\n"
        b"chat,,[1]\n"
        b'custom,"two\nlines","{""a"": NaN}"\n'
        b"custom,\xff,\n"
        b"custom," + b"x" * LONGEST + b",\n"
        b"custom,3,{}\n"
        b'custom,"4,\n'
    )
    rows = read(tmp_path, "a.csv", content)
    assert [(row.line, getattr(row, "reason", None)) for row in rows] == [
        (2, None),
        (3, "Has 1 cells where the header row has 3"),
        (4, "Not CSV: ',' expected after '\"'"),
        (
            6,
            "type: Invalid enum value. Expected 'tool_call' | 'completion' | 'embedding' | 'custom', received 'chat'; "
            "toolName: Required; metadata: Expected object, received array",
        ),
        (7, "metadata: Invalid JSON: NaN is not JSON"),
        (9, "Not UTF-8: invalid start byte at byte 7"),
        (10, "The row has more than 10000 bytes"),
        (11, None),
        (12, "Not CSV: unexpected end of data"),
    ]
    assert json.loads(rows[2].row) == '"custom"x,2,'
    assert json.loads(rows[3].row) == {"type": "chat", "metadata": "[1]"}


def test_a_bad_row_of_ndjson_does_not_stop_the_rest(tmp_path: Path) -> None:
    lines = [b"{}", b"[1]", b"7", b'{"type"', b"\xff", b'{"a": NaN}', b"x" * LONGEST * 2]
    rows = read(tmp_path, "a.ndjson", b"\n".join([*lines, json.dumps(EVENT).encode()]))
    assert [row.line for row in rows] == list(range(1, 9))
    assert [row.reason.partition(";")[0] for row in rows[:-1]] == [
        "type: Required",
        "Expected object, received array",
        "Expected object, received number",
        "Invalid JSON: Expecting ':' delimiter: line 2 column 1 (char 8)",
        "Invalid JSON: The body is not UTF-8: invalid start byte at byte 0",
        "Invalid JSON: NaN is not JSON",
        "The line has more than 10000 bytes",
    ]
    assert texts(rows[-1:]) == [EVENT]


def test_a_bad_row_of_json_does_not_stop_the_rest_as_long_as_its_end_is_known(tmp_path: Path) -> None:
    content = (
        b'[{},\n7, {"a": NaN}, {"type": "custom", "toolName": "\xff"},\n{"type": "custom", "toolName": "x"}, oops]'
    )
    with backfill.Source(str(write(tmp_path, "a.json", content)), None) as source:
        items = backfill.events(source, "json", backfill.Columns(), LONGEST)
        rows: list[Any] = [next(items) for _ in range(5)]
        assert [row.line for row in rows] == [1, 2, 2, 2, 3]
        assert [row.reason for row in rows[1:4]] == [
            "Expected object, received number",
            "Invalid JSON: NaN is not JSON",
            "Invalid JSON: The body is not UTF-8: invalid start byte at byte 32",
        ]
        with pytest.raises(backfill.Unreadable, match="line 3: Invalid JSON: Expecting value"):
            next(items)


def test_nothing_of_a_row_is_lost_in_silence(tmp_path: Path) -> None:
    long = "x" * 6000
    rows = read(tmp_path, "a.csv", f'type,toolName,a,b\ncustom,x,{long},"{long}\nc"\ncustom,y,,\n')
    assert [type(row).__name__ for row in rows] == ["Reject", "Reject", "Event"]
    both = 'type,toolName,model,metadata\ncustom,x,gpt-4,"{""model"": ""other""}"\n'
    assert "Has 'model', and there is a column of that name" in read(tmp_path, "a.csv", both)[0].reason
    rows = read(tmp_path, "a.json", '{"events": 3} {"events": {"type": "custom", "toolName": "x"}} {"events": null}')
    assert [row.reason for row in rows] == ["events: Expected array"] * 3
    rows = read(tmp_path, "a.json", '[{"metadata": {"a": NaN, "b": NaN}}, {"type": "custom", "toolName": "good"}]')
    assert [type(row).__name__ for row in rows] == ["Reject", "Event"]
    rows = read(tmp_path, "a.json", f'[{{"n": {"9" * 5000}}}, {{"type": "custom", "toolName": "good"}}]')
    assert [type(row).__name__ for row in rows] == ["Reject", "Event"]
    for depth in range(900, 1000):
        deep = f'{{"type": "custom", "toolName": "x", "a": {"[" * depth}{"]" * depth}}}'
        assert len(read(tmp_path, "a.ndjson", deep)) == 1


@pytest.mark.parametrize("number", ["1.5", "1e5", "-12.25E-3"])
def test_a_number_may_lie_where_reading_stopped(tmp_path: Path, number: str) -> None:
    event = json.dumps(EVENT)
    for cut in range(-1, len(number) + 1):
        padding = " " * (2**16 - cut - len('{"took": '))
        assert texts(read(tmp_path, "a.json", f'{padding}{{"took": {number}, "events": [{event}]}}')) == [EVENT]


def write(tmp_path: Path, name: str, content: bytes) -> Path:
    file = tmp_path / name
    file.write_bytes(content)
    return file


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.csv", "", "there is no header row"),
        ("a.csv", "type,type,toolName\n", "the header row has the column 'type' twice"),
        (
            "a.csv",
            "kind,toolName\n",
            "no column is called 'type' (there are 'kind', 'toolName'): name one with --map type=COLUMN",
        ),
        ("a.csv", '"type"x\n', "the header row is not CSV"),
        ("a.csv", "type;toolName\n", "the header row has one column, 'type;toolName': separate them by commas"),
        ("a.csv", b"type,toolName,\xff\n", "the header row: Not UTF-8: invalid start byte at byte 14"),
        ("a.json", '{"a": [' + "1," * 9000 + '1], "b": [' + "1," * 9000, "more than 10000 bytes"),
        ("a.json", "[" * 100_000, "line 1: Invalid JSON: Nested too deep"),
        ("a.json", '[{"a" 1}]', "line 1: Invalid JSON: Expecting ':' delimiter"),
        ("a.json", '{"events": [', "line 1: Invalid JSON: Expecting value"),
        ("a.json", '["' + "x" * 200_000, "more than 10000 bytes"),
    ],
)
def test_a_file_that_makes_no_sense_is_said_so(tmp_path: Path, name: str, content: str | bytes, reason: str) -> None:
    with pytest.raises(backfill.Unreadable) as caught:
        read(tmp_path, name, content)
    assert reason in str(caught.value)


def test_rejects_are_listed_and_can_be_mended(account: Account, tmp_path: Path) -> None:
    rows = events(2500)
    rows[7]["type"] = "chat"
    rows[2000] = {"toolName": "x"}
    file = write(tmp_path, "a.ndjson", ndjson(rows).encode())
    for counts in ("stored 2498, already stored 0", "stored 0, already stored 2498"):
        done = run(account, str(file))
        assert done.stdout == f"read 2500, {counts}, rejected 2: see {file}.rejects.ndjson\n"
        assert done.returncode == 3
        rejects = [json.loads(line) for line in Path(f"{file}.rejects.ndjson").read_text().splitlines()]
        assert [(each["line"], each["row"]) for each in rejects] == [(8, rows[7]), (2001, {"toolName": "x"})]
        assert rejects[1]["reason"] == "type: Required"
        assert account.count() == account.used() == 2498
    assert Path(f"{file}.rejects.ndjson~").exists()  # of the first run
    done = run(account, f"{file}.rejects.ndjson", "--set", "type=custom")
    assert (done.returncode, done.stdout) == (0, "read 2, stored 2, already stored 0, rejected 0\n")
    assert account.count() == 2500


@pytest.mark.parametrize(
    ("name", "content", "options", "stored"),
    [
        (
            "a.csv",
            'kind,toolName,action,when,n,"metadata"\nchat,x,,1773914400,007,"{""d"": 0.10000000000000000001}"\n',
            {"timestamp": "when"},
            '{"type": "custom", "toolName": "x", "timestamp": "2026-03-19T10:00:00Z", '
            '"metadata": {"kind": "chat", "n": "007", "d": 0.10000000000000000001}}',
        ),
        (
            "a.json",
            '[{"kind": "chat",\n "toolName": "x", "d": 1, "d": 12345678901234567890.123456789, "metadata": null}]',
            {},
            '{"toolName": "x", "type": "custom", "metadata": {"kind": "chat", "d": 12345678901234567890.123456789}}',
        ),
    ],
)
def test_a_rejected_row_is_kept_as_it_was(
    tmp_path: Path, name: str, content: str, options: dict[str, str], stored: str
) -> None:
    [reject] = read(tmp_path, name, content, backfill.Columns({**options, "type": "kind"}))
    assert isinstance(reject, backfill.Reject)
    line = f'{{"line": {reject.line}, "reason": {json.dumps(reject.reason)}, "row": {reject.row}}}\n'
    mended = write(tmp_path, "a.rejects.ndjson", line.encode())
    with backfill.Source(str(mended), None) as source:
        columns = backfill.Columns(options, {"type": "custom"})
        [event] = list(backfill.events(source, "rejects", columns, LONGEST))
    assert isinstance(event, backfill.Event), event
    assert json.loads(event.text, parse_float=str) == json.loads(stored, parse_float=str)


def test_what_is_no_reject_is_rejected(tmp_path: Path) -> None:
    assert backfill.format_of("a.csv.REJECTS.ndjson.gz") == "rejects"
    file = write(tmp_path, "a.rejects.ndjson", ndjson([EVENT, {"line": 1, "reason": "x", "row": "text"}]).encode())
    with backfill.Source(str(file), None) as source:
        rows: list[Any] = list(backfill.events(source, "rejects", backfill.Columns(), LONGEST))
    assert [row.reason for row in rows] == [
        "Expected an object of line, reason and row, as an import writes it",
        "Expected object, received string",
    ]


def test_a_row_that_only_postgresql_refuses_is_rejected_alone(account: Account, tmp_path: Path) -> None:
    rows = [json.dumps(event) for event in events(1500)]
    for index in (3, 700, 1499):
        rows[index] = '{"type": "custom", "toolName": "x", "metadata": {"n": 1e999999}}'
    file = write(tmp_path, "a.ndjson", "\n".join(rows).encode())
    for counts in ("stored 1497, already stored 0", "stored 0, already stored 1497"):
        assert run(account, str(file)).stdout.startswith(f"read 1500, {counts}, rejected 3: see")
    rejects = [json.loads(line) for line in Path(f"{file}.rejects.ndjson").read_text().splitlines()]
    assert [each["line"] for each in rejects] == [4, 701, 1500]
    assert [row[0] for row in account.rows("tool_name")] == [
        f"tool-{i}" for i in range(1500) if i not in (3, 700, 1499)
    ]


def test_a_dry_run_stores_nothing(account: Account, tmp_path: Path) -> None:
    file = write(tmp_path, "a.ndjson", ndjson([*events(3), {}]).encode())
    done = run(account, str(file), "--dry-run")
    assert (done.returncode, done.stdout) == (
        3,
        f"read 4, valid 3, stored none, rejected 1: see {file}.rejects.ndjson\n",
    )
    assert account.rows() == []
    assert account.used() == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.csv"], "'missing.csv' does not exist."),
        (["a.ndjson", "--map", "tool=x"], "'tool=x' is not FIELD=..., where FIELD is one of type, toolName,"),
        (["a.ndjson", "--set", "type"], "'type' is not FIELD=..."),
        (["a.ndjson", "--set", "type=chat"], "type: Invalid enum value."),
        (["a.ndjson", "--set", "timestamp=2026-03-19 10:00"], "timestamp: Names no time zone"),
        (
            ["a.ndjson", "--timezone", "Mars/Olympus"],
            "'Mars/Olympus' is no time zone: write it as UTC or Europe/Berlin",
        ),
        (["a.ndjson", "--timezone", "Europe"], "'Europe' is no time zone"),
        (["a.ndjson", "--format", "xml"], "'xml' is not one of 'csv', 'ndjson', 'json'."),
        (["a.ndjson", "--org", "nobody"], "there is no organization 'nobody'"),
        (["a.ndjson", "--org", "nobody", "--dry-run"], "there is no organization 'nobody'"),
    ],
)
def test_a_wrong_argument_is_one_clear_line(
    account: Account, arguments: list[str], message: str, tmp_path: Path
) -> None:
    write(tmp_path, "a.ndjson", ndjson(events(1)).encode())
    org = [] if "--org" in arguments else ["--org", account.org_id]
    done = flask("import", *arguments, *org, database_url=account.service.database_url, cwd=tmp_path)
    assert done.returncode in (1, 2)
    assert message in done.stderr.splitlines()[-1]
    assert account.rows() == []


# Exactly once


def test_a_file_is_stored_once_and_what_was_added_to_it_too(account: Account, tmp_path: Path) -> None:
    file = tmp_path / "a.ndjson"
    stored = 0
    for rows in (1, 1, 700, 1700, 1700, 1701, 4001):
        file.write_text(ndjson(events(rows)))
        done = run(account, str(file))
        assert done.stdout == f"read {rows}, stored {rows - stored}, already stored {stored}, rejected 0\n"
        stored = rows
    assert [row[0] for row in account.rows("tool_name")] == [f"tool-{i}" for i in range(4001)]
    assert account.used() == 4001


@pytest.mark.parametrize("rows", [2, backfill.CHUNK_ROWS - 1])
def test_a_file_may_grow_in_the_middle_of_its_last_row(account: Account, rows: int, tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    before = "type,toolName\n" + "custom,x\n" * rows
    file.write_text(before + "custom,hel")
    run(account, str(file))
    file.write_text(before + "custom,hello\ncustom,c\n")
    assert f"stored 2, already stored {rows}, rejected 0" in run(account, str(file)).stdout
    assert [row[0] for row in account.rows("tool_name")] == ["x"] * rows + ["hel", "hello", "c"]


def test_equal_rows_of_a_file_are_all_stored(account: Account, tmp_path: Path) -> None:
    file = write(tmp_path, "a.ndjson", ndjson([EVENT] * 3000).encode())
    for stored in (3000, 0):
        assert f"stored {stored}, already stored {3000 - stored}," in run(account, str(file)).stdout
    assert account.count() == 3000


def test_large_events_make_smaller_chunks(account: Account, tmp_path: Path) -> None:
    rows = [{**event, "metadata": {"text": "x" * 300_000}} for event in events(9)]
    file = write(tmp_path, "a.ndjson", ndjson(rows).encode())
    for stored in (9, 0):
        assert f"stored {stored}, already stored {9 - stored}," in run(account, str(file)).stdout
    query = "SELECT ingested FROM idempotency_keys WHERE org_id = %s ORDER BY stored_at"
    assert account.execute(query, account.org_id) == [(4,), (4,), (1,)]


def test_at_the_end_of_the_quota_it_stops_and_goes_on_later(
    new_account: Callable[..., Account], admin: Admin, tmp_path: Path
) -> None:
    account = new_account(quota=1234)
    file = write(tmp_path, "a.ndjson", ndjson(events(3000)).encode())
    for _ in range(2):
        done = run(account, str(file))
        assert done.returncode == 4
        assert done.stderr == (
            f"Error: the month's quota is used up; line 1235 of {file} is the first not stored; "
            "run it again to go on from there\n"
        )
        assert account.count() == account.used() == 1234
    admin.set_quota(account.org_id, 2500)
    assert run(account, str(file)).returncode == 4
    admin.set_quota(account.org_id, None)
    done = run(account, str(file))
    assert (done.returncode, done.stdout) == (0, "read 3000, stored 500, already stored 2500, rejected 0\n")
    assert [row[0] for row in account.rows("tool_name")] == [f"tool-{i}" for i in range(3000)]


def begin(account: Account, file: Path) -> subprocess.Popen[str]:
    """Starts an import, and returns when it has stored something."""
    process = subprocess.Popen(
        [*FLASK, "import", str(file), "--org", account.org_id],
        env={**os.environ, "DATABASE_URL": account.service.database_url},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(account.used)
    return process


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_import_is_completed_by_a_rerun(
    new_account: Callable[..., Account], how: signal.Signals, tmp_path: Path
) -> None:
    account = new_account(quota=None)
    file = write(tmp_path, "a.ndjson", ndjson(events(60_000)).encode())
    process = begin(account, file)
    process.send_signal(how)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == (130 if how == signal.SIGINT else -how)
    assert "Traceback" not in errors
    # PostgreSQL carries out what was asked of it last, and then notices
    locks = "SELECT FROM pg_locks l JOIN pg_database d ON d.oid = l.database AND d.datname = current_database()"
    wait_for(lambda: not account.execute(f"{locks} WHERE locktype = 'advisory'"))
    stored = account.count()
    assert 0 < stored < 60_000
    done = run(account, str(file))
    assert done.stdout == f"read 60000, stored {60_000 - stored}, already stored {stored}, rejected 0\n"
    for line in done.stderr.splitlines():  # one a second, if it takes so long
        assert re.fullmatch(r"[\d,]+ rows, [\d,]+ a second, \d+ s left", line)
    assert [row[0] for row in account.rows("tool_name")] == [f"tool-{i}" for i in range(60_000)]
    assert account.used() == 60_000


def test_a_terminal_shows_a_bar(account: Account, tmp_path: Path) -> None:
    file = write(tmp_path, "a.ndjson", ndjson(events(5000)).encode())
    terminal, end = pty.openpty()
    command = [*FLASK, "import", str(file), "--org", account.org_id]
    environ = {**os.environ, "DATABASE_URL": account.service.database_url, "COLUMNS": "100", "TERM": "xterm"}
    subprocess.run(command, env=environ, stdout=subprocess.PIPE, stderr=end, check=True)
    os.close(end)
    shown = b""
    with suppress(OSError):  # the end
        while data := os.read(terminal, 10_000):
            shown += data
    os.close(terminal)
    assert re.search(rb"\[#+-+\] +\d+% .*2,\d{3} rows, [\d,]+ a second", shown)
    assert re.search(rb"\[#+\] +100% .*5,000 rows, ", shown)


def test_one_import_at_a_time_into_an_organization(new_account: Callable[..., Account], tmp_path: Path) -> None:
    account = new_account(quota=None)
    file = write(tmp_path, "a.ndjson", ndjson(events(300_000)).encode())
    process = begin(account, file)
    second = run(account, str(file))
    process.kill()
    process.communicate()
    assert second.returncode == 1
    assert second.stderr == f"Error: another import into {account.org_id!r} is running\n"


def test_what_comes_before_damage_is_stored(account: Account, tmp_path: Path) -> None:
    whole = gzip.compress(ndjson(events(5000)).encode())
    file = write(tmp_path, "a.ndjson.gz", whole[: len(whole) // 2])
    done = run(account, str(file))
    assert done.returncode == 1
    assert done.stderr.startswith(f"Error: {file}: Compressed file ended before the end-of-stream marker was reached")
    stored = account.count()
    assert 1000 < stored < 5000
    file.write_bytes(whole)
    assert f"already stored {stored}," in run(account, str(file)).stdout
    assert account.count() == 5000


@pytest.mark.parametrize("seed", range(20))
def test_no_history_of_runs_doubles_or_loses_an_event(
    admin: Admin, account: Account, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs are cut off, end with the quota, meet a longer file; events are pruned in between."""
    chance = random.Random(seed)
    monkeypatch.setattr(backfill, "CHUNK_ROWS", 7)
    old, new = '"2020-01-01T00:00Z"', '"2026-01-01T00:00Z"'
    refused = '{"type": "custom", "toolName": "x", "metadata": {"n": 1e999999}}'  # by PostgreSQL only
    rows: list[tuple[int, str, bool]] = []
    before = datetime(2025, 1, 1, tzinfo=UTC)

    def run_import(cut_off_after: float) -> None:
        items = (backfill.Event(1, refused if bad else text) for _, text, bad in rows)
        with admin.chunks(account.org_id) as chunks, suppress(backfill.QuotaEnded):
            for steps, _ in enumerate(backfill.Import(chunks, lambda _: None).run(items)):
                if steps >= cut_off_after:
                    return

    def stored() -> list[int]:
        return sorted(int(row[0]) for row in account.rows("tool_name"))

    for _ in range(12):
        action = chance.choice(["grow", "grow", "prune", "quota"])
        if action == "grow":
            ages = chance.choice([[old], [new], [old, new]])
            for number in range(len(rows), len(rows) + chance.randrange(20)):
                text = f'{{"type": "custom", "toolName": "{number}", "timestamp": {chance.choice(ages)}}}'
                rows.append((number, text, chance.random() < 0.05))
        elif action == "prune":
            for prunable in admin.prunable(before, account.org_id):
                list(admin.prune_events(prunable, before))
        else:
            admin.set_quota(account.org_id, account.used() + chance.randrange(20))
        run_import(chance.choice([0, 1, 2, math.inf]))
        assert len(set(stored())) == len(stored())
    admin.set_quota(account.org_id, None)
    run_import(math.inf)
    assert len(set(stored())) == len(stored())
    assert {number for number, text, bad in rows if new in text and not bad} <= set(stored())
    for prunable in admin.prunable(before, account.org_id):
        list(admin.prune_events(prunable, before))
    assert stored() == [number for number, text, bad in rows if new in text and not bad]


def test_a_key_of_a_client_can_not_be_that_of_a_chunk(account: Account) -> None:
    assert_refused(account.post(EVENT, Idempotency_Key="import\tx"), 400, "Validation failed", account)


def test_the_keys_of_chunks_stay_what_they_are(tmp_path: Path) -> None:
    """If they changed, files imported before an upgrade of this program would be stored again after it."""
    columns = backfill.Columns({"toolName": "model"}, {"action": "allow"}, ZoneInfo("Europe/Berlin"))
    content = 'type,model,timestamp,metadata,note\ncustom,gpt-4o,2026-03-19 10:00:00,"{""a"": 1}",ü\nembedding,e,,,\n'
    [first, second] = read(tmp_path, "a.csv", content, columns)
    assert first.text == (
        '{"type": "custom", "toolName": "gpt-4o", "timestamp": "2026-03-19T10:00:00+0100", "action": "allow", '
        '"metadata": {"note": "\\u00fc", "a": 1}}'
    )
    assert second.text == '{"type": "embedding", "toolName": "e", "action": "allow"}'
    job = backfill.Import(None, lambda _: None)
    job._append(first)
    job._append(second)
    assert job._keys == [
        hashlib.sha256(first.text.encode() + b"\n").hexdigest(),
        hashlib.sha256(first.text.encode() + b"\n" + second.text.encode() + b"\n").hexdigest(),
    ]


def test_memory_does_not_grow_with_the_file(account: Account, tmp_path: Path) -> None:
    def peak(name: str, rows: int) -> int:
        """In MiB, of a dry run."""
        row = {**EVENT, "metadata": {"text": "x" * 10_000}}
        if name == "a.csv":
            line = io.StringIO()
            csv.writer(line).writerow([*EVENT.values(), json.dumps(row["metadata"])])
            parts = ["type,toolName,metadata\n", *[line.getvalue()] * rows]
        else:
            parts = ["[", *[json.dumps(row) + ","] * (rows - 1), json.dumps(row), "]"]
        file = write(tmp_path, name, "".join(parts).encode())
        environ = {**os.environ, "DATABASE_URL": account.service.database_url}
        process = subprocess.Popen([*FLASK, "import", str(file), "--org", account.org_id, "--dry-run"], env=environ)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        return usage.ru_maxrss // 1024

    for name in ("a.csv", "a.json"):
        assert peak(name, 6000) < peak(name, 300) + 10
