"""`verify --export`: a file that was handed out, compared with the trail."""

import gzip
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from commands.base import connect
from commands.evidence import chain
from commands.evidence.trail import Filters, lines
from tests.commands.trail import change, export, run, seals, verify
from tests.support import Account

NOT_IN_TRAIL = "line {0} (event {1}) is missing from the trail"


@pytest.fixture
def file(sealed: Account, tmp_path: Path) -> Path:
    export(sealed, tmp_path)
    return tmp_path / "trail.ndjson"


def ids(account: Account) -> list[int]:
    return [id_ for (id_,) in account.rows("id")]


def compare(account: Account, file: Path, *options: str) -> tuple[int, list[str], list[str]]:
    """Returns the exit status, and what is wrong with the file and with the trail."""
    status, report = verify(account, "--export", str(file), *options)
    return status, report["export"]["problems"], report["problems"]


def test_a_file_that_is_as_it_was_exported_is_intact(sealed: Account, file: Path) -> None:
    assert compare(sealed, file) == (0, [], [])
    text = run(sealed, "verify", "--org", sealed.org_id, "--export", str(file)).stdout
    assert f"{sealed.org_id}: file: intact: 9 lines compared\n" in text
    sealed.post({"type": "custom", "toolName": "newer"})
    assert compare(sealed, file) == (0, [], [])  # what is not sealed yet


def test_lines_that_were_changed_accuse_the_file_alone(sealed: Account, file: Path) -> None:
    lines, events = file.read_bytes().splitlines(keepends=True), ids(sealed)
    missing = "not in the file: {0} of the trail, the first is event {1} of 2026-03-0{2}T10:00:00.000000Z".format
    for changed, problems in (
        (
            [*lines[:4], lines[4].replace(b'"log"', b'"deny"').replace(b"raw", b"import"), *lines[5:]],
            [f"line 5 (event {events[4]}) differs from the trail: action, receipt.source"],
        ),
        ([*lines[:4], *lines[5:]], [missing("1 event", events[4], 2)]),
        (lines[3:6], []),  # a day
        (lines[2:7], [missing("2 events", events[0], 1)]),  # and what was received after its last line
        (
            [*lines[:2], lines[2].replace(b'"id": ', b'"id": 9'), *lines[3:]],
            [NOT_IN_TRAIL.format(3, f"9{events[2]}"), missing("1 event", events[2], 1)],
        ),
        ([lines[2].replace(b"T10:00:00.0", b"T11:00:00.0"), *lines[3:]], None),
        ([lines[0].replace(b'"receivedAt": "2026-', b'"receivedAt": "1969-'), *lines], ["line 1 (event {0})"]),
        ([*lines, lines[0].replace(b'"receivedAt": "2026-', b'"receivedAt": "2036-')], ["line 10 (event {0})"]),
        (
            [lines[1], lines[0], *lines[2:]],
            ["line 2 is not in the order that `export` writes", missing("1 event", events[0], 1)],
        ),
        ([*lines, lines[-1]], ["line 10 is not in the order that `export` writes"]),
        ([b"{}\n", *lines], ["line 1 is not what `export` writes"]),
        ([], ["the file has no events"]),
    ):
        file.write_bytes(b"".join(changed))
        status, found, of_trail = compare(sealed, file)
        assert (status, of_trail) == (4 if problems != [] else 0, [])
        if problems and "{0}" in problems[0]:
            assert found == [f"{problems[0].format(events[0])} is missing from the trail"]
        elif problems is not None:
            assert found == problems
    text = run(sealed, "verify", "--org", sealed.org_id, "--export", str(file))
    assert text.returncode == 4
    assert f"{sealed.org_id}: file: the file has no events\n{sealed.org_id}: file: NOT INTACT: 0 lines" in text.stdout
    assert f"{sealed.org_id}: intact: 9 events since 2026-03-01" in text.stdout


def test_differences_are_named_up_to_a_bound(sealed: Account, file: Path) -> None:
    line = file.read_bytes().splitlines(keepends=True)[0]
    file.write_bytes(b"".join(line.replace(b'"id": ', b'"id": %d' % n) for n in range(100, 300)))
    _, problems, _ = compare(sealed, file)
    assert (len(problems), problems[100]) == (101, "101 more differences")


def test_the_period_of_a_file_can_be_given(sealed: Account, file: Path, tmp_path: Path) -> None:
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:6]))
    assert compare(sealed, file)[:2] == (0, [])  # two days
    assert compare(sealed, file, "--since", "2026-03-01", "--until", "2026-03-03")[:2] == (0, [])
    status, [problem], _ = compare(sealed, file, "--since", "2026-03-01", "--until", "2026-03-04")
    assert (status, problem.split(",")[0]) == (4, "not in the file: 3 events of the trail")
    status, report = verify(sealed, "--export", str(file), "--since", "2026-03-02", "--until", "2026-03-03")
    assert (status, report["export"]["notes"]) == (0, ["3 lines outside of --since and --until: not compared"])
    file.write_bytes(b"")
    assert compare(sealed, file, "--since", "2026-03-05", "--until", "2026-03-06")[:2] == (0, [])
    part = ["--since", "2026-03-02T09:00Z", "--until", "2026-03-02T11:00Z"]
    export(sealed, tmp_path, *part)
    assert compare(sealed, file, *part)[:2] == (0, [])


def test_an_export_of_some_events_is_compared_with_its_own_conditions(sealed: Account, tmp_path: Path) -> None:
    export(sealed, tmp_path, "--tool", "2026-03-02T10:00:00Z 1", name="some")
    assert compare(sealed, tmp_path / "some")[0] == 4
    assert compare(sealed, tmp_path / "some", "--tool", "2026-03-02T10:00:00Z 1") == (0, [], [])
    assert run(sealed, "verify", "--tool", "x").returncode == 2


@pytest.mark.parametrize(
    ("query", "difference"),
    [
        (
            "UPDATE audit_events SET tool_name = 'x' WHERE org_id = %(org)s AND tool_name = '2026-03-02T10:00:00Z 1'",
            "line 5 (event {0}) differs from the trail: toolName",
        ),
        (
            "DELETE FROM audit_events WHERE org_id = %(org)s AND tool_name = '2026-03-02T10:00:00Z 1'",
            NOT_IN_TRAIL.format(5, "{0}"),
        ),
        (
            "INSERT INTO audit_events (id, org_id, source, type, tool_name, action, timestamp, metadata, received_at) "
            "SELECT 0, org_id, source, type, tool_name, action, timestamp, metadata, received_at "
            "FROM audit_events WHERE org_id = %(org)s AND tool_name = '2026-03-02T10:00:00Z 1'",
            "not in the file: 1 event of the trail, the first is event 0 of 2026-03-02T10:00:00.000000Z",
        ),
    ],
)
def test_a_trail_that_was_changed_does_not_accuse_the_file(
    sealed: Account, file: Path, query: str, difference: str
) -> None:
    id_ = ids(sealed)[4]
    change(sealed, query)
    status, report = verify(sealed, "--export", str(file))
    assert (status, len(report["problems"])) == (3, 1)
    assert report["export"]["intact"]
    note = "3 lines from line 4 on: as entry 2 has them; the trail differs in 1 event"
    assert report["export"]["notes"] == [note, difference.format(id_)]


def test_a_file_proves_what_was_pruned_or_erased_since(sealed: Account, file: Path) -> None:
    assert run(sealed, "prune", "--yes", "--before", "2026-03-02", "--org", sealed.org_id).returncode == 0
    erase = ["erase", "--org", sealed.org_id, "--metadata", "n=1", "--since", "2026-03-03", "--reason", "request 17"]
    assert run(sealed, *erase).returncode == 0
    status, report = verify(sealed, "--export", str(file))
    pruned = report["entries"] - 1
    assert (status, report["export"]["problems"], report["export"]["notes"]) == (
        0,
        [],
        [
            f"3 lines from line 1 on: as entry 1 has them; entry {pruned} amended the period",
            f"3 lines from line 7 on: as entry 3 has them; entry {pruned + 1} amended the period",
        ],
    )
    lines = file.read_bytes().splitlines(keepends=True)
    for without in (lines[1:], [lines[0].replace(b'"log"', b'"deny"'), *lines[1:]]):
        file.write_bytes(b"".join(without))
        _, [problem], _ = compare(sealed, file)
        assert f"not as entry 1 sealed them; entry {pruned} deleted them" in problem


def test_what_mail_and_editors_do_to_a_file_is_read_and_mentioned(sealed: Account, file: Path) -> None:
    content = file.read_bytes()
    for changed, notes in (
        (content[:-1], ["the last line of the file has no line feed (no difference)"]),
        (content.replace(b"\n", b"\r\n"), ["lines of the file end with CR LF (no difference)"]),
        (b"\xef\xbb\xbf" + content, ["the file begins with a byte order mark (no difference)"]),
        (gzip.compress(content), ["the file is compressed with gzip (no difference)"]),
    ):
        file.write_bytes(changed)
        status, report = verify(sealed, "--export", str(file))
        assert (status, report["export"]["notes"]) == (0, notes)
    file.write_bytes(gzip.compress(content)[:-20])
    done = run(sealed, "verify", "--org", sealed.org_id, "--export", str(file))
    assert (done.returncode, "the compressed file is damaged" in done.stderr) == (1, True)


def test_a_number_of_any_length_is_exported_verified_and_imported(
    account: Account, new_account: Callable[..., Account], tmp_path: Path
) -> None:
    account.post(b'{"type": "custom", "toolName": "x", "metadata": {"n": 1e5000, "more": "%s"}}' % (b"x" * 50))
    account.execute("UPDATE audit_events SET received_at = '2026-03-01' WHERE org_id = %s", account.org_id)
    seals(account)
    exported = export(account, tmp_path)
    assert compare(account, tmp_path / "trail.ndjson") == (0, [], [])
    (tmp_path / "changed").write_bytes(exported.replace(b'"n": 1', b'"n": 2'))
    _, [problem], _ = compare(account, tmp_path / "changed")
    assert problem.endswith("differs from the trail: metadata")
    other = new_account()
    done = run(other, "import", str(tmp_path / "trail.ndjson"), "--org", other.org_id)
    assert done.stdout == "read 1, stored 1, already stored 0, rejected 0\n", done.stdout
    assert other.rows("metadata::text") == account.rows("metadata::text")
    assert json.loads(exported)["toolName"] == "x"


def test_a_file_unmasks_an_amendment_that_changed_events(sealed: Account, file: Path) -> None:
    change(sealed, "DELETE FROM audit_events WHERE org_id = %(org)s AND tool_name = '2026-03-02T10:00:00Z 1'")
    change(
        sealed,
        "UPDATE audit_events SET action = 'deny' WHERE org_id = %(org)s AND tool_name = '2026-03-02T10:00:00Z 2'",
    )
    with connect(sealed.service.database_url) as connection:
        begin, end = datetime(2026, 3, 2, tzinfo=UTC), datetime(2026, 3, 3, tzinfo=UTC)
        with lines(connection, Filters(sealed.org_id, begin, end)) as found:
            period = (begin, end, *chain.digest_of(found))
        chain.append(connection, chain.following(connection, sealed.org_id, [period], "erase: request 17"))
    assert verify(sealed)[0] == 0  # the trail alone does not show it
    status, of_file, [problem] = compare(sealed, file)
    assert (status, of_file) == (3, [])
    assert "may only delete, and 1 event of the period changed or added since entry 2" in problem


def test_some_events_of_a_period_that_was_amended_are_no_difference(sealed: Account, tmp_path: Path) -> None:
    export(sealed, tmp_path, "--type", "tool_call", name="some")
    assert run(sealed, "erase", "--org", sealed.org_id, "--metadata", "n=1", "--reason", "request 17").returncode == 0
    status, report = verify(sealed, "--export", str(tmp_path / "some"), "--type", "tool_call")
    assert (status, report["export"]["problems"], len(report["export"]["notes"])) == (0, [], 3)
    assert "amended the period, and some of its events do not prove what was there" in report["export"]["notes"][0]


@pytest.mark.parametrize("receipt", ["5", '"s"', "[1]", "null"])
def test_a_line_that_only_looks_like_an_event_is_reported(sealed: Account, file: Path, receipt: str) -> None:
    [first, *rest] = file.read_bytes().splitlines(keepends=True)
    number = ids(sealed)[0]
    odd = (
        f'{{"type": "x", "receipt": {{"id": {number}, "organization": "o"}}, "receipt": {receipt}, "z": {{"y": "c", '
        '"apiKeyId": null, "source": "raw", "receivedAt": "2026-03-01T10:00:00.000000Z"}}\n'
    )
    file.write_bytes(odd.encode() + b"".join(rest))
    status, problems, _ = compare(sealed, file)
    assert (status, problems[0]) == (4, "line 1 is not what `export` writes")
    assert json.loads(first)["receipt"]["id"] == number
