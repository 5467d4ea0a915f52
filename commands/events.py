"""`events`: look at the newest stored events, and at those that arrive."""

import json
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from datetime import datetime, timedelta
from typing import Any

import click

from commands.base import check_organization, fetch_dicts, reports_errors, server_time, session
from commands.evidence.trail import EVENT_COLUMNS, MAX_COMMIT_DELAY, RECEIPT_COLUMNS, WHERE, Filters, filter_options
from commands.output import Table, iso
from commands.parameters import json_option, org_option
from database import Connection

# The newest events, or those with some ids.
COLUMNS = (*RECEIPT_COLUMNS, *EVENT_COLUMNS)
SELECT_EVENTS = f"""
    SELECT {", ".join(column.sql for column in COLUMNS if column.sql != "metadata")}, metadata::text AS metadata
    FROM audit_events
    WHERE {WHERE}
      AND (%(ids)s::bigint[] IS NULL OR id = ANY(%(ids)s))
    ORDER BY received_at DESC, id DESC
    LIMIT %(limit)s
"""

# The ids of all events that can be new to somebody who looked some time ago.
SELECT_IDS = f"SELECT id FROM audit_events WHERE {WHERE}"

LOOKBACKS = (timedelta(minutes=1), timedelta(hours=1), timedelta(days=1), timedelta(days=31), None)
"""The newest events are looked for by receipt, first in the last minute: on Citus ids are in no order."""

PAGE = 1000  # the number of events that are shown at once to somebody who follows them


@click.command("events")
@org_option
@filter_options
@click.option("--limit", type=click.IntRange(1, 10_000), default=20, show_default=True, help="How many.")
@click.option("--follow", is_flag=True, help="Go on with what arrives, until Ctrl-C.")
@json_option
@reports_errors
def events(org: str | None, limit: int, follow: bool, as_json: bool, **conditions: Any) -> None:
    """Show the newest stored events, the newest last. JSON comes as one line for each event.

    \b
    Examples:
      igris-ingest events --org acme
      igris-ingest events --action deny --since 7d --limit 100
      igris-ingest events --follow --json
    """
    filters = Filters(org, **conditions)
    # 80 columns: an organization that was asked for need not be shown
    table = (
        Table(["received_at", "type", "action", "tool_name", "metadata"], fixed=(20, 10, 6, 20))
        if org
        else Table(["received_at", "org_id", "type", "action", "tool_name", "metadata"], fixed=(20, 10, 10, 6, 12))
    )
    try:
        with session() as connection:
            check_organization(connection, org)
            for rows in followed(connection, filters, limit) if follow else [newest(connection, filters, limit)]:
                if as_json:
                    for row in rows:
                        click.echo(_as_json(row))
                else:
                    table.print(rows)
                if follow and not rows:
                    time.sleep(1)
    except KeyboardInterrupt:
        sys.exit(130)


def newest(connection: Connection, filters: Filters, limit: int) -> list[dict[str, Any]]:
    """Return the newest events, the newest last. Metadata is JSON text."""
    rows: list[dict[str, Any]] = []
    until = filters.until or server_time(connection)
    for lookback in LOOKBACKS:
        since = max((each for each in (lookback and until - lookback, filters.since) if each), default=None)
        rows = _select(connection, replace(filters, since=since), limit=limit)
        if len(rows) == limit or since == filters.since:
            break
    return rows[::-1]


def followed(connection: Connection, filters: Filters, limit: int) -> Iterator[list[dict[str, Any]]]:
    """Yield the newest events, then those that have come since, also if they were committed late.

    Yields nothing when that is all, and goes on.
    """
    last = server_time(connection)
    seen = _ids(connection, filters, last - MAX_COMMIT_DELAY)
    rows = newest(connection, filters, limit)
    seen |= {row["id"] for row in rows}
    yield rows
    while True:
        now, since = server_time(connection), last - MAX_COMMIT_DELAY
        ids = _ids(connection, filters, since)
        unseen = sorted(ids - seen)
        for start in range(0, len(unseen), PAGE):
            yield _select(connection, replace(filters, since=since), ids=unseen[start : start + PAGE])[::-1]
        seen, last = ids, now
        yield []


def _select(
    connection: Connection, filters: Filters, *, limit: int | None = None, ids: list[int] | None = None
) -> list[dict[str, Any]]:
    return fetch_dicts(connection, SELECT_EVENTS, {**asdict(filters), "limit": limit, "ids": ids})


def _ids(connection: Connection, filters: Filters, since: datetime) -> set[int]:
    """Return the ids of the events that were received from then on."""
    since = max(since, filters.since or since)
    return {row[0] for row in connection.execute(SELECT_IDS.encode(), asdict(replace(filters, since=since)))}


def _as_json(row: dict[str, Any]) -> str:
    """Return a line of JSON. Metadata goes in as text, so that numbers keep their digits."""
    metadata = re.sub("[^ -~]", lambda each: _escaped(each[0]), row.pop("metadata"))
    return f'{json.dumps(row, default=iso)[:-1]}, "metadata": {metadata}}}'


def _escaped(character: str) -> str:
    """Escape a character that could mean something to a terminal; json.dumps leaves DEL as it is."""
    return json.dumps(character)[1:-1] if character != "\x7f" else "\\u007f"
