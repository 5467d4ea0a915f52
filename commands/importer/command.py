"""`import`: store the rows of a file as events, exactly once.

formats.py has a reader for each format, which turns bytes (files.py) into rows; mapping.py finds an event's fields in
a row, rows.py makes the event, chunks.py stores events, rejects.py keeps what is left, records.py has the table of
imports.
"""

import codecs
import json
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import click
import psycopg

import database_errors
from commands.base import check_organization, exclusive, reports_errors, session_with_timeouts
from commands.importer.by_id import IdsNotUnique, ImportById, OtherContent
from commands.importer.chunks import AllRejected, Changed, Chunks, Import, QuotaEnded, StoredAlready
from commands.importer.expressions import Expression
from commands.importer.files import Source, Unreadable
from commands.importer.formats import FORMATS, SPREADSHEETS, format_of, read_rows
from commands.importer.mapping import FIELDS, Options, snake_case
from commands.importer.records import Record
from commands.importer.rejects import RejectsFile
from commands.importer.rows import EventMaker, MixedForms, check_forms
from commands.output import counted, printable, progress
from commands.parameters import Name, TimeZone
from commands.quota import quota_use
from config import load_settings

MAX_DIGITS = 131_072
"""The digits that PostgreSQL can store of an integer, and that `export` can write. Python stops at 4,300 by default."""


def _field(name: str) -> str:
    """Return the name of a field that may be written with underscores."""
    return {snake_case(each): each for each in FIELDS}.get(name, name)


class Field(click.ParamType[tuple[str, str]]):
    """FIELD=..., where the field is one of an event's."""

    name = "field"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        name, equals, given = value.partition("=")
        field = _field(name)
        if field not in FIELDS or not equals or not given:
            self.fail(f"{value!r} is not FIELD=..., where FIELD is one of {', '.join(FIELDS)}", param, ctx)
        return field, given


class Translation(click.ParamType[tuple[str, str, str]]):
    """FIELD:FROM=TO."""

    name = "translation"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str, str]:
        if isinstance(value, tuple):
            return value
        field, colon, pair = value.partition(":")
        old, equals, new = pair.rpartition("=")
        field = _field(field)
        if field not in FIELDS or not colon or not equals:
            self.fail(f"{value!r} is not FIELD:FROM=TO, where FIELD is one of {', '.join(FIELDS)}", param, ctx)
        return field, old, new


class JmesPath(click.ParamType[Expression]):
    name = "expression"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Expression:
        try:
            return Expression(value) if isinstance(value, str) else value
        except ValueError as error:
            self.fail(f"{value!r} is not a JMESPath expression, such as data or data[].results[]: {error}", param, ctx)


class TimeFormat(click.ParamType[str]):
    name = "format"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        directives = value.replace("%%", "")
        if value and not re.search("%[YyGcx]", directives):
            self.fail(f"{value!r} has no year, such as %Y", param, ctx)
        if ("%p" in directives) != ("%I" in directives):
            self.fail(f"{value!r}: %I and %p, of a clock with 12 hours, need each other", param, ctx)
        try:
            datetime.strptime(datetime(2026, 3, 19, 21, 5, 7, tzinfo=UTC).strftime(value), value)  # noqa: DTZ007
        except ValueError:
            self.fail(f"{value!r} has a directive that strptime does not know, or can't read again", param, ctx)
        return value


class Delimiter(click.ParamType[str]):
    name = "character"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        value = {"tab": "\t", "\\t": "\t"}.get(value, value)
        if len(value) != 1 or value in '\r\n" ':
            self.fail(f"{value!r} is not one character, such as ; or tab", param, ctx)
        return value


class Encoding(click.ParamType[str]):
    name = "name"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            "".encode(value)  # rejects what is no text encoding, such as hex
            return codecs.lookup(value).name
        except LookupError:
            self.fail(f"{value!r} is not an encoding; use a name such as cp1252, latin-1 or utf-16", param, ctx)


def _once(_ctx: click.Context, _param: click.Parameter, values: tuple[Any, ...]) -> Any:
    """Return the one value of an option: the last of two would win without a word."""
    if len(values) > 1:
        raise click.BadParameter("is given twice")
    return values[0] if values else None


def _option(*names: str, **attributes: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return an option that can be given once."""
    return click.option(*names, multiple=True, callback=_once, **attributes)


@click.command("import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@_option("--org", type=Name(), required=True, help="The organization that the events belong to.")
@_option(
    "--format",
    "file_format",
    type=click.Choice(sorted({*FORMATS.values(), "split"} - {"rejects"})),
    help="Format of FILE. Default: by its name. json is an array, or an object with `events`; split is pandas'.",
)
@click.option(
    "--map",
    "sources",
    type=Field(),
    multiple=True,
    metavar="FIELD=COLUMN",
    help="The column that a field is in, or a JMESPath expression over the row.",
)
@click.option("--set", "constants", type=Field(), multiple=True, metavar="FIELD=VALUE", help="One value for all rows.")
@_option("--timezone", "zone", type=TimeZone(), help="For timestamps without one: UTC, Europe/Berlin.")
@click.option(
    "--map-value",
    "translations",
    type=Translation(),
    multiple=True,
    metavar="FIELD:FROM=TO",
    help="Replace a value of a field; * is every other value.",
)
@click.option("--drop", "dropped", multiple=True, metavar="COLUMN", help="Leave a column out of metadata.")
@click.option(
    "--each",
    type=JmesPath(),
    multiple=True,
    help="The list of rows in a JSON document, as a JMESPath expression; again: a list in each of these rows.",
)
@_option(
    "--id",
    "row_id",
    metavar="EXPRESSION",
    help="The column with the id of a row, or a JMESPath expression: each row is stored once, from any file.",
)
@_option("--where", type=JmesPath(), help="Only the rows for which the expression finds something.")
@_option("--delimiter", type=Delimiter(), help="CSV: by default , ; tab or |, whichever splits the header row.")
@_option("--encoding", type=Encoding(), help="Encoding of FILE. Default: UTF-8, or UTF-16 with a byte order mark.")
@_option("--time-format", type=TimeFormat(), help="Other timestamps, in strptime's words: '%m/%d/%Y, %I:%M %p'.")
@click.option("--timestamp-now", is_flag=True, help="Date rows without a timestamp at the time of the import.")
@click.option(
    "--changed-file",
    is_flag=True,
    help="Store FILE even if it differs from its last import, or has rows that are stored already.",
)
@click.option(
    "--mixed-forms", is_flag=True, help="Go on although the first rows have timestamps or bytes of several forms."
)
@_option("--rejects", "rejects_path", type=click.Path(), help="File for rejected rows. Default: FILE.rejects.ndjson.")
@click.option("--dry-run", is_flag=True, help="Check the rows and the quota, and store nothing.")
@reports_errors
def import_(
    file: str,
    org: str,
    file_format: str | None,
    sources: tuple[tuple[str, str], ...],
    constants: tuple[tuple[str, str], ...],
    zone: ZoneInfo | None,
    translations: tuple[tuple[str, str, str], ...],
    dropped: tuple[str, ...],
    each: tuple[Expression, ...],
    delimiter: str | None,
    encoding: str | None,
    time_format: str | None,
    timestamp_now: bool,
    changed_file: bool,
    mixed_forms: bool,
    row_id: str | None,
    where: Expression | None,
    rejects_path: str | None,
    dry_run: bool,
) -> None:
    """Store the rows of FILE (CSV, NDJSON or JSON, also as .gz; Parquet; - is standard input) as events.

    With --id each row is stored once, from any file. Without it, a run skips what an earlier run of the
    same file stored. Rows that can't be events go to FILE.rejects.ndjson; fixed there, that file can be imported.
    `imports undo` takes an import back. Exit status: 0 all is stored, 1 it could not go on, 2 wrong usage, 3 rows were
    rejected, 4 the quota is used up, 130 Ctrl-C.

    \b
    Examples:
      igris-ingest import calls.csv --org acme --id request_id --map toolName=model \\
          --map timestamp=created_at --set type=completion --timezone UTC
      igris-ingest import events.ndjson.gz --org acme
      igris-ingest import trace.json --org acme --each "spans[]" --map toolName=name \\
          --map timestamp=start.time
      igris-ingest import calls.csv --org acme --map toolName=model --map timestamp=created_at \\
          --set type=completion --dry-run
    """
    sys.set_int_max_str_digits(MAX_DIGITS)
    file_format = _checked_format(file, file_format, each)
    options = _options(sources, constants, translations, dropped, timestamp_now, row_id or "")
    maker = _maker(options, zone, time_format or "", where)
    with ExitStack() as stack:
        connection = stack.enter_context(session_with_timeouts())
        check_organization(connection, org)
        rejects = stack.enter_context(RejectsFile(file, rejects_path))
        record = None
        if not dry_run:
            stack.enter_context(exclusive(connection, "import", org))
            record = Record(connection, org, file, _given_options())
        on_reject = rejects.write if record else lambda reject: None
        job: ImportById | Import
        if row_id:
            job = ImportById(connection, org, on_reject, stores=not dry_run, may_repeat=changed_file)
        else:
            earlier = record.earlier if record and not changed_file else 0
            chunks = Chunks(connection, org)
            job = Import(chunks, on_reject, earlier, stores=not dry_run, may_repeat=changed_file)
        problem, status, source_note = "", 0, ""
        try:
            source = stack.enter_context(Source(file, getattr(sys.stdin, "buffer", None), encoding))
            maker.may_lack_columns = source.is_rejects
            max_bytes = load_settings()["MAX_BODY_BYTES"]
            rows = read_rows(source, file_format, max_bytes, maker.check_header, delimiter=delimiter, each=each)
            show_progress = stack.enter_context(progress(source.size, "rows"))
            if record and record.already_stored and not changed_file:
                rows = iter(())
                job.read = job.skipped = record.already_stored
            events = maker.events(rows)
            if not (mixed_forms or source.is_rejects):
                events = check_forms(events)
            for _ in job.run(events):
                show_progress(source.position(), job.read)
                if record:
                    record.update(job.counts)
            source_note = source.note
        except (*STOPS, database_errors.Unavailable, KeyboardInterrupt) as error:
            problem, status = _problem(error, printable(file))
            if isinstance(error, AllRejected | MixedForms):
                rejects.discard()
        if record:
            with suppress(psycopg.Error, database_errors.Unavailable):
                record.end(job.counts)
        room = quota_use(connection, org).remaining if dry_run else None
    left_out = f", left out {maker.left_out}" if where else ""
    click.echo(f"read {job.read}, {_fate(job, dry_run)}, rejected {job.rejected}{left_out}{rejects.where}")
    if dry_run:
        click.echo(f"the month's quota has room for {'any number' if room is None else room}")
    if not (problem or job.read) and maker.left_out:
        problem, status = "--where left out all rows", 1
    _print_details(job, maker, source_note, has_rows=bool(problem or job.read or maker.left_out))
    if problem:
        click.echo(f"Error: {problem}", err=True)
    sys.exit(status or (3 if job.rejected else 0))


def _fate(job: ImportById | Import, dry_run: bool) -> str:
    if dry_run:
        return f"valid {job.read - job.rejected}, of these already stored {job.skipped}, stored none"
    return f"stored {job.stored}, already stored {job.skipped}"


def _print_details(job: ImportById | Import, maker: EventMaker, source_note: str, *, has_rows: bool) -> None:
    """Print on standard error why rows were rejected, which times the events have, and what may be a mistake."""
    for reason, count in job.reasons.most_common(10):
        click.echo(f"  {count:,} x {printable(reason)}", err=True)
    notes = [*maker.notes, *([source_note] if source_note else [])]
    if not has_rows:
        notes.append("no rows were found")
    if maker.first_day < maker.last_day:
        click.echo(f"timestamps from {maker.first_day} to {maker.last_day}", err=True)
    if isinstance(job, ImportById) and job.changed:
        what = (
            f"{counted(job.changed, 'row')} imported before with other content, the first on line {job.first_changed}"
        )
        notes.append(f"{what}: not stored again")
    for note in notes:
        click.echo(f"Note: {note}", err=True)


def _checked_format(file: str, file_format: str | None, each: Sequence[Any]) -> str:
    """Return the format, which is given or in the file's name. Raises UsageError."""
    file_format = file_format or format_of(file) or ("json" if each else None)
    if file_format is None and file.lower().endswith(SPREADSHEETS):
        raise click.UsageError("FILE is a spreadsheet: save the sheet as CSV UTF-8 and import that.")
    if file_format is None:
        raise click.UsageError("The name does not say the format: add --format csv, ndjson, json or parquet.")
    if each and file_format not in ("json", "ndjson", "rejects"):
        raise click.UsageError(f"--each is for JSON, and not for {file_format}.")
    return file_format


STOPS = (Unreadable, AllRejected, IdsNotUnique, OtherContent, Changed, StoredAlready, MixedForms, QuotaEnded)


def _options(
    sources: Sequence[tuple[str, str]],
    constants: Sequence[tuple[str, str]],
    translations: Sequence[tuple[str, str, str]],
    dropped: Sequence[str],
    timestamp_now: bool,
    row_id: str,
) -> Options:
    """Return what the options say of all rows. Raises UsageError."""
    for option, given in (("--map", sources), ("--set", constants)):
        if len({field for field, _ in given}) < len(given):
            raise click.UsageError(f"{option} names a field twice.")
    for field, _ in constants:
        if field in dict(sources):
            raise click.UsageError(f"--map and --set both name {field}.")
    table: dict[str, dict[str, str]] = {}
    for field, value, new in translations:
        table.setdefault(field, {})[value] = new
    return Options(dict(sources), dict(constants), table, frozenset(dropped), timestamp_now, row_id)


def _maker(options: Options, zone: ZoneInfo | None, time_format: str, where: Expression | None) -> EventMaker:
    """Return what makes events of rows. Raises BadParameter."""
    try:
        return EventMaker(options, zone, time_format, where)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--set") from None


def _problem(error: BaseException, file: str) -> tuple[str, int]:
    """Return why an import ended before its file did, as a sentence, and the exit status."""
    match error:
        case Unreadable():
            return f"{file}: {error}", 1
        case StoredAlready():
            equal, size = error.args
            return (
                f"{file}: {equal} of {size} rows are stored already, as equal events of an earlier import. Undo that "
                "import, and import all files with a row's id: --id COLUMN. If they are other events: --changed-file"
            ), 1
        case IdsNotUnique():
            return (
                f"{file}: line {error} has the id of another row of the file, and other content: --id has to name what "
                "is unique, such as [trace_id, span_id]. If rows were stored, `imports undo` takes them back"
            ), 1
        case OtherContent():
            changed, size = error.args
            return (
                f"{file}: {changed} of the first {size} rows have ids that were imported before, with other content. "
                "An organization's imports share their ids: add a name to them: --id \"['calls', call_id]\""
            ), 1
        case MixedForms():
            odd, size, reason = error.args
            return (
                f"{file}: {odd} of the first {size} rows have another form than the rest, the first: {reason}. Nothing "
                "is stored. If these rows are faulty, and no option is, --mixed-forms stores the rest"
            ), 3
        case AllRejected():
            return f"{file}: the first {error} rows are all rejected", 3
        case Changed():
            return (
                f"{file}: from about line {error} on, its rows are not those that its last import stored, or other "
                "options make other events of them. If rows have an id, undo that import and name the id with --id: "
                "then any file can be imported. Else import changed rows as a separate file, or, if FILE is another "
                "one under the same name, store all of it: --changed-file"
            ), 1
        case QuotaEnded():
            return (
                f"the month's quota is used up; line {error} of {file} is the first not stored; run it again with the "
                "same options to go on from there"
            ), 4
        case database_errors.Unavailable():
            return f"{': '.join(error.args)}; run it again to go on", 1
    return "interrupted; run it again to go on", 130


def _given_options() -> str:
    """Return what decides which events the rows become, as JSON."""
    context = click.get_current_context()
    others = ("file", "org", "rejects_path", "changed_file", "mixed_forms", "dry_run")
    given = {
        option.opts[0]: context.params[option.name]
        for option in context.command.params
        if option.name and option.name not in others and context.params.get(option.name)
    }
    return json.dumps(given, default=lambda value: getattr(value, "text", str(value)), sort_keys=True)
