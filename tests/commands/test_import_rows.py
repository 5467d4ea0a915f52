"""`import`: what rows become."""

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from zoneinfo import ZoneInfo

import pytest

from commands.importer.chunks import Import
from commands.importer.mapping import Options
from commands.importer.rows import EventMaker
from tests.commands.importing import events, ndjson, read, run, texts, write
from tests.support import Account, igris


def test_an_event_of_http_stays_as_it_is_written(tmp_path: Path) -> None:
    line = '{"type":"custom", "toolName":"x","metadata":{"n":1.10000000000000000001, "big":12345678901234567890123}}'
    assert [event.text for event in read(tmp_path, "a.ndjson", line)] == [line]
    assert [event.text for event in read(tmp_path, "a.json", f"[{line}]")] == [line]


def test_other_members_join_metadata_with_all_their_digits(tmp_path: Path) -> None:
    line = (
        '{"type": "custom", "n" : 1.10000000000000000001 , "tool_name": "x", "metadata":  {"a": 1e400}, "note": null}'
    )
    [event] = read(tmp_path, "a.ndjson", line)
    assert event.text.endswith('"metadata": {"n": 1.10000000000000000001, "note": null, "a": 1E+400}}')
    csv_file = 'type,toolName,metadata,n\ncustom,x,"{""a"": 0.10000000000000000001}",007\n'
    [event] = read(tmp_path, "a.csv", csv_file)
    assert event.text.endswith('"metadata": {"n": "007", "a": 0.10000000000000000001}}')


def test_columns_are_renamed_and_constants_set(tmp_path: Path) -> None:
    columns = EventMaker(
        Options({"toolName": "type"}, {"type": "completion", "metadata": '{"batch": 7}'}, is_dated_now=True)
    )
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
    columns = EventMaker(zone=ZoneInfo("Europe/Berlin"))
    rows = read(tmp_path, "a.csv", f"type,toolName,timestamp\ncustom,x,{exported}\n", columns)
    assert texts(rows) == [{"type": "custom", "toolName": "x", "timestamp": stored}]
    for value in [exported, float(exported)] if exported.replace(".", "").isdigit() else [exported]:
        row = {"type": "custom", "toolName": "x", "timestamp": value}
        assert texts(read(tmp_path, "a.ndjson", json.dumps(row), columns))[0]["timestamp"].startswith(stored[:-1])


UNKNOWN = 'timestamp "{}": Has no known form; give its form with --time-format'


@pytest.mark.parametrize(
    ("exported", "reason"),
    [
        ("2026031910", 'timestamp "2026031910": Is in 2034, if it counts from 1970; give its form with --time-format'),
        ("20260319", UNKNOWN.format("20260319")),
        ("202603191000", UNKNOWN.format("202603191000")),
        ("2026-02-30 10:00:00+00", "timestamp: Invalid datetime"),
        ("2026-02-30 10:00:00", "timestamp: Invalid datetime"),
        ("2026-03-19 10:00.5+00", UNKNOWN.format("2026-03-19 10:00.5+00")),
        ("19/03/2026 10:00", UNKNOWN.format("19/03/2026 10:00")),
        ("2026-03-29 02:30:00", "timestamp: There was no such time in Europe/Berlin, where clocks went forward"),
    ],
)
def test_what_is_no_instant_is_rejected(tmp_path: Path, exported: str, reason: str) -> None:
    columns = EventMaker(zone=ZoneInfo("Europe/Berlin"))
    [reject] = read(tmp_path, "a.csv", f"type,toolName,timestamp\ncustom,x,{exported}\n", columns)
    assert reject.reason == reason


def test_nothing_of_a_row_is_lost_in_silence(tmp_path: Path) -> None:
    long = "x" * 6000
    rows = read(tmp_path, "a.csv", f'type,toolName,a,b\ncustom,x,{long},"{long}\nc"\ncustom,y,,\n')
    assert [type(row).__name__ for row in rows] == ["Reject", "Reject", "Event"]
    both = 'type,toolName,model,metadata\ncustom,x,gpt-4,"{""model"": ""other""}"\n'
    [event] = texts(read(tmp_path, "a.csv", both))
    assert event["metadata"] == {"model": "other", "column_model": "gpt-4"}
    both = 'type,toolName,n,metadata\ncustom,x,5,"{""n"": 5, ""column_n"": 6}"\n'
    assert texts(read(tmp_path, "a.csv", both))[0]["metadata"] == {"n": 5, "column_n": 6}
    rows = read(tmp_path, "a.json", '{"events": 3} {"events": {"type": "custom", "toolName": "x"}} {"events": null}')
    assert [row.reason for row in rows] == ["events: Expected array"] * 3
    rows = read(tmp_path, "a.json", '[{"metadata": {"a": NaN, "b": NaN}}, {"type": "custom", "toolName": "good"}]')
    assert [type(row).__name__ for row in rows] == ["Reject", "Event"]
    rows = read(tmp_path, "a.json", f'[{{"n": {"9" * 5000}}}, {{"type": "custom", "toolName": "good"}}]')
    assert [type(row).__name__ for row in rows] == ["Reject", "Event"]
    for depth in range(900, 1000):
        deep = f'{{"type": "custom", "toolName": "x", "a": {"[" * depth}{"]" * depth}}}'
        assert len(read(tmp_path, "a.ndjson", deep)) == 1


def test_the_keys_of_chunks_stay_what_they_are(tmp_path: Path) -> None:
    """If they changed, files imported before an upgrade of this program would be stored again after it."""
    columns = EventMaker(
        Options({"toolName": "model"}, {"action": "allow"}, is_dated_now=True), ZoneInfo("Europe/Berlin")
    )
    content = 'type,model,timestamp,metadata,note\ncustom,gpt-4o,2026-03-19 10:00:00,"{""a"": 1}",ü\nembedding,e,,,\n'
    [first, second] = read(tmp_path, "a.csv", content, columns)
    assert first.text == (
        '{"type": "custom", "toolName": "gpt-4o", "timestamp": "2026-03-19T10:00:00+0100", "action": "allow", '
        '"metadata": {"note": "\\u00fc", "a": 1}}'
    )
    assert second.text == '{"type": "embedding", "toolName": "e", "action": "allow"}'
    job = Import(cast(Any, SimpleNamespace(stored_before={})), lambda _: None, stores=False)
    job._append(first)
    job._append(second)
    assert [each.key for each in job._pending] == [
        hashlib.sha256(first.text.encode() + b"\n").hexdigest(),
        hashlib.sha256(first.text.encode() + b"\n" + second.text.encode() + b"\n").hexdigest(),
    ]


def test_a_dry_run_stores_nothing(account: Account, tmp_path: Path) -> None:
    file = write(tmp_path, "a.ndjson", ndjson([*events(3), {}]).encode())
    done = run(account, str(file), "--dry-run")
    assert (done.returncode, done.stdout) == (
        3,
        "read 4, valid 3, of these already stored 0, stored none, rejected 1\nthe month's quota has room for 50000\n",
    )
    assert done.stderr == "  1 x type: Required; toolName: Required\n"
    assert list(tmp_path.iterdir()) == [file]
    assert account.rows() == []
    assert account.used() == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.csv"], "'missing.csv' does not exist."),
        (["a.ndjson", "--map", "tool=x"], "'tool=x' is not FIELD=..., where FIELD is one of type, toolName,"),
        (["a.ndjson", "--set", "type"], "'type' is not FIELD=..."),
        (["a.ndjson", "--set", "type=chat"], "type: Invalid enum value."),
        (["a.ndjson", "--set", "timestamp=2026-03-19 10:00"], "timestamp: Has no time zone"),
        (
            ["a.ndjson", "--timezone", "Mars/Olympus"],
            "'Mars/Olympus' is not a time zone; use a name such as UTC",
        ),
        (["a.ndjson", "--timezone", "Europe"], "'Europe' is not a time zone"),
        (["a.ndjson", "--format", "xml"], "'xml' is not one of 'csv', 'json', 'ndjson', 'parquet', 'split'."),
        (["a.ndjson", "--org", "nobody"], "there is no organization 'nobody'"),
        (["a.ndjson", "--org", "nobody", "--dry-run"], "there is no organization 'nobody'"),
    ],
)
def test_a_wrong_argument_is_one_clear_line(
    account: Account, arguments: list[str], message: str, tmp_path: Path
) -> None:
    write(tmp_path, "a.ndjson", ndjson(events(1)).encode())
    org = [] if "--org" in arguments else ["--org", account.org_id]
    done = igris("import", *arguments, *org, database_url=account.service.database_url, cwd=tmp_path)
    assert done.returncode in (1, 2)
    assert message in done.stderr.splitlines()[-1]
    assert account.rows() == []
