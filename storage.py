"""Store events: what requests ask of PostgreSQL, each in one transaction. schema.sql has the function that stores."""

import hashlib
import time
from typing import NamedTuple

import psycopg

from database import Database, TimeoutConnection
from database_errors import NO_ROOM, NoRoom, OutOfMemory, Unavailable
from json_text import TooLarge

SCHEMA_VERSION = 1

MAX_SEEN_KEYS = 10_000  # API keys that a process remembers
MAX_ATTEMPTS = 10  # how often a request is tried that conflicts with concurrent ones. As a rule the second succeeds.
NO_ROOM_SECONDS = 30  # how long the service is not ready after a request that PostgreSQL's disk had no room for
LARGE_BODY = 2**20  # if PostgreSQL lacks memory, a body of so many bytes is the cause


class Unauthorized(Exception):
    """The API key is unknown, expired or revoked."""


class QuotaExceeded(Exception):
    """The events don't fit in the month's quota. The arguments are how many would, and when the next month begins."""


class KeyReused(Exception):
    """The idempotency key was used with another body."""


class ApiKey(NamedTuple):
    id: int
    org_id: str


class EventBatch(NamedTuple):
    """The events of a request, or of a part of an import."""

    text: str  # JSON that jsonb can hold: an array of events, or an object whose `events` is one
    valid: list[int]  # the indexes of the events to store, ascending
    size: int  # how many events the text has, valid or not
    idempotency_key: str | None = None
    fingerprint: bytes | None = None  # SHA-256 of the body, to find another body under the same idempotency key
    source: str = "raw"  # where the events come from: `raw` is HTTP


class StoreResult(NamedTuple):
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

SELECT_READINESS = """
    SELECT
        max(version),
        current_setting('transaction_read_only') = 'on',
        has_function_privilege(to_regproc('store_events_v1'), 'EXECUTE')
    FROM schema_version
"""

# One call is one transaction, and on Citus one command to one node.
STORE = b"""
    SELECT outcome, ingested, remaining, resets_at
    FROM store_events_v1(  -- org_id, api_key_id, source, body, indexes, count, idempotency_key, fingerprint, days
        $1::text, $2::bigint, $3::text, $4::jsonb, $5::integer[], $6::integer, $7::text, $8::bytea, $9::integer
    )
"""


class Storage:
    """What requests do in PostgreSQL. Every method raises Unavailable if PostgreSQL can't be used now."""

    def __init__(self, database_url: str, threads: int, idempotency_days: int, *, prepare: bool = True) -> None:
        self.database = Database(database_url, threads, prepare=prepare)
        self._idempotency_days = idempotency_days
        self._seen_keys: dict[bytes, ApiKey] = {}
        self._no_room_until = 0.0  # PostgreSQL's disk was full a short time ago

    def identify(self, key: str) -> ApiKey:
        """Return a key as `authenticate` does, from memory if it was seen before. It may have been revoked since."""
        return self._seen_keys.get(key_hash(key)) or self.authenticate(key)

    def authenticate(self, key: str) -> ApiKey:
        """Return the id and organization of a key that is valid now. Raises Unauthorized."""
        self._seen_keys.pop(digest := key_hash(key), None)
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

        Raises Unauthorized, QuotaExceeded, KeyReused, InvalidJSON and TooLarge; then nothing is stored.
        """
        try:
            with self.database.connection() as connection:
                result = call_store_events(connection, key.org_id, key.id, batch, self._idempotency_days)
            self._no_room_until = 0.0
            return result
        except Unauthorized:
            self._seen_keys.clear()  # the key among them: else its next body would be read
            raise
        except NoRoom:
            self._no_room_until = time.monotonic() + NO_ROOM_SECONDS
            raise
        except OutOfMemory:
            if len(batch.text.encode()) < LARGE_BODY:
                raise
            raise TooLarge("PostgreSQL has too little memory for the body") from None

    def check_ready(self) -> None:
        """Raise Unavailable, with a reason fit for strangers, unless requests can be stored."""
        with self.database.connection() as connection:
            [(version, is_read_only, may_store)] = connection.execute(SELECT_READINESS).fetchall()
        check_schema_version(version)
        if is_read_only:
            raise Unavailable("the database is read-only")
        if not may_store:
            raise Unavailable("the database role lacks a privilege")
        if time.monotonic() < self._no_room_until:
            raise NoRoom(NO_ROOM)


def check_schema_version(version: int | None) -> None:
    """Raise Unavailable unless a database's schema is the program's. None: there is no schema."""
    if version != SCHEMA_VERSION:
        remedy = "upgrade the program" if version and version > SCHEMA_VERSION else "run init-db"
        raise Unavailable(f"the schema has version {version or 0}, and the program {SCHEMA_VERSION}: {remedy}")


def key_hash(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def call_store_events(
    connection: TimeoutConnection, org_id: str, api_key_id: int | None, batch: EventBatch, idempotency_days: int | None
) -> StoreResult:
    """Do what `Storage.store` does. A command has no API key. Without days, the idempotency key never expires."""
    indexes = None if len(batch.valid) == batch.size else f"{{{','.join(map(str, batch.valid))}}}"
    count, key = len(batch.valid), batch.idempotency_key
    fingerprint = None if batch.fingerprint is None else rf"\x{batch.fingerprint.hex()}"
    values = (org_id, api_key_id, batch.source, batch.text, indexes, count, key, fingerprint, idempotency_days)
    parameters = [None if value is None else str(value).encode() for value in values]
    for _ in range(MAX_ATTEMPTS):
        try:
            outcome, *numbers, resets_at = connection.call(STORE, parameters)
        except psycopg.errors.IntegrityError as error:
            # Citus names the constraint, with a number behind it, only in the message
            named = f"{error.diag.constraint_name} {error.diag.message_primary}"
            if ("within_quota" in named or "idempotency_keys_pkey" in named) and connection.is_usable():
                continue  # within a caller's transaction the conflict is raised: the caller repeats the transaction
            raise
        ingested, remaining = (None if number is None else int(number) for number in numbers)
        match outcome:
            case b"stored" | b"replayed":
                return StoreResult(ingested or 0, remaining, outcome == b"replayed")
            case b"key_reused":
                raise KeyReused
            case b"quota_exceeded":
                raise QuotaExceeded(remaining, (resets_at or b"").decode())
            case _:
                raise Unauthorized
    raise Unavailable(f"gave up after {MAX_ATTEMPTS} conflicts with concurrent requests")
