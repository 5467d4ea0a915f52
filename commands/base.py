"""What every command needs: settings, a connection, locks, and errors as one line."""

import functools
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import psycopg
from psycopg.rows import dict_row
from psycopg.types.datetime import TimestamptzLoader

import database
import database_errors
from commands.output import printable
from config import load_settings
from database import Connection, TimeoutConnection
from json_text import InvalidJSON
from storage import check_schema_version


class NotFound(Exception):
    """There is no such organization, API key or import. The argument says which."""


class AlreadyRunning(Exception):
    """Another process holds the lock of what only one may do. The argument says which."""


def reports_errors(function: Callable[..., None]) -> Callable[..., None]:
    """Make an error of a command one line on standard error, and exit status 1."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
            sys.stdout.flush()
        except BrokenPipeError:  # the reader of the output has gone: click ends quietly
            raise
        except OSError as error:
            with suppress(OSError):  # else Python writes what is left again when it ends, and exits with 120
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            where = "standard output" if error.filename is None else printable(str(error.filename))
            raise click.ClickException(f"{where}: {error.strerror}") from None
        except (database_errors.Unavailable, NotFound, InvalidJSON, AlreadyRunning) as error:
            raise click.ClickException(": ".join(error.args)) from None

    return wrapper


@contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """Add the path to an OSError of a file that is open, such as that of a full disk."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or path
        raise


@contextmanager
def translate_errors() -> Iterator[None]:
    """Turn the driver's errors into the exceptions of `database_errors`."""
    try:
        yield
    except psycopg.Error as error:
        database_errors.raise_translated(error)


@contextmanager
def report_error(what: str) -> Iterator[list[Exception]]:
    """Print an error of one organization or event, and end without it, so that a command goes on with the next.

    Yields a list, which gets the error.
    """
    errors: list[Exception] = []
    try:
        with translate_errors():
            yield errors
    except (database_errors.Unavailable, InvalidJSON) as error:
        errors.append(error)
        click.echo(printable(f"Error: {what}: {': '.join(error.args)}"), err=True)


MAX_LOCK_WAIT = "10min"  # for the advisory lock of another process

_FIRST_TIME = datetime(1, 1, 1, tzinfo=UTC)
_LAST_TIME = datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)


class _NearestTime(TimestamptzLoader):
    """Reads a time that Python has no value for, such as infinity, as the first or the last that it has."""

    def load(self, data: Any) -> datetime:
        try:
            return super().load(data)
        except psycopg.DataError:
            text = bytes(data)
            is_early = text.startswith(b"-") or text.endswith(b"BC")
            return _FIRST_TIME if is_early else _LAST_TIME


@contextmanager
def connect(database_url: str) -> Iterator[Connection]:
    """Open a connection on which each statement is a transaction. Raises Unavailable."""
    with translate_errors(), closing(psycopg.connect(database.conninfo(database_url), autocommit=True)) as made:
        database.set_up_session(made, {})
        made.adapters.register_loader("timestamptz", _NearestTime)
        yield made


@contextmanager
def session() -> Iterator[Connection]:
    """Open a connection as `connect` does, to DATABASE_URL. Raises Unavailable if its schema isn't the program's."""
    with connect(load_settings()["DATABASE_URL"]) as connection:
        check_schema(connection)
        yield connection


def check_schema(connection: Connection) -> None:
    [(version,)] = connection.execute("SELECT max(version) FROM schema_version").fetchall()
    check_schema_version(version)


@contextmanager
def session_with_timeouts() -> Iterator[TimeoutConnection]:
    """Open a connection as `session` does, with the timeouts of requests. It waits LOCK_TIMEOUT for a lock."""
    url = load_settings()["DATABASE_URL"]
    with translate_errors(), closing(TimeoutConnection.open(url, database.LOCK_TIMEOUT)) as made:
        check_schema(made)
        yield made


@contextmanager
def transaction() -> Iterator[Connection]:
    """Open a connection with a transaction that is committed at the end. Raises Unavailable."""
    with session() as connection, connection.transaction():
        yield connection


@contextmanager
def snapshot() -> Iterator[Connection]:
    """Open a connection with a transaction that can only read, and sees one state of all rows. Raises Unavailable."""
    with session() as connection:
        connection.isolation_level, connection.read_only = psycopg.IsolationLevel.REPEATABLE_READ, True
        with connection.transaction():
            lock_partitions(connection)
            yield connection


def lock_partitions(connection: Connection) -> None:
    """Keep events from being moved to another partition until the transaction ends.

    Has to be its first statement: otherwise its snapshot could be older than a move, and would miss the moved events.
    From then on, PostgreSQL's own functions are found before functions of the same name in other schemas.
    """
    connection.execute("LOCK TABLE audit_events IN ACCESS SHARE MODE")
    connection.execute("SELECT set_config('search_path', 'pg_catalog, ' || current_setting('search_path'), true)")


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
        connection.execute("SELECT set_config('lock_timeout', %s, false)", [MAX_LOCK_WAIT])
        try:
            connection.execute("SELECT pg_advisory_lock(hashtext(%s), hashtext(%s))", lock)
        except psycopg.errors.LockNotAvailable:
            raise database_errors.Unavailable(f"{holder} for over {MAX_LOCK_WAIT}") from None
        connection.execute("SELECT set_config('lock_timeout', '0', false)")
    try:
        yield
    finally:
        # closing the connection gives the lock back, too, but some time later
        with suppress(psycopg.Error):
            connection.execute("SELECT pg_advisory_unlock(hashtext(%s), hashtext(%s))", lock)


def server_time(connection: Connection) -> datetime:
    """Return PostgreSQL's time, which received_at goes by."""
    [(now,)] = connection.execute("SELECT now()").fetchall()
    return now  # type: ignore[no-any-return]


def check_organization(connection: Connection, org_id: str | None) -> None:
    """Raise NotFound if there is no such organization; None stands for all."""
    if org_id and not connection.execute("SELECT FROM organizations WHERE id = %s", [org_id]).rowcount:
        raise NotFound(f"there is no organization {org_id!r}")


def fetch_dicts(connection: Connection, query: str, parameters: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of a query as dicts by column."""
    return connection.cursor(row_factory=dict_row).execute(query.encode(), parameters).fetchall()
