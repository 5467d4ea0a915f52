"""Let only one process at a time do something to an organization."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import click
import psycopg

from commands.base import AlreadyRunning
from database import Connection


@contextmanager
def exclusive(connection: Connection, name: str, org_id: str, *, wait: bool = False) -> Iterator[None]:
    """Hold an advisory lock of an organization. Of each name, only one process at a time holds it.

    Raises AlreadyRunning if another process holds it, or with `wait` waits for that process.
    """
    lock = [f"igris-ingest {name}", org_id]
    [(locked,)] = connection.execute("SELECT pg_try_advisory_lock(hashtext(%s), hashtext(%s))", lock).fetchall()
    if not locked:
        holder = f"{org_id!r}: another process holds the lock `{name}`"
        if not wait:
            raise AlreadyRunning(f"{holder}; try again when it has ended")
        click.echo(f"{holder}: waiting", err=True)
        connection.execute("SELECT pg_advisory_lock(hashtext(%s), hashtext(%s))", lock)
    try:
        yield
    finally:
        # closing the connection gives the lock back, too, but some time later
        with suppress(psycopg.Error):
            connection.execute("SELECT pg_advisory_unlock(hashtext(%s), hashtext(%s))", lock)
