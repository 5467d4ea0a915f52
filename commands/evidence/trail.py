"""Read the trail: which events, in the order of their receipt, each as a line that is the same wherever it is made."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any, Literal, NamedTuple

import click
import psycopg

from commands.parameters import Moment, Name, metadata_option
from database import STATEMENT_TIMEOUT, Connection
from database_errors import Unavailable
from schemas import Event

MAX_COMMIT_DELAY = timedelta(seconds=2 * STATEMENT_TIMEOUT + 4)
"""The time after its received_at in which an event can still be committed, and so become visible."""


def _utc(column: str) -> str:
    """Return SQL for a time as ISO 8601 in UTC, always to the microsecond.

    The service stores no time before Christ, and no infinite one. A role that can write to the table can: the text then
    ends with ` BC`, or is `infinity`.
    """
    in_utc = f"""pg_catalog.to_char({column} AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')"""
    return f"""
        CASE
            WHEN {column} >= '0001-01-01 00:00Z' AND {column} < 'infinity' THEN {in_utc}
            ELSE coalesce({in_utc} || ' BC', {column}::text)
        END
    """


def _defused(column: str) -> str:
    """Return SQL for a text with an apostrophe before what a spreadsheet would take for a formula.

    A leading apostrophe gets a second one. Otherwise `import` would remove an apostrophe that the client sent.
    """
    formula = r"^([\t\r\n'']| *[-=+@\uFF1D\uFF0B\uFF0D\uFF20])"  # also as full-width characters
    return f"CASE WHEN {column} ~ '{formula}' THEN '''' || {column} ELSE {column} END"


class Column(NamedTuple):
    """A column of audit_events, and the name of its member in an exported line."""

    member: str
    sql: str
    kind: Literal["text", "time", "json"]

    def as_member(self) -> str:
        """Return SQL for the member as JSON."""
        value = {
            "text": f"pg_catalog.to_json({self.sql})::text",
            "time": f"'\"' || {_utc(self.sql)} || '\"'",
            "json": f"coalesce({self.sql}::text, 'null')",
        }[self.kind]
        return f"'\"{self.member}\": ' || {value}"

    def as_cell(self) -> str:
        """Return SQL for the cell of a CSV file."""
        return {"text": _defused(self.sql), "time": _utc(self.sql), "json": self.sql}[self.kind]


# The fields that a client sends, then what the service knows of the receipt. The order of both is that of a line.
EVENT_COLUMNS = (
    Column("type", "type", "text"),
    Column("toolName", "tool_name", "text"),
    Column("action", "action", "text"),
    Column("timestamp", '"timestamp"', "time"),
    Column("metadata", "metadata", "json"),
)
RECEIPT_COLUMNS = (
    Column("id", "id", "json"),
    Column("organization", "org_id", "text"),
    Column("apiKeyId", "api_key_id", "json"),
    Column("source", "source", "text"),
    Column("receivedAt", "received_at", "time"),
)


def _members(columns: Iterable[Column]) -> str:
    return " || ', ' || ".join(column.as_member() for column in columns)


# The functions are those of pg_catalog: the owner of the database could make others of the same name.
# An event as canonical JSON: metadata is PostgreSQL's text of jsonb, times are in UTC to the microsecond. Seals are
# made of these lines: a change of them makes all seals invalid.
LINE = f"""'{{' || {_members(EVENT_COLUMNS)} || ', "receipt": {{' || {_members(RECEIPT_COLUMNS)} || '}}}}'"""

CELLS = ", ".join(
    f'{column.as_cell()} AS "{prefix}{column.member}"'
    for prefix, columns in (("", EVENT_COLUMNS), ("receipt.", RECEIPT_COLUMNS))
    for column in columns
)

WHERE = """
    (%(org_id)s::text IS NULL OR org_id = %(org_id)s)
    AND (%(since)s::timestamptz IS NULL OR received_at >= %(since)s)
    AND (%(until)s::timestamptz IS NULL OR received_at < %(until)s)
    AND (%(type)s::text IS NULL OR type = %(type)s)
    AND (%(tool)s::text IS NULL OR tool_name = %(tool)s)
    AND (%(action)s::text IS NULL OR action = %(action)s)
    AND (%(key)s::bigint IS NULL OR api_key_id = %(key)s)
    AND (%(ids)s::bigint[] IS NULL OR id = ANY (%(ids)s))
    AND (%(metadata)s::jsonb[] IS NULL OR metadata @> ANY (%(metadata)s::jsonb[]))
    AND (%(dated_since)s::timestamptz IS NULL OR "timestamp" >= %(dated_since)s)
    AND (%(dated_until)s::timestamptz IS NULL OR "timestamp" < %(dated_until)s)
"""


def _sorted(condition: str) -> str:
    # OFFSET keeps PostgreSQL from making the texts first, and sorting them: a small row can have a text of 16 MB
    return f"(SELECT * FROM audit_events WHERE {WHERE} AND {condition} ORDER BY received_at, id OFFSET 0)"


def copy_lines(condition: str = "true") -> str:
    """Return the statement that writes the events of `Filters` as lines. `condition` is more SQL for its WHERE."""
    # the delimiter and the quote are in no line, since JSON escapes them: so COPY writes the lines as they are
    return f"""
        COPY (SELECT {LINE} FROM {_sorted(condition)} AS e)
        TO STDOUT (FORMAT csv, DELIMITER E'\\x02', QUOTE E'\\x01', ENCODING 'UTF8')
    """


COPY_LINES = copy_lines()

COPY_CSV = f"""
    COPY (SELECT {CELLS} FROM {_sorted("true")} AS e)
    TO STDOUT (FORMAT csv, HEADER, ENCODING 'UTF8')
"""

# The transactions that are storing events now. pg_locks shows them to every role, unlike pg_stat_activity.
SELECT_STORING = """
    SELECT virtualtransaction
    FROM pg_locks
    WHERE database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND relation = 'audit_events'::regclass
      AND mode = 'RowExclusiveLock'
      AND pid <> pg_backend_pid()
"""

COUNT = f"SELECT count(*) FROM audit_events WHERE {WHERE}"


@dataclass(frozen=True, slots=True)
class Filters:
    """Which events are meant; None is no condition. `since` and `until` go by the receipt, and `until` is exclusive.

    `dated_since` and `dated_until` go by the events' own time. `metadata` are alternatives, as JSON, that it contains.
    """

    org_id: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    type: str | None = None
    tool: str | None = None
    action: str | None = None
    key: int | None = None
    ids: list[int] | None = None
    metadata: list[str] | None = None
    dated_since: datetime | None = None
    dated_until: datetime | None = None


def filter_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options of Filters, but for the organization, to a command."""
    fields: dict[str, Any] = Event().fields
    actions, types = (click.Choice(fields[name].validators[0].values) for name in ("action", "type"))
    for option in (
        metadata_option(),
        click.option(
            "--key", type=click.IntRange(1, 2**63 - 1), metavar="ID", help="Only events sent with this API key."
        ),
        click.option("--action", type=actions, help="Only events with this action."),
        click.option("--tool", type=Name(), help="Only events with this toolName."),
        click.option("--type", type=types, help="Only events of this type."),
        click.option("--until", type=Moment(), help="Only events received before this time."),
        click.option(
            "--since",
            type=Moment(),
            help="Only events received from this time on: 2026-03-01 (in UTC), or 30d, 2h or 30m ago.",
        ),
    ):
        function = option(function)
    return function


def await_storing(connection: Connection) -> None:
    """Wait until the transactions that store events now have ended. Raises Unavailable if one takes too long.

    A commit that waits for a standby is bound by no timeout.
    """
    deadline = time.monotonic() + MAX_COMMIT_DELAY.total_seconds()
    storing = set(connection.execute(SELECT_STORING))
    while storing:
        if time.monotonic() > deadline:
            raise Unavailable("a transaction that writes to audit_events takes too long, or waits for a standby")
        time.sleep(0.05)
        storing &= set(connection.execute(SELECT_STORING))


def count(connection: Connection, filters: Filters) -> int:
    [(found,)] = connection.execute(COUNT, asdict(filters)).fetchall()
    return int(found)


@contextmanager
def lines(
    connection: Connection, filters: Filters, query: str = COPY_LINES, parameters: dict[str, Any] | None = None
) -> Iterator[Iterable[bytes]]:
    """Open the events in the order of their receipt, each as a line of canonical JSON, or as `query` writes it.

    `parameters` are those of `query` beside the filters, with other names. The lines take no memory that grows with
    their number. PostgreSQL sorts on its disk what is larger than its `work_mem`.
    """
    with psycopg.Cursor(connection).copy(query.encode(), {**(parameters or {}), **asdict(filters)}) as copy:
        yield map(bytes, copy)
