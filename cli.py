"""The commands: `flask --app app ...`. They parse, call admin, print."""

import functools
import json
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import IO, Any
from zoneinfo import ZoneInfo

import click
from flask import Flask, current_app
from flask.cli import AppGroup, with_appcontext

import backfill
import config
from admin import Admin, Busy
from storage import Unavailable, Unknown, Unstorable


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Runs in the application's context; what goes wrong becomes one line and exit status 1."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
        except (Unavailable, Unknown, Unstorable, Busy) as error:
            raise click.ClickException(_reason(error)) from None

    return with_appcontext(wrapper)


def _reason(error: Exception) -> str:
    return f"{error} ({str(error.__cause__).splitlines()[0]})" if error.__cause__ else str(error)


def admin() -> Admin:
    return Admin(current_app.config["DATABASE_URL"])


class Name(click.ParamType[str]):
    name = "name"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not (0 < len(value) <= 255 and value.isprintable() and value == value.strip()):
            self.fail("must have 1 to 255 printable characters, and no space at either end", param, ctx)
        return value


class Quota(click.ParamType[tuple[int | None]]):
    """A number, or `unlimited`; the value is a one-tuple, since None means unlimited."""

    name = "quota"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int | None]:
        try:
            return value if isinstance(value, tuple) else (config.quota(value),)
        except ValueError as error:
            self.fail(f"{value!r} {error}, or unlimited", param, ctx)


class Month(click.ParamType[date]):
    """YYYY-MM, as its first day."""

    name = "YYYY-MM"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> date:
        try:
            return value if isinstance(value, date) else date.fromisoformat(f"{value}-01")
        except ValueError:
            self.fail(f"{value!r} is no month: write it as 2026-03", param, ctx)


class Moment(click.ParamType[datetime]):
    """A day (its beginning, in UTC), a time with a zone, or a number of days ago."""

    name = "date"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        if isinstance(value, datetime):
            return value
        try:
            if days := re.fullmatch(r"(\d{1,5})d", value, re.ASCII):
                return datetime.now(UTC) - timedelta(days=int(days[1]))
            if not re.match(r"\d{4}-\d\d-\d\d(T|$)", value, re.ASCII):
                raise ValueError
            moment = datetime.fromisoformat(value)
            if moment.tzinfo is None and len(value) > 10:
                self.fail(f"{value!r} names no time zone: add Z for UTC", param, ctx)
            return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is no date: write it as 2026-03-01, 2026-03-01T12:00Z or 400d (days ago)", param, ctx)


class Field(click.ParamType[tuple[str, str]]):
    """FIELD=..., where the field is one of an event's."""

    name = "field"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        field, equals, given = value.partition("=")
        field = "toolName" if field == "tool_name" else field
        if field not in backfill.FIELDS or not equals or not given:
            self.fail(f"{value!r} is not FIELD=..., where FIELD is one of {', '.join(backfill.FIELDS)}", param, ctx)
        return field, given


class TimeZone(click.ParamType[ZoneInfo]):
    name = "zone"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> ZoneInfo:
        try:
            return value if isinstance(value, ZoneInfo) else ZoneInfo(value)
        except (KeyError, ValueError, OSError):
            self.fail(f"{value!r} is no time zone: write it as UTC or Europe/Berlin", param, ctx)


as_json_option = click.option("--json", "as_json", is_flag=True, help="For scripts.")
org_option = click.option("--org", type=Name(), help="Only of this organization.")


@click.command("init-db")
@command
def init_db() -> None:
    """Create or upgrade the schema. Safe to run again."""
    admin().init_db()
    click.echo("the schema is ready", err=True)


keys = AppGroup("keys", help="API keys: create, list, revoke.")


@keys.command("create", with_appcontext=False)
@click.argument("org", type=Name())
@click.option("--label", type=Name(), help="What the key is for.")
@click.option("--expires-in-days", type=click.IntRange(1, 36500), help="The default is: never.")
@click.option("--monthly-quota", type=Quota(), help="Sets the organization's quota: a number of events, or unlimited.")
@command
def create_key(org: str, label: str | None, expires_in_days: int | None, monthly_quota: tuple[int | None]) -> None:
    """Make a key, and the organization ORG if it is new. Prints the key, this one time."""
    admin().create_organization(org, current_app.config["DEFAULT_MONTHLY_QUOTA"])
    if monthly_quota:
        admin().set_quota(org, *monthly_quota)
    click.echo(admin().create_key(org, label, expires_in_days))


@keys.command("list", with_appcontext=False)
@click.argument("org", type=Name(), required=False)
@as_json_option
@command
def list_keys(org: str | None, as_json: bool) -> None:
    """List all keys, or those of ORG. A key itself is never shown."""
    show(admin().keys(org), ["id", "prefix", "label", "organization", "created", "expires", "revoked"], as_json)


@keys.command("revoke", with_appcontext=False)
@click.argument("key_id", metavar="ID", type=click.IntRange(1, 2**63 - 1))
@command
def revoke_key(key_id: int) -> None:
    """End a key, from the next request on."""
    admin().revoke_key(key_id)
    click.echo(f"key {key_id} is revoked", err=True)


@click.command("quota")
@click.argument("org", type=Name())
@click.argument("monthly_quota", metavar="[N|unlimited]", type=Quota(), required=False)
@command
def quota(org: str, monthly_quota: tuple[int | None] | None) -> None:
    """Show ORG's use of this month's quota, or set the quota."""
    if monthly_quota:
        admin().set_quota(org, *monthly_quota)
    now = admin().quota(org)
    if now.quota is None:
        click.echo(f"{org}: {now.used} events stored in {now.month}, unlimited")
    else:
        click.echo(f"{org}: {now.used} of {now.quota} events stored in {now.month}, {now.remaining} remaining")


@click.command("usage")
@click.option("--month", type=Month(), help="The default is: this month, in UTC.")
@as_json_option
@command
def usage(month: date | None, as_json: bool) -> None:
    """Show what each organization stored in a month, and how much of its quota that is."""
    rows = admin().usage(month)
    for row in rows:
        row["share"] = row["stored"] / row["quota"] if row["quota"] else None
        if not as_json:
            row["share"] = "-" if row["share"] is None else f"{row['share']:.1%}"
            row["quota"] = "unlimited" if row["quota"] is None else row["quota"]
    show(rows, ["organization", "stored", "quota", "share"], as_json)


@click.command("events")
@org_option
@click.option("--limit", type=click.IntRange(1, 10_000), default=20, show_default=True, help="How many.")
@click.option("--follow", is_flag=True, help="Go on with what arrives, until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="For scripts: a line of JSON for each event.")
@command
def events(org: str | None, limit: int, follow: bool, as_json: bool) -> None:
    """Show the newest stored events, the newest last."""
    columns = ["received_at", "org_id", "type", "tool_name", "action", "timestamp", "metadata"]
    widths: list[int] = []
    try:
        for rows in admin().follow(org, limit) if follow else [admin().newest(org, limit)]:
            if as_json:
                for row in rows:
                    # as text, so that numbers keep their digits; what could mean something to a terminal is escaped
                    metadata = re.sub("[^ -~]", lambda each: _escaped(each[0]), row.pop("metadata"))
                    click.echo(f'{json.dumps(row, default=_iso)[:-1]}, "metadata": {metadata}}}')
            else:
                print_table(rows, columns, widths, cut=sys.stdout.isatty())
            if follow and not rows:
                time.sleep(1)
    except KeyboardInterrupt:
        sys.exit(130)


@click.command("import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.option("--org", type=Name(), required=True, help="The organization that the events belong to.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["csv", "ndjson", "json"]),
    help="The default is: as FILE is called. json is an array, or an object whose `events` is one.",
)
@click.option(
    "--map", "renamed", type=Field(), multiple=True, metavar="FIELD=COLUMN", help="The column that a field is in."
)
@click.option("--set", "constants", type=Field(), multiple=True, metavar="FIELD=VALUE", help="For all rows the same.")
@click.option("--timezone", "zone", type=TimeZone(), help="Of timestamps that name none: UTC, Europe/Berlin.")
@click.option("--dry-run", is_flag=True, help="Check the rows, and store nothing.")
@command
def import_(
    file: str,
    org: str,
    form: str | None,
    renamed: tuple[tuple[str, str], ...],
    constants: tuple[tuple[str, str], ...],
    zone: ZoneInfo | None,
    dry_run: bool,
) -> None:
    """Store the rows of FILE (CSV, NDJSON or JSON, also as .gz; - is standard input) as events of an organization.

    Exactly once: after an interruption, or a rerun, what was stored is passed over. Rows that can't be events go to
    FILE.rejects.ndjson; mended there, that file can be imported. Exit status: 0 all is stored, 1 it could not go on, 2
    wrong usage, 3 rows were rejected, 4 the quota is used up, 130 Ctrl-C.
    """
    form = form or backfill.format_of(file)
    if form is None:
        raise click.UsageError("The name does not say the format: add --format csv, ndjson or json.")
    try:
        columns = backfill.Columns(dict(renamed), dict(constants), zone)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--set") from None
    with ExitStack() as stack:
        if dry_run:
            admin().quota(org)
        chunks = None if dry_run else stack.enter_context(admin().chunks(org))
        rejects = stack.enter_context(Rejects(file))
        job = backfill.Import(chunks, rejects.write)
        problem, status = "", 0
        try:
            source = stack.enter_context(backfill.Source(file, getattr(sys.stdin, "buffer", None)))
            rows = backfill.events(source, form, columns, current_app.config["MAX_BODY_BYTES"])
            show_progress = stack.enter_context(progress(source.size, "rows"))
            for _ in job.run(rows):
                show_progress(source.position(), job.read)
        except backfill.Unreadable as error:
            problem, status = f"{file}: {error}", 1
        except backfill.QuotaEnded as error:
            problem, status = f"the month's quota is used up; line {error} of {file} is the first not stored", 4
            problem += "; run it again to go on from there"
        except Unavailable as error:
            problem, status = f"{_reason(error)}; run it again to go on", 1
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


@click.command("prune")
@click.option(
    "--before",
    type=Moment(),
    required=True,
    help="2026-03-01 (its beginning in UTC), 2026-03-01T12:00Z, or 400d: that many days ago.",
)
@org_option
@click.option("--dry-run", is_flag=True, help="Only count.")
@command
def prune(before: datetime, org: str | None, dry_run: bool) -> None:
    """Delete events with a timestamp before a date, and expired idempotency keys, in small batches."""
    prunable = admin().prunable(before, org)
    total = sum(each.events for each in prunable)
    if dry_run:
        show([{"organization": each.org_id, "events": each.events} for each in prunable], ["organization", "events"])
        click.echo(f"{total} events before {_iso(before)} would be deleted")
        return
    deleted = 0
    with progress(total, "events") as show_progress:
        for each in prunable:
            for count in admin().prune_events(each, before):
                deleted += count
                show_progress(deleted, deleted)
    keys = admin().prune_keys(org)
    click.echo(f"deleted {deleted} events before {_iso(before)}, and {keys} expired idempotency keys")


class Rejects:
    """The file beside an imported one in which its rejected rows are, if there are any: a line of JSON each.

    One of an earlier run becomes a backup (~): somebody may be mending it. For what is no ordinary file, such as
    standard input, it is in the current folder.
    """

    def __init__(self, file: str) -> None:
        name = "stdin" if file == "-" else file
        self._path = Path(f"{name if Path(name).is_file() else Path(name).name}.rejects.ndjson")
        self._file: IO[str] | None = None
        self.where = ""
        """For the summary."""

    def write(self, reject: backfill.Reject) -> None:
        with self._errors():
            self._file = self._file or self._path.open("w")
            self.where = f": see {self._path}"
            line, reason, row = reject
            self._file.write(f'{{"line": {line}, "reason": {json.dumps(reason)}, "row": {row}}}\n')

    def __enter__(self) -> "Rejects":
        with self._errors():
            if self._path.is_file():
                self._path.replace(f"{self._path}~")
        return self

    def __exit__(self, *_: object) -> None:
        with self._errors():
            if self._file:
                self._file.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise click.ClickException(f"{self._path}: {error.strerror}") from None


@contextmanager
def progress(total: int | None, noun: str) -> Iterator[Callable[[int, int], None]]:
    """Shows on standard error how far it is: a bar on a terminal, elsewhere a line a second at most.

    What it gives is called with how much of the total is done, and how many rows that is.
    """
    terminal = sys.stderr.isatty()
    began = said = time.monotonic()
    nothing: Iterator[str] = iter(())
    with click.progressbar(
        nothing, length=total, file=sys.stderr, hidden=not terminal, item_show_func=lambda text: text
    ) as bar:

        def show(done: int, rows: int) -> None:
            nonlocal said
            now = time.monotonic()
            text = f"{rows:,} {noun}, {rows / (now - began):,.0f} a second"
            if terminal:
                bar.update(done - bar.pos, text)
            elif now - said >= 1:
                said = now
                left = f", {(now - began) * (total - done) / done:,.0f} s left" if total and done else ""
                click.echo(text + left, err=True)

        yield show


def show(rows: list[dict[str, Any]], columns: list[str], as_json: bool = False) -> None:
    if as_json:
        click.echo(json.dumps([{column: row[column] for column in columns} for row in rows], default=_iso))
    else:
        print_table(rows, columns, [])


def print_table(rows: list[dict[str, Any]], columns: list[str], widths: list[int], *, cut: bool = False) -> None:
    """A table; with the widths of an earlier part it goes on. Lines can be cut where the terminal ends."""
    lines = [[_cell(row[column]) for column in columns] for row in rows]
    if not widths:
        lines.insert(0, columns)
        widths += [0] * len(columns)
    for line in lines:
        widths[:] = [max(width, len(cell)) for width, cell in zip(widths, line, strict=True)]
    end = shutil.get_terminal_size().columns
    for line in lines:
        text = "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        click.echo(f"{text[: end - 1]}…" if cut and len(text) > end else text)


def _cell(value: object) -> str:
    if isinstance(value, datetime):
        return f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%SZ}"
    text = "-" if value is None else str(value)
    return text if text.isprintable() else "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def _escaped(character: str) -> str:
    """As JSON; json.dumps leaves DEL as it is."""
    return json.dumps(character)[1:-1] if character != "\x7f" else "\\u007f"


def _iso(value: datetime) -> str:
    return value.astimezone(UTC).isoformat().replace("+00:00", "Z")


def init_app(app: Flask) -> None:
    for each in (init_db, keys, quota, usage, events, import_, prune):
        app.cli.add_command(each)
