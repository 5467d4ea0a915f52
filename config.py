"""Read the settings: every environment variable of the service, with its default and its meaning.

`python -m config` prints them as JSON for gunicorn.conf.py, without the secret one.
"""

import json
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from database import check_url

VERSION = "1.0.0"

LOG_LEVELS = ("debug", "info", "warning", "error")


class Setting(NamedTuple):
    name: str
    default: str | None  # None means that it has to be set
    parse: Callable[[str], Any]  # turns the text into the value. Raises ValueError, which says what would make sense.
    meaning: str


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


# The README's table and .env.example have the same rows in the same order; a test holds the three together.
SETTINGS = (
    Setting("DATABASE_URL", None, check_url, "PostgreSQL, as a `postgresql://` URL"),
    Setting("PORT", "8000", _integer(1, 65535), "the port to listen on, on 127.0.0.1"),
    Setting("WEB_CONCURRENCY", str(min(os.cpu_count() or 1, 256)), _integer(1, 256), "worker processes"),
    Setting("THREADS", "4", _integer(1, 256), "threads, and database connections, of a worker"),
    Setting("MAX_BODY_BYTES", str(10 * 2**20), _integer(1, 2**27), "the largest body, inflated"),
    Setting("MAX_BODY_VALUES", "500000", _integer(1, 10**8), "the most JSON values of a body: see `docs/limits.md`"),
    Setting("MAX_BATCH_EVENTS", "10000", _integer(1, 10**6), "the most events of one request"),
    Setting("DEFAULT_MONTHLY_QUOTA", "50000", quota, "of a new organization; or `unlimited`"),
    Setting("IDEMPOTENCY_DAYS", "7", _integer(1, 3650), "how long an Idempotency-Key is kept"),
    Setting("LOG_LEVEL", "info", _one_of(*LOG_LEVELS), "debug, info, warning or error"),
    Setting("PREPARED_STATEMENTS", "on", _one_of("on", "off"), "`off` for PgBouncer in transaction mode before 1.21"),
    Setting("STATSD_HOST", "", _statsd_host, "where gunicorn sends its metrics, as host:port; none if it is empty"),
)


def load(environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Return the value of every setting by its name; one that is empty counts as not set.

    Raises SystemExit, with a line for each value that is missing or makes no sense.
    """
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


def logging_config(level: str) -> dict[str, Any]:
    """Return what `logging.config.dictConfig` takes. gunicorn's own messages get the same format."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "line": {
                "()": "logging.Formatter",
                "fmt": "%(asctime)s %(levelname)s %(name)s [%(request_id)s] %(message)s",
                "defaults": {"request_id": "-"},
            }
        },
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line", "stream": "ext://sys.stderr"}},
        "root": {"level": level.upper(), "handlers": ["stderr"]},
        "loggers": {
            # below info gunicorn logs half-sent requests, with their Authorization header
            "gunicorn.error": {
                "level": max(level, "info", key=LOG_LEVELS.index).upper(),
                "handlers": [],
                "propagate": True,
            },
        },
    }


if __name__ == "__main__":
    settings = load()
    del settings["DATABASE_URL"]
    print(json.dumps({**settings, "logging": logging_config(settings["LOG_LEVEL"])}))
