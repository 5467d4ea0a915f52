"""Read NDJSON and JSON: rows with their text, so that numbers keep every digit."""

import codecs
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import jmespath.exceptions
import simplejson

import json_text
from commands.importer.expressions import Expression
from commands.importer.files import MAX_SHOWN, Lines, Reject, Row, Rows, Source, Unreadable, one_line, shown

MAX_DOCUMENT = 2**25
"""The bytes of a JSON document that is searched by --each: parsed as a whole, it takes up to 30 times as much."""


def read_ndjson(source: Source, max_bytes: int) -> Rows:
    lines = Lines(source, max_bytes)
    for line in lines:
        if lines.too_long:
            yield Reject(lines.number, f"The line has more than {max_bytes} bytes", shown(line))
        elif line.strip():
            yield _parse(lines.number, line)


def _parse(line: int, raw: bytes) -> Row | Reject:
    try:
        text, value = json_text.Parser().parse(raw)
    except json_text.InvalidJSON as error:
        return Reject(line, f"Invalid JSON: {error}", shown(raw))
    return Row(line, value, text.strip())


def read_rejects(source: Source, max_bytes: int) -> Rows:
    """Yield the rows of rejects: lines, or what jq makes of them."""
    for reject in read_json(source, max_bytes):
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


def _document(source: Source) -> bytes:
    pieces, size = [], 0
    while piece := source.read(2**20):
        pieces.append(piece)
        size += len(piece)
        if size > MAX_DOCUMENT:
            raise Unreadable(f"a document is read as a whole up to {MAX_DOCUMENT} bytes: make the rows NDJSON")
    return b"".join(pieces).removeprefix(codecs.BOM_UTF8)


def read_each(source: Source, max_bytes: int, each: Sequence[Expression]) -> Rows:
    for number, row in enumerate(_found(_document(source), each), 1):
        yield _as_row(number, row, max_bytes)


def read_each_line(source: Source, max_bytes: int, each: Sequence[Expression]) -> Rows:
    """Yield the rows of documents, one on each line."""
    lines = Lines(source, MAX_DOCUMENT)
    for line in lines:
        try:
            if lines.too_long:
                raise Unreadable(f"The line has more than {MAX_DOCUMENT} bytes")
            found = _found(line, each) if line.strip() else []
        except Unreadable as error:
            yield Reject(lines.number, str(error), shown(line))
        else:
            for row in found:
                yield _as_row(lines.number, row, max_bytes)


def read_split(source: Source, max_bytes: int) -> Rows:
    """Yield the rows of what pandas writes with `orient="split"`: columns, index and data."""
    document = _found(_document(source), ())
    try:
        columns, data = document["columns"], document["data"]
        rows = [dict(zip(columns, cells, strict=True)) for cells in data]
    except (KeyError, TypeError, ValueError):
        raise Unreadable('it is not what pandas writes with to_json(orient="split")') from None
    for number, row in enumerate(rows, 1):
        yield _as_row(number, row, max_bytes)


def _found(raw: bytes, each: Sequence[Expression]) -> Any:
    """Return the list of rows in a document, or without `each` the document. Raises Unreadable."""
    try:
        json_text.Parser().parse(raw)  # rejects what is not JSON
        document = simplejson.loads(raw.decode(), use_decimal=True)
        if not each:
            return document
        found = each[0].search(document)
        for expression in each[1:]:
            if not isinstance(found, list):
                break
            found = [row for outer in found for row in _inner_rows(outer, expression)]
    except json_text.InvalidJSON as error:
        raise Unreadable(f"Invalid JSON: {error}") from None
    except jmespath.exceptions.JMESPathError as error:
        raise Unreadable(f"--each: {error}") from None
    if not isinstance(found, list):
        raise Unreadable("--each finds no list in the document")
    return found


def _as_row(line: int, value: Any, max_bytes: int) -> Row | Reject:
    text = simplejson.dumps(value, use_decimal=True)
    if len(text) > max_bytes:
        return Reject(line, f"The row has more than {max_bytes} bytes", json.dumps(text[:MAX_SHOWN]))
    return _parse(line, text.encode("utf-8", "surrogatepass"))


def _inner_rows(outer: Any, expression: Expression) -> Iterator[Any]:
    """Yield the rows of a list in a row, each with what is beside the list: its own columns come first."""
    found = expression.search(outer)
    if not isinstance(found, list) or not isinstance(outer, dict):
        raise Unreadable("the second --each finds no list in a row of the first")
    read = expression.columns()
    beside = {name: value for name, value in outer.items() if name not in read}
    for row in found:
        yield {**beside, **row} if isinstance(row, dict) else row


def read_json(source: Source, max_bytes: int) -> Rows:
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
                row = _parse(line, ("{" + ", ".join(members) + "}").encode("utf-8", "surrogateescape"))
                if line == 1 and isinstance(row, Row):
                    _check_form_of_pandas(row.value)
                yield row


def _check_form_of_pandas(value: dict[str, Any]) -> None:
    """Raise Unreadable if an object is what pandas writes by default, or with `orient="split"`."""
    if set(value) == {"columns", "index", "data"}:
        raise Unreadable('it is what pandas writes with to_json(orient="split"): add --format split')
    if value and all(isinstance(column, dict) and "0" in column for column in value.values()):
        raise Unreadable('it is what pandas writes by columns: save it with to_json(orient="records", lines=True)')


_SPACE = re.compile(r"[ \t\r\n]*")
_decoder = json.JSONDecoder()


class _Document:
    """JSON text that is read only as far as it is asked for. Raises Unreadable where it can't be read on.

    ijson is no replacement: it ends at the first bad byte, has no line numbers, and replaces unpaired surrogates.
    """

    # only finds the ends of values: NaN and numbers of any length are validated elsewhere
    _decoder = json.JSONDecoder(parse_int=str, parse_float=str)

    def __init__(self, source: Source, max_bytes: int) -> None:
        self._source = source
        self._max_bytes = max_bytes
        self._decode = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape").decode
        self._text = ""
        self._at = 0
        self._ended = False
        self.line = 1  # the line of the next character

    def peek(self) -> str:
        """Return the next character that is not white space; an empty text at the end."""
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
