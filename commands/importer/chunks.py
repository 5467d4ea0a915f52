"""Store events in chunks, each exactly once."""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime
from typing import Any, NamedTuple

import psycopg

import json_text
import storage
from commands.base import server_time, translate_errors
from commands.importer.files import Reject, Unreadable, one_line
from commands.importer.rows import Event
from database import TimeoutConnection
from database_errors import Unavailable
from json_text import InvalidJSON
from storage import QuotaExceeded

CHUNK_ROWS = 1000
CHUNK_BYTES = 2**20
"""A chunk ends with the event that reaches one of these. They may grow, but never shrink: a rerun looks for what was
stored before no further ahead than its own chunk reaches."""

MAX_FIRST_REJECTS = 1000  # an import ends if so many rows at the beginning are all rejected

MAX_REASONS = 1000

COUNT_EQUAL = """
    WITH sent AS MATERIALIZED (
        SELECT event, (event ->> 'timestamp')::timestamptz AS at
        FROM jsonb_array_elements(%(events)s::jsonb) AS event
    )
    SELECT count(*) FILTER (
        WHERE (
            at, event ->> 'type', event ->> 'toolName', coalesce(event ->> 'action', 'log'),
            coalesce(event -> 'metadata', '{{}}')
        ) IN (  -- as a condition of the count, and not of the rows, it becomes a hash table
            SELECT "timestamp", type, tool_name, action, metadata
            FROM audit_events
            WHERE org_id = %(org_id)s
              AND source = 'import'
              AND received_at < %(began)s
              AND {condition}
            LIMIT 20000
        )
    )
    FROM sent
"""

OF_THE_SAME_PERIOD = '"timestamp" BETWEEN (SELECT min(at) FROM sent) AND (SELECT max(at) FROM sent)'

# What a run stored next after a chunk: all events of a chunk have the time of its key.
STORED_NEXT = """
    received_at > (SELECT stored_at FROM idempotency_keys WHERE org_id = %(org_id)s AND key = %(key)s)
    ORDER BY received_at
"""

CHUNK_KEY = "import\t"  # the beginning of the idempotency keys of chunks. A client's key can't have a tab.


class QuotaEnded(Exception):
    """The month's quota is used up. The argument is the line of the first event that is not stored."""


class Changed(Exception):
    """An earlier import of the file stored other rows from here on. The argument is the line of the first."""


class StoredAlready(Exception):
    """Rows of another file are stored already. The arguments are how many of how many."""


class AllRejected(Exception):
    """None of the first rows can be an event. The argument is how many that are."""


class RowCounts:
    """How many rows an import has read, stored, skipped because they were stored before, and rejected."""

    def __init__(self, on_reject: Callable[[Reject], None]) -> None:
        self._on_reject = on_reject
        self.read = self.stored = self.skipped = self.rejected = 0
        self.reasons: Counter[str] = Counter()
        """How many rows were rejected for which reason, the first of its kind, for the first MAX_REASONS of them."""
        self._examples: dict[str, str] = {}

    @property
    def counts(self) -> dict[str, int]:
        return {"read": self.read, "stored": self.stored, "skipped": self.skipped, "rejected": self.rejected}

    def valid(self, items: Iterator[Event | Reject]) -> Iterator[Event]:
        """Yield the events, and count the rest. Raises AllRejected."""
        for item in items:
            self.read += 1
            if isinstance(item, Event):
                yield item
                continue
            self.reject(item)
            if self.rejected == self.read == MAX_FIRST_REJECTS:
                raise AllRejected(self.read)

    def reject(self, reject: Reject) -> None:
        self.rejected += 1
        kind = re.sub(r'^timestamp "[^"]*"|at byte \d+', "", reject.reason)  # the values differ from row to row
        reason = self._examples.setdefault(kind, reject.reason) if len(self._examples) < MAX_REASONS else reject.reason
        reason = reason if len(reason) <= 200 else f"{reason[:200]}..."
        if reason in self.reasons or len(self.reasons) < MAX_REASONS:
            self.reasons[reason] += 1
        self._on_reject(reject)


class Chunks:
    """The chunks of imports into one organization, in PostgreSQL.

    A chunk is kept under an idempotency key that never expires.
    """

    def __init__(self, connection: TimeoutConnection, org_id: str) -> None:
        """Remember the keys of all chunks: some 200 bytes for each, or 200 MB for a billion events."""
        self._connection = connection
        self._org_id = org_id
        self._began = server_time(connection)
        with translate_errors():
            rows = connection.execute(
                """
                SELECT key, ingested
                FROM idempotency_keys
                WHERE org_id = %s AND expires_at IS NULL
                """,
                [org_id],
            ).fetchall()
        self.stored_before = {bytes.fromhex(key.removeprefix(CHUNK_KEY)): ingested for key, ingested in rows}
        """How many events each chunk has, by the SHA-256 of its key."""

    def count_equal(self, events: list[str]) -> int:
        """Return how many events, as JSON, are equal to one that was imported before."""
        return count_equal(self._connection, self._org_id, events, self._began)

    def are_next(self, events: list[str], key: str) -> bool:
        """Return whether all of these events, as JSON, are equal to one that was stored next after a chunk."""
        found = count_equal(self._connection, self._org_id, events, self._began, STORED_NEXT, CHUNK_KEY + key)
        return found == len(events)

    def try_to_store(self, event: str, key: str) -> None:
        """Raise what `store` would; nothing is stored."""
        with translate_errors():
            in_transaction(self._connection, lambda: self.store([event], key), force_rollback=True)

    def store(self, events: list[str], key: str) -> bool:
        """Store events, as JSON, in one transaction; return False if that was done before.

        `key` is a SHA-256 in hexadecimal. Raises QuotaExceeded and InvalidJSON; then nothing is stored.
        """
        batch = storage.EventBatch(
            json_text.storable_text(f"[{','.join(events)}]"),
            list(range(len(events))),
            len(events),
            idempotency_key=CHUNK_KEY + key,
            fingerprint=bytes.fromhex(key),
            source="import",
        )
        with translate_errors():
            return not storage.call_store_events(self._connection, self._org_id, None, batch, None).replayed


def in_transaction(connection: TimeoutConnection, store: Callable[[], Any], *, force_rollback: bool = False) -> None:
    """Call `store` in a transaction; after a conflict with a concurrent request, in another transaction.

    Raises Unavailable after MAX_ATTEMPTS conflicts.
    """
    for _ in range(storage.MAX_ATTEMPTS):
        with suppress(psycopg.errors.IntegrityError), connection.transaction(force_rollback=force_rollback):
            store()
            return
    raise Unavailable(f"gave up after {storage.MAX_ATTEMPTS} conflicts with concurrent requests")


def count_equal(
    connection: TimeoutConnection,
    org_id: str,
    events: list[str],
    began: datetime,
    condition: str = OF_THE_SAME_PERIOD,
    key: str = "",
) -> int:
    """Return how many events, as JSON, are equal to one that was imported into an organization before a time.

    It looks at no more than 20,000 events that meet the condition.
    """
    texts = json_text.storable_text(f"[{','.join(events)}]")
    values = {"org_id": org_id, "began": began, "events": texts, "key": key}
    try:
        with translate_errors():
            [(found,)] = connection.execute(COUNT_EQUAL.format(condition=condition).encode(), values).fetchall()
    except InvalidJSON:  # one of them has a number that PostgreSQL can't hold
        return 0
    return int(found)


class _Pending(NamedTuple):
    event: Event
    digest: Any  # SHA-256 of all events up to this one

    @property
    def key(self) -> str:
        return str(self.digest.hexdigest())


class Import(RowCounts):
    """Stores events in chunks, exactly once, however often it is interrupted and started again.

    A chunk is stored under a key made from all events up to its end. So it is known of each event whether a chunk ended
    with it in an earlier run of the same file; what such a chunk covers is skipped. A chunk is stored only when the one
    after it has been read too: an earlier chunk that covers an event ends there at the latest.
    """

    def __init__(
        self,
        chunks: Chunks,
        on_reject: Callable[[Reject], None],
        earlier: int = 0,
        *,
        stores: bool = True,
        may_repeat: bool = False,
    ) -> None:
        """Without `stores`, events are only looked for. The first `earlier` ones must be those that were stored before.

        Unless it `may_repeat`, a file with rows that are stored already is not stored.
        """
        super().__init__(on_reject)
        self._chunks = chunks
        self._earlier = earlier
        self._stores = stores
        self._may_repeat = may_repeat
        self._next_check = 0  # after so many events, it is looked whether the next ones are stored already
        self._done = 0  # events that are stored or skipped
        self._done_digest = hashlib.sha256()
        self._pending: list[_Pending] = []
        self._found: dict[int, int] = {}  # where earlier chunks end among the pending events, and their sizes
        self._bad_within: int | None = None  # PostgreSQL rejects one of so many pending events
        self._limits: list[int] = []  # where the next chunks would end among the pending events
        self._rows = self._bytes = 0  # since the last of these

    def run(self, items: Iterator[Event | Reject]) -> Iterator[None]:
        """Store the events; yield now and then.

        Raises QuotaEnded, Changed, StoredAlready, AllRejected, and Unreadable when what came before is stored.
        """
        unreadable = None
        try:
            for event in self.valid(items):
                self._append(event)
                while len(self._limits) > 1:
                    self._advance()
                    yield
        except Unreadable as error:
            unreadable = error
        if self._pending and self.skipped == self._done > 0:
            # a copy that was cut within a chunk has the beginning of that chunk
            events = [each.event.text for each in self._pending]
            if self._chunks.are_next(events, self._done_digest.hexdigest()):
                self.skipped += len(events)
                self._drop(len(events))
        while self._pending:
            self._advance()
        yield
        if unreadable:
            raise unreadable

    def _append(self, event: Event) -> None:
        digest = (self._pending[-1].digest if self._pending else self._done_digest).copy()
        digest.update(event.text.encode() + b"\n")
        self._pending.append(_Pending(event, digest))
        if size := self._chunks.stored_before.get(digest.digest()):
            self._found[self._done + len(self._pending)] = size
        self._measure(len(self._pending), event)

    def _measure(self, position: int, event: Event) -> None:
        self._rows += 1
        self._bytes += len(event.text)
        if self._rows >= CHUNK_ROWS or self._bytes >= CHUNK_BYTES:
            self._limits.append(position)
            self._rows = self._bytes = 0

    def _advance(self) -> None:
        """Store, skip or reject at least one pending event."""
        # the last event is a separate chunk: a file that grows may have ended in the middle of it
        end = max(1, len(self._pending) - 1)
        end = min([end, *self._limits, self._bad_within or end])
        if self._found:
            next_end = min(self._found)
            begin = next_end - self._found[next_end] - self._done
            if begin <= 0:
                del self._found[next_end]
                self.skipped += next_end - self._done
                return self._drop(next_end - self._done)
            end = min(end, begin)
        if not self._stores:
            self.skipped += self._chunks.count_equal([each.event.text for each in self._pending[:end]])
            return self._drop(end)
        if not self._may_repeat and not self._earlier and self._done >= self._next_check:
            self._check_equal(end)
        return self._store(self._chunks, end)

    def _check_equal(self, size: int) -> None:
        """Raise StoredAlready if rows are equal to events of earlier imports: of every chunk it would take long."""
        self._next_check = 2 * self._done + 1
        equal = self._chunks.count_equal([each.event.text for each in self._pending[:size]])
        if equal > size // 10:
            raise StoredAlready(equal, size)

    def _store(self, chunks: Chunks, size: int) -> None:
        """Store that many of the pending events, or fewer."""
        try:
            if self._done < self._earlier:
                # either PostgreSQL rejects this event, as before, or it is another one than before
                size = 1
                first = self._pending[0]
                chunks.try_to_store(first.event.text, first.key)
                raise Changed(first.event.line)
            new = chunks.store([each.event.text for each in self._pending[:size]], self._pending[size - 1].key)
        except QuotaExceeded as error:
            if not error.args[0]:
                raise QuotaEnded(self._pending[0].event.line) from None
            return self._store(chunks, error.args[0])
        except InvalidJSON as error:
            self._bad_within = size
            if size > 1:
                return self._store(chunks, size // 2)
            event = self._pending[0].event
            self.reject(Reject(event.line, str(error), one_line(event.text)))
            return self._drop_rejected()
        if new:
            self.stored += size
        else:
            self.skipped += size
        return self._drop(size)

    def _drop(self, count: int) -> None:
        """Forget the first pending events: they are done."""
        self._done_digest = self._pending[count - 1].digest
        self._done += count
        self._bad_within = (self._bad_within or 0) - count
        if self._bad_within <= 0:
            self._bad_within = None
        del self._pending[:count]
        self._limits.clear()
        self._rows = self._bytes = 0
        for position, each in enumerate(self._pending, 1):
            self._measure(position, each.event)

    def _drop_rejected(self) -> None:
        """Forget the first pending event, which can't be stored. The keys of later chunks change without it."""
        self._bad_within = None
        self._found.clear()
        rest = self._pending[1:]
        self._pending, self._limits = [], []
        self._rows = self._bytes = 0
        for each in rest:
            self._append(each.event)
