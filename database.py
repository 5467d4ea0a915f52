"""Connect to PostgreSQL: the pool of the service, single connections for commands, timeouts, and what errors mean."""

import logging
import re
import select
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg_pool import ConnectionPool

log = logging.getLogger("igris")

Connection = psycopg.Connection[Any]


class Unavailable(Exception):
    """PostgreSQL can't be reached, can't store now, or has no connection free: try again later.

    The first argument is a reason that strangers may read; the second is what PostgreSQL said, for the operator.
    """

    def __str__(self) -> str:
        return str(self.args[0])

    @property
    def for_operator(self) -> str:
        return f"{self} ({words})" if (words := self.args[1:] and self.args[1]) else str(self)


class LockTimeout(Unavailable):
    """Another transaction held a lock for too long."""


class OutOfMemory(Unavailable):
    """PostgreSQL had too little memory for a statement."""


class DataRejected(Exception):
    """PostgreSQL refuses the data itself, and will refuse it again. The argument says why."""


# docs/limits.md lists them together with gunicorn's and nginx's.
CONNECT_TIMEOUT = 3
"""Seconds to reach PostgreSQL."""
POOL_TIMEOUT = 2
"""Seconds that a request waits for a connection. Each thread has one, so it waits only while PostgreSQL is away
or has just come back."""
SHORT_LOCK_TIMEOUT = 0.2
"""Seconds that any request waits for a lock. Only some may wait longer: see storage.py."""
LOCK_TIMEOUT = 7
STATEMENT_TIMEOUT = 8
"""Seconds after which PostgreSQL gives up waiting for a lock, and a statement."""
ANSWER_TIMEOUT = 10
"""Seconds after which the service gives up on PostgreSQL."""

RETRY_COOLDOWN = 10
"""Seconds after a failed attempt to connect in which PostgreSQL is assumed to be still away. Until then ..."""
POOL_TIMEOUT_WHILE_AWAY = 0.1
"""... a request waits only this long for the attempt that it starts."""

# A database or a role can have other defaults; the statements rely on these.
SESSION_SETTINGS = {
    "default_transaction_isolation": "read committed",
    "standard_conforming_strings": "on",
    "synchronous_commit": "on",
    "DateStyle": "ISO, MDY",
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",
}


def timeout_settings(lock_timeout: float) -> dict[str, str]:
    """Return the PostgreSQL settings that bound a statement. `lock_timeout` is in seconds."""
    return {
        "lock_timeout": f"{lock_timeout:g}s",
        "statement_timeout": f"{STATEMENT_TIMEOUT}s",
        "idle_in_transaction_session_timeout": f"{STATEMENT_TIMEOUT}s",
    }


def check_url(text: str) -> str:
    """Return a connection URL or string of PostgreSQL. Raises ValueError, without any part of the text."""
    try:
        given = conninfo_to_dict(text)
        int(given.get("connect_timeout") or 0)
        # where a password is not percent-encoded, a part of it ends up in one of these, and in messages of libpq's
        if not re.fullmatch(r"[0-9,]*", str(given.get("port") or "")):
            raise ValueError
        if "@" in f"{given.get('host')}{given.get('dbname')}":
            raise ValueError
    except (psycopg.Error, ValueError):
        raise ValueError(
            "must be a URL such as postgresql://user:password@host:5432/database; in a password, percent-encode "
            "/ @ : ? # % as %2F %40 %3A %3F %23 %25"
        ) from None
    return text


def _conninfo(database_url: str, settings: dict[str, str]) -> str:
    """Add our parameters to the URL where it sets none. Server options in the URL come last, and so win."""
    given = conninfo_to_dict(database_url)
    parameters = {"application_name": "igris-ingest", "connect_timeout": CONNECT_TIMEOUT, **given}
    parameters["client_encoding"] = "UTF8"
    settings = {**SESSION_SETTINGS, **settings}
    options = ["-c " + f"{name}={value}".replace(" ", r"\ ") for name, value in settings.items()]
    parameters["options"] = " ".join([*options, str(given.get("options") or "")]).strip()
    return make_conninfo(database_url, **parameters)


class TimeoutConnection(psycopg.Connection[Any]):
    """A connection that waits ANSWER_TIMEOUT for an answer: a server that hangs obeys no statement_timeout.

    At an upgrade of psycopg, check that `Connection.wait` still takes `timeout` and raises `_WaitTimeout`.
    """

    def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        try:
            return super().wait(gen, interval, ANSWER_TIMEOUT if timeout is None else timeout)
        except psycopg.errors._WaitTimeout:
            self.close()
            raise


class Pool:
    """The connections of a process, in autocommit mode: each statement is a transaction.

    It opens at the first request, after gunicorn's fork.
    """

    def __init__(self, database_url: str, size: int, *, prepare: bool) -> None:
        self._away_until = 0.0
        self._is_away = False
        self._pool = ConnectionPool(
            _conninfo(database_url, timeout_settings(SHORT_LOCK_TIMEOUT)),
            connection_class=TimeoutConnection,
            kwargs={"autocommit": True, "prepare_threshold": 0 if prepare else None},
            open=False,
            min_size=size,
            max_size=size,
            timeout=POOL_TIMEOUT,
            # The pool would retry ever more seldom, and be back long after the database is. Instead it gives up at
            # once, and each request that finds no connection makes it try again.
            reconnect_timeout=0,
            reconnect_failed=self._reconnect_failed,
        )

    def close(self) -> None:
        self._pool.close()

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """Lend a connection. Raises Unavailable if there is none, and what `raise_translated` raises."""
        try:
            connection = self._take()
            try:
                yield connection
            finally:
                self._pool.putconn(connection)
        except psycopg.Error as error:
            raise_translated(error)

    def _take(self) -> TimeoutConnection:
        if self._pool.closed:
            self._pool.open()
        away = time.monotonic() < self._away_until
        while True:
            connection = self._pool.getconn(POOL_TIMEOUT_WHILE_AWAY if away else POOL_TIMEOUT)
            if _is_alive(connection):
                if self._is_away:
                    self._is_away, self._away_until = False, 0.0
                    log.warning("PostgreSQL is back")
                return connection
            # If we noticed only on use, we could not know whether the statement ran. The pool's own check= waits about
            # a second from the second dead connection on.
            connection.close()
            self._pool.putconn(connection)

    def _reconnect_failed(self, _: ConnectionPool) -> None:
        self._is_away = True
        self._away_until = time.monotonic() + RETRY_COOLDOWN


def _is_alive(connection: Connection) -> bool:
    """Return whether an idle connection is still open, as far as can be known without asking PostgreSQL.

    A closed connection is readable. So is one with news: a changed parameter, or a ticket of TLS.
    """
    poll = select.poll()
    poll.register(connection.pgconn.socket, select.POLLIN)
    try:
        while poll.poll(0):
            connection.pgconn.consume_input()
    except psycopg.OperationalError:
        return False
    return True


@contextmanager
def connect(database_url: str, *, with_timeouts: bool) -> Iterator[Connection]:
    """Open a connection for a command, with a transaction that is committed at the end. Raises Unavailable.

    `with_timeouts` gives it the timeouts of requests; it waits LOCK_TIMEOUT for a lock.
    """
    with translate_errors():
        if with_timeouts:
            connection: Connection = TimeoutConnection.connect(_conninfo(database_url, timeout_settings(LOCK_TIMEOUT)))
        else:
            connection = psycopg.connect(_conninfo(database_url, {}))
        with connection:
            yield connection


@contextmanager
def translate_errors() -> Iterator[None]:
    """Turn the driver's errors into the exceptions above."""
    try:
        yield
    except psycopg.Error as error:
        raise_translated(error)


_NO_SCHEMA = "the schema is missing or of another version: run init-db"
_MEANINGS = {
    "26000": "prepared statements fail: behind this pooler set PREPARED_STATEMENTS=off",
    "42P05": "prepared statements fail: behind this pooler set PREPARED_STATEMENTS=off",
    "42P01": _NO_SCHEMA,  # undefined table, function, column, schema
    "42883": _NO_SCHEMA,
    "42703": _NO_SCHEMA,
    "3F000": _NO_SCHEMA,
    "42501": "the database role lacks a privilege",
    "25006": "the database is read-only",
    "57014": "PostgreSQL took too long",
}
# The errors that a body itself can cause.
_BODY_ERRORS = {
    "22003": "A number is too large or has too many digits",
    "54001": "Nested too deep",
    "54000": None,  # None: in PostgreSQL's words
    "22P02": None,
    "22P05": None,
    "22021": None,
    "22007": None,
    "22008": None,
}


def raise_translated(error: psycopg.Error) -> NoReturn:
    """Raise what a driver's error means to the rest of the program.

    Of PostgreSQL's words only the primary message goes into Unavailable: details and contexts quote the client's data.
    """
    sqlstate = error.sqlstate or ""
    words = error.diag.message_primary or str(error).partition("\n")[0] or type(error).__name__
    # an operator's trigger can fail in the same ways; then PostgreSQL names its function
    functions = re.findall(r"function (?!store_events_)[\w.\"]+", error.diag.context or "")
    if sqlstate in _BODY_ERRORS and not functions:
        raise DataRejected(_BODY_ERRORS[sqlstate] or words) from None
    if sqlstate == "55P03":
        raise LockTimeout("PostgreSQL took too long", words) from None
    if sqlstate == "53200":
        raise OutOfMemory("PostgreSQL has too little memory", words) from None
    if sqlstate in _MEANINGS:
        raise Unavailable(_MEANINGS[sqlstate], words) from None
    if sqlstate.startswith("42") and not functions:
        raise RuntimeError(f"{sqlstate}: {words}") from None  # a statement of ours is wrong
    if not sqlstate and isinstance(error, psycopg.ProgrammingError):
        raise Unavailable("DATABASE_URL has a wrong parameter") from None
    if not sqlstate or sqlstate.startswith(("08", "28", "3D", "53", "57", "58")):
        raise Unavailable("PostgreSQL can't be reached", words) from None
    raise Unavailable("PostgreSQL can't store this now", f"{sqlstate}: {words}") from None
