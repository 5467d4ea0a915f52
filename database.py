"""Connect to PostgreSQL: timeouts, the connections of a web worker, and whether PostgreSQL is available."""

import json
import logging
import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import generators
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from database_errors import UNREACHABLE, Unavailable, raise_translated

log = logging.getLogger("igris")
Connection = psycopg.Connection[Any]

# docs/limits.md lists them together with gunicorn's and nginx's. Each is longer than the ones inside it.
CONNECT_TIMEOUT = 3  # seconds to reach PostgreSQL
ATTEMPT_TIMEOUT = 0.1  # seconds that a request waits for the attempt of another request to reach PostgreSQL
SHORT_LOCK_TIMEOUT = 0.2  # seconds that the last free connection of a worker waits for a lock
LOCK_TIMEOUT = 7  # seconds that the other connections of a worker, and commands, wait for a lock
STATEMENT_TIMEOUT = 8  # seconds after which PostgreSQL ends a statement
RESPONSE_TIMEOUT = 10  # seconds after which the service stops waiting for PostgreSQL

# A database or a role can have other defaults. The statements rely on these values.
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
    statement = dict.fromkeys(("statement_timeout", "idle_in_transaction_session_timeout"), f"{STATEMENT_TIMEOUT}s")
    return {"lock_timeout": f"{lock_timeout:g}s", **statement}


def conninfo(database_url: str) -> str:
    """Return a connection string: the URL, and our parameters where it sets none. Raises psycopg.ProgrammingError."""
    given = conninfo_to_dict(database_url)
    parameters: dict[str, Any] = {"application_name": "igris-ingest", "connect_timeout": CONNECT_TIMEOUT, **given}
    return make_conninfo(database_url, **{**parameters, "client_encoding": "UTF8"})


def set_up_session(connection: Connection, settings: dict[str, str]) -> None:
    """Set SESSION_SETTINGS and more settings, but for those in the `options` of the URL. Raises psycopg.Error.

    They are not sent as `options`, which many poolers reject.
    """
    given = re.findall(r"(?:-c\s*|--)(\w+)=", connection.info.options)
    values = {name: value for name, value in {**SESSION_SETTINGS, **settings}.items() if name not in given}
    connection.execute("SELECT set_config(key, value, false) FROM json_each_text(%s)", [json.dumps(values)])


class TimeoutConnection(psycopg.Connection[Any]):
    """A connection that waits RESPONSE_TIMEOUT for PostgreSQL: a server that hangs obeys no statement_timeout."""

    prepares = True
    is_prepared = False  # the statement of `call`
    is_hung = False  # PostgreSQL did not respond in time, and the connection is closed

    @classmethod
    def open(cls, database_url: str, lock_timeout: float, *, prepare: bool = True) -> "TimeoutConnection":
        """Open a connection in autocommit mode that waits `lock_timeout` seconds for a lock. Raises psycopg.Error."""
        # psycopg prepares nothing: its rollbacks would deallocate what `call` prepares
        connection = cls.connect(conninfo(database_url), autocommit=True, prepare_threshold=None)
        connection.prepares = prepare
        try:
            set_up_session(connection, timeout_settings(lock_timeout))
        except psycopg.Error:
            connection.close()
            raise
        return connection

    def call(self, statement: bytes, parameters: Sequence[bytes | None]) -> list[bytes | None]:
        """Execute a statement, always the same, that returns one row; return its values as PostgreSQL's texts.

        The statement has $1 and so on for the parameters. A psycopg.RawCursor takes 60 to 100 us more of CPU: at one
        event, 5% to 10% fewer requests a second (2026-11-28). Raises psycopg.Error.
        """
        if not self.prepares:
            self.pgconn.send_query_params(statement, parameters)
        else:
            if not self.is_prepared:
                self.pgconn.send_prepare(b"call", statement)
                self._result()
                self.is_prepared = True
            self.pgconn.send_query_prepared(b"call", parameters)
        result = self._result()
        return [result.get_value(0, column) for column in range(result.nfields)]

    def _result(self) -> Any:
        [*_, result] = self.wait(generators.execute(self.pgconn))
        if result.status not in (psycopg.pq.ExecStatus.COMMAND_OK, psycopg.pq.ExecStatus.TUPLES_OK):
            raise psycopg.errors.error_from_result(result)
        return result

    def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        timeout = RESPONSE_TIMEOUT if timeout is None else timeout
        deadline = time.monotonic() + timeout
        try:
            return super().wait(gen, interval, timeout)
        except psycopg.OperationalError:
            if time.monotonic() >= deadline:
                self.is_hung = True
                self.close()
            raise

    def is_usable(self) -> bool:
        """Return whether the connection is open: a statement that finds it closed may have run or not."""
        try:
            self.pgconn.consume_input()  # what PostgreSQL sent last
            self.pgconn.consume_input()  # that it has closed the connection
            return self.pgconn.transaction_status == psycopg.pq.TransactionStatus.IDLE
        except psycopg.OperationalError:
            return False


class Database:
    """The connections of a web worker, one for each thread, in autocommit mode.

    All requests of an organization can wait for one row, and must not hold all threads: so the connection that is
    taken last waits only SHORT_LOCK_TIMEOUT for a lock.
    """

    def __init__(self, url: str, threads: int, *, prepare: bool) -> None:
        self._url = url
        self._prepare = prepare
        # Lock timeouts and connections. `pop` takes an open one first, then one to open, and the impatient one last.
        self._free: list[tuple[float, TimeoutConnection | None]] = [(LOCK_TIMEOUT, None)] * threads
        self._free[0] = (SHORT_LOCK_TIMEOUT, None)
        self._is_down = False  # PostgreSQL could not be reached, or did not respond
        self._last_response = 0.0
        self._attempt = threading.Lock()

    @contextmanager
    def connection(self) -> Iterator[TimeoutConnection]:
        """Lend a connection. Raises Unavailable, and what `raise_translated` raises."""
        try:
            lock_timeout, connection = self._free.pop()
        except IndexError:
            raise Unavailable("no connection came free") from None
        began = time.monotonic()
        try:
            connect = self._try_to_connect if self._is_down else self._connect
            connection = connect(connection, lock_timeout)
            try:
                yield connection
            finally:
                if not connection.closed:
                    self._note_response()
                elif connection.is_hung and self._last_response < began:  # on Citus one node can hang, others respond
                    self._is_down = True
        except psycopg.Error as error:
            raise_translated(error)
        finally:
            if lock_timeout == LOCK_TIMEOUT and connection and not connection.closed:
                self._free.append((lock_timeout, connection))
            else:
                self._free.insert(lock_timeout == LOCK_TIMEOUT, (lock_timeout, connection))

    def close(self) -> None:
        """Close the free connections."""
        for _, connection in self._free:
            if connection:
                connection.close()

    def _try_to_connect(self, connection: TimeoutConnection | None, lock_timeout: float) -> TimeoutConnection:
        """While PostgreSQL is down, let one request at a time try it. The others hardly wait: they get Unavailable."""
        if not self._attempt.acquire(timeout=ATTEMPT_TIMEOUT):
            raise Unavailable(UNREACHABLE)
        try:
            connection = self._connect(connection, lock_timeout)
            if self._is_down:  # else it was reached meanwhile
                connection.execute("SELECT 1")  # the request's own statement may wait for a lock or a standby
                self._note_response()
            return connection
        finally:
            self._attempt.release()

    def _connect(self, connection: TimeoutConnection | None, lock_timeout: float) -> TimeoutConnection:
        if connection:
            if connection.is_usable():
                return connection
            connection.close()
        try:
            return TimeoutConnection.open(self._url, lock_timeout, prepare=self._prepare)
        except psycopg.Error as error:
            if "FATAL:" not in str(error):  # else PostgreSQL responded: it may have no room for one more connection
                self._is_down = True
            raise

    def _note_response(self) -> None:
        self._last_response = time.monotonic()
        if self._is_down:
            self._is_down = False
            log.warning("PostgreSQL is back")
