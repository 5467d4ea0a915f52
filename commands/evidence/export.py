"""`export`: hand the trail out, as NDJSON that is the same bytes each time, or as CSV."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import click

from commands.base import check_organization, named_errors, reports_errors, snapshot
from commands.evidence.trail import COPY_CSV, COPY_LINES, Filters, count, filter_options, lines
from commands.output import printable, progress
from commands.parameters import Name


@click.command("export")
@click.option("--org", type=Name(), required=True, help="The organization whose events they are.")
@filter_options
@click.option("--format", "file_format", type=click.Choice(["ndjson", "csv"]), default="ndjson", show_default=True)
@click.option("--output", type=click.Path(dir_okay=False), help="A new file, or - for standard output, the default.")
@reports_errors
def export(org: str, file_format: str, output: str | None, **conditions: Any) -> None:
    """Write the events of an organization in the order of their receipt. `import` reads what this writes.

    A line of NDJSON is canonical: the same event is the same bytes on every PostgreSQL. In CSV, an apostrophe before =
    and the like keeps spreadsheets from running what a client sent.

    \b
    Examples:
      igris-ingest export --org acme --since 2026-09-01 --until 2026-10-01 --output acme-2026-09.ndjson
      igris-ingest export --org acme --action deny --format csv --output denied.csv
    """
    output = None if output == "-" else output
    filters = Filters(org, **conditions)
    query, written = (COPY_CSV, -1) if file_format == "csv" else (COPY_LINES, 0)  # the header row is no event
    is_shown = output is None and sys.stdout.isatty()  # a client's text must not act on the terminal
    with snapshot() as connection, _output(output) as file:
        check_organization(connection, org)
        total = count(connection, filters) if sys.stderr.isatty() else None
        with progress(total, "events") as show_progress, lines(connection, filters, query) as found:
            for line in found:
                file.write(printable(line.decode().rstrip("\r\n")).encode() + b"\n" if is_shown else line)
                written += 1
                if written % 1000 == 0:
                    show_progress(written, written)
    click.echo(f"exported {written} events", err=True)


@contextmanager
def _output(path: str | None) -> Iterator[IO[bytes]]:
    """Open a new file that gets its name when it is whole, or standard output. Raises ClickException and OSError."""
    if path is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
    else:
        with _new_file(Path(path)) as file:
            yield file


@contextmanager
def _new_file(path: Path) -> Iterator[IO[bytes]]:
    if path.exists() or path.is_symlink():
        raise click.ClickException(f"{printable(str(path))}: there is a file of that name; move it away")
    part = path.with_name(f"{path.name}.part")
    if part.exists():
        raise click.ClickException(f"{printable(str(part))}: another export writes it, or was killed; then remove it")
    with part.open("xb") as file:
        try:
            with named_errors(path):
                yield file
                file.flush()
                os.fsync(file.fileno())
                part.rename(path)
        finally:
            part.unlink(missing_ok=True)
