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
FORMATS = {".csv": "csv", ".ndjson": "ndjson", ".jsonl": "ndjson", ".json": "json"}

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
    row: Any
    """The columns and their values, or the text if it has none that can be told apart."""


class _Wrong(Exception):
    """A row can't become an event. The argument says why."""


# Rows to events


class _Plan(NamedTuple):
    """What becomes of the columns of a row: the index of each field's, and of the others with their JSON names."""

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
        try:
            self._event({"type": "custom", "toolName": "x"}, "", [])
        except _Wrong as error:
            raise ValueError(f"{error}") from None

    def plan(self, names: tuple[str, ...]) -> _Plan:
        """Of rows with columns of these names."""
        if plan := self._plans.get(names):
            return plan
        fields: dict[str, int] = {}
        for field in FIELDS:
            own = [name for name in (field, ALIASES.get(field)) if name not in self._renamed.values()]
            for column in [self._renamed[field]] if field in self._renamed else own:
                if column in names and field not in self._constants:
                    fields.setdefault(field, names.index(column))
        others = [
            (json.dumps(name) + ": ", index)
            for index, name in enumerate(names)
            if name and index not in fields.values()
        ]
        verbatim = not others and not self._constants and all(names[index] == field for field, index in fields.items())
        if len(self._plans) >= 1000:  # objects of ever different keys
            self._plans.clear()
        plan = self._plans[names] = _Plan(fields, others, verbatim)
        return plan

    def check(self, names: Sequence[str]) -> None:
        """Raises Unreadable if a header row of these columns can't belong to any event."""
        for name in names:
            if name and names.count(name) > 1:
                raise Unreadable(f"the header row has the column {name!r} twice")
        for field, column in self._renamed.items():
            if column not in names:
                raise Unreadable(f"no column is called {column!r}, as --map {field}={column} has it")
        plan = self.plan(tuple(names))
        for field in ("type", "toolName"):
            if field not in plan.fields and field not in self._constants:
                raise Unreadable(
                    f"no column is called {field!r}: name one with --map {field}=COLUMN, "
                    f"or the same value for all rows with --set {field}=VALUE"
                )

    def from_cells(self, plan: _Plan, cells: list[str]) -> str:
        """The event in a row of CSV, as JSON. An empty cell is an absent one. Raises _Wrong."""
        values: dict[str, Any] = {field: cells[index] for field, index in plan.fields.items() if cells[index]}
        others = [name + _json_string(cells[index]) for name, index in plan.others if cells[index]]
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
        return self._event(values, metadata_text, [name + texts[index] for name, index in plan.others])

    def _event(self, values: dict[str, Any], metadata_text: str, others: list[str]) -> str:
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
            if metadata:
                others.append(metadata_text.strip()[1:-1].strip())
            metadata_text = "{" + ", ".join(others) + "}"
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


class Source:
    """A file, or standard input for `-`; it is inflated if it is gzip, whatever its name. Raises Unreadable."""

    def __init__(self, path: str, stdin: Any) -> None:
        try:
            self._file: Any = stdin if path == "-" else Path(path).open("rb")  # noqa: SIM115
            status = os.fstat(self._file.fileno())
            gzipped = self._file.peek(2)[:2] == b"\x1f\x8b"
        except OSError as error:
            raise Unreadable(str(error.strerror)) from None
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
    """What the rows of a file are, in their order. `form` is csv, ndjson or json; `longest` bytes a row may have.

    Raises Unreadable if the file as a whole makes no sense, or no row can be told from here on.
    """
    return {"csv": _csv, "ndjson": _ndjson, "json": _json}[form](source, columns, longest)


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
    lines = _Lines(source, longest)
    for line in lines:
        if lines.too_long:
            yield Reject(lines.number, f"The line has more than {longest} bytes", _shown(line))
            continue
        if not line.strip():
            continue
        try:
            text, row = schemas.parse_json(line)
        except schemas.InvalidJSON as error:
            yield Reject(lines.number, f"Invalid JSON: {error}", _shown(line))
            continue
        try:
            event = columns.from_json(row, text.strip())
        except _Wrong as error:
            yield Reject(lines.number, str(error), row)
        else:
            yield Event(lines.number, event)


def _csv(source: Source, columns: Columns, longest: int) -> Iterator[Event | Reject]:
    lines = _Lines(source, longest)
    consumed: list[bytes] = []  # by the row that is being read

    def texts() -> Iterator[str]:
        for line in lines:
            consumed.append(line)
            yield line.decode("utf-8", "surrogateescape")

    csv.field_size_limit(longest)
    rows = csv.reader(texts(), strict=True)
    try:
        header = next(rows, None)
    except csv.Error as error:
        raise Unreadable(f"the header row is not CSV: {error}") from None
    if header is None:
        raise Unreadable("there is no header row")
    columns.check(header)
    plan = columns.plan(tuple(header))
    while True:
        line = lines.number + 1
        consumed.clear()
        try:
            cells = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield Reject(line, f"Not CSV: {error}", _shown(b"".join(consumed)))
            continue
        raw = b"".join(consumed)
        if lines.too_long:
            yield Reject(line, f"The line has more than {longest} bytes", _shown(raw))
        elif not raw.isascii() and (reason := _not_utf8(raw)):
            yield Reject(line, reason, _shown(raw))
        elif not cells:  # an empty line
            continue
        elif len(cells) != len(header):
            yield Reject(line, f"Has {len(cells)} cells where the header row has {len(header)}", _shown(raw))
        else:
            try:
                event = columns.from_cells(plan, cells)
            except _Wrong as error:
                yield Reject(line, str(error), dict(zip(header, cells, strict=True)))
            else:
                yield Event(line, event)


def _json(source: Source, columns: Columns, longest: int) -> Iterator[Event | Reject]:
    document = _Document(source, longest)

    def judged(line: int, row: Any, text: str) -> Event | Reject:
        raw = text.encode("utf-8", "surrogateescape")
        try:
            if document.constants:
                raise _Wrong(f"Invalid JSON: {document.constants.pop()} is not JSON")
            if not text.isascii() and (reason := _not_utf8(raw)):
                raise _Wrong(reason)
            return Event(line, columns.from_json(row, text))
        except _Wrong as error:
            return Reject(line, str(error), _shown(raw))

    def elements() -> Iterator[Event | Reject]:
        for line in document.items("[", "]"):
            yield judged(line, *document.value())

    while first := document.peek():
        line = document.line
        if first == "[":
            yield from elements()
        elif first != "{":
            yield judged(line, *document.value())
        else:
            row: dict[str, Any] = {}
            texts = []
            for _ in document.items("{", "}"):
                name, name_text = document.value()
                document.take(":")
                if name == "events" and document.peek() == "[":
                    yield from elements()
                    row["events"] = None
                else:
                    row[name], text = document.value()
                    texts.append(f"{name_text}: {text}")
            if "events" not in row:
                yield judged(line, row, "{" + ", ".join(texts) + "}")


class _Document:
    """JSON text that is read as far as it is asked for. Raises Unreadable where it can't be read on."""

    def __init__(self, source: Source, longest: int) -> None:
        self._source = source
        self._longest = longest
        self._decode = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape").decode
        self._decoder = json.JSONDecoder(parse_constant=self._note_constant)
        self._text = ""
        self._at = 0
        self._ended = False
        self.line = 1
        """Of the next character."""
        self.constants: list[str] = []
        """NaN and the like, in the values read since it was emptied."""

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

    def value(self) -> tuple[Any, str]:
        """The next value, and its text."""
        self.peek()
        while True:
            known = len(self.constants)
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
                if end < len(self._text) or self._ended:  # else a number may go on
                    text = self._text[self._at : end]
                    self._pass(end)
                    return value, text
            except json.JSONDecodeError as error:
                if self._ended:
                    raise self._unreadable(error.msg, error.pos) from None
                if len(self._text) - self._at > self._longest:
                    reason = f"{error.msg}, or a value of more than {self._longest} bytes"
                    raise self._unreadable(reason, error.pos) from None
            except RecursionError:
                raise self._unreadable("Nested too deep", self._at) from None
            except ValueError:
                raise self._unreadable("A number is too long", self._at) from None
            del self.constants[known:]
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

    def _note_constant(self, name: str) -> None:
        self.constants.append(name)

    def _unreadable(self, reason: str, at: int) -> Unreadable:
        return Unreadable(f"line {self.line + self._text.count(chr(10), self._at, at)}: Invalid JSON: {reason}")


def _not_utf8(raw: bytes) -> str:
    """What is wrong with bytes that are no UTF-8."""
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        return f"Not UTF-8: {error.reason} at byte {error.start}"
    return ""


def _shown(raw: bytes) -> str:
    return raw.decode("utf-8", "replace").rstrip("\r\n")


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
        self._pending_hash = hashlib.sha256()
        self._keys: list[str] = []  # of the pending events
        self._asked = 0  # how many of them
        self._stored: dict[int, int] = {}  # the end of each chunk found among them, and its events
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
        self._pending.append(event)
        self._pending_hash.update(event.text.encode() + b"\n")
        self._keys.append(self._pending_hash.hexdigest())
        self._rows += 1
        self._bytes += len(event.text)
        if self._rows >= CHUNK_ROWS or self._bytes >= CHUNK_BYTES:
            self._limits.append(len(self._pending))
            self._rows = self._bytes = 0

    def _advance(self) -> None:
        """Gets at least one pending event done or rejected."""
        end = self._limits[0] if self._limits else len(self._pending)
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
            if size > 1:
                return self._store(chunks, size // 2)
            event = self._pending[0]
            self._reject(Reject(event.line, str(error), _shown(event.text.encode())))
            return self._drop_rejected()
        if new:
            self.stored += size
        else:
            self.skipped += size
        return self._drop(size)

    def _drop(self, count: int) -> None:
        """The first of the pending events are done."""
        for event in self._pending[:count]:
            self._done_hash.update(event.text.encode() + b"\n")
        self._done += count
        self._asked = max(0, self._asked - count)
        self._restart(self._pending[count:])

    def _drop_rejected(self) -> None:
        """The first pending event is none; all keys after it are others without it."""
        self._asked = 0
        self._stored.clear()
        self._restart(self._pending[1:])

    def _restart(self, pending: list[Event]) -> None:
        self._pending, self._keys, self._limits = [], [], []
        self._rows = self._bytes = 0
        self._pending_hash = self._done_hash.copy()
        for event in pending:
            self._append(event)

    def _reject(self, reject: Reject) -> None:
        self.rejected += 1
        self._on_reject(reject)
