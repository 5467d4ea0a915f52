"""Read files: CSV, NDJSON and JSON become rows. Nothing here knows which column means what."""

import codecs
import csv
import datetime
import gzip
import io
import json
import os
import re
import stat
import zlib
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import jmespath.exceptions
import simplejson

import json_text

FORMATS = {
    ".rejects.ndjson": "rejects",
    ".csv": "csv",
    ".tsv": "csv",
    ".ndjson": "ndjson",
    ".jsonl": "ndjson",
    ".json": "json",
    ".parquet": "parquet",
}
"""The formats by the end of a file's name. What is NDJSON or JSON by its name, and begins with a
reject, is a file of rejects, too."""

DELIMITERS = ",;\t|"

MAX_SHOWN = 1000
"""The characters of a line that a reject shows if the line is not JSON."""


class Unreadable(Exception):
    """The file can't be read, or not to its end. The argument says why."""


class InvalidRow(Exception):
    """A row can't become an event. The argument says why."""


class Row(NamedTuple):
    line: int
    """The line of the file on which the row begins; the first is 1."""
    value: Any
    """What the row holds, as a rule a dict by column. Fractions are 0.0: see `json_text.Parser`."""
    text: str | None
    """The JSON text of the row, with every digit; None for a row of CSV, which has only strings."""


class Reject(NamedTuple):
    line: int
    reason: str
    row: str
    """The row as JSON: a value, or a string with the beginning of what could not be parsed."""


Rows = Iterator[Row | Reject]


def format_of(name: str) -> str | None:
    """Return what a file's name says of its format, with or without .gz; None if it says nothing."""
    name = name.lower().removesuffix(".gz")
    return next((found for suffix, found in FORMATS.items() if name.endswith(suffix)), None)


class Source:
    """A file, or standard input for `-`, as UTF-8. Raises Unreadable.

    It is inflated if it is gzip, whatever its name. UTF-16 is known by its mark, another encoding by `encoding`.
    """

    def __init__(self, path: str, stdin: Any, encoding: str | None = None) -> None:
        try:
            self._file: Any = stdin if path == "-" else Path(path).open("rb")  # noqa: SIM115
            status = os.fstat(self._file.fileno())
            gzipped = self._file.peek(2)[:2] == b"\x1f\x8b"
        except (OSError, AttributeError, ValueError) as error:  # the last two: standard input is closed
            raise Unreadable(str(getattr(error, "strerror", "it is closed"))) from None
        self.size = status.st_size if stat.S_ISREG(status.st_mode) else None
        """The size in bytes; None if it is not an ordinary file."""
        self._stream: Any = gzip.GzipFile(fileobj=self._file) if gzipped else self._file
        begin = self.peek(8)
        if begin.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) and encoding is None:
            encoding = "utf-16"
        if begin.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):
            self._file.close()
            raise Unreadable("it is a spreadsheet or an archive: save the sheet as CSV UTF-8 and import that")
        self.is_parquet = begin.startswith(b"PAR1")
        if encoding is not None:
            self._stream = io.BufferedReader(_AsUtf8(self._stream, encoding), 2**16)

    def __enter__(self) -> "Source":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def file(self) -> Any:
        """The file itself, for formats that are not read from the beginning to the end."""
        return self._file

    def peek(self, size: int) -> bytes:
        """Return at least that many of the next bytes, if there are so many, and leave them to be read."""
        return self._guarded(self._stream.peek, size)

    def position(self) -> int:
        """Return how many of the `size` bytes have been read."""
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
        except UnicodeError as error:
            raise Unreadable(
                f"Not {error.args[0]}: {error.reason if isinstance(error, UnicodeDecodeError) else error}"
            ) from None


class _AsUtf8(io.RawIOBase):
    """What a stream holds, in UTF-8 instead of its own encoding. Reading raises UnicodeError if it has another one."""

    def __init__(self, stream: Any, encoding: str) -> None:
        self._stream = stream
        self._decode = codecs.getincrementaldecoder(encoding)().decode
        self._pending = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        is_end = False
        while not self._pending and not is_end:
            data = self._stream.read(2**16)
            is_end = not data
            self._pending = self._decode(data, is_end).encode("utf-8", "surrogatepass")
        size = min(len(buffer), len(self._pending))
        buffer[:size] = self._pending[:size]
        self._pending = self._pending[size:]
        return size


def read_rows(
    source: Source,
    file_format: str,
    max_bytes: int,
    check_header: Callable[[list[str]], None],
    *,
    delimiter: str | None = None,
    each: Any = None,
) -> Rows:
    """Yield the rows of a file in their order, or a Reject for what is not a row.

    `file_format` is one of FORMATS. A row has at most `max_bytes`. `check_header` gets the names of the columns, where
    the file says them at its beginning, and may raise Unreadable. `delimiter` is CSV's; None finds it. `each` is a
    compiled JMESPath expression for the list of rows in a JSON document. Raises Unreadable if the file as a whole makes
    no sense, or no row can be told from here on.
    """
    if source.is_parquet or file_format == "parquet":
        return _read_parquet(source, check_header)
    if file_format == "csv":
        return _read_csv(source, max_bytes, check_header, delimiter)
    if file_format == "rejects" or _REJECT.match(source.peek(100)):
        return _read_rejects(source, max_bytes)
    if each is not None:
        return _read_each(source, max_bytes, each)
    return {"ndjson": _read_ndjson, "json": _read_json}[file_format](source, max_bytes)


_REJECT = re.compile(rb'(?:\xef\xbb\xbf)?\s*\{\s*"line"\s*:\s*\d+\s*,\s*"reason"\s*:\s*"')


class _Lines:
    """The lines of a file. Of one that is too long, only the beginning is kept."""

    def __init__(self, source: Source, max_bytes: int) -> None:
        self._source = source
        self._max_bytes = max_bytes
        self.number = 0
        """The number of the last line."""
        self.too_long = False
        """Whether the last line was too long."""

    def __iter__(self) -> Iterator[bytes]:
        while line := self._source.readline(self._max_bytes + 1):
            self.number += 1
            self.too_long = len(line) > self._max_bytes
            if self.too_long:
                rest = line
                while rest and not rest.endswith(b"\n"):
                    rest = self._source.readline(self._max_bytes)
            yield line.removeprefix(codecs.BOM_UTF8) if self.number == 1 else line


def _read_ndjson(source: Source, max_bytes: int) -> Rows:
    lines = _Lines(source, max_bytes)
    for line in lines:
        if lines.too_long:
            yield Reject(lines.number, f"The line has more than {max_bytes} bytes", _shown(line))
        elif line.strip():
            yield _parse(lines.number, line)


def _parse(line: int, raw: bytes) -> Row | Reject:
    try:
        text, value = json_text.Parser().parse(raw)
    except json_text.InvalidJSON as error:
        return Reject(line, f"Invalid JSON: {error}", _shown(raw))
    return Row(line, value, text.strip())


def _read_rejects(source: Source, max_bytes: int) -> Rows:
    for reject in _read_ndjson(source, max_bytes):
        if isinstance(reject, Reject):
            yield reject
        elif type(reject.value) is not dict or list(reject.value) != list(Reject._fields):
            reason = "Expected an object of line, reason and row, as an import writes it"
            yield Reject(reject.line, reason, one_line(str(reject.text)))
        else:
            yield Row(reject.line, reject.value["row"], _last_member_text(str(reject.text)))


def _last_member_text(text: str) -> str:
    """Return the value of the last member of a JSON object as it is written."""
    at = text.index("{") + 1
    while True:
        _, at = _decoder.raw_decode(text, _skip_space(text, at))
        begin = _skip_space(text, text.index(":", at) + 1)
        _, at = _decoder.raw_decode(text, begin)
        end, at = at, _skip_space(text, at)
        if text[at] == "}":
            return text[begin:end]
        at += 1


def _skip_space(text: str, at: int) -> int:
    return _SPACE.match(text, at).end()  # type: ignore[union-attr]


class _CsvLines:
    """The lines of a file for csv.reader."""

    def __init__(self, source: Source, max_bytes: int) -> None:
        self._lines = _Lines(source, max_bytes)
        self._iterator = iter(self._lines)
        self._max_bytes = max_bytes
        self.row = bytearray()
        """What has been read of the row."""
        self.first_line = 1
        """The line on which the row begins."""

    def __iter__(self) -> "_CsvLines":
        return self

    def __next__(self) -> str:
        line = next(self._iterator)
        if self.row and len(self.row) + len(line) > self._max_bytes:
            raise self.unclosed()
        self.row += line
        if len(self.row) > self._max_bytes:
            raise InvalidRow(f"The row has more than {self._max_bytes} bytes")
        return line.decode("utf-8", "surrogateescape")

    def begin_row(self) -> None:
        self.first_line = self._lines.number + 1
        self.row.clear()

    @property
    def several(self) -> bool:
        """Whether the row has several lines, as only a quote can make it."""
        return self._lines.number > self.first_line

    def unclosed(self) -> Unreadable:
        return Unreadable(f"line {self.first_line}: a quote in this row is never closed")


def _read_csv(source: Source, max_bytes: int, check_header: Callable[[list[str]], None], delimiter: str | None) -> Rows:
    lines = _CsvLines(source, max_bytes)
    csv.field_size_limit(max_bytes)  # of the whole process, which does nothing else
    rows = csv.reader(lines, strict=True, delimiter=delimiter or _delimiter(source.peek(2**16)))
    try:
        header = next(rows, None)
    except (csv.Error, InvalidRow) as error:
        raise Unreadable(f"the header row is not CSV: {error}") from None
    if header is None:
        raise Unreadable("there is no header row")
    if reason := _not_utf8(lines.row):
        raise Unreadable(f"the header row: {reason}")
    check_header(header)
    while True:
        lines.begin_row()
        try:
            cells = next(rows)
            if not cells:  # an empty line
                continue
            if reason := _not_utf8(lines.row):
                raise InvalidRow(reason)
            if len(cells) != len(header):
                raise InvalidRow(f"Has {len(cells)} cells where the header row has {len(header)}")
        except StopIteration:
            return
        except csv.Error as error:
            if lines.several:
                raise lines.unclosed() from None
            yield Reject(lines.first_line, f"Not CSV: {error}", _shown(lines.row))
        except InvalidRow as error:
            yield Reject(lines.first_line, str(error), _shown(lines.row))
        else:
            value = {name: cell for name, cell in zip(header, cells, strict=True) if name and cell}
            yield Row(lines.first_line, value, None)


def _delimiter(begin: bytes) -> str:
    """Return the delimiter that splits the header row into the most cells. csv.Sniffer also guesses letters."""
    header = begin.partition(b"\n")[0].decode("utf-8", "replace")
    return max(DELIMITERS, key=lambda each: len(next(csv.reader([header], delimiter=each), ())))


def _read_parquet(source: Source, check_header: Callable[[list[str]], None]) -> Rows:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise Unreadable("Parquet needs the package pyarrow: pip install pyarrow, or export the rows as CSV") from None
    try:
        table = parquet.ParquetFile(source.file)
        check_header(table.schema_arrow.names)
        number = 0
        for batch in table.iter_batches(1000):
            for row in batch.to_pylist():
                number += 1
                try:
                    yield Row(number, {name: each for name in row if (each := _as_json(row[name])) is not None}, None)
                except InvalidRow as error:
                    yield Reject(number, str(error), json.dumps(str(row)[:MAX_SHOWN]))
    except (ArrowException, OSError) as error:
        raise Unreadable(f"Not Parquet: {error}") from None


def _as_json(value: Any) -> Any:
    """Return a value of Parquet as JSON has it; NaN, which stands for nothing in pandas, as None."""
    match value:
        case float() if value != value:
            return None
        case float() if value in (float("inf"), float("-inf")):
            raise InvalidRow("Infinity is not JSON")
        case dict():
            return {name: _as_json(each) for name, each in value.items()}
        case list():
            return [_as_json(each) for each in value]
        case bytes():
            try:
                return value.decode()
            except UnicodeDecodeError:
                raise InvalidRow("A column has bytes that are no text") from None
        case datetime.date() | datetime.time():
            return value.isoformat()
        case None | bool() | int() | float() | str() | Decimal():
            return value
    return str(value)


MAX_DOCUMENT = 2**26
"""The bytes of a JSON document that is searched by --each: it is parsed as a whole."""


def _read_each(source: Source, max_bytes: int, each: Any) -> Rows:
    pieces, size = [], 0
    while piece := source.read(2**20):
        pieces.append(piece)
        size += len(piece)
        if size > MAX_DOCUMENT:
            raise Unreadable(f"--each takes documents of up to {MAX_DOCUMENT} bytes: make the rows NDJSON")
    raw = b"".join(pieces).removeprefix(codecs.BOM_UTF8)
    try:
        json_text.Parser().parse(raw)  # refuses what is not JSON
        found = each.search(simplejson.loads(raw.decode(), use_decimal=True))
    except json_text.InvalidJSON as error:
        raise Unreadable(f"Invalid JSON: {error}") from None
    except jmespath.exceptions.JMESPathError as error:
        raise Unreadable(f"--each: {error}") from None
    if not isinstance(found, list):
        raise Unreadable("--each finds no list in the document")
    for number, value in enumerate(found, 1):
        text = simplejson.dumps(value, use_decimal=True)
        if len(text) > max_bytes:
            yield Reject(number, f"The row has more than {max_bytes} bytes", json.dumps(text[:MAX_SHOWN]))
        else:
            yield Row(number, value, text)


def _read_json(source: Source, max_bytes: int) -> Rows:
    document = _Document(source, max_bytes)

    def elements() -> Rows:
        for line in document.items("[", "]"):
            yield _parse(line, document.value().encode("utf-8", "surrogateescape"))

    while first := document.peek():
        line = document.line
        if first == "[":
            yield from elements()
        elif first != "{":
            yield _parse(line, document.value().encode("utf-8", "surrogateescape"))
        else:
            members: list[str] = []
            is_batch = False
            size = 0
            for _ in document.items("{", "}"):
                name = document.value()
                document.take(":")
                if name == '"events"' and document.peek() == "[":
                    is_batch = True
                    yield from elements()
                    continue
                value = document.value()
                size += len(name) + len(value)
                if size > max_bytes:
                    raise Unreadable(f"line {line}: an object of more than {max_bytes} bytes that is no list of events")
                if name == '"events"':
                    is_batch = True
                    yield Reject(line, "events: Expected array", one_line(f"{{{name}: {value}}}"))
                members.append(f"{name}: {value}")
            if not is_batch:
                yield _parse(line, ("{" + ", ".join(members) + "}").encode("utf-8", "surrogateescape"))


_SPACE = re.compile(r"[ \t\r\n]*")
_decoder = json.JSONDecoder()


class _Document:
    """JSON text that is read only as far as it is asked for. Raises Unreadable where it can't be read on.

    ijson is no replacement: it ends at the first bad byte, has no line numbers, and replaces unpaired surrogates.
    """

    # only finds the ends of values: NaN and numbers of any length are judged elsewhere
    _decoder = json.JSONDecoder(parse_int=str, parse_float=str)

    def __init__(self, source: Source, max_bytes: int) -> None:
        self._source = source
        self._max_bytes = max_bytes
        self._decode = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape").decode
        self._text = ""
        self._at = 0
        self._ended = False
        self.line = 1
        """The line of the next character."""

    def peek(self) -> str:
        """Return the next character that is no space; nothing at the end."""
        while True:
            end = _skip_space(self._text, self._at)
            self._pass(end)
            if end < len(self._text) or self._ended:
                return self._text[end : end + 1]
            self._read_more()

    def take(self, character: str) -> None:
        if self.peek() != character:
            raise self._unreadable(f"Expecting {character!r}", self._at)
        self._at += 1

    def items(self, opening: str, closing: str) -> Iterator[int]:
        """Yield, before each item of an array or object, the line on which it begins. The caller reads the item."""
        self.take(opening)
        while self.peek() != closing:
            yield self.line
            if self.peek() != closing:
                self.take(",")
        self.take(closing)

    def value(self) -> str:
        """Return the text of the next value."""
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
            if len(self._text) - self._at > self._max_bytes:
                raise self._unreadable(f"{reason}, or a value of more than {self._max_bytes} bytes", at)
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


def _not_utf8(raw: bytes | bytearray) -> str:
    """Return what is wrong with bytes that are not UTF-8; nothing if they are."""
    try:
        if not raw.isascii():
            raw.decode()
    except UnicodeDecodeError as error:
        return f"Not UTF-8: {error.reason} at byte {error.start}; name another encoding with --encoding"
    return ""


def _shown(raw: bytes | bytearray) -> str:
    """Return the beginning of what is not JSON, as a JSON string."""
    text = raw[: 4 * MAX_SHOWN].decode("utf-8", "replace").rstrip("\r\n")
    return json.dumps(text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}...")


def one_line(text: str) -> str:
    """Return JSON without line breaks, which it can have only where they mean nothing."""
    return text.replace("\r", " ").replace("\n", " ")
