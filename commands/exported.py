"""Compare a file that `export` wrote with the trail."""

import re
from collections.abc import Iterable, Iterator
from functools import partial
from typing import BinaryIO

import click

MAX_DIFFERENCES = 100
"""How many differences are named."""

MAX_LINE = 2**26
"""The bytes that are read as one line. No event's line is as long."""

# The receipt is the end of a line. Within a string nothing looks like it, since quotes are escaped there.
_RECEIPT = re.compile(rb'.*, "receipt": \{"id": (\d{1,19}), .*, "receivedAt": "([^"]+)"\}\}\n', re.DOTALL)

_Key = tuple[str, int]
"""What lines are ordered by: the time of receipt, and the id."""

_END: _Key = ("~", 0)
"""Is greater than the key of any line."""


class ExportedFile:
    """A file that `export` wrote. It is read once, period by period."""

    def __init__(self, file: BinaryIO) -> None:
        """Raises ClickException at a line that `export` does not write, as the methods do."""
        self.compared = 0
        """How many lines were compared with the trail."""
        self.skipped = 0
        """How many were not: they are of no period that was asked for."""
        self._lines = enumerate(iter(partial(file.readline, MAX_LINE), b""), 1)
        self._absent: list[int] = []
        self._differences: list[str] = []
        self._unnamed = 0
        self._next()

    def beside(self, found: Iterable[bytes], begin: str, end: str) -> Iterator[bytes]:
        """Yield the lines of a period of the trail, and compare those of the file with them.

        `begin` and `end` are times as lines have them. Periods have to come in their order.
        """
        self.skip(begin)
        self._absent.clear()
        for line in found:
            yield line
            key = self._key if line == self._line else _key(line) or _END
            self._compare_before(key)
            if key == self._key:
                if line != self._line:
                    self._differ(f"line {self._number} of the file is another one in the trail")
                self._pass()
            elif len(self._absent) <= MAX_DIFFERENCES:
                self._absent.append(key[1])
        self._compare_before((end, 0))

    def end_period(self, *, is_whole: bool) -> None:
        """End the period. If it is whole, the file needs not have all its events: it may be an export of some."""
        for event_id in [] if is_whole else self._absent:
            self._differ(f"event {event_id} is not in the file")

    def skip(self, until: str | None = None) -> None:
        """Pass over the lines that were received before a time, or all that are left."""
        while self._key < ((until, 0) if until else _END):
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
        self._number, self._line = next(self._lines, (0, b""))
        key = _key(self._line) if self._line else _END
        if key is None:
            raise click.ClickException(f"line {self._number} of the file is not what `export` writes")
        self._key = key


def _key(line: bytes) -> _Key | None:
    found = _RECEIPT.fullmatch(line)
    return (found[2].decode("ascii", "replace"), int(found[1])) if found else None
