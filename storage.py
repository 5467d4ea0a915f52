"""Store events: the SQL statements of requests, each request in one transaction.

A request is stored whole, or an exception says why not. How to connect, and what PostgreSQL's errors mean, is in
database.py; what commands do is in commands/.
"""

import hashlib
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg

from database import LOCK_TIMEOUT, Connection, LockTimeout, OutOfMemory, Pool, Unavailable

SCHEMA_VERSION = 2


class Unauthorized(Exception):
    """The API key is unknown, expired or revoked."""


class QuotaExceeded(Exception):
    """The events don't fit in what is left of the month's quota. The argument is how many would."""

    @property
    def remaining(self) -> int:
        return int(self.args[0])


class KeyReused(Exception):
    """The idempotency key was used with another body."""


class BodyTooLarge(Exception):
    """PostgreSQL has too little memory for a body of this size."""


class NotFound(Exception):
    """There is no such organization or API key. The argument says which."""


@dataclass(frozen=True, slots=True)
class ApiKey:
    id: int
    org_id: str


@dataclass(frozen=True, slots=True)
class EventBatch:
    """The events of a request, or of a part of an import."""

    text: str
    """JSON that jsonb can hold: an array of events, or an object whose `events` is one."""
    valid: list[int]
    """The indexes of the events to store, ascending."""
    size: int
    """How many events the text has, valid or not."""
    idempotency_key: str | None = None
    fingerprint: bytes | None = None
    """SHA-256 of the body: it tells whether another body came under the same idempotency key."""
    source: str = "raw"
    """Where the events come from: `raw` is HTTP."""


@dataclass(frozen=True, slots=True)
class StoreResult:
    """What was stored, and committed."""

    ingested: int
    """The number of events."""
    remaining: int | None
    """What is left of the month's quota; None means unlimited."""
    replayed: bool = False
    """An earlier request with the same idempotency key stored them."""


@dataclass(frozen=True, slots=True)
class Quota:
    """An organization's events in the current calendar month (UTC)."""

    month: str
    """YYYY-MM"""
    used: int
    quota: int | None
    """None means unlimited."""

    @property
    def remaining(self) -> int | None:
        return None if self.quota is None else max(0, self.quota - self.used)


# The API key, if it is valid now.
AUTHENTICATE = """
    SELECT id, org_id
    FROM api_keys
    WHERE key_hash = %(key_hash)s
      AND revoked_at IS NULL
      AND (expires_at IS NULL OR expires_at > now())
"""

# Whether requests can be stored: the version of the schema, and what else can prevent it.
READY = """
    SELECT version, current_setting('transaction_read_only') = 'on', has_table_privilege('audit_events', 'INSERT')
    FROM schema_version
"""

# Makes the rows of the events from the body itself, so that numbers keep every digit, counts them, and keeps the answer
# under the idempotency key, if there is one. It is one statement, and so one transaction.
#
# It returns no row if the API key is no longer valid (a command stores without one). It returns NULL in `used`, and
# stores nothing, if the quota or the idempotency key prevents storing. Both are read from the snapshot; what
# another request commits meanwhile makes the statement fail, by the CHECK of monthly_usage or the primary key of
# idempotency_keys. The usage row is touched as late as possible: other requests wait for its lock until the commit.
STORE = """
    WITH account AS MATERIALIZED (
        SELECT
            o.monthly_quota,
            date_trunc('month', now() AT TIME ZONE 'UTC')::date AS month,
            CASE WHEN o.monthly_quota IS NULL THEN 1 + pg_backend_pid() %% 1024 ELSE 0 END AS slot,
            o.monthly_quota - coalesce(u.elsewhere, 0) AS quota,
            coalesce(u.used, 0) AS used
        FROM organizations o
        LEFT JOIN (
            SELECT
                sum(used) FILTER (WHERE slot = 0)::bigint AS used,
                sum(used) FILTER (WHERE slot <> 0)::bigint AS elsewhere
            FROM monthly_usage
            WHERE org_id = %(org_id)s
              AND month = date_trunc('month', now() AT TIME ZONE 'UTC')::date
        ) u ON o.monthly_quota IS NOT NULL
        WHERE o.id = %(org_id)s
          AND (%(api_key_id)s::bigint IS NULL OR EXISTS (
              SELECT
              FROM api_keys
              WHERE id = %(api_key_id)s
                AND org_id = %(org_id)s
                AND revoked_at IS NULL
                AND (expires_at IS NULL OR expires_at > now())
          ))
    ), stored AS (
        INSERT INTO audit_events
            (org_id, api_key_id, source, type, tool_name, action, "timestamp", metadata, received_at)
        SELECT
            %(org_id)s,
            %(api_key_id)s,
            %(source)s,
            e.type,
            e."toolName",
            coalesce(e.action, 'log'),
            -- a fraction of a hundred digits is too long for PostgreSQL's parser, and says no more than 20 do
            coalesce(
                CASE WHEN length(e."timestamp") > 60
                THEN regexp_replace(e."timestamp", '(\\.[0-9]{20})[0-9]+', '\\1')
                ELSE e."timestamp" END::timestamptz,
                now()
            ),
            coalesce(e.metadata, '{}'),
            now()
        FROM account a
        CROSS JOIN (
            SELECT coalesce(%(body)s::jsonb -> 'events', %(body)s::jsonb) AS events
        ) body
        CROSS JOIN jsonb_to_recordset(
            CASE WHEN %(indexes)s::integer[] IS NULL THEN body.events ELSE (
                SELECT jsonb_agg(all_events.event ORDER BY all_events.number)
                FROM jsonb_array_elements(body.events) WITH ORDINALITY AS all_events (event, number)
                JOIN unnest(%(indexes)s::integer[]) AS i ON all_events.number = i + 1
            ) END
        ) AS e (type text, "toolName" text, action text, "timestamp" text, metadata jsonb)
        WHERE (a.quota IS NULL OR a.used + %(count)s <= a.quota)
          AND NOT EXISTS (
              SELECT FROM idempotency_keys
              WHERE org_id = %(org_id)s AND key = %(idempotency_key)s
          )
        RETURNING 1
    ), counted AS (
        INSERT INTO monthly_usage AS u (org_id, month, slot, used, quota)
        SELECT %(org_id)s, a.month, a.slot, (SELECT count(*) FROM stored), a.quota
        FROM account a
        WHERE EXISTS (SELECT FROM stored)
        ON CONFLICT (org_id, month, slot) DO UPDATE
            SET used = u.used + excluded.used, quota = excluded.quota
        RETURNING u.used, u.quota - u.used AS remaining
    ), remembered AS (
        INSERT INTO idempotency_keys (org_id, key, fingerprint, ingested, remaining_quota, expires_at)
        SELECT
            %(org_id)s,
            %(idempotency_key)s,
            %(fingerprint)s,
            %(count)s,
            c.remaining,
            now() + make_interval(days => %(idempotency_days)s)
        FROM counted c
        WHERE %(idempotency_key)s::text IS NOT NULL
    )
    SELECT c.used, c.remaining
    FROM account a
    LEFT JOIN counted c ON true
"""

# What was answered under an idempotency key, and whether the key has expired.
SELECT_IDEMPOTENCY_KEY = """
    SELECT fingerprint, ingested, remaining_quota, expires_at <= now() AS expired
    FROM idempotency_keys
    WHERE org_id = %(org_id)s AND key = %(idempotency_key)s
"""

DELETE_IDEMPOTENCY_KEY = """
    DELETE FROM idempotency_keys
    WHERE org_id = %(org_id)s AND key = %(idempotency_key)s AND expires_at <= now()
"""

# An organization's quota and what it used of it this month.
QUOTA = """
    SELECT
        to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM') AS month,
        coalesce((
            SELECT sum(used)
            FROM monthly_usage
            WHERE org_id = %(org_id)s
              AND month = date_trunc('month', now() AT TIME ZONE 'UTC')::date
        ), 0)::bigint AS used,
        monthly_quota AS quota
    FROM organizations
    WHERE id = %(org_id)s
"""

MAX_SEEN_KEYS = 10_000
"""The API keys that a process remembers."""

MAX_ATTEMPTS = 10
"""How often a request is tried when concurrent requests win the race. As a rule the second attempt succeeds."""

LARGE_BODY = 2**20
"""Bytes of text from which on a lack of PostgreSQL's memory is taken for the body's fault."""


class Storage:
    """What requests do in PostgreSQL. Every method raises Unavailable if it can't be used now."""

    def __init__(self, database_url: str, connections: int, idempotency_days: int, *, prepare: bool = True) -> None:
        self._pool = Pool(database_url, connections, prepare=prepare)
        self._idempotency_days = idempotency_days
        self._seen_keys: dict[bytes, ApiKey] = {}
        self._lock_waits = _LockWaits(connections)

    def close(self) -> None:
        self._pool.close()

    def identify(self, key: str) -> ApiKey:
        """Return the id and organization of a key, from memory if it was seen before. Raises Unauthorized.

        The key may have been revoked since. store() checks that; whoever refuses a request has to call authenticate().
        """
        return self._seen_keys.get(key_hash(key)) or self.authenticate(key)

    def authenticate(self, key: str) -> ApiKey:
        """Return the id and organization of a key that is valid now. Raises Unauthorized."""
        digest = key_hash(key)
        self._seen_keys.pop(digest, None)
        with self._pool.connection() as connection:
            row = connection.execute(AUTHENTICATE, {"key_hash": digest}).fetchone()
        if row is None:
            raise Unauthorized
        if len(self._seen_keys) >= MAX_SEEN_KEYS:
            self._seen_keys.clear()
        api_key = self._seen_keys[digest] = ApiKey(*row)
        return api_key

    def store(self, key: ApiKey, batch: EventBatch) -> StoreResult:
        """Store the valid events of a batch and count them, in one transaction that is committed on return.

        Raises Unauthorized, QuotaExceeded, KeyReused, DataRejected and BodyTooLarge; then nothing is stored.
        """
        self._lock_waits.check(key.org_id)
        try:
            if not batch.valid:
                with self._pool.connection() as connection:
                    return store_nothing(connection, key.org_id, batch)
            try:
                with self._pool.connection() as connection:
                    return store_batch(connection, key.org_id, key.id, batch, self._idempotency_days)
            except LockTimeout:
                with self._lock_waits.begin(key.org_id), self._pool.connection() as connection:
                    return store_batch(connection, key.org_id, key.id, batch, self._idempotency_days, LOCK_TIMEOUT)
        except OutOfMemory:
            if len(batch.text) >= LARGE_BODY:
                raise BodyTooLarge from None
            raise

    def check_ready(self) -> None:
        """Raise Unavailable, with a reason fit for strangers, unless requests can be stored."""
        with self._pool.connection() as connection:
            row = connection.execute(READY).fetchone()
        if row is None or row[0] != SCHEMA_VERSION:
            raise Unavailable("the schema is missing or of another version: run init-db")
        if row[1]:
            raise Unavailable("the database is read-only")
        if not row[2]:
            raise Unavailable("the database role lacks a privilege")


class _LockWaits:
    """Limits how many threads of the process wait for locks, so that the others go on serving.

    All requests of an organization can hang on one lock: its row of monthly_usage.
    """

    def __init__(self, threads: int) -> None:
        self._max_per_organization = threads // 2
        self._max = threads - 1
        self._waiting: Counter[str] = Counter()
        self._lock = threading.Lock()

    def check(self, org_id: str) -> None:
        """Raise Unavailable if another request of the organization would only wait behind those that wait already."""
        if self._waiting and 0 < self._max_per_organization <= self._waiting[org_id]:
            raise Unavailable("earlier requests of the organization wait for a lock")

    @contextmanager
    def begin(self, org_id: str) -> Iterator[None]:
        """Count a thread that waits. Raises Unavailable if there are too many."""
        with self._lock:
            if self._waiting[org_id] >= self._max_per_organization or self._waiting.total() >= self._max:
                raise Unavailable("too many requests wait for a lock")
            self._waiting[org_id] += 1
        try:
            yield
        finally:
            with self._lock:
                self._waiting[org_id] -= 1
                self._waiting += Counter()  # drops what is zero


def key_hash(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def store_batch(
    connection: Connection,
    org_id: str,
    api_key_id: int | None,
    batch: EventBatch,
    idempotency_days: int | None,
    lock_timeout: int | None = None,
) -> StoreResult:
    """Store a batch as Storage.store does, on a connection in autocommit mode. A command has no API key.

    `idempotency_days` None keeps the idempotency key for ever. `lock_timeout` in seconds replaces the session's. Raises
    psycopg.Error beside the exceptions of Storage.store: see database.translate_errors.
    """
    parameters = {
        "org_id": org_id,
        "api_key_id": api_key_id,
        "source": batch.source,
        "body": batch.text,
        "indexes": None if len(batch.valid) == batch.size else batch.valid,
        "count": len(batch.valid),
        "idempotency_key": batch.idempotency_key,
        "fingerprint": batch.fingerprint,
        "idempotency_days": idempotency_days,
    }
    for _ in range(MAX_ATTEMPTS):
        if result := _try_to_store(connection, parameters, lock_timeout):
            return result
        if batch.idempotency_key and (result := _stored_result(connection, parameters)):
            return result
        remaining = quota(connection, org_id).remaining
        if remaining is not None and remaining < len(batch.valid):
            raise QuotaExceeded(remaining)
        # the quota was changed just now, or an idempotency key that had expired was in the way
    raise Unavailable("the quota changes faster than the request can be stored")


def store_nothing(connection: Connection, org_id: str, batch: EventBatch) -> StoreResult:
    """Return the result for a batch without a valid event. Raises KeyReused."""
    parameters = {"org_id": org_id, "idempotency_key": batch.idempotency_key, "fingerprint": batch.fingerprint}
    replayed = _stored_result(connection, parameters) if batch.idempotency_key else None
    return replayed or StoreResult(0, quota(connection, org_id).remaining)


def _try_to_store(connection: Connection, parameters: dict[str, Any], lock_timeout: int | None) -> StoreResult | None:
    """Run STORE. Returns None if the quota or the idempotency key prevents it. Raises Unauthorized."""
    try:
        if lock_timeout is None:
            row = connection.execute(STORE, parameters).fetchone()
        else:
            with connection.transaction():
                connection.execute("SELECT set_config('lock_timeout', %s, true)", [f"{lock_timeout}s"])
                row = connection.execute(STORE, parameters).fetchone()
    except psycopg.errors.IntegrityError as error:
        # the names of Citus' shards end with a number
        if (error.diag.constraint_name or "").startswith(("within_quota", "idempotency_keys_pkey")):
            return None
        raise
    if row is None:
        raise Unauthorized
    used, remaining = row
    return None if used is None else StoreResult(parameters["count"], remaining)


def _stored_result(connection: Connection, parameters: dict[str, Any]) -> StoreResult | None:
    """Return the result of an earlier request with the same idempotency key. Raises KeyReused."""
    row = connection.execute(SELECT_IDEMPOTENCY_KEY, parameters).fetchone()
    if row is None:
        return None
    fingerprint, ingested, remaining, expired = row
    if expired:
        connection.execute(DELETE_IDEMPOTENCY_KEY, parameters)
        return None
    if fingerprint != parameters["fingerprint"]:
        raise KeyReused
    return StoreResult(ingested, remaining, replayed=True)


def quota(connection: Connection, org_id: str) -> Quota:
    """Return this month's quota and use. Raises NotFound."""
    row = connection.execute(QUOTA, {"org_id": org_id}).fetchone()
    if row is None:
        raise organization_not_found(org_id)
    return Quota(*row)


def organization_not_found(org_id: str) -> NotFound:
    return NotFound(f"there is no organization {org_id!r}")
