"""`prune`: delete old events, and idempotency keys that have expired."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import click

from commands.base import check_organization, exclusive, reports_errors, session
from commands.evidence.amendments import amend_to_nothing, reason_option
from commands.evidence.chain import BEGINNING, brief, entries_of, periods_of
from commands.output import progress, show
from commands.parameters import Moment, org_option
from database import Connection

SELECT_CHAINS = """
    SELECT DISTINCT org_id
    FROM chain_entries
    WHERE %(org_id)s::text IS NULL OR org_id = %(org_id)s
"""

# What was received before a time, or before the end of an organization's last sealed period.
SELECT_OLD = b"""
    SELECT e.org_id, count(*), max(e.id)
    FROM audit_events e
    LEFT JOIN unnest(%(org_ids)s::text[], %(ends)s::timestamptz[]) AS sealed (org_id, until) ON sealed.org_id = e.org_id
    WHERE e.received_at < %(before)s
      AND e.received_at < coalesce(sealed.until, 'infinity')
      AND (%(org_id)s::text IS NULL OR e.org_id = %(org_id)s)
    GROUP BY e.org_id
"""

# Deletes a batch after the last one: going on by id, it does not meet again what was just deleted. The condition is SQL
# from this program, and says which events are meant.
DELETE_EVENTS = """
    DELETE FROM audit_events
    WHERE org_id = %(org_id)s
      AND {condition}
      AND id > %(after)s
      AND id <= (  -- a range: with old statistics a list of ids is compared with every row of the organization
          SELECT max(id)
          FROM (
              SELECT id
              FROM audit_events
              WHERE org_id = %(org_id)s AND id > %(after)s AND {condition}
              ORDER BY id
              LIMIT %(batch)s
          ) AS batch
      )
    RETURNING id
"""

# The keys of an import's chunks, which never expire. The events of a chunk were received when its key was stored.
DELETE_CHUNK_KEYS = """
    DELETE FROM idempotency_keys
    WHERE org_id = %(org_id)s AND expires_at IS NULL AND stored_at < %(before)s
"""

# The ids of rows that were imported: an event that was pruned can be imported again.
DELETE_ROW_IDS = """
    DELETE FROM imported_rows
    WHERE org_id = %(org_id)s AND stored_at < %(before)s
"""

DELETE_EXPIRED_KEYS = """
    WITH deleted AS (
        DELETE FROM idempotency_keys
        WHERE org_id = %(org_id)s
          AND key = ANY (ARRAY(
              SELECT key
              FROM idempotency_keys
              WHERE org_id = %(org_id)s AND key > %(after)s AND expires_at <= now()
              ORDER BY key
              LIMIT %(batch)s
          ))
        RETURNING key
    )
    SELECT count(*), max(key) FROM deleted
"""

BATCH = 5000  # the rows that are deleted in one transaction, which takes some tens of milliseconds


@dataclass(frozen=True, slots=True)
class Prunable:
    """What an organization has to prune."""

    org_id: str
    before: datetime  # the end of its last sealed period before the date; without a chain, the date
    events: int
    last_id: int


@click.command("prune")
@click.option(
    "--before",
    type=Moment(),
    help="2026-03-01 (its beginning in UTC), 2026-03-01T12:00Z, or 400d (days ago). Without it, no events are deleted.",
)
@org_option
@reason_option
@click.option("--dry-run", is_flag=True, help="Only count.")
@click.option("--yes", is_flag=True, help="Don't ask. Without a terminal, no question is asked.")
@reports_errors
def prune(before: datetime | None, org: str | None, reason: str | None, dry_run: bool, yes: bool) -> None:
    """Delete events received before a date, and expired idempotency keys, in small batches.

    Of an organization whose events are sealed, whole sealed periods are deleted. An entry in its chain says so first,
    with --reason: `verify` reports it. The command does the same after a partition was dropped.

    \b
    Examples:
      igris-ingest prune --before 400d --dry-run
      igris-ingest prune --before 2026-03-01 --org acme --reason "retention of 270 days"
      igris-ingest prune                     # expired idempotency keys only
    """
    with session() as connection:
        check_organization(connection, org)
        if before:
            asks = sys.stdin.isatty() and not yes
            prune_before(connection, before, org, reason, dry_run=dry_run, asks=asks)
        if not dry_run:
            click.echo(f"deleted {prune_keys(connection, org)} expired idempotency keys")


def prune_before(
    connection: Connection, before: datetime, org: str | None, reason: str | None, *, dry_run: bool, asks: bool
) -> None:
    """Delete the events that were received before a time, and print how many. `asks` asks first."""
    if before > datetime.now(UTC):
        raise click.BadParameter(f"{brief(before)} is in the future", param_hint="--before")
    found = find_prunable(connection, before, org)
    events = sum(each.events for each in found)
    if dry_run or asks:
        rows = [{"organization": each.org_id, "events": each.events, "before": each.before} for each in found]
        show(rows, ["organization", "events", "before"])
    if dry_run:
        click.echo(f"{events} events received before {brief(before)} would be deleted")
        return
    if asks:
        click.confirm(f"Delete {events} events received before {brief(before)}?", abort=True, err=True)
    deleted = 0
    with progress(events, "events") as show_progress:
        for prunable in amend_prunable(connection, before, [each.org_id for each in found], reason):
            for count in prune_events(connection, prunable):
                deleted += count
                show_progress(deleted, deleted)
    click.echo(f"deleted {deleted} events received before {brief(before)}")


def find_prunable(connection: Connection, before: datetime, org_id: str | None) -> list[Prunable]:
    """Return what there is to prune of all organizations, or of one. Where events are sealed, only whole periods count.

    A period whose events have gone with a dropped partition is to be pruned, too: the chain has to say so.
    """
    ends: dict[str, datetime] = {}
    found: dict[str, Prunable] = {}
    for (name,) in connection.execute(SELECT_CHAINS, {"org_id": org_id}).fetchall():
        periods = [period for period in periods_of(entries_of(connection, name)) if period.until <= before]
        ends[name] = periods[-1].until if periods else BEGINNING
        if any(period.newest.events for period in periods):
            found[name] = Prunable(name, ends[name], 0, 0)
    values = {"org_ids": list(ends), "ends": list(ends.values()), "before": before, "org_id": org_id}
    for name, events, last_id in connection.execute(SELECT_OLD, values):
        found[name] = Prunable(name, ends.get(name, before), events, last_id)
    return [found[name] for name in sorted(found)]


def amend_prunable(
    connection: Connection, before: datetime, org_ids: list[str], words: str | None
) -> Iterator[Prunable]:
    """Append to the chain of each organization that nothing is left before a time; yield what there is to prune of it.

    `seal` waits meanwhile. What it sealed since `find_prunable` counts.
    """
    for org_id in org_ids:
        with exclusive(connection, "seal", org_id, wait=True):
            found = find_prunable(connection, before, org_id)
            for prunable in found:
                periods = [p for p in periods_of(entries_of(connection, org_id)) if p.until <= prunable.before]
                amend_to_nothing(connection, org_id, periods, f"prune --before {brief(before)}", words)
        yield from found


def prune_events(connection: Connection, prunable: Prunable) -> Iterator[int]:
    """Delete the events of a period, batch by batch; yield how many. It can be stopped at any time.

    In the end the keys of chunks that were imported go, too, so that they can be imported again.
    """
    parameters = {"org_id": prunable.org_id, "before": prunable.before, "last": prunable.last_id}
    yield from delete_batches(connection, "id <= %(last)s AND received_at < %(before)s", parameters)
    connection.execute(DELETE_CHUNK_KEYS, parameters)
    connection.execute(DELETE_ROW_IDS, parameters)


def delete_batches(connection: Connection, condition: str, parameters: dict[str, Any]) -> Iterator[int]:
    """Delete the events of an organization that meet a condition, in the order of their ids; yield each batch's count.

    `condition` is SQL; its parameters, and `org_id`, are in `parameters`.
    """
    query = DELETE_EVENTS.format(condition=condition).encode()
    parameters = {**parameters, "after": 0, "batch": BATCH}
    while rows := connection.execute(query, parameters).fetchall():
        yield len(rows)
        parameters["after"] = max(row[0] for row in rows)


def prune_keys(connection: Connection, org_id: str | None) -> int:
    """Delete the expired idempotency keys of all organizations, or of one, batch by batch; return how many."""
    deleted = 0
    organizations = [(org_id,)] if org_id else connection.execute("SELECT id FROM organizations").fetchall()
    for (organization,) in organizations:
        parameters = {"org_id": organization, "after": "", "batch": BATCH}
        while parameters["after"] is not None:
            [(count, parameters["after"])] = connection.execute(DELETE_EXPIRED_KEYS, parameters).fetchall()
            deleted += count
    return deleted
