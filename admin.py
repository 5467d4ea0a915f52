"""What the commands do in PostgreSQL: the schema, organizations and keys, use and events, backfills, pruning.

What requests do is in storage.py. Each method uses a connection of its own, and raises Unavailable if it can't.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from pathlib import Path
from secrets import choice
from string import ascii_letters, digits
from typing import Any

from psycopg.rows import dict_row

import storage
from storage import SCHEMA_VERSION, Connection, Quota, Unavailable, Unknown

# From the version before to this one. They run while the service does: nothing here may hold a lock for long.
UPGRADES = {
    2: """
        ALTER TABLE audit_events ALTER COLUMN api_key_id DROP NOT NULL;
        ALTER TABLE idempotency_keys ALTER COLUMN expires_at DROP NOT NULL;
        ALTER TABLE idempotency_keys ADD COLUMN stored_at timestamptz NOT NULL DEFAULT now();
    """,
}

UPGRADE_LOCK_TIMEOUT = 3
"""Seconds that an upgrade waits for a lock; requests queue up behind it meanwhile."""

KEYS = """
    SELECT id, prefix, label, org_id AS organization,
           created_at AS created, expires_at AS expires, revoked_at AS revoked
    FROM api_keys
    WHERE %(org_id)s::text IS NULL OR org_id = %(org_id)s
    ORDER BY id
"""

# The newest events, or those of some ids.
NEWEST = """
    SELECT id, org_id, api_key_id, source, type, tool_name, action, "timestamp", received_at,
           metadata::text AS metadata
    FROM audit_events
    WHERE (%(org_id)s::text IS NULL OR org_id = %(org_id)s)
      AND (%(since)s::timestamptz IS NULL OR received_at >= %(since)s)
      AND (%(ids)s::bigint[] IS NULL OR id = ANY(%(ids)s))
    ORDER BY id DESC
    LIMIT %(limit)s
"""

# All that could be new to somebody who asked some time ago.
IDS = """
    SELECT id
    FROM audit_events
    WHERE (%(org_id)s::text IS NULL OR org_id = %(org_id)s)
      AND received_at >= %(since)s
"""

# An organization's events are found by its key; all of them only by when they were received.
AGES = (timedelta(minutes=1), timedelta(hours=1), timedelta(days=1), timedelta(days=31), None)

# The CTE is there for Citus, which joins a reference table only from that side to distributed rows.
USAGE = """
    WITH month AS MATERIALIZED (
        SELECT org_id, sum(used)::bigint AS used
        FROM monthly_usage
        WHERE month = %(month)s
        GROUP BY org_id
    )
    SELECT o.id AS organization, coalesce(m.used, 0) AS stored, o.monthly_quota AS quota
    FROM organizations o
    LEFT JOIN month m ON m.org_id = o.id
    ORDER BY o.id
"""

PRUNABLE = """
    SELECT org_id, count(*), max(id)
    FROM audit_events
    WHERE "timestamp" < %(before)s
      AND (%(org_id)s::text IS NULL OR org_id = %(org_id)s)
    GROUP BY org_id
    ORDER BY org_id
"""

# A batch after the last one: going on by id, it does not meet again what was just deleted.
PRUNE_EVENTS = """
    DELETE FROM audit_events
    WHERE org_id = %(org_id)s
      AND id IN (
          SELECT id
          FROM audit_events
          WHERE org_id = %(org_id)s AND id > %(after)s AND id <= %(last)s AND "timestamp" < %(before)s
          ORDER BY id
          LIMIT %(batch)s
      )
    RETURNING id, source, received_at
"""

# The keys of an import's chunks of which no event is left: a chunk's events were received when its key was stored.
PRUNE_CHUNKS = """
    DELETE FROM idempotency_keys k
    WHERE org_id = %(org_id)s
      AND expires_at IS NULL
      AND stored_at = ANY(%(received)s)
      AND NOT EXISTS (SELECT FROM audit_events e WHERE e.org_id = %(org_id)s AND e.received_at = k.stored_at)
"""

PRUNE_KEYS = """
    WITH deleted AS (
        DELETE FROM idempotency_keys
        WHERE org_id = %(org_id)s
          AND key IN (
              SELECT key
              FROM idempotency_keys
              WHERE org_id = %(org_id)s AND key > %(after)s AND expires_at <= now()
              ORDER BY key
              LIMIT %(batch)s
          )
        RETURNING key
    )
    SELECT count(*), max(key) FROM deleted
"""

PRUNE_BATCH = 5000
"""Rows that are deleted in one transaction: some tens of milliseconds."""

CHUNK_KEY = "import\t"
"""What the idempotency keys of an import begin with. A client's key can't have a tab."""

LATE = timedelta(seconds=2 * storage.STATEMENT_TIMEOUT + 4)
"""An event can be seen this long after its received_at at the latest: then its transaction has ended."""

PAGE = 1000
"""Events that are shown at once by who follows them."""


class Busy(Exception):
    """Somebody else is at it. The argument says at what."""


@dataclass(frozen=True, slots=True)
class Prunable:
    """What an organization has to prune."""

    org_id: str
    events: int
    last_id: int


class Chunks:
    """The chunks of an import into one organization. While it is there, no other import into it runs."""

    def __init__(self, connection: Connection, org_id: str) -> None:
        self._connection = connection
        self._org_id = org_id

    def stored(self, keys: list[str]) -> dict[int, int]:
        """Which of the keys (the first is 1) a chunk was stored under before, and how many events it has."""
        numbers = {CHUNK_KEY + key: number for number, key in enumerate(keys, 1)}
        with storage.translated():
            rows = self._connection.execute(
                "SELECT key, ingested FROM idempotency_keys WHERE org_id = %s AND key = ANY(%s)",
                [self._org_id, list(numbers)],
            ).fetchall()
        return {numbers[key]: ingested for key, ingested in rows}

    def store(self, events: list[str], key: str) -> bool:
        """Stores events, as JSON, in one transaction; False: that was done before. `key` is a SHA-256 in hexadecimal.

        Raises QuotaExceeded and Unstorable; then nothing is stored.
        """
        request = storage.Request(
            f"[{','.join(events)}]",
            list(range(len(events))),
            len(events),
            idempotency_key=CHUNK_KEY + key,
            fingerprint=bytes.fromhex(key),
            source="import",
        )
        with storage.translated():
            return not storage.store(self._connection, self._org_id, None, request, None).replayed


class Admin:
    def __init__(self, database_url: str) -> None:
        self._database_url = database_url

    def init_db(self) -> None:
        """Creates the schema, or upgrades it to this program's version. Safe to run again, and by several at once."""
        with self._transaction() as connection:
            connection.execute("SELECT pg_advisory_xact_lock(hashtext('igris-ingest init-db'))")
            connection.execute(f"SET LOCAL lock_timeout = '{UPGRADE_LOCK_TIMEOUT}s'".encode())
            [(encoding, exists)] = connection.execute(
                "SELECT current_setting('server_encoding'), to_regclass('schema_version') IS NOT NULL"
            ).fetchall()
            if encoding != "UTF8":
                raise Unavailable(f"the database has the encoding {encoding}; create it with ENCODING 'UTF8'")
            if not exists:
                connection.execute(Path(__file__).with_name("schema.sql").read_bytes())
                connection.execute("INSERT INTO schema_version VALUES (%s)", [SCHEMA_VERSION])
            [(version,)] = connection.execute("SELECT version FROM schema_version").fetchall()
            if version > SCHEMA_VERSION:
                raise Unavailable(f"the schema has version {version}, newer than this program's {SCHEMA_VERSION}")
            for step in range(version + 1, SCHEMA_VERSION + 1):
                connection.execute(UPGRADES[step].encode())
                connection.execute("UPDATE schema_version SET version = %s", [step])

    # Organizations and keys

    def create_organization(self, org_id: str, monthly_quota: int | None) -> None:
        """Creates an organization with a quota (None: unlimited); one that is there already is left as it is."""
        with self._transaction() as connection:
            connection.execute(
                "INSERT INTO organizations (id, monthly_quota) VALUES (%s, %s) ON CONFLICT DO NOTHING",
                [org_id, monthly_quota],
            )

    def quota(self, org_id: str) -> Quota:
        """This month's quota and use. Raises Unknown."""
        with self._transaction() as connection:
            return storage.quota(connection, org_id)

    def set_quota(self, org_id: str, monthly_quota: int | None) -> None:
        """Sets a quota (None: unlimited); requests from now on obey it. Raises Unknown."""
        with self._transaction() as connection:
            updated = connection.execute(
                "UPDATE organizations SET monthly_quota = %s WHERE id = %s", [monthly_quota, org_id]
            ).rowcount
        if not updated:
            raise storage.unknown_organization(org_id)

    def create_key(self, org_id: str, label: str | None = None, expires_in_days: int | None = None) -> str:
        """A new API key of an organization that exists. It is stored nowhere: show it now or never."""
        key = "ig_" + "".join(choice(ascii_letters + digits) for _ in range(40))
        with self._transaction() as connection:
            connection.execute(
                """
                INSERT INTO api_keys (org_id, key_hash, prefix, label, expires_at)
                VALUES (%s, %s, %s, %s, now() + make_interval(days => %s))
                """,
                [org_id, storage.key_hash(key), key[:7], label, expires_in_days],
            )
        return key

    def keys(self, org_id: str | None = None) -> list[dict[str, Any]]:
        """What may be shown of every key, or of an organization's: id, prefix, label and dates. Raises Unknown."""
        with self._transaction() as connection:
            self._check(connection, org_id)
            return _rows(connection, KEYS, {"org_id": org_id})

    def revoke_key(self, key_id: int) -> None:
        """Ends a key from the next request on; a revoked one stays as it was. Raises Unknown."""
        with self._transaction() as connection:
            updated = connection.execute(
                "UPDATE api_keys SET revoked_at = coalesce(revoked_at, now()) WHERE id = %s", [key_id]
            ).rowcount
        if not updated:
            raise Unknown(f"there is no API key {key_id}")

    # What was stored

    def usage(self, month: date | None) -> list[dict[str, Any]]:
        """Of every organization the events stored in a month (any day of it; None: this one) and today's quota."""
        with self._transaction() as connection:
            month = month and month.replace(day=1)
            if month is None:
                [(month,)] = connection.execute("SELECT date_trunc('month', now() AT TIME ZONE 'UTC')::date").fetchall()
            return _rows(connection, USAGE, {"month": month})

    def newest(self, org_id: str | None, limit: int) -> list[dict[str, Any]]:
        """The newest events, of all organizations or one, the newest last. Metadata is JSON text. Raises Unknown."""
        with self._session() as connection:
            self._check(connection, org_id)
            return _newest(connection, org_id, limit)

    def follow(self, org_id: str | None, limit: int) -> Iterator[list[dict[str, Any]]]:
        """The newest events, then what has come since, also what was committed late; nothing when that is all."""
        with self._session() as connection:
            self._check(connection, org_id)
            last = _now(connection)
            seen = _ids(connection, org_id, last - LATE)
            rows = _newest(connection, org_id, limit)
            seen |= {row["id"] for row in rows}
            yield rows
            while True:
                now, since = _now(connection), last - LATE
                ids = _ids(connection, org_id, since)
                unseen = sorted(ids - seen)
                for start in range(0, len(unseen), PAGE):
                    page = {"org_id": org_id, "since": since, "ids": unseen[start : start + PAGE], "limit": None}
                    yield _rows(connection, NEWEST, page)[::-1]
                seen, last = ids, now
                yield []

    # Backfills and pruning

    @contextmanager
    def chunks(self, org_id: str) -> Iterator[Chunks]:
        """For an import. Raises Unknown; Busy if one into this organization runs."""
        with self._session(patient=False) as connection:
            self._check(connection, org_id)
            [(locked,)] = connection.execute(
                "SELECT pg_try_advisory_lock(hashtext('igris-ingest import'), hashtext(%s))", [org_id]
            ).fetchall()
            if not locked:
                raise Busy(f"another import into {org_id!r} is running")
            yield Chunks(connection, org_id)

    def prunable(self, before: datetime, org_id: str | None) -> list[Prunable]:
        """What there is to prune of all organizations, or of one. Raises Unknown."""
        with self._transaction() as connection:
            self._check(connection, org_id)
            rows = connection.execute(PRUNABLE, {"before": before, "org_id": org_id}).fetchall()
        return [Prunable(*row) for row in rows]

    def prune_events(self, prunable: Prunable, before: datetime) -> Iterator[int]:
        """Deletes the events with a timestamp before, batch by batch; yields how many. Stop when you like.

        With the last event of a chunk that was imported its key is dropped, so that it can be imported again.
        """
        parameters = {
            "org_id": prunable.org_id,
            "before": before,
            "after": 0,
            "last": prunable.last_id,
            "batch": PRUNE_BATCH,
        }
        with self._session() as connection:
            while True:
                with connection.transaction():
                    rows = connection.execute(PRUNE_EVENTS, parameters).fetchall()
                    if received := {received_at for _, source, received_at in rows if source == "import"}:
                        connection.execute(PRUNE_CHUNKS, {**parameters, "received": list(received)})
                if not rows:
                    return
                yield len(rows)
                parameters["after"] = max(row[0] for row in rows)

    def prune_keys(self, org_id: str | None) -> int:
        """Deletes expired idempotency keys of all organizations, or of one, batch by batch; returns how many."""
        deleted = 0
        with self._session() as connection:
            organizations = [(org_id,)] if org_id else connection.execute("SELECT id FROM organizations").fetchall()
            for (organization,) in organizations:
                parameters = {"org_id": organization, "after": "", "batch": PRUNE_BATCH}
                while parameters["after"] is not None:
                    [(count, parameters["after"])] = connection.execute(PRUNE_KEYS, parameters).fetchall()
                    deleted += count
        return deleted

    # Connections

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        with storage.connect(self._database_url, patient=True) as connection:
            yield connection

    @contextmanager
    def _session(self, *, patient: bool = True) -> Iterator[Connection]:
        """A connection on which each statement is a transaction."""
        with storage.connect(self._database_url, patient=patient) as connection:
            connection.autocommit = True
            yield connection

    def _check(self, connection: Connection, org_id: str | None) -> None:
        """Raises Unknown if there is no such organization."""
        if org_id and not connection.execute("SELECT FROM organizations WHERE id = %s", [org_id]).rowcount:
            raise storage.unknown_organization(org_id)


def _rows(connection: Connection, query: str, parameters: dict[str, Any]) -> list[dict[str, Any]]:
    return connection.cursor(row_factory=dict_row).execute(query.encode(), parameters).fetchall()


def _newest(connection: Connection, org_id: str | None, limit: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    now = _now(connection)
    for age in (None,) if org_id else AGES:
        rows = _rows(connection, NEWEST, {"org_id": org_id, "since": age and now - age, "ids": None, "limit": limit})
        if len(rows) == limit:
            break
    return rows[::-1]


def _now(connection: Connection) -> datetime:
    [(now,)] = connection.execute("SELECT now()").fetchall()
    return now  # type: ignore[no-any-return]


def _ids(connection: Connection, org_id: str | None, since: datetime) -> set[int]:
    return {row[0] for row in connection.execute(IDS, {"org_id": org_id, "since": since})}
