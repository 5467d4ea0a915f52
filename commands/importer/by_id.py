"""Store events by the id of their rows: each row once, in any file, order or chunk."""

from collections.abc import Callable, Iterator
from itertools import islice

import storage
from commands.base import server_time, translate_errors
from commands.importer.chunks import QuotaEnded, RowCounts, StoredAlready, count_equal, in_transaction
from commands.importer.files import Reject, Unreadable, one_line
from commands.importer.rows import Event
from database import TimeoutConnection
from json_text import InvalidJSON, storable_text
from storage import QuotaExceeded

ROWS_AT_ONCE = 4000  # in a transaction
BYTES_AT_ONCE = 2**21

INSERT_ROWS = b"""
    INSERT INTO imported_rows (org_id, row_id, content)
    SELECT %(org_id)s, row_id, content
    FROM unnest(%(ids)b::bytea[], %(contents)b::bytea[]) AS chunk (row_id, content)
"""

SELECT_CONTENTS = b"""
    SELECT row_id, content, stored_at >= %(began)s AS is_of_this_run
    FROM imported_rows
    WHERE org_id = %(org_id)s AND row_id = ANY (%(ids)b::bytea[])
"""


class IdsNotUnique(Exception):
    """A row of the file has the id of another row of the file, and other content. The argument is its line."""


class OtherContent(Exception):
    """Most of the first rows have ids of imported rows with other content. The arguments are how many, of how many."""


class ImportById(RowCounts):
    """Stores the events whose row id this organization has not imported before.

    1. The ids of a chunk's rows are looked up. The caller holds the lock `import`: no other import adds ids meanwhile.
    2. The new ids and their events are stored in one transaction.

    So a row is stored once, also if the import is killed or another file has the row. Memory does not grow with ids.
    """

    def __init__(
        self,
        connection: TimeoutConnection,
        org_id: str,
        on_reject: Callable[[Reject], None],
        *,
        stores: bool,
        may_repeat: bool = False,
    ) -> None:
        """Without `stores`, rows are only looked for. If they `may_repeat`, they may be equal to imported events."""
        super().__init__(on_reject)
        self._connection = connection
        self._org_id = org_id
        self._stores = stores
        self._may_repeat = may_repeat
        self._began = server_time(connection)
        self.changed = 0  # rows that were imported before with other content
        self.first_changed = 0  # the line of the first of them

    def run(self, items: Iterator[Event | Reject]) -> Iterator[None]:
        """Store the events; yield after each chunk.

        Raises QuotaEnded, AllRejected, IdsNotUnique, OtherContent, StoredAlready, and Unreadable when what came before
        is stored.
        """
        unreadable = None
        chunk: dict[bytes, Event] = {}
        size = 0
        try:
            for event in self.valid(items):
                if (earlier := chunk.get(event.row_id)) is not None:
                    if earlier.content != event.content:
                        raise IdsNotUnique(event.line)
                    self._skip(event, event.content)
                    continue
                chunk[event.row_id] = event
                size += len(event.text)
                if len(chunk) >= ROWS_AT_ONCE or size >= BYTES_AT_ONCE:
                    self._store(chunk)
                    yield
                    chunk, size = {}, 0
        except Unreadable as error:
            unreadable = error
        self._store(chunk)
        yield
        if unreadable:
            raise unreadable

    def _store(self, chunk: dict[bytes, Event]) -> None:
        """Store the new events of a chunk, or as many as the quota has room for. Raises QuotaEnded."""
        if not chunk:
            return
        if self._stores and self.stored == self.skipped == 0:
            self._check_first(chunk)
        try:
            with translate_errors():
                before = self._contents(list(chunk))
                new = {row_id: event for row_id, event in chunk.items() if row_id not in before}
                if self._stores and new:
                    self._insert(new)
                    self.stored += len(new)
        except QuotaExceeded as error:
            self._store_up_to_quota(chunk, error.args[0])
        except InvalidJSON as error:
            if len(chunk) == 1:
                [event] = chunk.values()
                self.reject(Reject(event.line, str(error), one_line(event.text)))
                return
            half = len(chunk) // 2
            self._store(dict(islice(chunk.items(), half)))
            self._store(dict(islice(chunk.items(), half, None)))
        else:
            for row_id, (content, is_of_this_run) in before.items():
                self._skip(chunk[row_id], content, is_of_this_run)

    def _insert(self, new: dict[bytes, Event]) -> None:
        """Store events and the ids of their rows in one transaction. Raises QuotaExceeded and InvalidJSON."""
        events = new.values()
        texts = ",".join(event.text for event in events)
        batch = storage.EventBatch(storable_text(f"[{texts}]"), list(range(len(new))), len(new), source="import")
        values = {"org_id": self._org_id, "ids": list(new), "contents": [event.content for event in events]}

        def store() -> None:
            self._connection.execute(INSERT_ROWS, values)
            storage.call_store_events(self._connection, self._org_id, None, batch, None)

        in_transaction(self._connection, store)

    def _store_up_to_quota(self, chunk: dict[bytes, Event], room: int) -> None:
        """Store the rows up to the first that the quota has no room for, and raise QuotaEnded."""
        before = self._contents(list(chunk))
        new = [position for position, row_id in enumerate(chunk) if row_id not in before]
        end = new[room]
        self._store(dict(islice(chunk.items(), end)))
        raise QuotaEnded(list(chunk.values())[end].line)

    def _check_first(self, chunk: dict[bytes, Event]) -> None:
        """Raise OtherContent or StoredAlready if most of the first rows were imported as others, or without ids."""
        with translate_errors():
            before = self._contents(list(chunk))
        changed = sum(chunk[row_id].content != content for row_id, (content, _) in before.items())
        if changed > len(chunk) // 2:
            raise OtherContent(changed, len(chunk))
        new = [event.text for row_id, event in chunk.items() if row_id not in before][:1000]
        if new and not self._may_repeat:
            equal = count_equal(self._connection, self._org_id, new, self._began)
            if equal > len(new) // 2:
                raise StoredAlready(equal, len(new))

    def _contents(self, ids: list[bytes]) -> dict[bytes, tuple[bytes, bool]]:
        """Return the content of the rows that were imported, and whether by this run, by their ids."""
        values = {"org_id": self._org_id, "ids": ids, "began": self._began}
        rows = self._connection.execute(SELECT_CONTENTS, values)
        return {bytes(row_id): (bytes(content), is_of_this_run) for row_id, content, is_of_this_run in rows}

    def _skip(self, event: Event, content: bytes, is_of_this_run: bool = True) -> None:
        if event.content != content and is_of_this_run:
            raise IdsNotUnique(event.line)
        self.skipped += 1
        if event.content != content:
            self.changed += 1
            self.first_changed = self.first_changed or event.line
