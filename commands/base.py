"""What every command needs: a connection, and errors as one line."""

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from datetime import UTC, datetime
from typing import Any

import click
import psycopg
from flask import current_app
from flask.cli import with_appcontext
from psycopg.rows import dict_row
from psycopg.types.datetime import TimestamptzLoader

import database
from commands.output import printable
from database import Connection, TimeoutConnection


class NotFound(Exception):
    """There is no such organization, API key or import. The argument says which."""


class AlreadyRunning(Exception):
    """Another process does what only one may do. The argument says what."""


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Run a command in the application's context. An error ends it with one line and exit status 1."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
            sys.stdout.flush()
        except BrokenPipeError:  # whoever read the output has seen enough: click ends quietly
            raise
        except OSError as error:
            where = "standard output" if error.filename is None else printable(str(error.filename))
            raise click.ClickException(f"{where}: {error.strerror}") from None
        except database.Unavailable as error:
            raise click.ClickException(": ".join(error.args)) from None
        except (NotFound, database.DataRejected, AlreadyRunning) as error:
            raise click.ClickException(str(error)) from None

    return with_appcontext(wrapper)


@contextmanager
def translate_errors() -> Iterator[None]:
    """Turn the driver's errors into the exceptions of `database`."""
    try:
        yield
    except psycopg.Error as error:
        database.raise_translated(error)


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
    with translate_errors(), closing(psycopg.connect(database.conninfo(database_url, {}), autocommit=True)) as made:
        made.adapters.register_loader("timestamptz", _NearestTime)
        yield made


def session() -> AbstractContextManager[Connection]:
    """Open a connection as `connect` does, to DATABASE_URL."""
    return connect(current_app.config["DATABASE_URL"])


@contextmanager
def session_with_timeouts() -> Iterator[TimeoutConnection]:
    """Open a connection as `session` does, with the timeouts of requests. It waits LOCK_TIMEOUT for a lock."""
    settings = database.timeout_settings(database.LOCK_TIMEOUT)
    conninfo = database.conninfo(current_app.config["DATABASE_URL"], settings)
    with translate_errors(), closing(TimeoutConnection.open(conninfo)) as made:
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

    Has to be its first statement: one that sees an older state, and waits for the move, finds the events nowhere.
    """
    connection.execute("LOCK TABLE audit_events IN ACCESS SHARE MODE")


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
