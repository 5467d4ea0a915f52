"""Read CSV: a header row, and a row of cells for each event."""

import csv
import re
from collections.abc import Callable

from commands.importer.files import InvalidRow, Lines, Reject, Row, Rows, Source, Unreadable, shown

DELIMITERS = ",;\t|"

_SEPARATOR = re.compile(rb"(?:\xef\xbb\xbf)?sep=([,;\t|])\r?\n")
_COPY_NULL = re.compile(rb"(?:^|\t)\\N(?:\t|\r?\n)", re.MULTILINE)
_ABSENT = ("", "\\N")  # \N is NULL in the CSV of COPY ... NULL '\N' and of MySQL
_VALUE = re.compile(r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d.*)?|\d{10,19}(\.\d+)?", re.ASCII)  # what is no name of a column


def read_csv(source: Source, max_bytes: int, check_header: Callable[[list[str]], None], delimiter: str | None) -> Rows:
    lines = _CsvLines(source, max_bytes)
    csv.field_size_limit(max_bytes)  # of the whole process, which does nothing else
    begin = source.peek(2**16)
    if begin.count(b"\0") * 4 > len(begin):
        raise Unreadable("it has NULs, as UTF-16 without a mark has them: name the encoding with --encoding")
    if _COPY_NULL.search(begin):
        raise Unreadable(
            "it is in the text format of PostgreSQL's COPY, with \\N for NULL: export it again with CSV HEADER"
        )
    if separator := _SEPARATOR.match(begin):  # Excel's
        source.readline(16)
        begin, delimiter = begin[separator.end() :], delimiter or separator[1].decode()
        lines.skip_line()
    if b"\r" in begin.replace(b"\r\n", b"") and b"\n" not in begin:
        raise Unreadable("its lines end with CR alone: save it with LF or CRLF")
    rows = csv.reader(lines, strict=True, delimiter=delimiter or _delimiter(begin))
    try:
        header = next((cells for cells in rows if cells), None)
    except (csv.Error, InvalidRow) as error:
        raise Unreadable(f"the header row is not CSV: {error}") from None
    if header is None:
        raise Unreadable("there is no header row")
    if reason := _not_utf8(lines.row):
        raise Unreadable(f"the header row: {reason}")
    for cell in header:
        if _VALUE.fullmatch(cell.strip()):
            raise Unreadable(
                f"the first row has the value {cell.strip()!r} where the names of columns are expected: add them"
            )
    check_header(header)
    cells: list[str] = []
    while True:
        lines.begin_row()
        try:
            cells = next(rows)
            if not cells:  # an empty line
                continue
            if lines.is_too_long:
                raise InvalidRow(f"The row has more than {max_bytes} bytes")
            if b"\0" in lines.row:
                raise InvalidRow("Has a NUL")
            if reason := _not_utf8(lines.row):
                raise InvalidRow(reason)
            if len(cells) != len(header):
                raise InvalidRow(f"Has {len(cells)} cells where the header row has {len(header)}")
        except StopIteration:
            if cells and cells[-1][-1:].isdigit() and not lines.ends_with_line_feed:
                source.note = "the last line has no line feed, and ends with a number: was the file cut there?"
            return
        except csv.Error as error:
            if lines.several:
                raise lines.unclosed() from None
            yield Reject(lines.first_line, f"Not CSV: {error}", shown(lines.row))
        except InvalidRow as error:
            yield Reject(lines.first_line, str(error), shown(lines.row))
        else:
            value = {name: cell for name, cell in zip(header, cells, strict=True) if name and cell not in _ABSENT}
            yield Row(lines.first_line, value, None)


def _delimiter(begin: bytes) -> str:
    """Return the delimiter that the header row has most of, outside quotes. csv.Sniffer also guesses letters."""
    header = begin.lstrip(b"\r\n").partition(b"\n")[0].decode("utf-8", "replace")
    return max(DELIMITERS, key=re.sub('"[^"]*"', "", header).count)


class _CsvLines:
    """The lines of a file for csv.reader."""

    def __init__(self, source: Source, max_bytes: int) -> None:
        self._lines = Lines(source, max_bytes)
        self._iterator = iter(self._lines)
        self._max_bytes = max_bytes
        self.row = bytearray()  # what has been read of the row
        self.first_line = 1  # the line on which the row begins
        self.is_too_long = False  # the row has more than `max_bytes`
        self.ends_with_line_feed = True  # the line that was read last

    def __iter__(self) -> "_CsvLines":
        return self

    def __next__(self) -> str:
        line = next(self._iterator)
        self.ends_with_line_feed = line.endswith(b"\n")
        if self.row and len(self.row) + len(line) > self._max_bytes:
            self.is_too_long = True
        if self.is_too_long:  # only the quotes count, which say where the row ends
            return '"' * line.count(b'"')
        self.row += line
        if len(self.row) > self._max_bytes:
            raise InvalidRow(f"The row has more than {self._max_bytes} bytes")
        return line.decode("utf-8", "surrogateescape")

    def skip_line(self) -> None:
        """Count a line that was read elsewhere."""
        self._lines.number += 1
        self.first_line += 1

    def begin_row(self) -> None:
        self.first_line = self._lines.number + 1
        self.row.clear()
        self.is_too_long = False

    @property
    def several(self) -> bool:
        """Whether the row has several lines, as only a quote can make it."""
        return self._lines.number > self.first_line

    def unclosed(self) -> Unreadable:
        return Unreadable(f"line {self.first_line}: a quote in this row is never closed, or text follows it")


def _not_utf8(raw: bytes | bytearray) -> str:
    """Return what is wrong with bytes that are not UTF-8; nothing if they are."""
    try:
        if not raw.isascii():
            raw.decode()
    except UnicodeDecodeError as error:
        return f"Not UTF-8: {error.reason} at byte {error.start}; name another encoding with --encoding"
    return ""
