"""Let one import at a time run into an organization."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psycopg

from commands.base import AlreadyRunning
from database import Connection


@contextmanager
def only_import(connection: Connection, org_id: str) -> Iterator[None]:
    """Let no other import into the organization run meanwhile. Raises AlreadyRunning if one does."""
    [(locked,)] = connection.execute(
        "SELECT pg_try_advisory_lock(hashtext('igris-ingest import'), hashtext(%s))", [org_id]
    ).fetchall()
    if not locked:
        raise AlreadyRunning(f"another import into {org_id!r} is running")
    try:
        yield
    finally:
        # closing the connection gives the lock back, too, but some time later
        with suppress(psycopg.Error):
            connection.execute("SELECT pg_advisory_unlock_all()")
