"""The options of `import`: what exports of other tools need, and what protects the trail from a typo."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.commands.importing import events, import_, ndjson, write
from tests.support import Account


def stored(account: Account) -> list[tuple[Any, ...]]:
    return account.rows('type, tool_name, action, "timestamp"::text, metadata')


def test_fields_come_from_expressions_and_translated_values(account: Account, tmp_path: Path) -> None:
    row = {
        "call_type": "acompletion",
        "startTime": "2026-03-19 10:00:00",
        "response": {"body": {"model": "gpt-4o", "usage": {"cost": 12345678901234567890.5}}},
        "payload": '{"status": "failure"}',
        "secret": "x",
    }
    row_text = json.dumps(row).replace("1.2345678901234567e+19", "12345678901234567890.123456789")
    done = import_(
        account,
        str(write(tmp_path, "a.ndjson", row_text)),
        *("--map", "toolName=response.body.model", "--map", "type=call_type", "--map", "timestamp=startTime"),
        *("--map", "action=payload.status == 'failure' && 'alert' || 'log'", "--timezone", "UTC"),
        *("--map-value", "type:acompletion=completion", "--map-value", "type:*=custom", "--drop", "secret"),
    )
    assert done.returncode == 0, done.stderr
    [(event_type, tool, action, time, metadata)] = stored(account)
    assert (event_type, tool, action, time) == ("completion", "gpt-4o", "alert", "2026-03-19 10:00:00+00")
    assert set(metadata) == {"response", "payload", "call_type"}  # what --map-value replaced
    cost = account.rows("metadata #>> '{response,body,usage,cost}'")[0][0]
    assert cost == "12345678901234567890.123456789"


def test_each_names_the_list_in_a_document(account: Account, tmp_path: Path) -> None:
    document = {"object": "page", "data": [{"results": events(2)}, {"results": events(1, first=2)}]}
    file = write(tmp_path, "usage.json", json.dumps(document))
    done = import_(account, str(file), "--each", "data[].results[]")
    assert (done.returncode, account.count()) == (0, 3), done.stderr
    done = import_(account, str(file), "--each", "data[0].nothing")
    assert (done.returncode, done.stderr) == (1, f"Error: {file}: --each finds no list in the document\n")


def test_a_second_each_names_a_list_in_the_rows_of_the_first(account: Account, tmp_path: Path) -> None:
    buckets = [
        {"start": 1773914400, "results": [{"model": "a", "tokens": 1.50}, {"model": "b"}]},
        {"start": 1773914460, "results": []},
        {"start": 1773914520, "results": [{"model": None}]},
    ]
    file = write(tmp_path, "usage.json", json.dumps({"data": buckets}))
    each = ["--each", "data", "--each", "results", "--map", "timestamp=start", "--set", "type=custom"]
    done = import_(account, str(file), *each, "--map", "toolName=model || 'all models'")
    assert done.returncode == 0, done.stderr
    assert [row[1:] for row in stored(account)] == [
        ("a", "log", "2026-03-19 10:00:00+00", {"model": "a", "tokens": 1.5}),
        ("b", "log", "2026-03-19 10:00:00+00", {"model": "b"}),
        ("all models", "log", "2026-03-19 10:02:00+00", {"model": None}),
    ]
    lists = write(tmp_path, "lists.json", '{"data": [[1]]}')
    done = import_(account, str(lists), "--each", "data", "--each", "@")
    assert (done.returncode, "the second --each finds no list" in done.stderr) == (1, True)
    done = import_(account, str(file), "--each", "data", "--each", "nothing", "--map", "type=start")
    assert (done.returncode, done.stderr) == (
        1,
        f"Error: {file}: the second --each finds no list in a row of the first\n",
    )


def test_an_expression_that_fails_rejects_the_row(account: Account, tmp_path: Path) -> None:
    rows = [{**event, "path": path} for event, path in zip(events(2), ("/embeddings", None), strict=True)]
    file = write(tmp_path, "a.ndjson", ndjson(rows))
    done = import_(account, str(file), "--map", "type=contains(path, 'embed') && 'embedding' || 'completion'")
    assert (done.returncode, account.rows("type")) == (3, [("embedding",)])
    assert "1 x type: The expression of --map fails: In function contains()" in done.stderr
    (tmp_path / "a.csv").write_text("a,b\n")
    done = import_(account, str(tmp_path / "a.csv"), "--each", "data")
    assert (done.returncode, done.stderr.splitlines()[-1]) == (2, "Error: --each is for JSON, and not for csv.")


@pytest.mark.parametrize(
    ("content", "options"),
    [
        ("type;toolName;timestamp;cost\ncustom;ü, x;2026-03-19T10:00:00Z;1,5\n".encode(), []),
        ("type\ttoolName\ttimestamp\tcost\ncustom\tü, x\t2026-03-19T10:00:00Z\t1,5\n".encode("utf-16"), []),
        ("type|toolName|timestamp|cost\ncustom|ü, x|2026-03-19T10:00:00Z|1,5\n".encode("utf-8-sig"), []),
        (
            "type;toolName;timestamp;cost\ncustom;ü, x;2026-03-19T10:00:00Z;1,5\n".encode("cp1252"),
            ["--encoding", "cp1252"],
        ),
        ("type;toolName;timestamp;cost\ncustom;ü, x;2026-03-19T10:00:00Z;1,5\n".encode(), ["--delimiter", ";"]),
    ],
    ids=["semicolon", "tab in UTF-16", "bar with a mark", "cp1252", "given"],
)
def test_delimiters_and_encodings(account: Account, tmp_path: Path, content: bytes, options: list[str]) -> None:
    done = import_(account, str(write(tmp_path, "a.csv", content)), *options)
    assert done.returncode == 0, done.stderr
    assert stored(account) == [("custom", "ü, x", "log", "2026-03-19 10:00:00+00", {"cost": "1,5"})]


@pytest.mark.parametrize(
    ("time", "options", "expected"),
    [
        ("2026-03-19", ["--timezone", "Europe/Berlin"], "2026-03-18 23:00:00+00"),
        ("3/1/2026, 9:00 AM", ["--time-format", "%m/%d/%Y, %I:%M %p", "--timezone", "UTC"], "2026-03-01 09:00:00+00"),
        ("2026-04-24", ["--timezone", "Africa/Cairo"], "2026-04-23 22:00:00+00"),  # clocks go forward at midnight
        (" 2026-03-19 10:00:00,123 ", ["--timezone", "UTC"], "2026-03-19 10:00:00.123+00"),
        ("2026-03-19 10:00:00 GMT", [], "2026-03-19 10:00:00+00"),
        ("19.03.2026 10:00 +0100", ["--time-format", "%d.%m.%Y %H:%M %z"], "2026-03-19 09:00:00+00"),
    ],
)
def test_other_times(account: Account, tmp_path: Path, time: str, options: list[str], expected: str) -> None:
    row = {"type": "custom", "toolName": "x", "timestamp": time}
    done = import_(account, str(write(tmp_path, "a.ndjson", ndjson([row]))), *options)
    assert done.returncode == 0, done.stderr
    assert account.rows('"timestamp"::text') == [(expected,)]


def test_metadata_that_is_no_object_is_kept_in_one(account: Account, tmp_path: Path) -> None:
    row = {**events(1)[0], "other": 1}
    rows = [{**row, "metadata": value} for value in ("text", [1.50], "[1]", 7, '{"a": 1}', None)]
    assert import_(account, str(write(tmp_path, "a.ndjson", ndjson(rows)))).returncode == 0
    kept = ["text", [1.5], [1], 7]
    assert [metadata for (metadata,) in account.rows("metadata")] == [
        *({"other": 1, "metadata": value} for value in kept),
        {"other": 1, "a": 1},
        {"other": 1},
    ]


def test_what_is_no_text_says_what_to_do(account: Account, tmp_path: Path) -> None:
    sheet = write(tmp_path, "a.xlsx", b"PK\x03\x04" + b"\0" * 100)
    done = import_(account, str(sheet), "--format", "csv")
    assert (done.returncode, "save the sheet as CSV UTF-8" in done.stderr) == (1, True)
    done = import_(account, str(sheet))
    assert (done.returncode, "save the sheet as CSV UTF-8" in done.stderr) == (2, True)


def test_parquet(account: Account, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="make clients-test installs it")
    from pyarrow import parquet

    table = pyarrow.table(
        {
            "type": ["custom"] * 2,
            "toolName": ["x", "y"],
            "cost": [0.5, float("nan")],
            "at": pyarrow.array([1, None], pyarrow.timestamp("ns")),
            "tags": pyarrow.array([[("k", 1)], None], pyarrow.map_(pyarrow.string(), pyarrow.int64())),
            "timestamp": pyarrow.array([1773914400, 1773914401], pyarrow.timestamp("s", tz="UTC")),
            "usage": [{"tokens": 3}, None],
        }
    )
    parquet.write_table(table, tmp_path / "a.parquet")
    done = import_(account, str(tmp_path / "a.parquet"))
    assert done.returncode == 0, done.stderr
    more = {"at": "1970-01-01 00:00:00.000000001", "tags": {"k": 1}}
    assert stored(account) == [
        ("custom", "x", "log", "2026-03-19 10:00:00+00", {"cost": 0.5, "usage": {"tokens": 3}, **more}),
        ("custom", "y", "log", "2026-03-19 10:00:01+00", {}),
    ]
