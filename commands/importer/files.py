"""What a file is made of: bytes, lines, rows. The readers of formats (`*_rows.py`) build on it."""

import codecs
import gzip
import io
import json
import os
import re
import stat
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

MAX_SHOWN = 1000  # the characters of a line that a reject shows if the line is not JSON

MAX_ROW_SHOWN = 2**16
"""The characters up to which a reject shows a row as a whole. Of a longer one it shows the beginning."""


class Unreadable(Exception):
    """The file can't be read, or not to its end. The argument says why."""


class InvalidRow(Exception):
    """A row can't become an event. The argument says why."""


class Row(NamedTuple):
    line: int  # the line of the file on which the row begins; the first is 1
    value: Any  # what the row holds, as a rule a dict by column. Fractions are 0.0: see `json_text.Parser`.
    text: str | None  # the JSON text of the row, with every digit; None for a row of CSV, which has only strings


class Reject(NamedTuple):
    line: int
    reason: str
    row: str  # the row as JSON: a value, or a string with the beginning of what could not be parsed


Rows = Iterator[Row | Reject]

_OTHER_FILES = {
    b"PK\x03\x04": "it is a spreadsheet or a zip archive: save the sheet as CSV UTF-8, or unzip it, and import that",
    b"\xd0\xcf\x11\xe0": "it is a spreadsheet: save the sheet as CSV UTF-8 and import that",
    b"BZh": "it is compressed with bzip2: decompress it (bunzip2) and import that",
    b"\x28\xb5\x2f\xfd": "it is compressed with zstd: decompress it (unzstd) and import that",
    b"\xfd7zXZ": "it is compressed with xz: decompress it (unxz) and import that",
}

_REJECT = re.compile(rb'(?:\xef\xbb\xbf)?\s*\[?\s*\{\s*"line"\s*:\s*\d+\s*,\s*"reason"\s*:\s*"')


class Source:
    """A file, or standard input for `-`, as UTF-8. Raises Unreadable.

    A gzip file is decompressed, under any name. UTF-16 is known by its mark, another encoding by `encoding`.
    Rejects are UTF-8, also those of a file in another encoding.
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
        self.note = ""  # what may be a mistake in the file, when it was read to its end
        for magic, reason in _OTHER_FILES.items():
            if begin.startswith(magic):
                self._file.close()
                raise Unreadable(reason)
        self.is_parquet = begin.startswith(b"PAR1")
        self.is_rejects = bool(_REJECT.match(self.peek(100)))
        if encoding is not None and not self.is_rejects:
            if encoding in _ONE_BYTE and _is_utf8(self.peek(2**16)):
                self._file.close()
                raise Unreadable("it is UTF-8: leave --encoding out")
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
            what = f"Not {error.encoding}: {error.reason}" if isinstance(error, UnicodeDecodeError) else str(error)
            raise Unreadable(what) from None


_ONE_BYTE = ("cp1252", "cp1250", "iso8859-1", "iso8859-15", "cp850", "cp437", "mac-roman")


def _is_utf8(begin: bytes) -> bool:
    """Return whether bytes have characters beyond ASCII, and all in UTF-8. The last one may be cut."""
    try:
        return not codecs.getincrementaldecoder("utf-8")().decode(begin).isascii()
    except UnicodeDecodeError:
        return False


class _AsUtf8(io.RawIOBase):
    """A stream converted from an encoding to UTF-8. Reading raises UnicodeError if its encoding is another one."""

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


class Lines:
    """The lines of a file. Of one that is too long, only the beginning is kept."""

    def __init__(self, source: Source, max_bytes: int) -> None:
        self._source = source
        self._max_bytes = max_bytes
        self.number = 0  # the number of the last line
        self.too_long = False  # whether the last line was too long

    def __iter__(self) -> Iterator[bytes]:
        while line := self._source.readline(self._max_bytes + 1):
            self.number += 1
            self.too_long = len(line) > self._max_bytes
            if self.too_long:
                rest = line
                while rest and not rest.endswith(b"\n"):
                    rest = self._source.readline(self._max_bytes)
            yield line.removeprefix(codecs.BOM_UTF8) if self.number == 1 else line


def shown(raw: bytes | bytearray) -> str:
    """Return the beginning of what is not JSON, as a JSON string."""
    text = raw[: 4 * MAX_SHOWN].decode("utf-8", "replace").rstrip("\r\n")
    return json.dumps(text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}...")


def one_line(text: str) -> str:
    """Return JSON without line breaks, which it can have only where they mean nothing."""
    return text.replace("\r", " ").replace("\n", " ")
