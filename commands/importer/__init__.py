"""`import`: store the rows of a file as events, exactly once.

files.py turns bytes into rows, rows.py turns rows into events, chunks.py stores events, rejects.py keeps what is left.
"""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any
from zoneinfo import ZoneInfo

import click
import psycopg
from flask import current_app

import database
from commands.base import AlreadyRunning, check_organization, command, session
from commands.importer.chunks import Chunks, Import, QuotaEnded
from commands.importer.files import Source, Unreadable, format_of, read_rows
from commands.importer.rejects import RejectsFile
from commands.importer.rows import FIELDS, ColumnMapping, snake_case
from commands.output import printable, progress
from commands.parameters import Name, TimeZone
from database import Connection


class Field(click.ParamType[tuple[str, str]]):
    """FIELD=..., where the field is one of an event's."""

    name = "field"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        name, equals, given = value.partition("=")
        field = {snake_case(field): field for field in FIELDS}.get(name, name)
        if field not in FIELDS or not equals or not given:
            self.fail(f"{value!r} is not FIELD=..., where FIELD is one of {', '.join(FIELDS)}", param, ctx)
        return field, given


@click.command("import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.option("--org", type=Name(), required=True, help="The organization that the events belong to.")
@click.option(
    "--format",
    "file_format",
    type=click.Choice(["csv", "ndjson", "json"]),
    help="By default the name of FILE says it. json is an array, or an object whose `events` is one.",
)
@click.option(
    "--map", "renamed", type=Field(), multiple=True, metavar="FIELD=COLUMN", help="The column that a field is in."
)
@click.option("--set", "constants", type=Field(), multiple=True, metavar="FIELD=VALUE", help="One value for all rows.")
@click.option("--timezone", "zone", type=TimeZone(), help="For timestamps without one: UTC, Europe/Berlin.")
@click.option("--dry-run", is_flag=True, help="Check the rows, and store nothing.")
@command
def import_(
    file: str,
    org: str,
    file_format: str | None,
    renamed: tuple[tuple[str, str], ...],
    constants: tuple[tuple[str, str], ...],
    zone: ZoneInfo | None,
    dry_run: bool,
) -> None:
    """Store the rows of FILE (CSV, NDJSON or JSON, also as .gz; - is standard input) as events of an organization.

    Events are stored exactly once: after an interruption, or when it is run again, it skips what is stored. Rows that
    can't be events go to FILE.rejects.ndjson; mended there, that file can be imported. Exit status: 0 all is stored, 1
    it could not go on, 2 wrong usage, 3 rows were rejected, 4 the quota is used up, 130 Ctrl-C.
    """
    file_format = file_format or format_of(file)
    if file_format is None:
        raise click.UsageError("The name does not say the format: add --format csv, ndjson or json.")
    try:
        mapping = ColumnMapping(dict(renamed), dict(constants), zone)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--set") from None
    shown = printable(file)
    with ExitStack() as stack:
        connection = stack.enter_context(session(with_timeouts=True))
        check_organization(connection, org)
        chunks = None if dry_run else stack.enter_context(only_import(connection, org))
        rejects = stack.enter_context(RejectsFile(file))
        job = Import(chunks, rejects.write)
        problem, status = "", 0
        try:
            source = stack.enter_context(Source(file, getattr(sys.stdin, "buffer", None)))
            rows = read_rows(source, file_format, current_app.config["MAX_BODY_BYTES"], mapping.check_header)
            show_progress = stack.enter_context(progress(source.size, "rows"))
            for _ in job.run(mapping.events(rows)):
                show_progress(source.position(), job.read)
        except Unreadable as error:
            problem, status = f"{shown}: {error}", 1
        except QuotaEnded as error:
            problem, status = f"the month's quota is used up; line {error} of {shown} is the first not stored", 4
            problem += "; run it again to go on from there"
        except database.Unavailable as error:
            problem, status = f"{': '.join(error.args)}; run it again to go on", 1
        except KeyboardInterrupt:
            problem, status = "interrupted; run it again to go on", 130
    if dry_run:
        fate = f"valid {job.read - job.rejected}, stored none"
    else:
        fate = f"stored {job.stored}, already stored {job.skipped}"
    click.echo(f"read {job.read}, {fate}, rejected {job.rejected}{rejects.where}")
    if problem:
        click.echo(f"Error: {problem}", err=True)
    sys.exit(status or (3 if job.rejected else 0))


@contextmanager
def only_import(connection: Connection, org_id: str) -> Iterator[Chunks]:
    """Let no other import into the organization run meanwhile. Raises AlreadyRunning if one does."""
    [(locked,)] = connection.execute(
        "SELECT pg_try_advisory_lock(hashtext('igris-ingest import'), hashtext(%s))", [org_id]
    ).fetchall()
    if not locked:
        raise AlreadyRunning(f"another import into {org_id!r} is running")
    try:
        yield Chunks(connection, org_id)
    finally:
        # closing the connection gives the lock back, too, but some time later
        with suppress(psycopg.Error):
            connection.execute("SELECT pg_advisory_unlock_all()")
