"""Read the settings. It imports no module of the service: gunicorn.conf.py runs a fresh copy at each reload."""

import logging
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

VERSION = "1.0.0"
LOG_LEVELS = ("debug", "info", "warning", "error")


class Setting(NamedTuple):
    name: str
    default: str | None  # None: it has to be set
    parse: Callable[[str], Any]  # returns the value of a text. Raises ValueError, which says what is valid.
    meaning: str


def _database_url(text: str) -> str:
    """Return a connection URL or string of PostgreSQL. Raises ValueError, which repeats no part of a password."""
    import psycopg.conninfo  # here, so that this module can be read without the driver

    if (text := text.strip())[:1] in ("'", '"'):
        raise ValueError("begins with a quote: write it without quotes")
    if (scheme := re.match(r"[a-z0-9+:.]*(?=://)", text)) and scheme[0] not in ("postgresql", "postgres"):
        raise ValueError(f"begins with {scheme[0]}://; write postgresql://")
    try:
        given = psycopg.conninfo.conninfo_to_dict(text)
        int(given.get("connect_timeout") or 0)
        # where a password is not percent-encoded, a part of it ends up in one of these, and in messages of libpq's
        place = f"{given.get('host')}{given.get('dbname')}"
        if "@" in place or not re.fullmatch("[0-9,]*", f"{given.get('port', '')}"):
            raise ValueError
    except (psycopg.Error, ValueError) as error:
        unknown = re.search(r'invalid URI query parameter: "(\w+)"', str(error))
        if unknown and not re.search("@|password", text.partition("?")[2]):  # else it may be a part of the password
            raise ValueError(f"has the parameter {unknown[1]}, which is another driver's: remove it") from None
        raise ValueError(
            "must be a URL such as postgresql://user:password@host:5432/database; in a password, percent-encode "
            "/ @ : ? # % as %2F %40 %3A %3F %23 %25"
        ) from None
    return text


def _integer(minimum: int, maximum: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or len(text) > 18 or not minimum <= int(text) <= maximum:
            raise ValueError(f"must be a whole number from {minimum} to {maximum}")
        return int(text)

    return parse


def quota(text: str) -> int | None:
    """Return the events a month, or None for `unlimited`. Raises ValueError."""
    try:
        return None if text == "unlimited" else _integer(0, 10**15)(text)
    except ValueError as error:
        raise ValueError(f"{error}, or unlimited") from None


def _statsd_host(text: str) -> str | None:
    host, _, port = text.rpartition(":")
    if text and (not host or not port.isdecimal() or not 0 < int(port) < 65536):
        raise ValueError("must be a host and a port, such as 127.0.0.1:8125")
    return text or None


def _one_of(*values: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text.lower() not in values:
            raise ValueError(f"must be {', '.join(values[:-1])} or {values[-1]}")
        return text.lower()

    return parse


def _cpus() -> int:
    """Return how many CPUs the process may use, by its affinity and by the limit of its cgroup, where it has them."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        limit, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return min(cpus, -(-int(limit) // int(period)))
    except (OSError, ValueError):  # no cgroup, or no limit
        return cpus


# The README's table and .env.example have the same rows in the same order: a test compares the three.
SETTINGS = (
    Setting("DATABASE_URL", None, _database_url, "PostgreSQL, as a `postgresql://` URL"),
    Setting("HOST", "127.0.0.1", str, "address to listen on"),
    Setting("PORT", "8000", _integer(1, 65535), "port to listen on"),
    Setting("WEB_CONCURRENCY", str(min(_cpus(), 8)), _integer(1, 256), "worker processes"),
    Setting("THREADS", "4", _integer(1, 256), "threads, and database connections, of a worker"),
    Setting("MAX_BODY_BYTES", str(10 * 2**20), _integer(1, 2**27), "maximum body size in bytes, after decompression"),
    Setting("MAX_BODY_VALUES", "500000", _integer(1, 10**8), "maximum number of JSON values in a body"),
    Setting("MAX_BATCH_EVENTS", "10000", _integer(1, 10**6), "maximum number of events in a request"),
    Setting("DEFAULT_MONTHLY_QUOTA", "50000", quota, "monthly quota of new organizations, or `unlimited`"),
    Setting("IDEMPOTENCY_DAYS", "7", _integer(1, 3650), "days for which an Idempotency-Key is remembered"),
    Setting("LOG_LEVEL", "info", _one_of(*LOG_LEVELS), "debug, info, warning or error"),
    Setting("PREPARED_STATEMENTS", "on", _one_of("on", "off"), "`off` for PgBouncer in transaction mode before 1.21"),
    Setting("STATSD_HOST", "", _statsd_host, "host:port that gets gunicorn's metrics over UDP; empty: none"),
)


def load_settings(environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Return every setting by its name. Raises SystemExit, with a line for each that is missing, empty or invalid."""
    values, problems = {}, []
    for name, default, parse, _ in SETTINGS:
        text = environ.get(name) or default
        try:
            if text is None:
                raise ValueError("is not set: name a PostgreSQL, or let `make run` start one")
            values[name] = parse(text)
        except ValueError as error:
            problems.append(f"igris-ingest: {name} {error}")
    if problems:
        raise SystemExit("\n".join(problems))
    return values


def set_up_logging(level: str, stream: Any = sys.stderr) -> None:
    """Write all log messages to a stream, gunicorn's in the same format."""
    handler = logging.StreamHandler(stream)
    line = "%(asctime)s %(levelname)s %(name)s [%(request_id)s] %(message)s"
    handler.setFormatter(logging.Formatter(line, defaults={"request_id": "-"}))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    gunicorn = logging.getLogger("gunicorn.error")
    gunicorn.handlers, gunicorn.propagate = [], True
    gunicorn.setLevel(max(level, "info", key=LOG_LEVELS.index).upper())  # below, it logs headers of half-sent requests
