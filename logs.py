"""What is logged: a line a request on standard output (text on a terminal, else JSON), all else on standard error."""

import json
import logging
import logging.config
import os
import re
import secrets
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from flask import Flask, Response, g, has_request_context, request

STANDARD_OUTPUT = 1
TERMINAL = os.isatty(STANDARD_OUTPUT)

REQUEST_ID = re.compile(r"(?!.*ig_)[\w.:/+=@-]{1,128}", re.ASCII)
"""An X-Request-Id that is taken over; one with an API key in it is not."""


def begin() -> None:
    """Starts the request's line (g.line). Who finds out more puts it there."""
    g.began = time.perf_counter()
    sent = request.headers.get("X-Request-Id", "")
    g.line = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "requestId": sent if REQUEST_ID.fullmatch(sent) else secrets.token_hex(16),
        "method": request.method,
        "path": request.url_rule and request.url_rule.rule,  # only one of ours: another may hold an API key
        "status": None,
        "ms": None,
        "bytes": request.content_length,
        "organization": None,
        "apiKeyId": None,
        "ingested": 0,
        "rejected": 0,
    }


def end(response: Response) -> Response:
    line: dict[str, Any] = g.line
    response.headers["X-Request-Id"] = line["requestId"]
    line["status"] = response.status_code
    line["ms"] = round((time.perf_counter() - g.began) * 1000, 2)
    with suppress(OSError):  # nobody reads the log: no reason to refuse a request
        os.write(STANDARD_OUTPUT, (_plain(line) if TERMINAL else json.dumps(line) + "\n").encode())
    return response


def _plain(line: dict[str, Any]) -> str:
    stored = f", {line['organization']}: {line['ingested']} stored, {line['rejected']} rejected"
    return (
        f"{line['time'][11:19]} {line['method']} {line['path'] or '(no such path)'} {line['status']} "
        f"in {line['ms']} ms{stored if line['organization'] else ''}\n"
    )


class RequestIdFilter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.request_id = g.line["requestId"] if has_request_context() and "line" in g else "-"
        return True


def init_app(app: Flask, level: str) -> None:
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "filters": {"request_id": {"()": RequestIdFilter}},
            "formatters": {"log": {"format": "%(asctime)s %(levelname)s %(name)s [%(request_id)s] %(message)s"}},
            "handlers": {"log": {"class": "logging.StreamHandler", "formatter": "log", "filters": ["request_id"]}},
            "root": {"level": level.upper(), "handlers": ["log"]},
            "loggers": {"psycopg.pool": {"level": "ERROR"}},  # its warnings repeat what Unavailable says
        }
    )
    app.before_request(begin)
    app.after_request(end)
