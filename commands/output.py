"""What the commands print: tables, JSON, progress."""

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import click
import wcwidth


def show(rows: list[dict[str, Any]], columns: list[str], as_json: bool = False) -> None:
    """Print rows as a table, or as lines of JSON."""
    if as_json:
        for row in rows:
            click.echo(json.dumps({column: row[column] for column in columns}, default=exact))
    else:
        Table(columns).print(rows)


class Table:
    """Columns that grow with what is printed in them, or that have a fixed width."""

    def __init__(self, columns: list[str], *, fixed: Sequence[int] = ()) -> None:
        """`fixed` are the widths of the columns on a terminal, but for the last, which takes the rest of the line."""
        self._columns = columns
        self._fixed = list(fixed) if sys.stdout.isatty() else []
        self._widths: list[int] = []

    def print(self, rows: list[dict[str, Any]]) -> None:
        """Print rows below those that were printed before; the first time, below the names of the columns."""
        lines = [[_cell(row[column]) for column in self._columns] for row in rows]
        if not self._widths:
            lines.insert(0, self._columns)
            self._widths = [0] * len(self._columns)
        for column, cells in enumerate(zip(*lines, strict=True)):
            self._widths[column] = max(self._widths[column], *map(wcwidth.width, cells))
        for line in lines:
            click.echo(self._fixed_line(line) if self._fixed else self._grown_line(line))

    def _grown_line(self, line: list[str]) -> str:
        return "  ".join(map(wcwidth.ljust, line, self._widths)).rstrip()

    def _fixed_line(self, line: list[str]) -> str:
        rest = max(8, shutil.get_terminal_size().columns - sum(self._fixed) - 2 * len(self._fixed))
        cells = [
            _colored(_fitted(cell, width)) if column == "action" else _fitted(cell, width)
            for column, cell, width in zip(self._columns, line, [*self._fixed, rest], strict=True)
        ]
        return "  ".join(cells).rstrip()


def _cell(value: object) -> str:
    if isinstance(value, datetime):
        return f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%SZ}"
    return printable("-" if value is None else str(value))


def _fitted(text: str, width: int) -> str:
    """Return a text that takes so many columns of a terminal, where some characters take two."""
    if wcwidth.width(text) > width:
        text = wcwidth.clip(text, 0, width - 1) + "…"
    return wcwidth.ljust(text, width)


_COLORS = {"deny": "red", "alert": "yellow"}


def _colored(cell: str) -> str:
    color = _COLORS.get(cell.rstrip())
    is_plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return click.style(cell, fg=color) if color and not is_plain else cell


def printable(text: str) -> str:
    """Escape what a terminal would not show as a character."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Return a number with its noun: 1 event, 2 events."""
    return f"{number} {noun if number == 1 else plural or f'{noun}s'}"


def exact(moment: datetime) -> str:
    """Return a time in UTC as ISO 8601, always to the microsecond."""
    return f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%f}Z"


@contextmanager
def progress(total: int | None, noun: str) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar on standard error, if that is a terminal.

    What it yields is called with how much of `total` is done, and how many rows that is.
    """
    began = time.monotonic()
    nothing: Iterator[str] = iter(())
    with click.progressbar(
        nothing,
        length=total,
        width=20,
        file=sys.stderr,
        hidden=not sys.stderr.isatty(),
        item_show_func=lambda text: text,
    ) as bar:

        def update(done: int, rows: int) -> None:
            rate = rows / (time.monotonic() - began)
            bar.update(done - bar.pos, f"{rows:,} {noun}, {rate:,.0f} a second")

        yield update


def sum_shown(total: int, counts: Iterable[int]) -> int:
    """Return the sum of counts of events, which a progress bar shows as it grows towards `total`."""
    done = 0
    with progress(total, "events") as show_progress:
        for count in counts:
            done += count
            show_progress(done, done)
    return done
