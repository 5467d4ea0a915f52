"""Connect to PostgreSQL: the connections of the service and of commands, timeouts, and what errors mean."""

import logging
import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import psycopg
from psycopg import generators
from psycopg.conninfo import conninfo_to_dict, make_conninfo

log = logging.getLogger("igris")

Connection = psycopg.Connection[Any]


class Unavailable(Exception):
    """PostgreSQL can't be reached, or can't store now: try again later.

    The first argument is a reason that strangers may read; the second, if there is one, is what PostgreSQL said.
    """


class LockTimeout(Unavailable):
    """Another transaction held a lock for too long."""


class OutOfMemory(Unavailable):
    """PostgreSQL had too little memory for a statement."""


class DataRejected(Exception):
    """PostgreSQL refuses the data itself, and will refuse it again. The argument says why."""


# docs/limits.md lists them together with gunicorn's and nginx's.
CONNECT_TIMEOUT = 3  # seconds to reach PostgreSQL
ATTEMPT_TIMEOUT = 0.1  # seconds that a request waits for another one's attempt while PostgreSQL is away
SHORT_LOCK_TIMEOUT = 0.5  # seconds that any request waits for a lock. Only some may wait longer: see storage.py.
LOCK_TIMEOUT = 7  # seconds that those few, and commands, wait for a lock
STATEMENT_TIMEOUT = 8  # seconds after which PostgreSQL gives up a statement
ANSWER_TIMEOUT = 10  # seconds after which the service gives up on PostgreSQL

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


def conninfo(database_url: str, settings: dict[str, str]) -> str:
    """Return a connection string: the URL, our parameters where it sets none, and settings, of which the URL's win."""
    given = conninfo_to_dict(database_url)
    parameters = {"application_name": "igris-ingest", "connect_timeout": CONNECT_TIMEOUT, **given}
    parameters["client_encoding"] = "UTF8"
    settings = {**SESSION_SETTINGS, **settings}
    options = ["-c " + f"{name}={value}".replace(" ", r"\ ") for name, value in settings.items()]
    parameters["options"] = " ".join([*options, str(given.get("options") or "")]).strip()
    return make_conninfo(database_url, **parameters)


class TimeoutConnection(psycopg.Connection[Any]):
    """A connection that waits ANSWER_TIMEOUT for an answer: a server that hangs obeys no statement_timeout.

    At an upgrade of psycopg, check that `Connection.wait` still takes `timeout` and raises `_WaitTimeout`, and that
    `generators.execute` still returns the results of what was sent.
    """

    _prepares: bool
    _prepared_names: set[bytes]

    @classmethod
    def open(cls, conninfo: str, *, prepare: bool = True) -> "TimeoutConnection":
        """Open a connection on which each statement is a transaction. `prepare` is for `call`. Raises psycopg.Error."""
        # psycopg prepares nothing: at a rollback it would deallocate what `call` has prepared, too
        connection = cls.connect(conninfo, autocommit=True, prepare_threshold=None)
        connection._prepares, connection._prepared_names = prepare, set()
        return connection

    def call(self, name: bytes, statement: bytes, parameters: Sequence[bytes | None]) -> list[bytes | None]:
        """Execute a statement that returns one row, and return the row's values. All values are PostgreSQL's texts.

        The statement has $1 and so on for the parameters, and is prepared under `name`. A cursor does the same with
        three times as much CPU. Raises psycopg.Error.
        """
        if not self._prepares:
            self.pgconn.send_query_params(statement, parameters)
        else:
            if name not in self._prepared_names:
                self.pgconn.send_prepare(name, statement)
                self._result()
                self._prepared_names.add(name)
            self.pgconn.send_query_prepared(name, parameters)
        result = self._result()
        return [result.get_value(0, column) for column in range(result.nfields)]

    def _result(self) -> Any:
        [*_, result] = self.wait(generators.execute(self.pgconn))
        if result.status not in (psycopg.pq.ExecStatus.COMMAND_OK, psycopg.pq.ExecStatus.TUPLES_OK):
            raise psycopg.errors.error_from_result(result)
        return result

    def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        try:
            return super().wait(gen, interval, ANSWER_TIMEOUT if timeout is None else timeout)
        except psycopg.errors._WaitTimeout:
            self.close()
            raise


class Database:
    """The connections of a process, in autocommit mode: each statement is a transaction.

    A request takes one that is idle, or opens one: there are never more than threads.
    """

    def __init__(self, url: str, *, prepare: bool) -> None:
        self._conninfo = conninfo(url, timeout_settings(SHORT_LOCK_TIMEOUT))
        self._prepare = prepare
        self._idle: list[TimeoutConnection] = []
        self._is_away = False
        self._last_answer = 0.0
        self._attempt = threading.Lock()

    @contextmanager
    def connection(self) -> Iterator[TimeoutConnection]:
        """Lend a connection. Raises Unavailable, and what `raise_translated` raises.

        While PostgreSQL is away, or hangs, one request at a time tries it, and the others hardly wait.
        """
        is_attempt = self._is_away
        if is_attempt and not self._attempt.acquire(timeout=ATTEMPT_TIMEOUT):
            raise Unavailable("PostgreSQL can't be reached")
        if is_attempt and not self._is_away:  # it has come back meanwhile
            self._attempt.release()
            is_attempt = False
        began = time.monotonic()
        try:
            connection = self._take()
            try:
                yield connection
            finally:
                self._idle.append(connection)
                if not connection.closed:  # it has answered, if only to refuse something
                    self._last_answer = time.monotonic()
                    if self._is_away:
                        self._is_away = False
                        log.warning("PostgreSQL is back")
        except psycopg.Error as error:
            # on Citus one statement can hang with a worker while others are answered
            if isinstance(error, psycopg.errors._WaitTimeout) and self._last_answer < began:
                self._is_away = True
            raise_translated(error)
        finally:
            if is_attempt:
                self._attempt.release()

    def _take(self) -> TimeoutConnection:
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return self._connect()
            if _is_usable(connection):
                return connection
            connection.close()

    def _connect(self) -> TimeoutConnection:
        try:
            return TimeoutConnection.open(self._conninfo, prepare=self._prepare)
        except psycopg.Error:
            self._is_away = True
            raise


def _is_usable(connection: Connection) -> bool:
    """Return whether an idle connection is still open, as far as can be known without asking PostgreSQL.

    If that were noticed only on use, nobody would know whether the statement ran.
    """
    if connection.closed or connection.pgconn.transaction_status != psycopg.pq.TransactionStatus.IDLE:
        return False
    try:
        connection.pgconn.consume_input()  # what PostgreSQL said last
        connection.pgconn.consume_input()  # that it has hung up
    except psycopg.OperationalError:
        return False
    return True


_AWAY = (Unavailable, "PostgreSQL can't be reached")
_NO_SCHEMA = (Unavailable, "the schema is missing or of another version: run init-db")
_NOT_PREPARED = (Unavailable, "prepared statements fail: behind this pooler set PREPARED_STATEMENTS=off")
_CANT_STORE = (Unavailable, "PostgreSQL can't store this now")
_IN_ITS_WORDS = (DataRejected, None)
# What an SQLSTATE, or a class of them, means (PostgreSQL's documentation, appendix A).
_MEANINGS: dict[str, tuple[type[Exception], str | None]] = {
    "22003": (DataRejected, "A number is too large or has too many digits"),
    "54001": (DataRejected, "Nested too deep"),
    **dict.fromkeys(("54000", "22P02", "22P05", "22021", "22007", "22008"), _IN_ITS_WORDS),
    "55P03": (LockTimeout, "PostgreSQL took too long"),
    "53200": (OutOfMemory, "PostgreSQL has too little memory"),
    "57014": (Unavailable, "PostgreSQL took too long"),
    **dict.fromkeys(("53100", "58"), _CANT_STORE),
    "25006": (Unavailable, "the database is read-only"),
    "42501": (Unavailable, "the database role lacks a privilege"),
    **dict.fromkeys(("26000", "42P05"), _NOT_PREPARED),
    **dict.fromkeys(("42P01", "42883", "42703", "3F000"), _NO_SCHEMA),
    **dict.fromkeys(("08", "28", "3D", "53", "57"), _AWAY),
    "42": (RuntimeError, None),  # a statement of ours is wrong
}


def raise_translated(error: psycopg.Error) -> NoReturn:
    """Raise what a driver's error means to the rest of the program.

    Of PostgreSQL's words only the primary message is repeated: details and contexts quote the client's data.
    """
    words = error.diag.message_primary or str(error).partition("\n")[0] or type(error).__name__
    if error.sqlstate:
        kind, reason = _MEANINGS.get(error.sqlstate) or _MEANINGS.get(error.sqlstate[:2], _CANT_STORE)
    elif isinstance(error, psycopg.ProgrammingError):
        raise Unavailable("DATABASE_URL has a wrong parameter") from None
    else:
        kind, reason = _AWAY
    if issubclass(kind, Unavailable):
        raise kind(reason, words) from None
    if re.search(r"function (?!store_events_)[\w.\"]+", error.diag.context or ""):
        raise Unavailable(_CANT_STORE[1], words) from None  # a trigger of the operator's failed, and not the body
    raise kind(reason or words) from None
