"""Amendments: what a command deletes of sealed periods is written into the chain first.

1. For each sealed period that has some of the events, an entry is appended: what the period has without them, and why.
2. The events are deleted in batches.

A command that was interrupted in between is run again: it finds the entries, and deletes what is left. Until then
`verify` reports that the period has more events than its entry says.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import click

from commands.base import lock_partitions
from commands.evidence.chain import NO_EVENTS, Entry, Period, append, digest_of, entries_of, following, periods_of
from commands.evidence.trail import Filters, copy_lines, count, lines
from database import Connection

# How many of the events that meet a condition each of the sealed periods has. The last one is what is not sealed.
COUNT_BY_PERIOD = """
    SELECT width_bucket(received_at, %(ends)s::timestamptz[]) AS period, count(*) AS events
    FROM audit_events
    WHERE org_id = %(org_id)s AND {condition}
    GROUP BY period
    ORDER BY period
"""

WAS_NOT_INTACT = "(the period was not intact before)"
"""The end of the reason of an entry that amends a period with other events than were sealed."""


class Reason(click.ParamType[str]):
    """Why an operator deletes something. The text is kept in the chain for ever."""

    name = "text"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not (value.strip() and len(value) <= 1000 and value.isprintable()):
            self.fail("must have 1 to 1,000 printable characters, in one line", param, ctx)
        return value


reason_option = click.option(
    "--reason", type=Reason(), help="Why; kept in the chain for ever. Name no person and no secret in it."
)


def full_reason(command: str, words: str | None) -> str:
    """Return the reason of an entry: the command, and what the operator says."""
    return f"{command}: {words}" if words else command


class Matched(NamedTuple):
    """How many events of a sealed period meet a condition."""

    period: Period
    events: int


def count_by_period(connection: Connection, org_id: str, condition: str, parameters: dict[str, Any]) -> list[Matched]:
    """Return the sealed periods that have events which meet a condition: SQL, with its parameters."""
    periods = periods_of(entries_of(connection, org_id))
    values = {**parameters, "org_id": org_id, "ends": [period.until for period in periods]}
    found = connection.execute(COUNT_BY_PERIOD.format(condition=condition).encode(), values).fetchall()
    return [Matched(periods[index], events) for index, events in found if index is not None and index < len(periods)]


def amend(connection: Connection, org_id: str, condition: str, parameters: dict[str, Any], reason: str) -> list[Entry]:
    """Append what sealed periods have without the events that meet a condition; return the new entries.

    The caller holds the lock `seal`, and deletes these events then. A period that is not intact gets a new digest, too:
    its entry says so for ever, else a deletion would hide a forgery.
    """
    made = []
    for period, _ in count_by_period(connection, org_id, condition, parameters):
        if not period.newest.events:  # a prune deletes all of it
            continue
        with connection.transaction():
            lock_partitions(connection)
            filters = Filters(org_id, period.since, period.until)
            with lines(connection, filters, copy_lines(f"({condition}) IS NOT TRUE"), parameters) as rest:
                events, digest = digest_of(rest)
            if digest == period.newest.digest:
                continue
            with lines(connection, filters) as found:
                there, digest_before = digest_of(found)
            if period.newest.is_amendment and there > period.newest.events:
                raise click.ClickException(
                    f"{period.named()} has more events than `{period.newest.reason}` left: that command was "
                    "interrupted: run it again first"
                )
            is_intact = digest_before == period.newest.digest
            words = reason if is_intact else f"{reason} {WAS_NOT_INTACT}"
            new = following(connection, org_id, [(period.since, period.until, events, digest)], words)
            append(connection, new)
            made += new
    return made


def amend_to_nothing(
    connection: Connection, org_id: str, periods: Iterable[Period], command: str, words: str | None
) -> list[Entry]:
    """Append that nothing is left of consecutive sealed periods; return the new entry, if something was there.

    The caller holds the lock `seal`, and deletes their events then. A period that did not have as many events as were
    sealed must not be forgotten with them: the entry says how many there were.
    """
    sealed = [period for period in periods if period.newest.events]
    if not sealed:
        return []
    since, until = sealed[0].since, sealed[-1].until
    expected, there = sum(period.newest.events for period in sealed), count(connection, Filters(org_id, since, until))
    differing = "" if there == expected else f" ({there} of {expected} sealed events were there)"
    with connection.transaction():
        made = following(
            connection, org_id, [(since, until, 0, NO_EVENTS)], full_reason(f"{command}{differing}", words)
        )
        append(connection, made)
    return made
