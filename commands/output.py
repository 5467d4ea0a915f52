"""What the commands print: tables, JSON, progress."""

import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import click


def show(rows: list[dict[str, Any]], columns: list[str], as_json: bool = False) -> None:
    """Print rows as a table, or as a JSON array."""
    if as_json:
        click.echo(json.dumps([{column: row[column] for column in columns} for row in rows], default=iso))
    else:
        Table(columns).print(rows)


class Table:
    """Columns that grow with what is printed in them."""

    def __init__(self, columns: list[str], *, cut: bool = False) -> None:
        """`cut` cuts lines off where the terminal ends."""
        self._columns = columns
        self._cut = cut
        self._widths: list[int] = []

    def print(self, rows: list[dict[str, Any]]) -> None:
        """Print rows below those that were printed before; the first time, below the names of the columns."""
        lines = [[_cell(row[column]) for column in self._columns] for row in rows]
        if not self._widths:
            lines.insert(0, self._columns)
            self._widths = [0] * len(self._columns)
        for line in lines:
            self._widths = [max(width, len(cell)) for width, cell in zip(self._widths, line, strict=True)]
        end = shutil.get_terminal_size().columns
        for line in lines:
            text = "  ".join(cell.ljust(width) for cell, width in zip(line, self._widths, strict=True)).rstrip()
            click.echo(f"{text[: end - 1]}…" if self._cut and len(text) > end else text)


def _cell(value: object) -> str:
    if isinstance(value, datetime):
        return f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%SZ}"
    return printable("-" if value is None else str(value))


def printable(text: str) -> str:
    """Escape what a terminal would not show as a character."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def iso(value: datetime) -> str:
    """Return a time in UTC as ISO 8601."""
    return value.astimezone(UTC).isoformat().replace("+00:00", "Z")


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
