"""Compare a file that `export` wrote with the trail, and with the digests that the chain has of it."""

import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, BinaryIO

import click

from commands.evidence.chain import Period
from commands.evidence.trail import Filters, lines
from commands.output import counted, exact, printable
from database import Connection

MAX_DIFFERENCES = 100  # how many differences are named

MAX_LINE = 2**25  # the bytes that are read as one line. No event's line is as long.
MAX_NAMES = 10  # how many members are named in which a line differs, by their first characters

_RECEIPT_BEGINS = b', "receipt": {"id": '  # nothing in a string looks like it: there, quotes are escaped
_RECEIPT = re.compile(
    rb', "receipt": \{"id": (\d{1,19}), "organization": "(?:[^"\\]|\\.)*", "apiKeyId": (?:\d{1,19}|null), '
    rb'"source": "\w+", "receivedAt": "(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z)"\}\}\n'
)

_Key = tuple[str, int]  # what lines are ordered by: the time of receipt, and the id

_END: _Key = ("~", 0)  # greater than the key of any line


@dataclass(slots=True)
class FileReport:
    """What a file is, beside the trail."""

    lines: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    of_trail: list[str] = field(default_factory=list)  # problems of the trail, which the file proves
    changed: list[str] = field(default_factory=list)  # how the trail differs from lines that are as they were sealed
    unnamed: int = 0  # problems that are not in the list

    def add(self, problem: str) -> None:
        if len(self.problems) < MAX_DIFFERENCES:
            self.problems.append(problem)
        else:
            self.unnamed += 1

    def shown(self) -> dict[str, Any]:
        """Return the report for JSON."""
        more = [f"{self.unnamed} more differences"] if self.unnamed else []
        return {
            "intact": not self.problems,
            "lines": self.lines,
            "problems": self.problems + more,
            "notes": self.notes + self.changed,
        }


class ExportedFile:
    """The lines of a file, one by one. Lines that `export` can't have written are reported, and passed over."""

    def __init__(self, file: BinaryIO, report: FileReport) -> None:
        """Read the first line. Raises ClickException if the file is compressed and damaged, as `advance` does."""
        self._report = report
        self._lines = enumerate(_normalized(file, report), 1)
        self.number = 0
        self.line = b""
        self.key: _Key = ("", 0)
        self.digest = hashlib.sha256()  # of the lines that were passed since it was set
        self.advance()

    def advance(self) -> None:
        """Go on with the next line; at the end, with _END."""
        before = self.key
        self.digest.update(self.line)
        for number, line in self._lines:
            self._report.lines += 1
            key = _key(line)
            if key and key > before:
                self.number, self.line, self.key = number, line, key
                return
            order = "is not in the order that `export` writes" if key else "is not what `export` writes"
            self._report.add(f"line {number} {order}")
            self.digest.update(line)
        self.number, self.line, self.key = self.number + 1, b"", _END


def _normalized(file: BinaryIO, report: FileReport) -> Iterator[bytes]:
    """Yield lines as `export` writes them, and note what had to be undone: gzip, a byte order mark, CRLF."""
    notes: dict[str, None] = {}
    try:
        peeked = file.peek(2)[:2] if hasattr(file, "peek") else b""
        if peeked == b"\x1f\x8b":
            notes["the file is compressed with gzip"] = None
            file = gzip.GzipFile(fileobj=file)  # type: ignore[assignment]
        is_first = True
        while line := file.readline(MAX_LINE):
            if is_first and line.startswith(b"\xef\xbb\xbf"):
                notes["the file begins with a byte order mark"] = None
                line = line[3:]
            is_first = False
            if line.endswith(b"\r\n"):
                notes["lines of the file end with CR LF"] = None
                line = line[:-2] + b"\n"
            if not line.endswith(b"\n"):
                notes["the last line of the file has no line feed"] = None
                line += b"\n"
            yield line
    except (EOFError, gzip.BadGzipFile, zlib.error):
        raise click.ClickException(f"{printable(file.name)}: the compressed file is damaged") from None
    finally:
        report.notes += [f"{note} (no difference)" for note in notes]


def _key(line: bytes) -> _Key | None:
    found = _RECEIPT.fullmatch(line, max(0, line.rfind(_RECEIPT_BEGINS)))
    return (found[2].decode(), int(found[1])) if found else None


@dataclass(slots=True)
class _Stretch:
    """A part of the trail that is compared at once, and what `_compare` found."""

    filters: Filters
    period: Period | None  # None: not sealed, or some of the events of a sealed period
    amended_by: int = 0  # the number of the entry that amended some of it, if `period` is None
    found: FileReport = field(default_factory=FileReport)
    first_line: int = 0  # the number of the line with which the file begins to be compared
    lines: int = 0  # lines of the file
    digest: bytes = b""  # of these lines
    differing: int = 0  # lines that differ from the trail
    missing: int = 0  # events of the trail that the file does not have
    first_missing: _Key = _END
    later: int = 0  # missing events behind the last line of the file

    @property
    def since(self) -> _Key:
        return _bound(self.filters.since, ("", 0))

    @property
    def until(self) -> _Key:
        return _bound(self.filters.until, _END)


def compare_file(connection: Connection, filters: Filters, periods: list[Period], file: BinaryIO) -> FileReport:
    """Compare a file with the trail, where `filters` say which events were exported.

    1. Without `since` and `until`, the file's period is that of the sealed periods which its lines are of.
    2. Each sealed period is compared line by line.
    3. If the file has a period as an entry of the chain says, the file is right: the difference is the trail's.
    4. Of what is not sealed yet, the file may lack events.
    """
    report = FileReport()
    exported = ExportedFile(file, report)
    if exported.key == _END and not (filters.since and filters.until):
        report.add("the file has no events")
    outside = _pass(exported, _bound(filters.since, ("", 0)))
    missing, first_missing = 0, _END
    is_before = filters.since is None
    for stretch in _stretches(filters, periods):
        if is_before and exported.key >= stretch.until:
            continue
        if exported.key == _END and not filters.until:
            break
        is_before = False
        _compare_before(exported, stretch.since, report)
        _compare(connection, stretch, exported)
        _use_entries(stretch)
        _report(stretch, report)
        if exported.key == _END and not filters.until:
            stretch.missing -= stretch.later
            if stretch.later:
                report.notes.append(
                    f"{counted(stretch.later, 'event')} of its last period received after its last line"
                )
        if stretch.missing and not missing:
            first_missing = stretch.first_missing
        missing += stretch.missing
    if filters.until:
        outside += _pass(exported, _END)
    _compare_before(exported, _END, report)
    if outside:
        report.notes.append(f"{counted(outside, 'line')} outside of --since and --until: not compared")
    if missing:
        report.add(_not_in_file(missing, first_missing))
    return report


def _not_in_file(events: int, first: _Key) -> str:
    received, number = first
    return f"not in the file: {counted(events, 'event')} of the trail, the first is event {number} of {received}"


def _bound(moment: datetime | None, default: _Key) -> _Key:
    return (exact(moment), 0) if moment else default


def _stretches(filters: Filters, periods: list[Period]) -> Iterator[_Stretch]:
    """Yield what is to be compared, in its order."""
    for period in periods:
        since = max(period.since, filters.since or period.since)
        until = min(period.until, filters.until or period.until)
        if since < until:
            chosen = replace(filters, since=since, until=until)
            if chosen == Filters(filters.org_id, period.since, period.until):
                yield _Stretch(chosen, period)
            else:
                yield _Stretch(chosen, None, period.newest.number if period.newest.is_amendment else 0)
    sealed_until = periods[-1].until if periods else None
    since_unsealed = max((each for each in (sealed_until, filters.since) if each), default=None)
    if not (filters.until and since_unsealed and filters.until <= since_unsealed):
        yield _Stretch(replace(filters, since=since_unsealed), None)


def _pass(exported: ExportedFile, until: _Key) -> int:
    passed = 0
    while exported.key < until:
        exported.advance()
        passed += 1
    return passed


def _compare_before(exported: ExportedFile, until: _Key, report: FileReport) -> None:
    while exported.key < until:
        report.add(f"line {exported.number} (event {exported.key[1]}) is missing from the trail")
        exported.advance()


def _compare(connection: Connection, stretch: _Stretch, exported: ExportedFile) -> None:
    """Compare a stretch of the trail with the lines of the file, and note in the stretch how they differ."""
    exported.digest = hashlib.sha256()
    stretch.first_line = exported.number
    is_sealed = stretch.period is not None or stretch.filters.until is not None
    with lines(connection, stretch.filters) as found:
        for line in found:
            key = exported.key if line == exported.line else _key(line) or _END
            _compare_before(exported, key, stretch.found)
            if key != exported.key:
                stretch.missing += is_sealed
                stretch.later += is_sealed and exported.key == _END
                stretch.first_missing = min(stretch.first_missing, key)
                continue
            if line != exported.line:
                names = _names(exported.line, line)
                stretch.found.add(f"line {exported.number} (event {key[1]}) differs from the trail: {names}")
                stretch.differing += 1
            exported.advance()
    _compare_before(exported, stretch.until, stretch.found)
    stretch.lines = exported.number - stretch.first_line
    stretch.digest = exported.digest.digest()


def _use_entries(stretch: _Stretch) -> None:
    """Let the entries of the chain say whether a difference is the file's, the trail's, or that of an amendment."""
    period = stretch.period
    if stretch.amended_by and stretch.found.problems:
        why = f"entry {stretch.amended_by} amended the period, and some of its events do not prove what was there"
        stretch.found = FileReport(notes=[f"{each}; {why}" for each in stretch.found.problems])
    if not period or not (stretch.found.problems or stretch.missing):
        return
    named = f"{counted(stretch.lines, 'line')} from line {stretch.first_line} on"
    before = [entry for entry in period.entries if entry.digest == stretch.digest]
    if before:
        found, changed, of_trail = stretch.found, [], []
        others = stretch.missing + stretch.differing
        why = f"entry {period.newest.number} amended the period"
        if before[-1] is period.newest:
            events = len(found.problems) + found.unnamed + stretch.missing
            why = f"the trail differs in {counted(events, 'event')}"
            added = [_not_in_file(stretch.missing, stretch.first_missing)] if stretch.missing else []
            changed = added + found.problems
        elif others:
            problem = (
                f"entry {period.newest.number} may only delete, and {counted(others, 'event')} of the period changed "
                f"or added since entry {before[-1].number}: the file has that entry's events"
            )
            of_trail = [problem]
        note = f"{named}: as entry {before[-1].number} has them; {why}"
        stretch.found = FileReport(notes=[note], of_trail=of_trail, changed=changed)
        stretch.missing = stretch.later = 0
    elif not period.newest.events and period.newest.is_amendment:
        problem = (
            f"{named}: not as entry {period.entries[0].number} sealed them; entry {period.newest.number} deleted them"
        )
        stretch.found = FileReport(problems=[problem])


def _parsed(line: bytes) -> Any:
    """Return the members of a line. A number can have more digits than Python converts, and stays a text."""
    try:
        return json.loads(line, parse_int=str, parse_float=str)
    except (ValueError, RecursionError):
        return None


def _names(line: bytes, of_trail: bytes) -> str:
    """Return the names of the members in which a line of the file differs from that of the trail."""
    if len(line) > 2 * len(of_trail) + 1000:
        return "its length"
    one, other = _parsed(line), _parsed(of_trail)
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return "its JSON"
    names = [name[:100] for name in _differing(one, other)]
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return f"{', '.join(names[:MAX_NAMES])}{more}" if names else "its spelling"


def _differing(one: Any, other: Any, prefix: str = "") -> Iterator[str]:
    """Yield the names of the members in which two events differ."""
    for name in dict.fromkeys([*one, *other]):
        if one.get(name) != other.get(name):
            if name == "receipt" and not prefix and isinstance(one.get(name), dict):
                yield from _differing(one[name], other[name], "receipt.")
            else:
                yield f"{prefix}{name}"


def _report(stretch: _Stretch, report: FileReport) -> None:
    report.notes += stretch.found.notes
    report.changed += stretch.found.changed[: MAX_DIFFERENCES - len(report.changed)]  # the note counts all
    report.of_trail += stretch.found.of_trail
    for problem in stretch.found.problems:
        report.add(problem)
    report.unnamed += stretch.found.unnamed
