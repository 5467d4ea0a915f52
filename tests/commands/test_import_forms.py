"""`import`: what would be stored wrongly and quietly, and forms of files that other tools write."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from commands.importer.mapping import Options
from commands.importer.rows import EventMaker
from tests.commands.importing import import_, ndjson, read, texts, write
from tests.support import Account, command

ROW = {"type": "custom", "toolName": "x"}


@pytest.mark.parametrize(
    ("time_format", "text", "stored"),
    [
        ("%Y-%m-%d %H:%M:%S %Z", "2026-03-19 09:00:00 UTC", "2026-03-19T09:00:00+00:00"),
        ("%Y-%m-%d %H:%M:%S %Z", "2026-03-19 09:00:00 GMT", "2026-03-19T09:00:00+00:00"),
        ("%Y-%m-%dT%H:%M:%S%Z", "2026-03-19T09:00:00Z", "2026-03-19T09:00:00+00:00"),
        ("%m/%d/%Y %I:%M %p", "03/19/2026 9:00 PM", "2026-03-19T21:00:00+0900"),
    ],
)
def test_the_zone_and_the_half_of_the_day_are_kept(tmp_path: Path, time_format: str, text: str, stored: str) -> None:
    maker = EventMaker(Options(), ZoneInfo("Asia/Tokyo"), time_format)
    rows = read(tmp_path, "a.ndjson", json.dumps({**ROW, "timestamp": text}), maker)
    assert texts(rows)[0]["timestamp"] == stored


def test_another_zone_by_name_is_rejected(tmp_path: Path) -> None:
    maker = EventMaker(Options(), ZoneInfo("Asia/Tokyo"), "%Y-%m-%d %H:%M:%S %Z")
    [reject] = read(tmp_path, "a.ndjson", json.dumps({**ROW, "timestamp": "2026-03-19 09:00:00 EST"}), maker)
    assert reject.reason == 'timestamp "2026-03-19 09:00:00 EST": Does not have the form of --time-format'


@pytest.mark.parametrize(
    "time_format", ["%s", "%D %H:%M", "%Q", "%Y-%m-%d %H:%M %p", "%Y-%m-%d %I:%M", "%Y %", "%d.%m %H:%M", "%Y %k"]
)
def test_a_form_that_could_not_be_read_is_rejected_at_once(account: Account, tmp_path: Path, time_format: str) -> None:
    file = write(tmp_path, "a.ndjson", ndjson([ROW]))
    done = import_(account, str(file), "--time-format", time_format)
    assert (done.returncode, "--time-format" in done.stderr) == (2, True)


@pytest.mark.parametrize("as_text", [True, False])
@pytest.mark.parametrize(
    ("epoch", "stored"),
    [
        ("1773914400", "2026-03-19T10:00:00Z"),
        ("1773914400123", "2026-03-19T10:00:00.123Z"),
        ("1773914400123456", "2026-03-19T10:00:00.123456Z"),
        ("1773914400123456789", "2026-03-19T10:00:00.123456789Z"),
    ],
)
def test_an_epoch_has_seconds_or_a_thousandth_of_one_or_less(
    tmp_path: Path, epoch: str, stored: str, as_text: bool
) -> None:
    line = f'{{"type": "custom", "toolName": "x", "timestamp": {json.dumps(epoch) if as_text else epoch}}}'
    assert texts(read(tmp_path, "a.ndjson", line))[0]["timestamp"] == stored


@pytest.mark.parametrize("text", ["2026031910", "20260319100000", "17739144001", "9999999999", "1/2/2026 9:00"])
def test_what_could_be_another_time_is_rejected_with_its_value(tmp_path: Path, text: str) -> None:
    [reject] = read(tmp_path, "a.csv", f"type,toolName,timestamp\ncustom,x,{text}\n")
    assert reject.reason.startswith(f'timestamp "{text}": ')
    assert reject.reason.endswith("; give its form with --time-format")


@pytest.mark.parametrize(
    ("content", "options"),
    [
        ("type,toolName,timestamp\ncustom,x,03/04/2026\ncustom,x,03/19/2026\n", ["--time-format", "%d/%m/%Y"]),
        ("type,toolName,timestamp\ncustom,x,2026-03-19 10:00\ncustom,x,19.3.2026\n", []),
        (b"type,toolName,timestamp\ncustom,x,2026-03-19 10:00\ncustom,\xfc,2026-03-19 10:00\n", []),
    ],
)
def test_if_the_first_rows_have_several_forms_nothing_is_stored(
    account: Account, tmp_path: Path, content: str | bytes, options: list[str]
) -> None:
    file = write(tmp_path, "a.csv", content)
    done = import_(account, str(file), "--timezone", "UTC", *options)
    assert (done.returncode, account.count()) == (3, 0)
    assert "1 of the first 2 rows have another form than the rest, the first: " in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]
    done = import_(account, str(file), "--timezone", "UTC", "--mixed-forms", *options)
    assert (done.returncode, account.count()) == (3, 1)


def test_an_operand_that_no_row_has_is_an_error_unless_it_may_be_absent(account: Account, tmp_path: Path) -> None:
    file = write(tmp_path, "a.ndjson", ndjson([{"provided_model_name": "gpt-4o", "name": "summarize"}]))
    options = ["--set", "type=custom", "--timestamp-now"]
    done = import_(account, str(file), "--map", "toolName=model || name", *options)
    assert (done.returncode, account.count()) == (1, 0)
    assert (
        "no column is called 'model', as --map toolName=model || name has it; did you mean 'provided_model"
        in done.stderr
    )
    assert "If rows may lack it, write maybe(model)" in done.stderr
    assert import_(account, str(file), "--map", "toolName=maybe(model) || name", *options).returncode == 0
    assert account.rows("tool_name") == [("summarize",)]


def test_the_text_format_of_copy_is_rejected_and_its_null_in_csv_is_absent(account: Account, tmp_path: Path) -> None:
    copied = write(tmp_path, "a.tsv", "type\ttoolName\tuser\ncustom\tx\t\\N\n")
    done = import_(account, str(copied), "--timestamp-now")
    assert (done.returncode, account.count()) == (1, 0)
    assert "the text format of PostgreSQL's COPY, with \\N for NULL: export it again with CSV HEADER" in done.stderr
    assert texts(read(tmp_path, "b.csv", "type,toolName,user\ncustom,x,\\N\n")) == [ROW]


@pytest.mark.parametrize("header", ["2026-03-19 10:00:00,gpt-4o", "1773914400,gpt-4o", "gpt-4o,2026-03-19"])
def test_a_file_without_a_header_row_loses_no_row(account: Account, tmp_path: Path, header: str) -> None:
    file = write(tmp_path, "a.csv", f"{header}\n2026-03-19 10:00:01,gpt-4o\n")
    done = import_(account, str(file), "--map", "toolName=gpt-4o", "--set", "type=completion", "--timestamp-now")
    assert (done.returncode, account.count()) == (1, 0)
    assert "where the names of columns are expected: add them" in done.stderr


def test_a_file_that_ends_within_a_number_gets_a_note(account: Account, tmp_path: Path) -> None:
    file = write(tmp_path, "a.csv", "type,toolName,tokens\ncustom,x,120\ncustom,x,12")
    done = import_(account, str(file), "--timestamp-now")
    assert (done.returncode, account.count()) == (0, 2)
    assert "Note: the last line has no line feed, and ends with a number: was the file cut there?\n" in done.stderr
    file = write(tmp_path, "b.csv", "type,toolName,tokens\ncustom,y,120\n")
    assert "Note" not in import_(account, str(file), "--timestamp-now").stderr


def test_rows_that_are_no_events_are_left_out(account: Account, tmp_path: Path) -> None:
    rows = [{"type": "summary"}, *({"type": "call", "model": f"m{n}"} for n in range(2)), {"type": "call", "model": 5}]
    file = write(tmp_path, "a.ndjson", ndjson(rows))
    options = ["--map", "toolName=model", "--set", "type=custom", "--timestamp-now"]
    done = import_(account, str(file), "--where", "type == 'call' && starts_with(model, 'm')", *options)
    assert (done.returncode, done.stdout[:54]) == (3, "read 3, stored 2, already stored 0, rejected 1, left o")
    assert "left out 1: see" in done.stdout
    assert "The expression of --where fails: In function starts_with()" in done.stderr


def test_a_document_on_each_line(account: Account, tmp_path: Path) -> None:
    documents = [{"spans": [{"name": f"{n}-{m}"} for m in range(2)]} for n in range(2)]
    file = write(tmp_path, "a.jsonl", ndjson(documents) + "{\n")
    options = ["--map", "toolName=name", "--set", "type=custom", "--timestamp-now"]
    done = import_(account, str(file), "--each", "spans[]", *options)
    assert (done.returncode, account.rows("tool_name")) == (3, [("0-0",), ("0-1",), ("1-0",), ("1-1",)])
    assert [each["line"] for each in map(json.loads, Path(f"{file}.rejects.ndjson").read_text().splitlines())] == [3]


def test_the_forms_of_pandas(account: Account, tmp_path: Path) -> None:
    split = {"columns": ["model", "tokens"], "index": [0, 1], "data": [["a", 1], ["b", None]]}
    options = ["--map", "toolName=model", "--set", "type=custom", "--timestamp-now"]
    file = write(tmp_path, "a.json", json.dumps(split))
    done = import_(account, str(file), *options)
    assert (done.returncode, "add --format split" in done.stderr) == (1, True)
    assert import_(account, str(file), "--format", "split", *options).returncode == 0
    assert account.rows("tool_name, metadata") == [("a", {"tokens": 1}), ("b", {"tokens": None})]
    columns = write(tmp_path, "b.json", json.dumps({"model": {"0": "a", "1": "b"}, "tokens": {"0": 1, "1": None}}))
    done = import_(account, str(columns), *options)
    assert (done.returncode, 'save it with to_json(orient="records", lines=True)' in done.stderr) == (1, True)
    assert import_(account, str(columns), "--format", "split", *options).returncode == 1


def test_the_first_line_of_excel_names_the_delimiter(tmp_path: Path) -> None:
    for mark in ("", "\ufeff"):
        [event] = read(tmp_path, "a.csv", f"{mark}sep=;\r\ntype;toolName;note\r\ncustom;x;a,b,c,d\r\n")
        assert (event.line, json.loads(event.text)) == (3, {**ROW, "metadata": {"note": "a,b,c,d"}})


def test_a_cell_that_is_too_long_is_one_reject(tmp_path: Path) -> None:
    cell = '"' + ("x" * 99 + '""\n') * 300 + '"'
    first, reject, last = read(tmp_path, "a.csv", f'type,toolName,note\ncustom,a,1\ncustom,x,{cell}\ncustom,b,"2"\n')
    assert (reject.line, reject.reason) == (3, "The row has more than 10000 bytes")
    assert [json.loads(each.text)["toolName"] for each in (first, last)] == ["a", "b"]


@pytest.mark.parametrize("before", [0, 2000])
def test_a_nul_is_rejected_wherever_it_is(tmp_path: Path, before: int) -> None:
    items = read(
        tmp_path,
        "a.csv",
        "type,toolName\n" + "custom,aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\n" * before + "custom,x\0y\ncustom,z\n",
    )
    assert (items[before].reason, json.loads(items[before + 1].text)["toolName"]) == ("Has a NUL", "z")


@pytest.mark.parametrize(
    ("begin", "said"),
    [(b"PK\3\4", "unzip it"), (b"BZh91", "bunzip2"), (b"\x28\xb5\x2f\xfd", "unzstd"), (b"\xfd7zXZ\0", "unxz")],
)
def test_what_is_compressed_otherwise_is_to_be_decompressed(
    account: Account, tmp_path: Path, begin: bytes, said: str
) -> None:
    done = import_(account, str(write(tmp_path, "a.csv", begin + bytes(100))), "--timestamp-now")
    assert (done.returncode, said in done.stderr) == (1, True)


def test_events_are_shown_by_their_own_time(account: Account, tmp_path: Path, run: Callable[..., list[str]]) -> None:
    days = [{**ROW, "toolName": f"d{day}", "timestamp": f"2026-03-0{day}T10:00:00Z"} for day in (3, 1, 2)]
    import_(
        account,
        str(
            write(
                tmp_path,
                "a.ndjson",
                ndjson([*days, {**ROW, "timestamp": "2026-02-01T00:00:00Z", "metadata": {"userId": 42}}]),
            )
        ),
    )
    assert run("events", "--since", "2026-03-01", "--until", "2026-03-03") == []
    assert run("events", "--by", "timestamp", "--since", "2026-03-01", "--until", "2026-03-03") == ["d1", "d2"]
    assert run("events", "--by", "timestamp") == ["x", "d1", "d2", "d3"]
    assert run("events", "--since", "2h") == run("events", "--since", "30m") == ["d3", "d1", "d2", "x"]
    assert run("events", "--metadata", "userId=42") == run("export", "--metadata", '{"userId": 42}') == ["x"]
    assert run("export", "--output", "-", "--since", f"{datetime.now(UTC):%Y}-01-01") == ["d3", "d1", "d2", "x"]


@pytest.fixture
def run(account: Account) -> Callable[..., list[str]]:
    """Runs `events` or `export`; returns the names of the tools."""

    def run_(name: str, *options: str) -> list[str]:
        json_option = ["--json"] if name == "events" else []
        done = command(name, "--org", account.org_id, *json_option, *options, database_url=account.service.database_url)
        assert done.returncode == 0, done.stderr
        return [json.loads(line)["toolName"] for line in done.stdout.splitlines()]

    return run_


def test_a_condition_that_names_no_column_or_leaves_everything_out_is_an_error(
    account: Account, tmp_path: Path
) -> None:
    file = write(tmp_path, "a.ndjson", ndjson([{**ROW, "timestamp": "2026-03-19T10:00:00Z"}]))
    for where, said in (
        ("typ == 'custom'", "no column is called 'typ', as --where typ == 'custom' has it; did you mean 'type'?"),
        ('type == "custom"', "a text has single quotes"),
        ("type==custom", "no column is called 'custom'"),
        ("type == 'costum'", "--where left out all rows"),
    ):
        done = import_(account, str(file), "--where", where)
        assert (done.returncode, said in done.stderr) == (1, True), done.stderr
    assert account.count() == 0


@pytest.mark.parametrize(
    "options",
    [
        ["--where", "type", "--where", "toolName"],
        ["--id", "a", "--id", "b"],
        ["--timezone", "UTC", "--timezone", "Asia/Tokyo"],
        ["--map", "toolName=a", "--set", "toolName=x"],
    ],
)
def test_options_that_would_overrule_each_other_are_wrong_usage(
    account: Account, tmp_path: Path, options: list[str]
) -> None:
    assert import_(account, str(write(tmp_path, "a.ndjson", ndjson([ROW]))), *options).returncode == 2


def test_a_time_in_the_future_is_rejected_and_the_days_are_shown(account: Account, tmp_path: Path) -> None:
    days = ["2026-03-01T10:00:00Z", "2026-03-05 10:00:00+01", "2126-03-19T10:00:00Z"]
    rows = [{**ROW, "timestamp": day} for day in days]
    done = import_(account, str(write(tmp_path, "a.ndjson", ndjson(rows))), "--mixed-forms")
    assert (done.returncode, account.count()) == (3, 2)
    assert '  1 x timestamp "2126-03-19T10:00:00Z": Is in the future\n' in done.stderr
    assert "timestamps from 2026-03-01 to 2026-03-05\n" in done.stderr


def test_what_is_not_found_is_noted(account: Account, tmp_path: Path) -> None:
    empty = write(tmp_path, "a.csv", "type,toolName,timestamp\n")
    assert import_(account, str(empty)).stderr == "Note: no rows were found\n"
    row = {**ROW, "timestamp": "2026-03-19T10:00:00Z"}
    done = import_(account, str(write(tmp_path, "b.ndjson", ndjson([row]))), "--map-value", "type:costum=completion")
    assert done.stderr == "Note: no row had the type 'costum' of --map-value\n"
    swapped = write(tmp_path, "c.json", json.dumps({"data": [{"results": [row]}]}))
    assert "--each finds no list" in import_(account, str(swapped), "--each", "results", "--each", "data").stderr


def test_utf8_is_not_read_in_another_encoding(account: Account, tmp_path: Path) -> None:
    file = write(tmp_path, "a.csv", "type,toolName\ncustom,ü€\n")
    done = import_(account, str(file), "--encoding", "cp1252", "--timestamp-now")
    assert (done.returncode, "it is UTF-8: leave --encoding out" in done.stderr) == (1, True)
