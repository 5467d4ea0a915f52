"""`evidence`: hand out a folder that an auditor can open, look at and check without this program.

page/ has what is in it: index.html, its style and script, and check.sh.
"""

import base64
import hashlib
import shutil
import sys
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from itertools import groupby
from pathlib import Path
from typing import IO, Any, BinaryIO

import click

from commands.base import check_organization, fetch_dicts, named_errors, reports_errors, server_time, snapshot
from commands.evidence.chain import DAY, NO_EVENTS, Entry, Period, entries_of, midnight, periods_of
from commands.evidence.heads import read_heads
from commands.evidence.report import Report, groups_of, problem_of, verify_organization
from commands.evidence.trail import Filters, count, lines
from commands.evidence.verify import NOT_INTACT
from commands.output import counted, exact, printable, progress
from commands.parameters import Moment, Name
from config import VERSION
from database import Connection

PAGE = Path(__file__).with_name("page")

MAX_BARS = 120  # of a chart; more days are bars of a week or a month
MAX_TOOLS = 20

ACTIONS = ("deny", "alert", "allow", "log")

SYMBOLS = {"sealed": "✓", "quiet": "·", "open": "○", "amended": "~", "differs": "✗"}
MEANINGS = {
    "sealed": "sealed, and as it was sealed",
    "quiet": "sealed, without events",
    "open": "not sealed, or not all of the day",
    "amended": "events were deleted, and the chain says so",
    "differs": "not as it was sealed",
}
ORDER = ("differs", "open", "amended", "sealed", "quiet")  # of several periods of a day, the first counts

SELECT_ACTIONS = """
    SELECT (received_at AT TIME ZONE 'UTC')::date AS day, action, count(*) AS events
    FROM audit_events
    WHERE org_id = %(org_id)s AND received_at >= %(since)s AND received_at < %(until)s
    GROUP BY day, action
"""

SELECT_TOOLS = """
    SELECT
        tool_name AS name,
        type,
        count(*) FILTER (WHERE action = 'deny') AS denied,
        count(*) FILTER (WHERE action = 'alert') AS alerts,
        count(*) AS events
    FROM audit_events
    WHERE org_id = %(org_id)s AND received_at >= %(since)s AND received_at < %(until)s
    GROUP BY tool_name, type
    ORDER BY denied DESC, events DESC, tool_name, type
    LIMIT %(limit)s
"""


@dataclass(slots=True)
class Day:
    """A square of the calendar."""

    date: date
    states: list[str] = field(default_factory=list)
    sentences: list[str] = field(default_factory=list)
    files: list[int] = field(default_factory=list)  # the numbers of their entries

    @property
    def state(self) -> str:
        return next(state for state in ORDER if state in self.states)

    @property
    def sentence(self) -> str:
        return f"{self.date}: {'; '.join(self.sentences)}"


@click.command("evidence")
@click.option("--org", type=Name(), required=True, help="The organization whose trail it is.")
@click.option("--since", type=Moment(), help="Received from then on; by default from the beginning of the trail.")
@click.option("--until", type=Moment(), help="Received before; by default up to now.")
@click.option("--heads", type=click.File("rb"), help="What `seal --json` or `verify --json` printed, and was kept.")
@click.option(
    "--events", type=click.Choice(["yes", "no"]), default="yes", show_default=True, help="Hand out the events."
)
@click.option("--output", type=click.Path(path_type=Path), required=True, help="A new folder, or a new file NAME.zip.")
@reports_errors
def evidence(
    org: str, since: datetime | None, until: datetime | None, heads: BinaryIO | None, events: str, output: Path
) -> None:
    """Make a folder with the events, their chain, a page to look at, and a script that checks all of it.

    Exit status: 0 the trail is intact, 3 it is not: the folder shows where. 1 the folder could not be made.

    \b
    Examples:
      igris-ingest evidence --org acme --since 2026-09-01 --until 2026-12-01 --output acme-2026-q4
      igris-ingest evidence --org acme --heads heads.ndjson --output acme.zip
    """
    kept = read_heads(heads) if heads else None
    with snapshot() as connection, _new_pack(output) as pack:
        check_organization(connection, org)
        entries = entries_of(connection, org)
        now = server_time(connection)
        since, until = _range(periods_of(entries), since, until, now)
        of_org = None if kept is None else kept.get(org, [])
        report = verify_organization(connection, org, entries, kept=of_org)
        write_pack(connection, pack, entries, of_org or [], report, since, until, now, with_events=events == "yes")
    click.echo(f"{printable(str(output))}: {[*report.sentences()][-1]}", err=True)
    sys.exit(NOT_INTACT if report.problems else 0)


def _range(
    periods: list[Period], since: datetime | None, until: datetime | None, now: datetime
) -> tuple[datetime, datetime]:
    """Return the period of the pack, in whole days. Raises UsageError if it has no day."""
    first = periods[0].day if periods else now.astimezone(UTC).date()
    since = max(midnight(since or first), midnight(first))
    last = min(until, now) if until else now
    until = min(now, midnight(last - timedelta(microseconds=1)) + DAY)
    if since >= until:
        raise click.UsageError(f"--since is not before --until, or the trail begins later: {first}.")
    return since, until


class Pack:
    """A new folder, or a new zip file."""

    def __init__(self, folder: Path | None, archive: zipfile.ZipFile | None, name: str) -> None:
        self._folder, self._archive, self._name = folder, archive, name

    @contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        if self._archive:
            info = zipfile.ZipInfo.from_file(__file__, f"{self._name}/{name}")
            info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            with self._archive.open(info, "w", force_zip64=True) as file:
                yield file
        elif self._folder:
            path = self._folder / name
            path.parent.mkdir(exist_ok=True)
            with path.open("xb") as file:
                yield file

    def write(self, name: str, text: str) -> None:
        with self.open(name) as file:
            file.write(text.encode())


@contextmanager
def _new_pack(path: Path) -> Iterator[Pack]:
    """Open a pack that gets its name when it is complete. Raises ClickException and OSError."""
    part = path.with_name(f"{path.name}.part")
    for each in (path, part):
        if each.exists() or each.is_symlink():
            raise click.ClickException(f"{printable(str(each))}: there is a file or folder of that name; move it away")
    is_zip = path.suffix == ".zip"
    if is_zip:
        part.touch(exist_ok=False)
    else:
        part.mkdir()
    try:
        with named_errors(path):
            if is_zip:
                with zipfile.ZipFile(part, "w") as archive:
                    yield Pack(None, archive, path.stem)
            else:
                yield Pack(part, None, path.name)
            part.rename(path)
    finally:
        if part.is_dir():
            shutil.rmtree(part)
        else:
            part.unlink(missing_ok=True)


def write_pack(
    connection: Connection,
    pack: Pack,
    entries: list[Entry],
    kept: list[Entry],
    report: Report,
    since: datetime,
    until: datetime,
    made_at: datetime,
    *,
    with_events: bool,
) -> None:
    """Write the files of a pack about an organization's events that were received in a period."""
    periods = [period for period in periods_of(entries) if period.until > since and period.since < until]
    days = {day: Day(day) for day in _days(since, until)}
    files = _write_events(connection, pack, periods, days, with_events=with_events)
    sealed_until = max((period.until for period in periods), default=since)
    for day in days.values():
        _add_unsealed(day, sealed_until, until)
    if with_events:
        sums = (f"{period.newest.digest.hex()}  events/{name}\n" for period, name in files)
        pack.write("SHA256SUMS", "".join(sums))
    pack.write("chain.ndjson", "".join(f"{entry.line()}\n" for entry in entries))
    pack.write("check.sh", _template("check.sh").render(since=exact(since), until=exact(until)))
    _write_page(connection, pack, entries, kept, report, list(days.values()), files, since, until, made_at)


def _write_events(
    connection: Connection, pack: Pack, periods: list[Period], days: dict[date, Day], *, with_events: bool
) -> list[tuple[Period, str]]:
    """Write the events of each period into a file; return the periods that have events, with the names of their files.

    Adds to `days` how each period compares with its entry. Without `with_events`, events are only compared.
    """
    files: list[tuple[Period, str]] = []
    with progress(sum(period.newest.events for period in periods), "events") as show_progress:
        done = 0
        for group in groups_of(periods):
            is_empty = not group[0].newest.events and not _count(connection, group)
            for period in group:
                name = f"{period.newest.number:06}-{period.day}.ndjson"
                found, digest = (0, NO_EVENTS) if is_empty else _copy(connection, pack, period, name, with_events)
                if period.newest.events:
                    files.append((period, name))
                if day := days.get(period.day):
                    _add_period(day, period, found, digest)
                done += period.newest.events
                show_progress(done, done)
    return files


def _write_page(
    connection: Connection,
    pack: Pack,
    entries: list[Entry],
    kept: list[Entry],
    report: Report,
    days: list[Day],
    files: list[tuple[Period, str]],
    since: datetime,
    until: datetime,
    made_at: datetime,
) -> None:
    """Write index.html. It has all that it shows and checks, but for the files of events."""
    org_id = report.organization
    there = {entry.number: entry.entry_digest for entry in entries}
    numbers = sorted({entry.number for entry in kept if there.get(entry.number) == entry.entry_digest})
    charts, rows, step = _charts(connection, org_id, since, until, [day.date for day in days])
    data = {
        "organization": org_id,
        "entries": [[exact(e.since), exact(e.until), e.events, e.digest.hex(), e.reason] for e in entries],
        "files": [(period.newest.number, name) for period, name in files],
        "kept": numbers,
        "head": entries[-1].entry_digest.hex() if entries else "",
    }
    library, script, style = ((PAGE / name).read_text() for name in ("sha256.min.js", "page.js", "page.css"))
    page = _template("index.html").stream(
        organization=org_id,
        since=since,
        until=until,
        made_at=made_at,
        version=VERSION,
        report=report,
        months=[(f"{month:%B %Y}", list(group)) for month, group in groupby(days, lambda day: day.date.replace(day=1))],
        symbols=SYMBOLS,
        meanings=MEANINGS,
        charts=charts,
        numbers=rows,
        step=step,
        tools=_tools(connection, org_id, since, until),
        groups=list(_groups(entries)),
        kept=numbers,
        kept_digest=there[numbers[-1]].hex() if numbers else "",
        data=data,
        library=library,
        script=script,
        style=style,
        style_digest=_csp_digest(style),
        script_digests=[_csp_digest(library), _csp_digest(script)],
    )
    with pack.open("index.html") as file:
        page.dump(file, encoding="utf-8")


def _count(connection: Connection, group: list[Period]) -> int:
    return count(connection, Filters(group[0].newest.org_id, group[0].since, group[-1].until))


def _copy(connection: Connection, pack: Pack, period: Period, name: str, with_events: bool) -> tuple[int, bytes]:
    """Write the events of a period that has some into a file, `with_events`; return their number and digest."""
    digest, events = hashlib.sha256(), 0
    opened = pack.open(f"events/{name}") if with_events and period.newest.events else nullcontext()
    with lines(connection, Filters(period.newest.org_id, period.since, period.until)) as found, opened as file:
        for line in found:
            digest.update(line)
            events += 1
            if file:
                file.write(line)
    return events, digest.digest()


def _add_period(day: Day, period: Period, found: int, digest: bytes) -> None:
    entry = period.newest
    if problem := problem_of(period, found, digest):
        day.states.append("differs")
        day.sentences.append(problem)
    elif entry.is_amendment:
        day.states.append("amended")
        day.sentences.append(f"entry {entry.number} amended it, {counted(entry.events, 'event')} left: {entry.reason}")
    else:
        day.states.append("sealed" if entry.events else "quiet")
        day.sentences.append(f"{counted(entry.events, 'event')}, as entry {entry.number} sealed them")
    if entry.events:
        day.files.append(entry.number)


def _add_unsealed(day: Day, sealed_until: datetime, until: datetime) -> None:
    """Say of a day that ends after the last sealed period that it is not sealed."""
    begin, end = midnight(day.date), midnight(day.date) + DAY
    if sealed_until < min(end, until) or not day.states:
        day.states.append("open")
        day.sentences.append(f"not sealed since {sealed_until:%H:%M} UTC" if begin < sealed_until else "not sealed yet")


def _days(since: datetime, until: datetime) -> Iterator[date]:
    day = since.date()
    while midnight(day) < until:
        yield day
        day += DAY


def _template(name: str) -> Any:
    import jinja2  # some 30 ms, which the other commands need not take

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(PAGE), autoescape=jinja2.select_autoescape(["html"]), trim_blocks=True
    )
    environment.filters |= {
        "counted": counted,
        "iso": exact,
        "minute": lambda moment: f"{moment:%Y-%m-%d %H:%M}",
        "day": lambda moment: f"{moment:%Y-%m-%d}",
        "capitalized": lambda text: text[:1].upper() + text[1:],
    }
    return environment.get_template(name)


def _csp_digest(text: str) -> str:
    """Return the hash that a Content-Security-Policy names an inline script or style by."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _charts(
    connection: Connection, org_id: str, since: datetime, until: datetime, days: list[date]
) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]], int]:
    """Return a chart for each action, the same numbers as rows, and how many days a bar stands for."""
    step = next(step for step in (1, 7, 30, 365, len(days)) if len(days) <= MAX_BARS * step)
    unit = "on" if step == 1 else f"in the {step} days from"
    begins = days[::step]
    counts: dict[str, Counter[int]] = {action: Counter() for action in ACTIONS}
    for row in fetch_dicts(connection, SELECT_ACTIONS, {"org_id": org_id, "since": since, "until": until}):
        counts.setdefault(row["action"], Counter())[(row["day"] - days[0]).days // step] += row["events"]
    charts: dict[str, dict[str, Any]] = {}
    for action, counter in counts.items():
        most = max(counter.values(), default=0)
        bars = [
            {"label": str(begin), "events": counter[index], "height": round(38 * counter[index] / (most or 1), 1)}
            for index, begin in enumerate(begins)
        ]
        most_at = next((str(begins[index]) for index, events in sorted(counter.items()) if events == most), "")
        charts[action] = {"total": counter.total(), "most": most, "most_at": most_at, "unit": unit, "bars": bars}
    rows = [
        {"label": str(begin), "events": [counts[action][index] for action in charts]}
        for index, begin in enumerate(begins)
    ]
    return charts, rows, step


def _tools(connection: Connection, org_id: str, since: datetime, until: datetime) -> list[dict[str, Any]]:
    values = {"org_id": org_id, "since": since, "until": until, "limit": MAX_TOOLS}
    tools = fetch_dicts(connection, SELECT_TOOLS, values)
    most = max((tool["events"] for tool in tools), default=1)
    for tool in tools:
        tool["width"] = round(100 * tool["events"] / most, 1)
        tool["denied_width"] = round(100 * tool["denied"] / most, 1)
    return tools


def _groups(entries: Iterable[Entry]) -> Iterator[dict[str, Any]]:
    """Yield the entries of a month as a group: the month of a seal, where amendments follow the seal before them."""
    group: dict[str, Any] | None = None
    for entry in entries:
        label = f"{entry.until - timedelta(microseconds=1):%B %Y}"
        if group is None or (not entry.is_amendment and label != group["label"]):
            if group:
                yield group
            group = {"label": label, "first": entry.number}
        group["last"] = entry.number
    if group:
        yield group
