"""What requests do in PostgreSQL: the statements, one transaction a request, and what can go wrong with them.

To the rest of the program a request either is stored whole, or one of the exceptions below says why not. What commands
do is in admin.py; no other file knows PostgreSQL.
"""

import hashlib
import re
import select
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, NoReturn

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg_pool import ConnectionPool

SCHEMA_VERSION = 2

Connection = psycopg.Connection[Any]


class Unavailable(Exception):
    """PostgreSQL can't be reached, is not ready, or has no connection free: try again later."""


class Unstorable(Exception):
    """PostgreSQL refuses the data itself, and will again. The argument says why."""


class Unauthorized(Exception):
    """The API key is unknown, expired or revoked."""


class QuotaExceeded(Exception):
    """The events don't fit in what is left of the month's quota. The argument is how many would."""

    @property
    def remaining(self) -> int:
        return int(self.args[0])


class KeyReused(Exception):
    """The idempotency key was used with another body."""


class Unknown(Exception):
    """There is no such organization or API key."""


@dataclass(frozen=True, slots=True)
class ApiKey:
    id: int
    org_id: str


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be stored."""

    body: str
    """The JSON text as it came: an array of events, or an object whose `events` is one."""
    valid: list[int]
    """The indexes of its events that are valid, ascending."""
    size: int
    """How many events it has, valid or not."""
    lenient: bool = False
    """Store as many as the quota allows, from the first on, and not all or none."""
    idempotency_key: str | None = None
    fingerprint: bytes | None = None
    """What tells the body from another under the same idempotency key."""
    source: str = "raw"
    """Where the events come from: `raw` is HTTP."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """What was stored, and committed."""

    ingested: int
    """The number of events; if it is less than the valid ones, those past the quota are missing."""
    remaining: int | None
    """What is left of the month's quota; None: it is unlimited."""
    replayed: bool = False
    """It was an earlier request with the same idempotency key that stored them."""


@dataclass(frozen=True, slots=True)
class Quota:
    """An organization's events in the current calendar month (UTC)."""

    month: str
    """YYYY-MM"""
    used: int
    quota: int | None
    """None: unlimited"""

    @property
    def remaining(self) -> int | None:
        return None if self.quota is None else max(0, self.quota - self.used)


# The key, if it holds now.
AUTHENTICATE = """
    SELECT id, org_id
    FROM api_keys
    WHERE key_hash = %(key_hash)s
      AND revoked_at IS NULL
      AND (expires_at IS NULL OR expires_at > now())
"""

# Makes the rows of the events out of the body itself, so that every digit of a number survives, counts them, and keeps
# the receipt under the idempotency key, if there is one. One statement, thus one transaction.
#
# It returns no row if the API key holds no longer (without one it is a command that stores), and `used` NULL, nothing
# stored, if the events don't fit in the quota or the idempotency key was used before. Both are asked of the statement's
# snapshot. What another request commits meanwhile is caught where they meet: the CHECK on monthly_usage, or the key of
# idempotency_keys, fails the statement. The usage row is touched as late as can be: until the commit, its lock is what
# other requests wait for.
STORE = """
    WITH account AS MATERIALIZED (
        SELECT
            o.monthly_quota,
            date_trunc('month', now() AT TIME ZONE 'UTC')::date AS month,
            CASE WHEN o.monthly_quota IS NULL THEN 1 + pg_backend_pid() %% 1024 ELSE 0 END AS slot,
            o.monthly_quota - coalesce(u.elsewhere, 0) AS quota,
            coalesce(u.used, 0) AS used
        FROM organizations o
        LEFT JOIN (
            SELECT
                sum(used) FILTER (WHERE slot = 0)::bigint AS used,
                sum(used) FILTER (WHERE slot <> 0)::bigint AS elsewhere
            FROM monthly_usage
            WHERE org_id = %(org_id)s
              AND month = date_trunc('month', now() AT TIME ZONE 'UTC')::date
        ) u ON o.monthly_quota IS NOT NULL
        WHERE o.id = %(org_id)s
          AND (%(api_key_id)s::bigint IS NULL OR EXISTS (
              SELECT
              FROM api_keys
              WHERE id = %(api_key_id)s
                AND org_id = %(org_id)s
                AND revoked_at IS NULL
                AND (expires_at IS NULL OR expires_at > now())
          ))
    ), stored AS (
        INSERT INTO audit_events
            (org_id, api_key_id, source, type, tool_name, action, "timestamp", metadata, received_at)
        SELECT
            %(org_id)s,
            %(api_key_id)s,
            %(source)s,
            e.type,
            e."toolName",
            coalesce(e.action, 'log'),
            -- a fraction of a hundred digits is too long for PostgreSQL's parser, and says no more than 20 do
            coalesce(
                CASE WHEN length(e."timestamp") > 60
                THEN regexp_replace(e."timestamp", '(\\.[0-9]{20})[0-9]+', '\\1')
                ELSE e."timestamp" END::timestamptz,
                now()
            ),
            coalesce(e.metadata, '{}'),
            now()
        FROM account a
        CROSS JOIN (
            SELECT coalesce(%(body)s::jsonb -> 'events', %(body)s::jsonb) AS events
        ) body
        CROSS JOIN jsonb_to_recordset(
            CASE WHEN %(chosen)s::integer[] IS NULL THEN body.events ELSE (
                SELECT jsonb_agg(all_events.event ORDER BY all_events.number)
                FROM jsonb_array_elements(body.events) WITH ORDINALITY AS all_events (event, number)
                JOIN unnest(%(chosen)s::integer[]) AS i ON all_events.number = i + 1
            ) END
        ) AS e (type text, "toolName" text, action text, "timestamp" text, metadata jsonb)
        WHERE (a.quota IS NULL OR a.used + %(count)s <= a.quota)
          AND NOT EXISTS (
              SELECT FROM idempotency_keys
              WHERE org_id = %(org_id)s AND key = %(idempotency_key)s
          )
        RETURNING 1
    ), counted AS (
        INSERT INTO monthly_usage AS u (org_id, month, slot, used, quota)
        SELECT %(org_id)s, a.month, a.slot, (SELECT count(*) FROM stored), a.quota
        FROM account a
        WHERE EXISTS (SELECT FROM stored)
        ON CONFLICT (org_id, month, slot) DO UPDATE
            SET used = u.used + excluded.used, quota = excluded.quota
        RETURNING u.used, u.quota - u.used AS remaining
    ), kept AS (
        INSERT INTO idempotency_keys (org_id, key, fingerprint, ingested, remaining_quota, expires_at)
        SELECT
            %(org_id)s,
            %(idempotency_key)s,
            %(fingerprint)s,
            %(count)s,
            c.remaining,
            now() + make_interval(days => %(idempotency_days)s)
        FROM counted c
        WHERE %(idempotency_key)s::text IS NOT NULL
    )
    SELECT c.used, c.remaining
    FROM account a
    LEFT JOIN counted c ON true
"""

# The receipt that is kept under an idempotency key, and whether its time is over.
KEPT = """
    SELECT fingerprint, ingested, remaining_quota, expires_at <= now() AS expired
    FROM idempotency_keys
    WHERE org_id = %(org_id)s AND key = %(idempotency_key)s
"""

FORGET = """
    DELETE FROM idempotency_keys
    WHERE org_id = %(org_id)s AND key = %(idempotency_key)s AND expires_at <= now()
"""

# Makes everybody else who stores for a limited organization wait until this transaction ends.
LOCK_USAGE = """
    INSERT INTO monthly_usage AS u (org_id, month, slot, used)
    VALUES (%(org_id)s, date_trunc('month', now() AT TIME ZONE 'UTC')::date, 0, 0)
    ON CONFLICT (org_id, month, slot) DO UPDATE SET used = u.used
"""

# An organization's quota and what it used of it this month.
QUOTA = """
    SELECT
        to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM') AS month,
        coalesce((
            SELECT sum(used)
            FROM monthly_usage
            WHERE org_id = %(org_id)s
              AND month = date_trunc('month', now() AT TIME ZONE 'UTC')::date
        ), 0)::bigint AS used,
        monthly_quota AS quota
    FROM organizations
    WHERE id = %(org_id)s
"""


# The timeouts of a request, each longer than those before it; the README has them in one table with nginx's.
CONNECT_TIMEOUT = 3
"""Seconds to reach PostgreSQL."""
POOL_TIMEOUT = 2
"""Seconds that a request waits for a connection. There is one for each thread, so it waits only while PostgreSQL
is away or has just come back."""
LOCK_TIMEOUT = 7
STATEMENT_TIMEOUT = 8
"""Seconds after which PostgreSQL gives up waiting for a lock, and a statement. A retry under an idempotency key waits
for the first request, so the one is hardly shorter than the other."""
ANSWER_TIMEOUT = 10
"""Seconds after which we give up on PostgreSQL."""
TIMEOUTS = (
    f"-c lock_timeout={LOCK_TIMEOUT}s -c statement_timeout={STATEMENT_TIMEOUT}s "
    f"-c idle_in_transaction_session_timeout={STATEMENT_TIMEOUT}s"
)

MAX_SEEN_KEYS = 10_000
"""API keys that a process remembers."""

ATTEMPTS = 10
"""How often a request is tried that others keep overtaking; the second time succeeds as a rule."""

UNREACHABLE = 10
"""Seconds after a failed attempt to connect in which PostgreSQL is taken to be away still ..."""
POOL_TIMEOUT_UNREACHABLE = 0.1
"""... and a request waits only this long for the attempt that it starts."""


class _ImpatientConnection(psycopg.Connection[Any]):
    """Waits ANSWER_TIMEOUT for an answer, not for ever: a server that is stopped obeys no statement_timeout."""

    def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        try:
            return super().wait(gen, interval, ANSWER_TIMEOUT if timeout is None else timeout)
        except psycopg.errors._WaitTimeout:
            self.close()
            raise


class Storage:
    """The service's PostgreSQL. Every method raises Unavailable if it can't be used now.

    The pool opens at the first request, after gunicorn's fork.
    """

    def __init__(self, database_url: str, connections: int, idempotency_days: int, *, prepare: bool = True) -> None:
        self._idempotency_days = idempotency_days
        self._conninfo = _conninfo(database_url)
        self._unreachable_until = 0.0
        self._seen_keys: dict[bytes, ApiKey] = {}
        self._pool = ConnectionPool(
            _conninfo(database_url, TIMEOUTS),
            connection_class=_ImpatientConnection,
            kwargs={"autocommit": True, "prepare_threshold": 0 if prepare else None},
            open=False,
            min_size=connections,
            max_size=connections,
            timeout=POOL_TIMEOUT,
            # The pool would go on trying, ever more seldom, and be back long after the database is.
            # It gives up at once instead, and every request that finds no connection makes it try anew.
            reconnect_timeout=0,
            reconnect_failed=self._reconnect_failed,
        )

    def close(self) -> None:
        self._pool.close()

    # What requests do

    def identify(self, key: str) -> ApiKey:
        """The key's id and organization; from memory, if it was seen before.

        It may have been revoked since. store() asks for that; whoever refuses a request has to (authenticate).
        Raises Unauthorized.
        """
        return self._seen_keys.get(key_hash(key)) or self.authenticate(key)

    def authenticate(self, key: str) -> ApiKey:
        """The key's id and organization, if it holds now. Raises Unauthorized."""
        digest = key_hash(key)
        self._seen_keys.pop(digest, None)
        with self._connection() as connection:
            row = connection.execute(AUTHENTICATE, {"key_hash": digest}).fetchone()
        if row is None:
            raise Unauthorized
        if len(self._seen_keys) >= MAX_SEEN_KEYS:
            self._seen_keys.clear()
        api_key = self._seen_keys[digest] = ApiKey(*row)
        return api_key

    def store(self, key: ApiKey, request: Request) -> Receipt:
        """Stores the valid events of a request and counts them, in one transaction that is committed on return.

        Raises Unauthorized, QuotaExceeded, KeyReused and Unstorable; then nothing is stored.
        """
        with self._connection() as connection:
            return store(connection, key.org_id, key.id, request, self._idempotency_days)

    def check_ready(self) -> None:
        """Raises Unavailable, saying why in words fit for strangers, unless the schema is there and of this version."""
        with self._connection() as connection:
            row = connection.execute("SELECT version FROM schema_version").fetchone()
        if row is None or row[0] != SCHEMA_VERSION:
            raise Unavailable("the schema is missing or of another version: run init-db")

    # Connections, and what can go wrong with them

    @contextmanager
    def _connection(self) -> Iterator[_ImpatientConnection]:
        """A connection of the pool; a statement on it is a transaction."""
        try:
            connection = self._take()
            try:
                yield connection
            finally:
                self._pool.putconn(connection)
        except psycopg.Error as error:
            _raise_translated(error)

    def _take(self) -> _ImpatientConnection:
        if self._pool.closed:
            self._pool.open()
        unreachable = time.monotonic() < self._unreachable_until
        while True:
            connection = self._pool.getconn(POOL_TIMEOUT_UNREACHABLE if unreachable else POOL_TIMEOUT)
            if _is_alive(connection):
                self._unreachable_until = 0.0
                return connection
            # Found out only by using it, that would leave open whether the statement was carried out. The pool makes
            # a new one for it.
            connection.close()
            self._pool.putconn(connection)

    def _reconnect_failed(self, _: ConnectionPool) -> None:
        self._unreachable_until = time.monotonic() + UNREACHABLE


def database_url(text: str) -> str:
    """The text itself, if it is a connection URL or string of PostgreSQL. Raises ValueError, without the text."""
    try:
        int(conninfo_to_dict(text).get("connect_timeout") or 0)
    except (psycopg.Error, ValueError):
        raise ValueError("is no PostgreSQL URL, such as postgresql://user:password@host:5432/database") from None
    return text


def _conninfo(database_url: str, options: str = "") -> str:
    """The URL, with connection parameters of ours where it sets none; server options of its own come last and win."""
    given = conninfo_to_dict(database_url)
    parameters = {"application_name": "igris-ingest", "connect_timeout": CONNECT_TIMEOUT, **given}
    parameters["client_encoding"] = "UTF8"
    parameters["options"] = f"{options} {given.get('options', '')}".strip() or None
    return make_conninfo(database_url, **parameters)


@contextmanager
def connect(database_url: str, *, patient: bool) -> Iterator[Connection]:
    """A connection for a command, with a transaction that is committed at the end. Raises Unavailable.

    One that is not patient has the timeouts of requests.
    """
    with translated():
        if patient:
            connection = psycopg.connect(_conninfo(database_url))
        else:
            connection = _ImpatientConnection.connect(_conninfo(database_url, TIMEOUTS))
        with connection:
            yield connection


@contextmanager
def translated() -> Iterator[None]:
    """Turns the driver's errors into the exceptions above."""
    try:
        yield
    except psycopg.Error as error:
        _raise_translated(error)


def _raise_translated(error: psycopg.Error) -> NoReturn:
    """Raises what a driver's error means to the rest of the program.

    Only Unavailable carries the driver's words along: those of other errors can quote the client's data.
    """
    sqlstate = error.sqlstate or ""
    words = error.diag.message_primary or type(error).__name__
    if isinstance(error, psycopg.DataError) or sqlstate.startswith("54"):  # 54: program limit exceeded
        raise Unstorable(UNSTORABLE.get(sqlstate, words)) from None
    if sqlstate in ("42P01", "42703", "3F000"):  # undefined table, column or schema
        raise Unavailable("the schema is missing or of another version: run init-db") from error
    if sqlstate in ("26000", "42P05"):  # a prepared statement that is not there, or is there already
        raise Unavailable("prepared statements fail: behind this pooler set PREPARED_STATEMENTS=off") from error
    if sqlstate in ("55P03", "57014"):  # lock not available, query canceled
        raise Unavailable("PostgreSQL took too long") from error
    if isinstance(error, psycopg.ProgrammingError) and not sqlstate:
        raise Unavailable("DATABASE_URL has a wrong parameter") from error
    if sqlstate == "42501":
        raise Unavailable("the database role lacks a privilege") from error
    if isinstance(error, psycopg.OperationalError | psycopg.InterfaceError | psycopg.InternalError):
        raise Unavailable("PostgreSQL can't be reached") from error
    raise RuntimeError(f"{sqlstate}: {words}") from None


UNSTORABLE = {"22003": "A number is too large or has too many digits", "54001": "Nested too deep"}


def _is_alive(connection: Connection) -> bool:
    """Whether an idle connection is still open, as far as can be known without asking PostgreSQL.

    It is readable if it was closed. It can also be because of a changed parameter, or a ticket of TLS.
    """
    poll = select.poll()
    poll.register(connection.pgconn.socket, select.POLLIN)
    try:
        while poll.poll(0):
            connection.pgconn.consume_input()
    except psycopg.OperationalError:
        return False
    return True


def key_hash(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def store(
    connection: Connection, org_id: str, api_key_id: int | None, request: Request, idempotency_days: int | None
) -> Receipt:
    """Stores a request as Storage.store does; for a command without a key. An idempotency key can last for ever, too.

    Raises psycopg.Error beside those exceptions: see translated().
    """
    parameters = {
        "org_id": org_id,
        "api_key_id": api_key_id,
        "source": request.source,
        "body": _jsonb_text(request.body),
        "chosen": None if len(request.valid) == request.size else request.valid,
        "idempotency_key": request.idempotency_key,
        "fingerprint": request.fingerprint,
        "idempotency_days": idempotency_days,
    }
    attempt = _store
    for _ in range(ATTEMPTS):
        with suppress(psycopg.errors.CheckViolation, psycopg.errors.UniqueViolation):
            if receipt := attempt(connection, parameters, request.valid):
                return receipt
        if request.idempotency_key and (kept := _kept(connection, parameters)):
            return kept
        remaining = quota(connection, org_id).remaining
        if remaining is None or remaining >= len(request.valid):
            continue  # it was changed just now, or a key that had expired was in the way
        if remaining == 0 or not request.lenient:
            raise QuotaExceeded(remaining)
        attempt = _store_what_fits
    raise Unavailable("the quota changes faster than the request can be stored")


def _store(connection: Connection, parameters: dict[str, Any], chosen: list[int]) -> Receipt | None:
    """Stores the chosen events. None: the quota or the idempotency key is in the way; so says an IntegrityError too."""
    row = connection.execute(STORE, {**parameters, "count": len(chosen)}).fetchone()
    if row is None:
        raise Unauthorized
    used, remaining = row
    return None if used is None else Receipt(len(chosen), remaining)


def _store_what_fits(connection: Connection, parameters: dict[str, Any], chosen: list[int]) -> Receipt | None:
    """Stores as many of the chosen events as the quota has room for; other requests wait meanwhile."""
    with connection.transaction():
        connection.execute(LOCK_USAGE, parameters)
        fitting = chosen[: quota(connection, parameters["org_id"]).remaining]
        return _store(connection, {**parameters, "chosen": fitting}, fitting) if fitting else None


def _kept(connection: Connection, parameters: dict[str, Any]) -> Receipt | None:
    """The receipt of an earlier request with the same idempotency key. Raises KeyReused."""
    row = connection.execute(KEPT, parameters).fetchone()
    if row is None:
        return None
    fingerprint, ingested, remaining, expired = row
    if expired:
        connection.execute(FORGET, parameters)
        return None
    if fingerprint != parameters["fingerprint"]:
        raise KeyReused
    return Receipt(ingested, remaining, replayed=True)


def quota(connection: Connection, org_id: str) -> Quota:
    """This month's quota and use. Raises Unknown."""
    row = connection.execute(QUOTA, {"org_id": org_id}).fetchone()
    if row is None:
        raise unknown_organization(org_id)
    return Quota(*row)


def unknown_organization(org_id: str) -> Unknown:
    return Unknown(f"there is no organization {org_id!r}")


# jsonb can hold neither U+0000 nor half of a surrogate pair. A match is an escaped backslash, a pair (both are kept),
# or one of the two.
_UNSTORABLE_ESCAPE = re.compile(r"\\u(?:0000|[dD][89a-fA-F])")
_ESCAPE = re.compile(r"(?P<kept>(?:\\\\)+|\\u[dD][89abAB]..\\u[dD][c-fC-F]..)|\\u(?:0000|[dD][89a-fA-F]..)", re.DOTALL)


def _jsonb_text(json_text: str) -> str:
    """JSON that jsonb can hold: U+0000 and unpaired surrogates become U+FFFD. All else stays as it was written."""
    if not _UNSTORABLE_ESCAPE.search(json_text):
        return json_text
    return _ESCAPE.sub(lambda match: match["kept"] or r"\ufffd", json_text)
