"""`import`: rows that can't be events."""

import json
from pathlib import Path
from typing import Any

import pytest

from commands.importer.files import Reject, Source
from commands.importer.formats import format_of
from commands.importer.mapping import Options
from commands.importer.rows import Event, EventMaker
from dev.service import EVENT, TOO_LARGE_A_NUMBER
from tests.commands.importing import events, ndjson, read, read_as, run, write
from tests.support import Account


def test_rejects_are_listed_and_can_be_fixed(account: Account, tmp_path: Path) -> None:
    rows = events(2500)
    rows[7]["type"] = "chat"
    rows[2000] = {"toolName": "x"}
    file = write(tmp_path, "a.ndjson", ndjson(rows).encode())
    for counts, name in (
        ("stored 2498, already stored 0", "rejects"),
        ("stored 0, already stored 2498", "rejects"),  # the same rows have no second file
    ):
        done = run(account, str(file))
        assert done.stdout == f"read 2500, {counts}, rejected 2: see {file}.{name}.ndjson\n"
        assert done.returncode == 3
        assert "  1 x type: Required\n" in done.stderr
        rejects = [json.loads(line) for line in Path(f"{file}.{name}.ndjson").read_text().splitlines()]
        assert [(each["line"], each["row"]) for each in rejects] == [(8, rows[7]), (2001, {"toolName": "x"})]
        assert rejects[1]["reason"] == "type: Required"
        assert account.count() == account.used() == 2498
    with Path(f"{file}.rejects.ndjson").open("a") as fixed:
        fixed.write("\n")
    assert run(account, str(file)).stdout.endswith("rejected 2: see " + f"{file}.rejects-2.ndjson\n")
    Path(f"{file}.rejects.ndjson").rename(tmp_path / "fixed.jsonl")
    done = run(account, str(tmp_path / "fixed.jsonl"), "--set", "type=custom")
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
    [reject] = read(tmp_path, name, content, EventMaker(Options({**options, "type": "kind"}, is_dated_now=True)))
    assert isinstance(reject, Reject)
    line = f'{{"line": {reject.line}, "reason": {json.dumps(reject.reason)}, "row": {reject.row}}}\n'
    fixed = write(tmp_path, "a.rejects.ndjson", line.encode())
    with Source(str(fixed), None) as source:
        columns = EventMaker(Options(options, {"type": "custom"}, is_dated_now=True))
        [event] = list(read_as(source, "ndjson", columns))
    assert isinstance(event, Event), event
    assert json.loads(event.text, parse_float=str) == json.loads(stored, parse_float=str)


def test_what_is_no_reject_is_rejected(tmp_path: Path) -> None:
    assert format_of("a.csv.REJECTS.ndjson.gz") == "rejects"
    file = write(tmp_path, "a.rejects.ndjson", ndjson([EVENT, {"line": 1, "reason": "x", "row": "text"}]).encode())
    with Source(str(file), None) as source:
        rows: list[Any] = list(read_as(source, "rejects", EventMaker(Options(is_dated_now=True))))
    assert [row.reason for row in rows] == [
        "Expected an object of line, reason and row, as an import writes it",
        "Expected object, received string",
    ]


def test_a_row_that_only_postgresql_rejects_is_rejected_alone(account: Account, tmp_path: Path) -> None:
    rows = [json.dumps(event) for event in events(1500)]
    for index in (3, 700, 1499):
        rows[index] = TOO_LARGE_A_NUMBER
    file = write(tmp_path, "a.ndjson", "\n".join(rows).encode())
    for counts in ("stored 1497, already stored 0", "stored 0, already stored 1497"):
        assert run(account, str(file)).stdout.startswith(f"read 1500, {counts}, rejected 3: see")
    rejects = [json.loads(line) for line in Path(f"{file}.rejects.ndjson").read_text().splitlines()]
    assert [each["line"] for each in rejects] == [4, 701, 1500]
    assert [row[0] for row in account.rows("tool_name")] == [
        f"tool-{i}" for i in range(1500) if i not in (3, 700, 1499)
    ]
