"""`seal` and `seals`: extend the chain of each organization over what was received since, and print it."""

import json
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import click

from commands.base import (
    NotFound,
    check_organization,
    exclusive,
    lock_partitions,
    report_error,
    reports_errors,
    server_time,
    session,
)
from commands.evidence.amendments import full_reason, reason_option
from commands.evidence.chain import (
    BEGINNING,
    CLOCK_WAS_AHEAD,
    DAY,
    NO_EVENTS,
    SELECT_SEALED_UNTIL,
    Entry,
    append,
    digest_of,
    entries_of,
    first_day,
    following,
    midnight,
    periods_of,
)
from commands.evidence.trail import MAX_COMMIT_DELAY, Filters, await_storing, lines
from commands.output import exact, printable
from commands.parameters import json_option, org_option
from database import Connection
from database_errors import Unavailable

SEALING_DELAY = 3 * MAX_COMMIT_DELAY
"""After a minute an event is committed or rolled back, unless its commit waits for a standby: see `await_storing`."""

MAX_CLOCK_DIFFERENCE = timedelta(minutes=1)  # between PostgreSQL's machine and ours

SELECT_ORGANIZATIONS = "SELECT id FROM organizations ORDER BY id"

SELECT_CHAINS = "SELECT id FROM organizations UNION SELECT org_id FROM chain_entries ORDER BY id"

# The days, in UTC, on which something was received that is not sealed.
SELECT_DAYS = """
    SELECT DISTINCT (received_at AT TIME ZONE 'UTC')::date AS day
    FROM audit_events
    WHERE org_id = %(org_id)s AND received_at >= %(since)s AND received_at < %(until)s
    ORDER BY day
"""


@click.command("seal")
@org_option
@click.option(
    "--clock-was-ahead", is_flag=True, help="Go on after PostgreSQL's clock was ahead. Needs --org and --reason."
)
@reason_option
@json_option
@reports_errors
def seal(org: str | None, clock_was_ahead: bool, reason: str | None, as_json: bool) -> None:
    """Seal what was received since the last seal, up to a minute ago, and print the new entries of the chain.

    Each day in UTC that has ended gets a seal, also without events. Keep the entries elsewhere, too: `verify --heads`
    compares them with the chain.

    \b
    Examples:
      igris-ingest seal
      igris-ingest seal --org acme --json
      igris-ingest seal --org acme --clock-was-ahead --reason "clock set to 2027 by mistake"
    """
    if clock_was_ahead and not (org and reason):
        raise click.UsageError("--clock-was-ahead needs --org and --reason.")
    if reason and not clock_was_ahead:
        raise click.UsageError("--reason is for --clock-was-ahead.")
    with session() as connection:
        check_clock(connection)
        check_organization(connection, org)
        names = [org] if org else [name for (name,) in connection.execute(SELECT_ORGANIZATIONS)]
        end = server_time(connection) - SEALING_DELAY
        await_storing(connection)
        failed = False
        for org_id in names:
            with report_error(org_id) as errors:
                if clock_was_ahead:
                    print_entries([set_back(connection, org_id, end, str(reason))], as_json)
                for made in seal_organization(connection, org_id, end):
                    print_entries(made, as_json)
            failed = failed or bool(errors)
    sys.exit(1 if failed else 0)


@click.command("seals")
@org_option
@json_option
@reports_errors
def list_seals(org: str | None, as_json: bool) -> None:
    """Print the chain: for each entry its SHA-256, two spaces, and the line of JSON that it is the SHA-256 of.

    \b
    Examples:
      igris-ingest seals --org acme
    """
    with session() as connection:
        names = [name for (name,) in connection.execute(SELECT_CHAINS)]
        if org and org not in names:
            raise NotFound(f"there is no organization {org!r}")
        for org_id in [org] if org else names:
            print_entries(entries_of(connection, org_id), as_json)


def print_entries(entries: list[Entry], as_json: bool) -> None:
    for entry in entries:
        line = json.dumps(entry.shown()) if as_json else f"{entry.entry_digest.hex()}  {entry.line()}"
        click.echo(printable(line))


def check_clock(connection: Connection) -> None:
    """Raise Unavailable if PostgreSQL's clock and this machine's differ by more than a minute."""
    earliest = datetime.now(UTC) - MAX_CLOCK_DIFFERENCE
    theirs = server_time(connection)
    ours = datetime.now(UTC)
    if not earliest <= theirs <= ours + MAX_CLOCK_DIFFERENCE:
        raise Unavailable(
            f"PostgreSQL's clock is at {exact(theirs)}, and this machine's at {exact(ours)}: nothing is sealed. Set "
            "the clock that is wrong"
        )


def seal_organization(connection: Connection, org_id: str, end: datetime) -> Iterator[list[Entry]]:
    """Seal what an organization received until `end`, day by day; yield the entries of each step.

    1. Days that have ended without events get a seal each, in one transaction.
    2. The next day with events gets its seal; today's ends at `end`.

    It can be stopped at any time. Raises Unavailable if the last period ends in the future.
    """
    since = sealed_until(connection, org_id)
    if since and since > server_time(connection):
        raise Unavailable(
            f"the last seal ends at {exact(since)}, in the future: nothing is sealed. If PostgreSQL's clock is right, "
            "go on with --clock-was-ahead"
        )
    with connection.transaction():
        lock_partitions(connection)
        period = {"org_id": org_id, "since": since or BEGINNING, "until": end}
        days = [midnight(day) for (day,) in connection.execute(SELECT_DAYS, period)]
    if since is None:  # the first entry begins with 1970, and ends with the first day that can have events
        created = first_day(connection, org_id, end)
        if created is None:  # it was deleted meanwhile
            return
        since = min([*days[:1], created])
    for day in [*days, None]:
        with exclusive(connection, "seal", org_id, wait=True), connection.transaction():
            lock_partitions(connection)
            made = _seal_until(connection, org_id, since, day, end)
        if made:
            yield made


def _seal_until(
    connection: Connection, org_id: str, first: datetime, day: datetime | None, end: datetime
) -> list[Entry]:
    """Seal the quiet days before a day, and the events of that day; without one, the quiet days until `end`."""
    if first_day(connection, org_id, end) is None:  # it was deleted, or renamed, while the lock was waited for
        return []
    begun = sealed_until(connection, org_id)
    since, at = (begun, begun) if begun else (BEGINNING, first)
    sealed: list[tuple[datetime, datetime, int, bytes]] = []
    while (until := midnight(at) + DAY) <= (day or end):
        sealed.append((since, until, 0, NO_EVENTS))
        since = at = until
    if day and at < (until := min(end, day + DAY)):
        with lines(connection, Filters(org_id, since, until)) as found:
            events, digest = digest_of(found)
        if events or until == day + DAY:
            sealed.append((since, until, events, digest))
    made = following(connection, org_id, sealed)
    append(connection, made)
    return made


def set_back(connection: Connection, org_id: str, end: datetime, reason: str) -> Entry:
    """End the last sealed period at `end` instead of in the future, and return the entry that says so.

    Later seals cover again what is sealed beyond `end`. Raises Unavailable if no period ends in the future.
    """
    with exclusive(connection, "seal", org_id, wait=True), connection.transaction():
        lock_partitions(connection)
        ahead = [period for period in periods_of(entries_of(connection, org_id)) if period.until > end + SEALING_DELAY]
        if not ahead or ahead[0].since >= end:
            raise Unavailable("no seal ends in the future, or its period has just begun: nothing to set back")
        with lines(connection, Filters(org_id, ahead[0].since, end)) as found:
            events, digest = digest_of(found)
        period = (ahead[0].since, end, events, digest)
        [made] = following(connection, org_id, [period], full_reason(CLOCK_WAS_AHEAD, reason))
        append(connection, [made])
    return made


def sealed_until(connection: Connection, org_id: str) -> datetime | None:
    """Return the end of the last sealed period; None if nothing is sealed. Raises Unavailable if it is before 1970."""
    row = connection.execute(SELECT_SEALED_UNTIL, {"org_id": org_id}).fetchone()
    if row and row[0] < BEGINNING:
        raise Unavailable("the chain was changed: `verify` reports how")
    return row and row[0]
