"""`import`, on real files: what is read of them."""

import csv
import gzip
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from commands.importer.files import Source, Unreadable
from commands.importer.mapping import Options
from commands.importer.rows import EventMaker
from dev.service import EVENT, PROGRAM, ROOT
from tests.commands.importing import MAX_BYTES, events, ndjson, read, read_as, run, texts, write
from tests.support import Account

# Files of all kinds


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "tests/exports").iterdir() if path.is_file()))
def test_exports_of_other_programs_are_understood(account: Account, name: str, tmp_path: Path) -> None:
    """The same three rows, written by SQLite 3.40, psql 15 (of other time zones), pandas 3.1 and DuckDB 2.0."""
    file = tmp_path / name
    file.write_bytes((ROOT / "tests/exports" / name).read_bytes())
    options = ["--map", "toolName=model", "--map", "type=kind", "--map", "timestamp=created_at"]
    if name.startswith("sqlite"):
        without_zone = run(account, str(file), *options)
        assert (without_zone.returncode, account.rows()) == (3, [])
        rejects = tmp_path / f"{name}.rejects.ndjson"
        assert "--timezone" in rejects.read_text()
        rejects.unlink()
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
        "Error: The name does not say the format: add --format csv, ndjson, json or parquet.",
    )


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
        b"custom," + b"x" * MAX_BYTES + b",\n"
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
            "toolName: Required",
        ),
        (7, "metadata: Invalid JSON: NaN is not JSON"),
        (9, "Not UTF-8: invalid start byte at byte 7; name another encoding with --encoding"),
        (10, "The row has more than 10000 bytes"),
        (11, None),
        (12, "Not CSV: unexpected end of data"),
    ]
    assert json.loads(rows[2].row) == '"custom"x,2,'
    assert json.loads(rows[3].row) == {"type": "chat", "metadata": "[1]"}


def test_a_bad_row_of_ndjson_does_not_stop_the_rest(tmp_path: Path) -> None:
    lines = [b"{}", b"[1]", b"7", b'{"type"', b"\xff", b'{"a": NaN}', b"x" * MAX_BYTES * 2]
    rows = read(tmp_path, "a.ndjson", b"\n".join([*lines, json.dumps(EVENT).encode()]))
    assert [row.line for row in rows] == list(range(1, 9))
    assert [row.reason.partition(";")[0] for row in rows[:-1]] == [
        "type: Required",
        "Expected object, received array",
        "Expected object, received number",
        "Invalid JSON: Expecting ':' delimiter: line 2 column 1 (char 8)",
        "Invalid JSON: Not UTF-8: invalid start byte at byte 0",
        "Invalid JSON: NaN is not JSON",
        "The line has more than 10000 bytes",
    ]
    assert texts(rows[-1:]) == [EVENT]


def test_a_bad_row_of_json_does_not_stop_the_rest_as_long_as_its_end_is_known(tmp_path: Path) -> None:
    content = (
        b'[{},\n7, {"a": NaN}, {"type": "custom", "toolName": "\xff"},\n{"type": "custom", "toolName": "x"}, oops]'
    )
    with Source(str(write(tmp_path, "a.json", content)), None) as source:
        items = read_as(source, "json", EventMaker(Options(is_dated_now=True)))
        rows: list[Any] = [next(items) for _ in range(5)]
        assert [row.line for row in rows] == [1, 2, 2, 2, 3]
        assert [row.reason for row in rows[1:4]] == [
            "Expected object, received number",
            "Invalid JSON: NaN is not JSON",
            "Invalid JSON: Not UTF-8: invalid start byte at byte 32",
        ]
        with pytest.raises(Unreadable, match="line 3: Invalid JSON: Expecting value"):
            next(items)


@pytest.mark.parametrize("number", ["1.5", "1e5", "-12.25E-3"])
def test_a_number_may_lie_where_reading_stopped(tmp_path: Path, number: str) -> None:
    event = json.dumps(EVENT)
    for cut in range(-1, len(number) + 1):
        padding = " " * (2**16 - cut - len('{"took": '))
        assert texts(read(tmp_path, "a.json", f'{padding}{{"took": {number}, "events": [{event}]}}')) == [EVENT]


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
        ("a.csv", b"type,toolName,\xff\n", "the header row: Not UTF-8: invalid start byte at byte 14"),
        ("a.json", '{"a": [' + "1," * 9000 + '1], "b": [' + "1," * 9000, "more than 10000 bytes"),
        ("a.json", "[" * 100_000, "line 1: Invalid JSON: Nested too deep"),
        ("a.json", '[{"a" 1}]', "line 1: Invalid JSON: Expecting ':' delimiter"),
        ("a.json", '{"events": [', "line 1: Invalid JSON: Expecting value"),
        ("a.json", '["' + "x" * 200_000, "more than 10000 bytes"),
    ],
)
def test_an_invalid_file_is_one_clear_error(tmp_path: Path, name: str, content: str | bytes, reason: str) -> None:
    with pytest.raises(Unreadable) as caught:
        read(tmp_path, name, content)
    assert reason in str(caught.value)


@pytest.mark.measures
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
        command = [PROGRAM, "import", str(file), "--org", account.org_id, "--timestamp-now", "--dry-run"]
        # a process counts the memory of the one that started it as its own, so a small one does that
        program = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], stdout=2, check=True); "
        program += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
        done = subprocess.run([sys.executable, "-c", program, *command], env=environ, capture_output=True, check=True)
        return int(done.stdout) // 1024

    for name in ("a.csv", "a.json"):
        assert peak(name, 6000) < peak(name, 2000) + 10  # 40 MB more; the shorter fills all buffers too
