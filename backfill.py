"""What `import` reads: files of CSV, NDJSON or JSON become events, and events are stored in chunks, exactly once.

A row becomes the JSON text of an event, is judged by the schema that judges HTTP's bodies, and stored by the same
statement.
"""

import codecs
import csv
import gzip
import hashlib
import json
import os
import re
import stat
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import schemas
from admin import Chunks
from storage import QuotaExceeded, Unstorable

FIELDS = ("type", "toolName", "action", "timestamp", "metadata")
ALIASES = {"toolName": "tool_name"}
FORMATS = {".rejects.ndjson": "rejects", ".csv": "csv", ".ndjson": "ndjson", ".jsonl": "ndjson", ".json": "json"}
"""By what a file's name ends with. `rejects` are lines of the Rejects of an import, with rows in any form."""

CHUNK_ROWS = 1000
CHUNK_BYTES = 2**20
"""A chunk ends with the event that reaches one of these. They may grow, but never shrink: a rerun looks for what was
stored before no further ahead than its own chunk reaches."""


class Unreadable(Exception):
    """The file can't be read, or not to its end. The argument says why."""


class QuotaEnded(Exception):
    """The month's quota is used up. The argument is the line of the first event that is not stored."""


class Event(NamedTuple):
    line: int
    """Of the file, where the event begins; the first is 1."""
    text: str
    """JSON, ready to be stored."""


class Reject(NamedTuple):
    line: int
    reason: str
    row: str
    """The row as JSON: an object of what it has, or its text if that can't be told apart."""


class _Wrong(Exception):
    """A row can't become an event. The argument says why."""


# Rows to events


class _Plan(NamedTuple):
    """What becomes of the columns of a row: the index of each field's, and the names and indexes of the others."""

    fields: dict[str, int]
    others: list[tuple[str, int]]
    verbatim: bool
    """A JSON object with these columns is an event as it is."""


class Columns:
    """Which column is which field, and what all rows have in common.

    `renamed` names the columns of fields that are called something else, `constants` gives fields the same value in
    every row, `zone` is for timestamps that name none. Columns that are no field become members of metadata.
    Raises ValueError if a constant is no value of its field.
    """

    def __init__(
        self,
        renamed: Mapping[str, str] | None = None,
        constants: Mapping[str, str] | None = None,
        zone: ZoneInfo | None = None,
    ) -> None:
        self._renamed = renamed or {}
        self._constants = constants or {}
        self._zone = zone
        self._plans: dict[Sequence[str], _Plan] = {}
        self._planned = 0  # names in all of them
        try:
            self._event({"type": "custom", "toolName": "x"}, "", {})
        except _Wrong as error:
            raise ValueError(f"{error}") from None

    def plan(self, names: tuple[str, ...]) -> _Plan:
        """Of rows with columns of these names."""
        if plan := self._plans.get(names):
            return plan
        fields: dict[str, int] = {}
        for field in FIELDS:
            own = [name for name in (field, ALIASES.get(field)) if name not in self._renamed.values()]
            for column in (self._renamed.get(field), *own):
                if column in names and field not in self._constants:
                    fields.setdefault(field, names.index(column))
        others = [(name, index) for index, name in enumerate(names) if name and index not in fields.values()]
        verbatim = not others and not self._constants and all(names[index] == field for field, index in fields.items())
        self._planned += len(names)
        if self._planned > 100_000:  # objects of ever different keys
            self._plans.clear()
            self._planned = len(names)
        plan = self._plans[names] = _Plan(fields, others, verbatim)
        return plan

    def check(self, names: Sequence[str]) -> None:
        """Raises Unreadable if a header row of these columns can't belong to any event."""
        for name, count in Counter(names).items():
            if name and count > 1:
                raise Unreadable(f"the header row has the column {name!r} twice")
        if len(names) == 1 and any(separator in names[0] for separator in ";\t|"):
            raise Unreadable(f"the header row has one column, {names[0]!r}: separate them by commas")
        for field, column in self._renamed.items():
            if column not in names:
                raise Unreadable(f"no column is called {column!r}, as --map {field}={column} has it")
        plan = self.plan(tuple(names))
        for field in ("type", "toolName"):
            if field not in plan.fields and field not in self._constants:
                raise Unreadable(
                    f"no column is called {field!r} (there are {', '.join(map(repr, names))}): name one with "
                    f"--map {field}=COLUMN, or the same value for all rows with --set {field}=VALUE"
                )

    def from_cells(self, plan: _Plan, cells: list[str]) -> str:
        """The event in a row of CSV, as JSON. An empty cell is an absent one. Raises _Wrong."""
        values: dict[str, Any] = {field: cells[index] for field, index in plan.fields.items() if cells[index]}
        others = {name: _json_string(cells[index]) for name, index in plan.others if cells[index]}
        return self._event(values, "", others)

    def from_json(self, row: Any, text: str) -> str:
        """The event in a JSON value, as JSON: its own text, if nothing has to change. Raises _Wrong.

        A field that is null is an absent one: exports have it where a cell is empty.
        """
        if type(row) is not dict:
            return _judged(row, text)
        plan = self.plan(tuple(row))
        time = row.get("timestamp", "")
        if (
            plan.verbatim
            and None not in row.values()
            and type(row.get("metadata")) is not str
            and (time == "" or (type(time) is str and self._instant(time) == time))
        ):
            return _judged(row, text)
        columns = list(row.values())
        texts = _member_texts(text)
        values = {field: columns[index] for field, index in plan.fields.items() if columns[index] is not None}
        if type(values.get("timestamp")) in (int, float):
            number = texts[plan.fields["timestamp"]]
            values["timestamp"] = number if _EPOCH.fullmatch(number) else columns[plan.fields["timestamp"]]
        metadata_text = texts[plan.fields["metadata"]] if "metadata" in plan.fields else ""
        return self._event(values, metadata_text, {name: texts[index] for name, index in plan.others})

    def _event(self, values: dict[str, Any], metadata_text: str, others: dict[str, str]) -> str:
        values.update(self._constants)
        if type(time := values.get("timestamp")) is str:
            values["timestamp"] = self._instant(time)
        metadata = values.pop("metadata", None)
        if type(metadata) is str:
            try:
                metadata_text, metadata = schemas.parse_json(metadata.encode("utf-8", "surrogatepass"))
            except schemas.InvalidJSON as error:
                raise _Wrong(f"metadata: Invalid JSON: {error}") from None
        text = json.dumps(values)
        if metadata is None and not others:
            return _judged(values, text)
        if metadata is None or type(metadata) is dict:
            members = [f"{_json_string(name)}: {text}" for name, text in others.items()]
            if metadata:
                for name in metadata:
                    if name in others:
                        raise _Wrong(f"metadata: Has {name!r}, and there is a column of that name")
                members.append(metadata_text.strip()[1:-1].strip())
            metadata_text = "{" + ", ".join(members) + "}"
            metadata = {}
        values["metadata"] = metadata
        return _judged(values, f'{text[:-1]}, "metadata": {metadata_text}}}')

    def _instant(self, text: str) -> str:
        """A timestamp as exports write it, in the form that the schema takes; what is none is left to the schema."""
        if match := _EPOCH.fullmatch(text):
            seconds, milliseconds, fraction = match.groups(default="")
            digits = milliseconds + fraction
            return f"{datetime.fromtimestamp(int(seconds), UTC):%Y-%m-%dT%H:%M:%S}{digits and '.' + digits}Z"
        if not (match := _EXPORTED.fullmatch(text)):
            return text
        date, time, fraction, offset = match.groups(default="")
        if offset == "":
            offset = self._offset(f"{date}T{time}")
        elif offset == "UTC":
            offset = "Z"
        elif len(offset) == 3:
            offset += ":00"
        return f"{date}T{time}{fraction}{offset}"

    def _offset(self, local: str) -> str:
        """Of a local time in the zone; of the two instants that it names when clocks go back, the first."""
        if self._zone is None:
            raise _Wrong("timestamp: Names no time zone: give one with --timezone, such as --timezone UTC")
        try:
            instant = datetime.fromisoformat(local).replace(tzinfo=self._zone)
            exists = instant.astimezone(UTC).astimezone(self._zone).replace(tzinfo=None) == instant.replace(tzinfo=None)
        except (ValueError, OverflowError):
            return ""
        if not exists:
            raise _Wrong(f"timestamp: There was no such time in {self._zone}, where clocks went forward")
        return f"{instant:%z}"


def _judged(event: Any, text: str) -> str:
    """The text, if the event is a valid one. Raises _Wrong with all that is wrong."""
    if schemas.faults(event):
        raise _Wrong("; ".join(": ".join(filter(None, each)) for each in schemas.messages(event)))
    return text


# As PostgreSQL, SQLite, DuckDB, pandas and BigQuery write it: a blank or a T, an offset that may end with its hours.
_EXPORTED = re.compile(
    r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d(?::\d\d)?)((?<=:\d\d:\d\d)\.\d+)? ?(Z|UTC|[+-]\d\d(?::?\d\d)?)?", re.ASCII
)
# Seconds, or milliseconds without a point between: the years 2001 to 2286. Other lengths could be anything.
_EPOCH = re.compile(r"(\d{10})(\d{3})?(?:\.(\d+))?", re.ASCII)

_json_string = json.encoder.encode_basestring_ascii
_SPACE = re.compile(r"[ \t\r\n]*")
_decoder = json.JSONDecoder()


def _member_texts(text: str) -> list[str]:
    """The values of a JSON object as they are written, in the order of the object that Python makes of it."""
    texts: dict[str, str] = {}
    at = text.index("{") + 1
    while (at := _SPACE.match(text, at).end()) and text[at] != "}":  # type: ignore[union-attr]
        name, at = _decoder.raw_decode(text, at)
        begin = _SPACE.match(text, text.index(":", at) + 1).end()  # type: ignore[union-attr]
        _, at = _decoder.raw_decode(text, begin)
        texts[name] = text[begin:at]
        at = _SPACE.match(text, at).end()  # type: ignore[union-attr]
        at += text[at] == ","
    return list(texts.values())


# Files to rows


def format_of(name: str) -> str | None:
    """What a file's name says of its format, with or without .gz; None: nothing."""
    name = name.lower().removesuffix(".gz")
    return next((form for suffix, form in FORMATS.items() if name.endswith(suffix)), None)


class Source:
    """A file, or standard input for `-`; it is inflated if it is gzip, whatever its name. Raises Unreadable."""

    def __init__(self, path: str, stdin: Any) -> None:
        try:
            self._file: Any = stdin if path == "-" else Path(path).open("rb")  # noqa: SIM115
            status = os.fstat(self._file.fileno())
            gzipped = self._file.peek(2)[:2] == b"\x1f\x8b"
        except (OSError, AttributeError, ValueError) as error:  # the last two: standard input is closed
            raise Unreadable(str(getattr(error, "strerror", "it is closed"))) from None
        self.size = status.st_size if stat.S_ISREG(status.st_mode) else None
        """In bytes; None if it is no ordinary file."""
        self._stream = gzip.GzipFile(fileobj=self._file) if gzipped else self._file

    def __enter__(self) -> "Source":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def position(self) -> int:
        """How many of the `size` bytes are read."""
        return int(self._file.tell()) if self.size is not None else 0

    def read(self, size: int) -> bytes:
        return self._guarded(self._stream.read, size)

    def readline(self, size: int) -> bytes:
        return self._guarded(self._stream.readline, size)

    def _guarded(self, read: Callable[[int], bytes], size: int) -> bytes:
        try:
            return read(size)
        except (OSError, EOFError, zlib.error) as error:  # gzip's three ways to say that it is damaged
            raise Unreadable(str(error)) from None


def events(source: Source, form: str, columns: Columns, longest: int) -> Iterator[Event | Reject]:
    """What the rows of a file are, in their order. `form` is one of FORMATS; `longest` bytes a row may have.

    Raises Unreadable if the file as a whole makes no sense, or no row can be told from here on.
    """
    return {"csv": _csv, "ndjson": _ndjson, "json": _json, "rejects": _rejects}[form](source, columns, longest)


class _Lines:
    """The lines of a file. Of one that is too long, only the beginning is kept."""

    def __init__(self, source: Source, longest: int) -> None:
        self._source = source
        self._longest = longest
        self.number = 0
        """Of the last line."""
        self.too_long = False
        """The last line was."""

    def __iter__(self) -> Iterator[bytes]:
        while line := self._source.readline(self._longest + 1):
            self.number += 1
            self.too_long = len(line) > self._longest
            if self.too_long:
                rest = line
                while rest and not rest.endswith(b"\n"):
                    rest = self._source.readline(self._longest)
            yield line.removeprefix(codecs.BOM_UTF8) if self.number == 1 else line


def _ndjson(source: Source, columns: Columns, longest: int) -> Iterator[Event | Reject]:
    for number, row, text in _json_lines(source, longest):
        yield row if isinstance(row, Reject) else _event(number, row, text, columns)


def _rejects(source: Source, columns: Columns, longest: int) -> Iterator[Event | Reject]:
    for number, reject, text in _json_lines(source, longest):
        if isinstance(reject, Reject):
            yield reject
        elif type(reject) is not dict or list(reject) != list(Reject._fields):
            yield Reject(number, "Expected an object of line, reason and row, as an import writes it", _one_line(text))
        else:
            yield _event(number, reject["row"], _member_texts(text)[-1], columns)


def _json_lines(source: Source, longest: int) -> Iterator[tuple[int, Any, str]]:
    """The number, value and text of each line; the value is a Reject if it has none."""
    lines = _Lines(source, longest)
    for line in lines:
        if lines.too_long:
            reason = f"The line has more than {longest} bytes"
        elif not line.strip():
            continue
        else:
            try:
                text, row = schemas.parse_json(line)
            except schemas.InvalidJSON as error:
                reason = f"Invalid JSON: {error}"
            else:
                yield lines.number, row, text.strip()
                continue
        yield lines.number, Reject(lines.number, reason, _shown(line)), ""


def _event(line: int, row: Any, text: str, columns: Columns) -> Event | Reject:
    try:
        return Event(line, columns.from_json(row, text))
    except _Wrong as error:
        return Reject(line, str(error), _one_line(text))
    except RecursionError:  # it was just not too deep for the parser
        return Reject(line, "Nested too deep", _one_line(text))


class _CsvLines:
    """The lines of a file for csv.reader. Raises _Wrong, and goes on after it, if those of a row are too long."""

    def __init__(self, source: Source, longest: int) -> None:
        self._lines = _Lines(source, longest)
        self._iterator = iter(self._lines)
        self._longest = longest
        self._row: list[bytes] = []
        self._size = 0

    def __iter__(self) -> "_CsvLines":
        return self

    def __next__(self) -> str:
        line = next(self._iterator)
        self._row.append(line)
        self._size += len(line)
        if self._size > self._longest:
            raise _Wrong(f"The row has more than {self._longest} bytes")
        return line.decode("utf-8", "surrogateescape")

    def begin_row(self) -> int:
        """Says that a row begins with the next line; returns its number."""
        self._row.clear()
        self._size = 0
        return self._lines.number + 1

    def row(self) -> bytes:
        """What was read since."""
        return b"".join(self._row)


def _csv(source: Source, columns: Columns, longest: int) -> Iterator[Event | Reject]:
    lines = _CsvLines(source, longest)
    csv.field_size_limit(longest)
    rows = csv.reader(lines, strict=True)
    try:
        header = next(rows, None)
    except (csv.Error, _Wrong) as error:
        raise Unreadable(f"the header row is not CSV: {error}") from None
    if header is None:
        raise Unreadable("there is no header row")
    if reason := _not_utf8(lines.row()):
        raise Unreadable(f"the header row: {reason}")
    columns.check(header)
    plan = columns.plan(tuple(header))
    while True:
        line = lines.begin_row()
        try:
            cells = next(rows)
            if not cells:  # an empty line
                continue
            if reason := _not_utf8(lines.row()):
                raise _Wrong(reason)
            if len(cells) != len(header):
                raise _Wrong(f"Has {len(cells)} cells where the header row has {len(header)}")
        except StopIteration:
            return
        except csv.Error as error:
            yield Reject(line, f"Not CSV: {error}", _shown(lines.row()))
            continue
        except _Wrong as error:
            yield Reject(line, str(error), _shown(lines.row()))
            continue
        try:
            event = columns.from_cells(plan, cells)
        except _Wrong as error:
            # without the empty ones, it is the same row in JSON
            present = {name: cell for name, cell in zip(header, cells, strict=True) if name and cell}
            yield Reject(line, str(error), json.dumps(present))
        else:
            yield Event(line, event)


def _json(source: Source, columns: Columns, longest: int) -> Iterator[Event | Reject]:
    document = _Document(source, longest)

    def judged(line: int, text: str) -> Event | Reject:
        raw = text.encode("utf-8", "surrogateescape")
        try:
            _, row = schemas.parse_json(raw)
        except schemas.InvalidJSON as error:
            return Reject(line, f"Invalid JSON: {error}", _shown(raw))
        return _event(line, row, text, columns)

    def elements() -> Iterator[Event | Reject]:
        for line in document.items("[", "]"):
            yield judged(line, document.value())

    while first := document.peek():
        line = document.line
        if first == "[":
            yield from elements()
        elif first != "{":
            yield judged(line, document.value())
        else:
            members: list[str] = []
            wrapper = False
            size = 0
            for _ in document.items("{", "}"):
                name = document.value()
                document.take(":")
                if name == '"events"' and document.peek() == "[":
                    wrapper = True
                    yield from elements()
                    continue
                value = document.value()
                size += len(name) + len(value)
                if size > longest:
                    raise Unreadable(f"line {line}: an object of more than {longest} bytes that is no list of events")
                if name == '"events"':
                    wrapper = True
                    yield Reject(line, "events: Expected array", _one_line(f"{{{name}: {value}}}"))
                members.append(f"{name}: {value}")
            if not wrapper:
                yield judged(line, "{" + ", ".join(members) + "}")


class _Document:
    """JSON text that is read as far as it is asked for. Raises Unreadable where it can't be read on."""

    # only for the ends of values: NaN and numbers of any length are judged elsewhere
    _decoder = json.JSONDecoder(parse_int=str, parse_float=str)

    def __init__(self, source: Source, longest: int) -> None:
        self._source = source
        self._longest = longest
        self._decode = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape").decode
        self._text = ""
        self._at = 0
        self._ended = False
        self.line = 1
        """Of the next character."""

    def peek(self) -> str:
        """The next character that is no space; nothing at the end."""
        while True:
            end = _SPACE.match(self._text, self._at).end()  # type: ignore[union-attr]
            self._pass(end)
            if end < len(self._text) or self._ended:
                return self._text[end : end + 1]
            self._read_more()

    def take(self, character: str) -> None:
        if self.peek() != character:
            raise self._unreadable(f"Expecting {character!r}", self._at)
        self._at += 1

    def items(self, opening: str, closing: str) -> Iterator[int]:
        """Yields before each item of an array or object the line where it begins; the caller reads the item."""
        self.take(opening)
        while self.peek() != closing:
            yield self.line
            if self.peek() != closing:
                self.take(",")
        self.take(closing)

    def value(self) -> str:
        """The text of the next value."""
        self.peek()
        while True:
            try:
                _, end = self._decoder.raw_decode(self._text, self._at)
                # a number may go on
                if self._ended or (end < len(self._text) and self._text[end] not in ".eE+-0123456789"):
                    text = self._text[self._at : end]
                    self._pass(end)
                    return text
                reason, at = "Extra data", end
            except json.JSONDecodeError as error:
                reason, at = error.msg, error.pos
                if self._ended:
                    raise self._unreadable(reason, at) from None
            except RecursionError:
                raise self._unreadable("Nested too deep", self._at) from None
            if len(self._text) - self._at > self._longest:
                raise self._unreadable(f"{reason}, or a value of more than {self._longest} bytes", at)
            self._read_more()

    def _pass(self, end: int) -> None:
        self.line += self._text.count("\n", self._at, end)
        self._at = end

    def _read_more(self) -> None:
        pending = self._text[self._at :]
        data = self._source.read(max(2**16, len(pending)))  # doubled, so that a long value is not parsed too often
        self._ended = not data
        self._text = pending + self._decode(data, self._ended)
        self._at = 0

    def _unreadable(self, reason: str, at: int) -> Unreadable:
        return Unreadable(f"line {self.line + self._text.count(chr(10), self._at, at)}: Invalid JSON: {reason}")


def _not_utf8(raw: bytes) -> str:
    """What is wrong with bytes if they are no UTF-8."""
    try:
        if not raw.isascii():
            raw.decode()
    except UnicodeDecodeError as error:
        return f"Not UTF-8: {error.reason} at byte {error.start}"
    return ""


def _shown(raw: bytes) -> str:
    """The text of a row that is no JSON, as JSON."""
    return json.dumps(raw.decode("utf-8", "replace").rstrip("\r\n"))


def _one_line(text: str) -> str:
    """JSON without line breaks, which it can have only where they mean nothing."""
    return text.replace("\r", " ").replace("\n", " ")


# Events to the database


class Import:
    """Stores events in chunks, exactly once, however often it is interrupted and begun anew.

    A chunk is stored under an idempotency key that is made from all events up to its end. So each event is asked
    whether a chunk ended with it in an earlier run of the same file, and what such a chunk covers is passed over. A
    chunk is stored only when the one after it has been read, too: an earlier chunk that covers an event ends there.
    """

    def __init__(self, chunks: Chunks | None, on_reject: Callable[[Reject], None]) -> None:
        """Without `chunks` nothing is stored."""
        self._chunks = chunks
        self._on_reject = on_reject
        self._done = 0  # events that are stored or passed over
        self._done_hash = hashlib.sha256()
        self._pending: list[Event] = []
        self._hashes: list[Any] = []  # of all events up to each pending one ...
        self._keys: list[str] = []  # ... as keys
        self._asked = 0  # how many of them
        self._stored: dict[int, int] = {}  # the end of each chunk found among them, and its events
        self._bad_within: int | None = None  # so many of them, PostgreSQL refuses one
        self._limits: list[int] = []  # where the next chunks would end among the pending events
        self._rows = self._bytes = 0  # since the last of these
        self.read = self.stored = self.skipped = self.rejected = 0

    def run(self, items: Iterator[Event | Reject]) -> Iterator[None]:
        """Stores the events; yields now and then. Raises QuotaEnded, and Unreadable when what came before is stored."""
        unreadable = None
        try:
            for item in items:
                self.read += 1
                if isinstance(item, Reject):
                    self._reject(item)
                    continue
                self._append(item)
                while len(self._limits) > 1:
                    self._advance()
                    yield
        except Unreadable as error:
            unreadable = error
        while self._pending:
            self._advance()
        yield
        if unreadable:
            raise unreadable

    def _append(self, event: Event) -> None:
        chain = (self._hashes[-1] if self._hashes else self._done_hash).copy()
        chain.update(event.text.encode() + b"\n")
        self._pending.append(event)
        self._hashes.append(chain)
        self._keys.append(chain.hexdigest())
        self._measure(len(self._pending), event)

    def _measure(self, position: int, event: Event) -> None:
        self._rows += 1
        self._bytes += len(event.text)
        if self._rows >= CHUNK_ROWS or self._bytes >= CHUNK_BYTES:
            self._limits.append(position)
            self._rows = self._bytes = 0

    def _advance(self) -> None:
        """Gets at least one pending event done or rejected."""
        # the last event is a chunk of its own: a file that grows may have ended in the middle of it
        end = max(1, len(self._pending) - 1)
        end = min([end, *self._limits, self._bad_within or end])
        if self._chunks is None:
            return self._drop(end)
        if unasked := self._keys[self._asked :]:
            for position, size in self._chunks.stored(unasked).items():
                self._stored[self._done + self._asked + position] = size
            self._asked = len(self._pending)
        if self._stored:
            next_end = min(self._stored)
            begin = next_end - self._stored[next_end] - self._done
            if begin <= 0:
                del self._stored[next_end]
                self.skipped += next_end - self._done
                return self._drop(next_end - self._done)
            end = min(end, begin)
        return self._store(self._chunks, end)

    def _store(self, chunks: Chunks, size: int) -> None:
        """Stores that many of the pending events, or fewer."""
        try:
            new = chunks.store([event.text for event in self._pending[:size]], self._keys[size - 1])
        except QuotaExceeded as error:
            if not error.remaining:
                raise QuotaEnded(self._pending[0].line) from None
            return self._store(chunks, error.remaining)
        except Unstorable as error:
            self._bad_within = size
            if size > 1:
                return self._store(chunks, size // 2)
            event = self._pending[0]
            self._reject(Reject(event.line, str(error), _one_line(event.text)))
            return self._drop_rejected()
        if new:
            self.stored += size
        else:
            self.skipped += size
        return self._drop(size)

    def _drop(self, count: int) -> None:
        """The first of the pending events are done."""
        self._done_hash = self._hashes[count - 1]
        self._done += count
        self._asked = max(0, self._asked - count)
        self._bad_within = (self._bad_within or 0) - count
        if self._bad_within <= 0:
            self._bad_within = None
        del self._pending[:count], self._hashes[:count], self._keys[:count]
        self._limits.clear()
        self._rows = self._bytes = 0
        for position, event in enumerate(self._pending, 1):
            self._measure(position, event)

    def _drop_rejected(self) -> None:
        """The first pending event is none; all keys after it are others without it."""
        self._bad_within = None
        self._asked = 0
        self._stored.clear()
        pending = self._pending[1:]
        self._pending, self._hashes, self._keys, self._limits = [], [], [], []
        self._rows = self._bytes = 0
        for event in pending:
            self._append(event)

    def _reject(self, reject: Reject) -> None:
        self.rejected += 1
        self._on_reject(reject)
