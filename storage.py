"""Store events: what requests ask of PostgreSQL, each request in one transaction.

A request is stored whole, or an exception says why not. The statements that store are the function store_events_3 in
schema.sql; how to connect, and what PostgreSQL's errors mean, is in database.py.
"""

import hashlib
import threading
from contextlib import nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import psycopg

from database import LOCK_TIMEOUT, Database, LockTimeout, OutOfMemory, TimeoutConnection, Unavailable
from json_text import TooLarge

SCHEMA_VERSION = 5


class Unauthorized(Exception):
    """The API key is unknown, expired or revoked."""


class QuotaExceeded(Exception):
    """The events don't fit in what is left of the month's quota. The argument is how many would."""


class KeyReused(Exception):
    """The idempotency key was used with another body."""


class ApiKey(NamedTuple):
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


class StoreResult(NamedTuple):
    """What was stored, and committed."""

    ingested: int  # the number of events
    remaining: int | None  # what is left of the month's quota; None means unlimited
    replayed: bool  # an earlier request with the same idempotency key stored them


# The API key, if it is valid now.
AUTHENTICATE = """
    SELECT id, org_id
    FROM api_keys
    WHERE key_hash = %(key_hash)s
      AND revoked_at IS NULL
      AND (expires_at IS NULL OR expires_at > now())
"""

# Why requests can't be stored, or NULL.
NOT_READY = """
    SELECT CASE
        WHEN max(version) IS DISTINCT FROM %(version)s THEN 'the schema is missing or of another version: run init-db'
        WHEN current_setting('transaction_read_only') = 'on' THEN 'the database is read-only'
        WHEN has_function_privilege(to_regproc('store_events_3'), 'EXECUTE') IS NOT TRUE
            THEN 'the database role lacks a privilege'
    END
    FROM schema_version
"""

# schema.sql has the function: one call is one transaction, and on Citus one command to one node.
STORE = b"""
    SELECT outcome, ingested, remaining
    FROM store_events_3(  -- org_id, api_key_id, source, body, indexes, count, idempotency_key, fingerprint, days
        $1::text, $2::bigint, $3::text, $4::jsonb, $5::integer[], $6::integer, $7::text, $8::bytea, $9::integer
    )
"""

MAX_SEEN_KEYS = 10_000  # the API keys that a process remembers

MAX_ATTEMPTS = 10
"""How often a request is tried when concurrent requests win the race. As a rule the second attempt succeeds."""

LARGE_BODY = 2**20  # a body of so many bytes is blamed if PostgreSQL lacks memory


class Storage:
    """What requests do in PostgreSQL. Every method raises Unavailable if it can't be used now."""

    def __init__(self, database_url: str, threads: int, idempotency_days: int, *, prepare: bool = True) -> None:
        self.database = Database(database_url, prepare=prepare)
        self._idempotency_days = idempotency_days
        self._seen_keys: dict[bytes, ApiKey] = {}
        # An organization's requests can all hang on one lock, its row of monthly_usage. One thread waits for it then.
        self._waiting: set[str] = set()
        self._max_waiting = threads - 1
        self._lock = threading.Lock()

    def identify(self, key: str) -> ApiKey:
        """Return the id and organization of a key, from memory if it was seen before. Raises Unauthorized.

        The key may have been revoked since. store() checks that; whoever refuses a request has to call authenticate().
        """
        return self._seen_keys.get(key_hash(key)) or self.authenticate(key)

    def authenticate(self, key: str) -> ApiKey:
        """Return the id and organization of a key that is valid now. Raises Unauthorized."""
        digest = key_hash(key)
        self._seen_keys.pop(digest, None)
        with self.database.connection() as connection:
            row = connection.execute(AUTHENTICATE, {"key_hash": digest}).fetchone()
        if row is None:
            raise Unauthorized
        if len(self._seen_keys) >= MAX_SEEN_KEYS:
            self._seen_keys.clear()
        api_key = self._seen_keys[digest] = ApiKey(*row)
        return api_key

    def store(self, key: ApiKey, batch: EventBatch) -> StoreResult:
        """Store the valid events of a batch and count them, in one transaction that is committed on return.

        Raises Unauthorized, QuotaExceeded, KeyReused, DataRejected and TooLarge; then nothing is stored.
        """
        if key.org_id in self._waiting:
            raise Unavailable("an earlier request of the organization waits for a lock")
        try:
            return self._store(key, batch)
        except LockTimeout:
            with self._lock:
                if key.org_id in self._waiting or len(self._waiting) >= self._max_waiting:
                    raise
                self._waiting.add(key.org_id)
        try:
            return self._store(key, batch, LOCK_TIMEOUT)
        finally:
            self._waiting.discard(key.org_id)

    def _store(self, key: ApiKey, batch: EventBatch, lock_timeout: int | None = None) -> StoreResult:
        try:
            with self.database.connection() as connection:
                return store_batch(connection, key.org_id, key.id, batch, self._idempotency_days, lock_timeout)
        except OutOfMemory:
            if len(batch.text.encode()) < LARGE_BODY:
                raise
            raise TooLarge("PostgreSQL has too little memory for the body") from None

    def check_ready(self) -> None:
        """Raise Unavailable, with a reason fit for strangers, unless requests can be stored."""
        with self.database.connection() as connection:
            row = connection.execute(NOT_READY, {"version": SCHEMA_VERSION}).fetchone()
        if row and row[0]:
            raise Unavailable(row[0])


def key_hash(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def store_batch(
    connection: TimeoutConnection,
    org_id: str,
    api_key_id: int | None,
    batch: EventBatch,
    idempotency_days: int | None,
    lock_timeout: int | None = None,
) -> StoreResult:
    """Store a batch as Storage.store does, on a connection in autocommit mode. A command has no API key.

    `idempotency_days` None keeps the idempotency key for ever. `lock_timeout` in seconds replaces the session's. Raises
    psycopg.Error beside the exceptions of Storage.store: see database.raise_translated.
    """
    texts = (
        org_id,
        api_key_id,
        batch.source,
        batch.text,
        None if len(batch.valid) == batch.size else f"{{{','.join(map(str, batch.valid))}}}",
        len(batch.valid),
        batch.idempotency_key,
        None if batch.fingerprint is None else rf"\x{batch.fingerprint.hex()}",
        idempotency_days,
    )
    parameters = [None if text is None else str(text).encode() for text in texts]
    was_exceeded = False
    for _ in range(MAX_ATTEMPTS):
        try:
            with connection.transaction() if lock_timeout else nullcontext():
                if lock_timeout:
                    connection.execute("SELECT set_config('lock_timeout', %s, true)", [f"{lock_timeout}s"])
                outcome, *numbers = connection.call(b"store_events", STORE, parameters)
        except psycopg.errors.IntegrityError as error:
            # Citus names the constraint, with a number behind it, only in the message
            named = f"{error.diag.constraint_name} {error.diag.message_primary}"
            if "within_quota" in named or "idempotency_keys_pkey" in named:
                continue
            raise
        ingested, remaining = (None if number is None else int(number) for number in numbers)
        match outcome:
            case b"stored" | b"replayed":
                return StoreResult(ingested or 0, remaining, outcome == b"replayed")
            case b"key_reused":
                raise KeyReused
            case b"quota_exceeded" if was_exceeded or batch.idempotency_key is None:
                raise QuotaExceeded(remaining)
            case b"quota_exceeded":  # the same batch may have been stored since its key was looked for: ask once more
                was_exceeded = True
            case _:
                raise Unauthorized
    raise Unavailable("concurrent requests win the race again and again")
