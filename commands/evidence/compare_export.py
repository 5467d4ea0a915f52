"""Compare a file that `export` wrote with the trail."""

import re
from collections.abc import Iterable, Iterator
from functools import partial
from typing import BinaryIO

import click

MAX_DIFFERENCES = 100  # how many differences are named

MAX_LINE = 2**28  # the bytes that are read as one line. No event's line is as long.

_RECEIPT_BEGINS = b', "receipt": {"id": '  # nothing in a string looks like it: there, quotes are escaped
_RECEIPT = re.compile(
    rb', "receipt": \{"id": (\d{1,19}), "organization": "[^\n]*", "apiKeyId": (?:\d{1,19}|null), '
    rb'"source": "\w+", "receivedAt": "(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z)"\}\}\n'
)

_Key = tuple[str, int]  # what lines are ordered by: the time of receipt, and the id

_BEGINNING: _Key = ("", 0)  # less than the key of any line
_END: _Key = ("~", 0)  # greater than the key of any line


class ExportedFile:
    """A file that `export` wrote. It is read once, period by period."""

    def __init__(self, file: BinaryIO) -> None:
        """Raises ClickException at a line that is not as `export` writes it, as the methods do."""
        self.compared = 0  # how many lines were compared with the trail
        self.skipped = 0  # how many were not: they are of no period that was asked for
        self._lines = enumerate(iter(partial(file.readline, MAX_LINE), b""), 1)
        self._absent = 0
        self._first_absent = 0
        self._differences: list[str] = []
        self._unnamed = 0
        self._key = _BEGINNING
        self._next()

    def beside(self, found: Iterable[bytes], begin: str, end: str | None = None) -> Iterator[bytes]:
        """Yield the lines of a period of the trail, and compare those of the file with them.

        `begin` and `end` are times as lines have them; None is no end. Periods have to come in their order.
        """
        self.skip(begin)
        self._absent = 0
        for line in found:
            yield line
            key = self._key if line == self._line else _key(line) or _BEGINNING
            self._compare_before(key)
            if key == self._key:
                if line != self._line:
                    self._differ(f"line {self._number} of the file is another one in the trail")
                self._pass()
            else:
                self._first_absent = self._first_absent if self._absent else key[1]
                self._absent += 1
        self._compare_before(_END if end is None else (end, 0))

    def compare(self, found: Iterable[bytes], begin: str, end: str | None = None) -> None:
        """Compare the file with a period of the trail, as `beside` does. It may lack some of the events."""
        for _ in self.beside(found, begin, end):
            pass

    def end_period(self, *, is_whole: bool) -> None:
        """End the period. If it is whole, the file needs not have all its events: it may be an export of some."""
        if self._absent and not is_whole:
            self._differ(f"{self._absent} events are not in the file, the first of them is event {self._first_absent}")

    def skip(self, until: str | None = None) -> None:
        """Pass over the lines that were received before a time, or all that are left."""
        while self._key < (_END if until is None else (until, 0)):
            self.skipped += 1
            self._next()

    def differences(self) -> list[str]:
        """Return how the file differs, as sentences."""
        return [*self._differences, f"{self._unnamed} more lines differ"] if self._unnamed else self._differences

    def _compare_before(self, key: _Key) -> None:
        while self._key < key:
            self._differ(f"line {self._number} of the file is missing in the trail")
            self._pass()

    def _pass(self) -> None:
        self.compared += 1
        self._next()

    def _differ(self, sentence: str) -> None:
        if len(self._differences) < MAX_DIFFERENCES:
            self._differences.append(sentence)
        else:
            self._unnamed += 1

    def _next(self) -> None:
        before = self._key
        self._number, self._line = next(self._lines, (0, b""))
        key = _key(self._line) if self._line else _END
        if key is None:
            raise click.ClickException(f"line {self._number} of the file is not what `export` writes")
        if key <= before:
            raise click.ClickException(f"line {self._number} of the file is not in the order that `export` writes")
        self._key = key


def _key(line: bytes) -> _Key | None:
    found = _RECEIPT.fullmatch(line, max(0, line.rfind(_RECEIPT_BEGINS)))
    return (found[2].decode(), int(found[1])) if found else None
