"""What `verify` and `evidence` report of an organization's trail: whether it is intact, or what is not."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import groupby, pairwise
from typing import Any

from commands.base import server_time
from commands.evidence.amendments import WAS_NOT_INTACT
from commands.evidence.chain import (
    BEGINNING,
    Entry,
    Period,
    brief,
    broken_links,
    digest_of,
    midnight,
    open_day_end,
    periods_of,
)
from commands.evidence.compare_export import FileReport
from commands.evidence.heads import compare_heads
from commands.evidence.trail import Filters, count, lines
from commands.output import counted, exact, progress
from database import Connection

MAX_WAIT = timedelta(days=1)  # how long an event, or the end of a day, may wait for its seal

# Events without a time of receipt that a period could have.
COUNT_TIMELESS = """
    SELECT count(*)
    FROM audit_events
    WHERE org_id = %(org_id)s
      AND (received_at IS NULL OR received_at < '1970-01-01Z' OR received_at >= 'infinity')
"""

# A view, or rules, could show other rows than those that are stored.
SELECT_ODD_TABLES = """
    SELECT relname
    FROM pg_class
    WHERE oid IN ('audit_events'::regclass, 'chain_entries'::regclass)
      AND (relkind NOT IN ('r', 'p') OR relrowsecurity OR relhasrules)
"""

SELECT_OLDEST = """
    SELECT min(received_at)
    FROM audit_events
    WHERE org_id = %(org_id)s AND received_at >= %(since)s
"""


def _cited(entry: Entry) -> str:
    date = f", {entry.made_at:%Y-%m-%d}" if entry.made_at else ""
    return f"entry {entry.number}{date}: {entry.reason}"


@dataclass(slots=True)
class Report:
    """What `verify` found of an organization."""

    organization: str
    head: Entry | None = None  # the last entry of the chain
    entries: int = 0
    events: int = 0  # that are as they were sealed
    since: datetime | None = None  # the beginning of the first period that is not pruned
    pruned_by: Entry | None = None
    unsealed: int = 0
    amendments: list[str] = field(default_factory=list)
    vouched: str = ""
    vouched_entry: int | None = None  # the newest kept entry
    file: FileReport | None = None
    problems: list[str] = field(default_factory=list)

    def shown(self) -> dict[str, Any]:
        """Return the report for JSON. `verify --heads` reads its `head`."""
        content = {
            "organization": self.organization,
            "intact": not self.problems,
            "problems": self.problems,
            "amendments": self.amendments,
            "events": self.events,
            "since": self.since and exact(self.since),
            "unsealedEvents": self.unsealed,
            "entries": self.entries,
        }
        if self.vouched:
            content |= {"vouchedEntry": self.vouched_entry, "vouched": self.vouched}
        if self.file:
            content["export"] = self.file.shown()
        # the last one, for deploy/keep-heads
        return {**content, "head": self.head and self.head.shown()}

    def sentences(self) -> Iterator[str]:
        """Yield the report as a person reads it: problems, amendments, and in the end the result."""
        yield from self.problems
        yield from self.amendments
        if self.vouched:
            yield self.vouched
        if self.file:
            file = self.file.shown()
            yield from (f"file: {text}" for text in file["problems"] + file["notes"])
            yield f"file: {'NOT INTACT' if file['problems'] else 'intact'}: {counted(file['lines'], 'line')} compared"
        if self.problems:
            yield f"NOT INTACT: {counted(len(self.problems), 'problem')}, above"
            return
        if not self.head:
            yield f"nothing is sealed yet; {counted(self.unsealed, 'event')} not sealed"
            return
        since = f" since {self.since:%Y-%m-%d}" if self.since else ""
        pruned = f"; before that the trail was pruned ({_cited(self.pruned_by)})" if self.pruned_by else ""
        yield (
            f"intact: {counted(self.events, 'event')}{since}{pruned}; {counted(self.unsealed, 'event')} not sealed yet"
            f"; the last entry is {self.head.number}, {self.head.entry_digest.hex()}"
        )


def verify_organization(
    connection: Connection,
    org_id: str,
    entries: list[Entry],
    since: datetime | None = None,
    until: datetime | None = None,
    kept: list[Entry] | None = None,
    kept_for: timedelta | None = None,
) -> Report:
    """Return what `verify` reports of an organization with this chain.

    `since` and `until` choose sealed periods. `kept` are entries that were kept elsewhere. What is younger than
    `kept_for` must not have been deleted.
    """
    periods = periods_of(entries)
    now = server_time(connection)
    report = Report(org_id, head=entries[-1] if entries else None, entries=len(entries))
    for (name,) in connection.execute(SELECT_ODD_TABLES).fetchall():
        report.problems.append(f"{name} is not the plain table of init-db: ask who has changed it")
    report.problems += broken_links(entries)
    report.since, report.pruned_by = _kept_since(periods)
    vouched_number, newest = 0, None
    if kept is not None:
        vouched = compare_heads(entries, kept)
        report.problems += vouched.problems
        newest = vouched.newest
        vouched_number = newest.number if newest else 0
    deleted = _add_amendments(report, entries, periods, None if kept is None else vouched_number)
    report.problems += _set_backs(connection, periods, deleted, newest)
    if kept_for is not None:
        report.problems += _deleted_since(entries, now - kept_for)
    [(timeless,)] = connection.execute(COUNT_TIMELESS, {"org_id": org_id}).fetchall()
    if timeless:
        report.problems.append(
            f"{counted(timeless, 'event')} without a time of receipt that a period has: before 1970, infinite or none. "
            "The service stores no such event: ask who has written to audit_events"
        )
    chosen = [p for p in periods if (not since or p.until > since) and (not until or p.since < until)]
    with progress(sum(period.newest.events for period in chosen), "events") as show_progress:
        done = 0
        for group in groups_of(chosen):
            found = list(_differences(connection, org_id, group))
            report.problems += found
            events = sum(period.newest.events for period in group)
            report.events += 0 if found else events
            done += events
            show_progress(done, done)
    report.unsealed = count(connection, Filters(org_id, periods[-1].until if periods else None)) - (
        0 if periods else timeless
    )
    report.problems += _waiting(connection, org_id, periods, now)
    if kept is not None:
        report.vouched, report.vouched_entry = _vouched(report, entries, vouched_number), vouched_number or None
    return report


def _kept_since(periods: list[Period]) -> tuple[datetime | None, Entry | None]:
    """Return since when the trail is there, and the entry by which it was pruned before, if it was."""
    if not periods:
        return None, None
    pruned = [period for period in periods if (period.newest.reason or "").startswith("prune ")]
    if pruned and not any(period.newest.events for period in periods if period.until <= pruned[-1].until):
        return pruned[-1].until, pruned[-1].newest
    return midnight(periods[0].day), None


def _add_amendments(report: Report, entries: list[Entry], periods: list[Period], vouched: int | None) -> dict[int, int]:
    """Describe the amendments of a chain, and report those that changed events instead of deleting them.

    Returns how many events each amendment deleted, by its number.
    """
    deleted: dict[int, int] = {}
    for period in periods:
        for before, entry in pairwise(period.entries):
            taken = before.events - entry.events
            deleted[entry.number] = deleted.get(entry.number, 0) + taken
            if taken < 0 or (taken == 0 and before.digest != entry.digest):
                report.problems.append(f"{entry.named()} changes events, or adds some, where it may only delete")
    set_backs = {period.entries[0].number: period.replaced for period in periods}
    amendments = [entry for entry in entries if entry.is_amendment]
    for (reason, is_vouched), group in groupby(
        amendments, lambda e: (e.reason, vouched is None or e.number <= vouched)
    ):
        made = list(group)
        first = made[0]
        numbers = f"entry {first.number}" if len(made) == 1 else f"entries {first.number} to {made[-1].number}"
        date = f"{first.made_at:%Y-%m-%d}" if first.made_at else "-"
        begin, end = min(entry.since for entry in made), max(entry.until for entry in made)
        when = f"before {brief(end)}" if begin == BEGINNING else f"from {brief(begin)} to {brief(end)}"
        what = f"{counted(sum(deleted.get(each.number, 0) for each in made), 'event')} deleted of those received {when}"
        if first.moves_the_end:
            replaced = set_backs.get(first.number) or []
            instead = f"{_events(replaced)} up to {brief(replaced[-1].until)}" if replaced else "other periods"
            what = f"sealed again up to {brief(end)}: {counted(first.events, 'event')} instead of {instead}"
        after = "" if is_vouched else "; made after the newest kept entry"
        report.amendments.append(f"{numbers} ({date}): {reason}: {what}{after}")
        if reason and reason.endswith(WAS_NOT_INTACT):
            report.problems.append(f"{numbers}: the events of the period were not as they were sealed before")
    return deleted


def _events(periods: list[Period]) -> str:
    return counted(sum(period.newest.events for period in periods), "event")


def _set_backs(
    connection: Connection, periods: list[Period], deleted: dict[int, int], vouched: Entry | None
) -> Iterator[str]:
    """Yield what is wrong with set-backs: they may replace periods that ended in the future, and delete nothing."""
    for period in periods:
        if not period.replaced:
            continue
        entry, end = period.entries[0], period.replaced[-1].until
        lost = sum(each.newest.events for each in period.replaced)
        lost -= count(connection, Filters(entry.org_id, period.since, end))
        lost -= sum(taken for number, taken in deleted.items() if number > entry.number)
        if lost > 0:
            yield f"{entry.named()} set back the end of the chain: {counted(lost, 'event')} sealed before missing"
        past = [each for each in period.replaced if vouched and vouched.made_at and each.until <= vouched.made_at]
        if past and vouched and past[0].entries[0].number <= vouched.number:
            yield (
                f"{entry.named()} set back the end of the chain: it replaces {counted(len(past), 'period')} that kept "
                f"entries vouch for, the first {past[0].named()}"
            )


def _deleted_since(entries: list[Entry], oldest: datetime) -> Iterator[str]:
    for entry in entries:
        if entry.is_amendment and not entry.moves_the_end and entry.until > oldest:
            yield f"{entry.named()} deleted what is younger than --kept-for: {entry.reason}"


def _vouched(report: Report, entries: list[Entry], number: int) -> str:
    if not number:
        return "no kept entry of this organization is in the chain: nothing vouches for it"
    later = [entry for entry in entries if entry.number > number]
    sealed = [entry.until for entry in entries if entry.moves_the_end and entry.number <= number]
    set_backs = [entry.since for entry in later if entry.moves_the_end and entry.is_amendment]
    until = min([*sealed[-1:], *set_backs], default=BEGINNING)
    events = report.unsealed + sum(entry.events for entry in later if entry.moves_the_end)
    amendments = sum(entry.is_amendment for entry in later)
    return (
        f"kept entries vouch for what was received before {brief(until)} (entry {number}); after that entry came "
        f"{counted(events, 'event')} and {counted(amendments, 'amendment')}"
    )


def _waiting(connection: Connection, org_id: str, periods: list[Period], now: datetime) -> Iterator[str]:
    """Yield what has waited for a seal for too long, or that the last seal ends in the future."""
    sealed_until = periods[-1].until if periods else None
    if sealed_until and sealed_until > now:
        yield (
            f"the last period ends at {exact(sealed_until)}, in the future: PostgreSQL's clock was ahead, and nothing "
            "is sealed until then; see `seal --clock-was-ahead`"
        )
        return
    values = {"org_id": org_id, "since": sealed_until or BEGINNING}
    [(oldest,)] = connection.execute(SELECT_OLDEST, values).fetchall()
    day_end = open_day_end(connection, org_id, sealed_until, now)
    waiting = min((each for each in (oldest, day_end) if each), default=now)
    if now - waiting > MAX_WAIT:
        sealed = f"since {brief(sealed_until)}" if sealed_until else "yet"
        what = f"the oldest of {exact(oldest)}" if oldest else "no event"
        yield (
            f"nothing was sealed {sealed}, for over a day, and {what} waits for a seal. What is not sealed can be "
            "changed unnoticed: start the timer of `seal`"
        )


def groups_of(periods: list[Period]) -> Iterator[list[Period]]:
    """Yield each period that has events, and runs of periods that have none and have no gap between them."""
    run: list[Period] = []
    for period in periods:
        if run and (period.newest.events or period.since != run[-1].until):
            yield run
            run = []
        if period.newest.events:
            yield [period]
        else:
            run.append(period)
    if run:
        yield run


def _differences(connection: Connection, org_id: str, group: list[Period]) -> Iterator[str]:
    """Yield what is not as the chain has it."""
    expected = group[0].newest.events
    if not expected:
        if count(connection, Filters(org_id, group[0].since, group[-1].until)):
            for period in group:
                if there := count(connection, Filters(org_id, period.since, period.until)):
                    yield _added(period, there)
        return
    [period] = group
    with lines(connection, Filters(org_id, period.since, period.until)) as found:
        if problem := problem_of(period, *digest_of(found)):
            yield problem


def problem_of(period: Period, events: int, digest: bytes) -> str | None:
    """Return what is wrong with a period that has so many events with this digest, as a sentence."""
    expected = period.newest.events
    if events > expected:
        return _added(period, events)
    if events < expected:
        return (
            f"{period.named()}: {counted(expected - events, 'event')} of {expected} missing from the trail. {COMPARE}"
        )
    if digest != period.newest.digest:
        return f"{period.named()}: some of {counted(events, 'event')} changed after they were sealed. {COMPARE}"
    return None


COMPARE = "An export or a backup of the period shows which: --export"


def _added(period: Period, there: int) -> str:
    entry = period.newest
    added = there - entry.events
    if entry.is_amendment:
        return (
            f"{period.named()}: {counted(added, 'event')} more than entry {entry.number} left. If `{entry.reason}` was "
            "interrupted, run it again; else they were added"
        )
    return f"{period.named()}: {counted(added, 'event')} added to {entry.events} after they were sealed. {COMPARE}"
