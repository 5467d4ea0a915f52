"""The options of `import`: what exports of other tools need, and what protects the trail from a typo."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.commands.importing import events, ndjson, write
from tests.support import Account, command


def import_(account: Account, *arguments: str) -> Any:
    """Runs the command as it is, without --timestamp-now."""
    return command("import", *arguments, "--org", account.org_id, database_url=account.service.database_url)


def stored(account: Account) -> list[tuple[Any, ...]]:
    return account.rows('type, tool_name, action, "timestamp"::text, metadata')


# Mistakes


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


def test_a_file_that_was_mended_in_place_is_not_stored_twice(account: Account, tmp_path: Path) -> None:
    rows = events(2500)
    file = write(tmp_path, "a.ndjson", ndjson(rows))
    assert import_(account, str(file)).returncode == 0
    rows[1700]["toolName"] = "mended"
    file.write_text(ndjson(rows))
    done = import_(account, str(file))
    assert done.returncode == 1
    assert "from about line 1001 on, its rows are not those that its last import stored" in done.stderr
    assert account.count() == 2500
    assert "stored 1500, already stored 1000" in import_(account, str(file), "--changed-file").stdout


def test_a_whole_file_is_known_by_its_content(account: Account, tmp_path: Path) -> None:
    file = write(tmp_path, "a.ndjson", ndjson(events(50)))
    assert import_(account, str(file)).returncode == 0
    (tmp_path / "b.ndjson").write_text(file.read_text())
    for name in (file, tmp_path / "b.ndjson"):
        assert import_(account, str(name)).stdout == "read 50, stored 0, already stored 50, rejected 0\n"
    other = import_(account, str(file), "--set", "action=deny")
    assert (other.returncode, account.count()) == (1, 50)
    account.execute("DELETE FROM idempotency_keys WHERE org_id = %s", account.org_id)
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
    first, second = json.loads(listed.stdout)
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
    assert done.stdout.startswith("read 1000, stored 0, already stored 0, rejected 1000: see ")
    assert "  1,000 x type: Invalid enum value." in done.stderr
    assert "the first 1000 rows are all rejected" in done.stderr


# Where fields come from


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
    assert set(metadata) == {"response", "payload"}
    cost = account.rows("metadata #>> '{response,body,usage,cost}'")[0][0]
    assert cost == "12345678901234567890.123456789"


def test_each_names_the_list_in_a_document(account: Account, tmp_path: Path) -> None:
    document = {"object": "page", "data": [{"results": events(2)}, {"results": events(1, first=2)}]}
    file = write(tmp_path, "usage.json", json.dumps(document))
    done = import_(account, str(file), "--each", "data[].results[]")
    assert (done.returncode, account.count()) == (0, 3), done.stderr
    done = import_(account, str(file), "--each", "data[0].nothing")
    assert (done.returncode, done.stderr) == (1, f"Error: {file}: --each finds no list in the document\n")


def test_an_expression_that_fails_rejects_the_row(account: Account, tmp_path: Path) -> None:
    rows = [{**event, "path": path} for event, path in zip(events(2), ("/embeddings", None), strict=True)]
    file = write(tmp_path, "a.ndjson", ndjson(rows))
    done = import_(account, str(file), "--map", "type=contains(path, 'embed') && 'embedding' || 'completion'")
    assert (done.returncode, account.rows("type")) == (3, [("embedding",)])
    assert "1 x type: The expression of --map fails: In function contains()" in done.stderr
    done = import_(account, str(file), "--each", "data")
    assert (done.returncode, done.stderr.splitlines()[-1]) == (
        2,
        "Error: --each is for JSON documents, and not for ndjson.",
    )


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
        ("19.03.2026 10:00 +0100", ["--time-format", "%d.%m.%Y %H:%M %z"], "2026-03-19 09:00:00+00"),
    ],
)
def test_other_times(account: Account, tmp_path: Path, time: str, options: list[str], expected: str) -> None:
    row = {"type": "custom", "toolName": "x", "timestamp": time}
    done = import_(account, str(write(tmp_path, "a.ndjson", ndjson([row]))), *options)
    assert done.returncode == 0, done.stderr
    assert account.rows('"timestamp"::text') == [(expected,)]


def test_what_is_no_text_says_what_to_do(account: Account, tmp_path: Path) -> None:
    sheet = write(tmp_path, "a.xlsx", b"PK\x03\x04" + b"\0" * 100)
    done = import_(account, str(sheet), "--format", "csv")
    assert (done.returncode, "save the sheet as CSV UTF-8" in done.stderr) == (1, True)


def test_parquet(account: Account, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="make clients-test installs it")
    from pyarrow import parquet

    table = pyarrow.table(
        {
            "type": ["custom"] * 2,
            "toolName": ["x", "y"],
            "cost": [0.5, float("nan")],
            "timestamp": pyarrow.array([1773914400, 1773914401], pyarrow.timestamp("s", tz="UTC")),
            "usage": [{"tokens": 3}, None],
        }
    )
    parquet.write_table(table, tmp_path / "a.parquet")
    done = import_(account, str(tmp_path / "a.parquet"))
    assert done.returncode == 0, done.stderr
    assert stored(account) == [
        ("custom", "x", "log", "2026-03-19 10:00:00+00", {"cost": 0.5, "usage": {"tokens": 3}}),
        ("custom", "y", "log", "2026-03-19 10:00:01+00", {}),
    ]
