"""`events`: look at the newest stored events, and at those that arrive."""

import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import datetime, timedelta
from typing import Any

import click

from commands.base import check_organization, fetch_dicts, report_error, reports_errors, server_time, session
from commands.evidence.trail import MAX_COMMIT_DELAY, WHERE, Filters, filter_options, lines
from commands.output import Table
from commands.parameters import json_option, org_option
from database import Connection

Key = tuple[str, int]  # an event: its organization and id

# An event is found by its organization and id, the primary key.
SELECT_NEWEST = f"""
    SELECT org_id, id
    FROM audit_events
    WHERE {WHERE}
    ORDER BY received_at DESC, id DESC
    LIMIT %(limit)s
"""

SELECT_NEWEST_DATED = f"""
    SELECT org_id, id
    FROM audit_events
    WHERE {WHERE}
    ORDER BY "timestamp" DESC, id DESC
    LIMIT %(limit)s
"""

# All events that can be new to a reader who looked some time ago.
SELECT_RECENT = f"SELECT org_id, id FROM audit_events WHERE {WHERE}"

MAX_METADATA = 1000  # characters that a table shows

SELECT_ROW = f"""
    SELECT received_at, org_id, type, action, tool_name, left(metadata::text, {MAX_METADATA}) AS metadata
    FROM audit_events
    WHERE org_id = %(org_id)s AND id = %(id)s
"""

LOOKBACKS = (timedelta(minutes=1), timedelta(hours=1), timedelta(days=1), timedelta(days=31), None)
"""The newest events are looked for by receipt, first in the last minute: on Citus ids are in no order."""

PAGE = 1000  # the number of events that --follow shows at once


@click.command("events")
@org_option
@filter_options
@click.option("--limit", type=click.IntRange(1, 10_000), default=20, show_default=True, help="How many.")
@click.option(
    "--by",
    type=click.Choice(["receipt", "timestamp"]),
    default="receipt",
    show_default=True,
    help="The time that --since, --until and the order go by.",
)
@click.option("--follow", is_flag=True, help="Go on with what arrives, until Ctrl-C.")
@json_option
@reports_errors
def events(org: str | None, limit: int, by: str, follow: bool, as_json: bool, **conditions: Any) -> None:
    """Show the newest stored events, the newest last.

    A table shows the first 1,000 characters of metadata. JSON has the lines that `export` writes.

    \b
    Examples:
      igris-ingest events --org acme
      igris-ingest events --action deny --since 7d --limit 100
      igris-ingest events --by timestamp --since 2026-03-01 --until 2026-03-02
      igris-ingest events --follow --json
    """
    filters = Filters(org, **conditions)
    if by == "timestamp":
        filters = replace(filters, since=None, until=None, dated_since=filters.since, dated_until=filters.until)
    # 80 columns: an organization that was asked for need not be shown
    columns = ["received_at", "type", "action", "tool_name", "metadata"]
    table = (
        Table(columns, fixed=(20, 10, 6, 20))
        if org
        else Table(["received_at", "org_id", *columns[1:]], fixed=(20, 10, 10, 6, 12))
    )
    is_complete = True
    try:
        with session() as connection:
            check_organization(connection, org)
            first = newest_dated if by == "timestamp" else newest
            pages = followed(connection, filters, limit, first) if follow else [first(connection, filters, limit)]
            for keys in pages:
                is_complete &= show_events(connection, keys, None if as_json else table)
                if follow and not keys:
                    time.sleep(1)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0 if is_complete else 1)


def show_events(connection: Connection, keys: list[Key], table: Table | None) -> bool:
    """Print events as rows of a table, or as lines of JSON; return whether all could be read.

    An event can be too large to be read as text: it is named, and the others are printed. They are read one by one, so
    that memory does not grow with their metadata.
    """
    rows, is_complete = [], True
    for org_id, event_id in keys:
        with report_error(f"event {event_id} of {org_id!r}") as errors:
            if table:
                rows += fetch_dicts(connection, SELECT_ROW, {"org_id": org_id, "id": event_id})
            else:
                with lines(connection, Filters(org_id, ids=[event_id])) as found:
                    for line in found:
                        click.echo(ascii_json(line.decode()), nl=False)
        is_complete = is_complete and not errors
    if table:
        table.print(rows)
    return is_complete


def newest(connection: Connection, filters: Filters, limit: int) -> list[Key]:
    """Return the newest events, the newest last."""
    keys: list[Key] = []
    until = filters.until or server_time(connection)
    since = filters.since
    for lookback in LOOKBACKS:
        with suppress(OverflowError):  # before the first time that Python has
            since = max((each for each in (lookback and until - lookback, filters.since) if each), default=None)
        query = {**asdict(replace(filters, since=since)), "limit": limit}
        keys = connection.execute(SELECT_NEWEST.encode(), query).fetchall()
        if len(keys) == limit or since == filters.since:
            break
    return keys[::-1]


def newest_dated(connection: Connection, filters: Filters, limit: int) -> list[Key]:
    """Return the events with the newest timestamps, the newest last."""
    query = {**asdict(filters), "limit": limit}
    return connection.execute(SELECT_NEWEST_DATED.encode(), query).fetchall()[::-1]


def followed(
    connection: Connection, filters: Filters, limit: int, first: Callable[[Connection, Filters, int], list[Key]]
) -> Iterator[list[Key]]:
    """Yield the events that `first` finds, then those that have come since, also if they were committed late.

    Yields nothing when that is all, and goes on.
    """
    last = server_time(connection)
    seen = _recent(connection, filters, last - MAX_COMMIT_DELAY)
    keys = first(connection, filters, limit)
    seen |= set(keys)
    yield keys
    while True:
        now, since = server_time(connection), last - MAX_COMMIT_DELAY
        found = _recent(connection, filters, since)
        unseen = sorted(found - seen, key=lambda key: key[1])
        for start in range(0, len(unseen), PAGE):
            yield unseen[start : start + PAGE]
        seen, last = found, now
        yield []


def _recent(connection: Connection, filters: Filters, since: datetime) -> set[Key]:
    """Return the events that were received from then on."""
    since = max(since, filters.since or since)
    return set(connection.execute(SELECT_RECENT.encode(), asdict(replace(filters, since=since))))


def ascii_json(text: str) -> str:
    """Escape each character of JSON that could mean something to a terminal, but for the line feed at its end."""
    return re.sub(r"[^ -~\n]", lambda each: json.dumps(each[0])[1:-1] if each[0] != "\x7f" else "\\u007f", text)
