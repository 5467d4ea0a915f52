"""Write a line for each request to standard output (text on a terminal, else JSON), everything else to standard error.

If no process reads the output, lines are lost, and no request waits. The next access line counts the lost lines.
"""

import json
import logging
import os
import random
import re
import socket
import stat
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from flask import Response, g, has_request_context, request
from werkzeug.exceptions import MethodNotAllowed

import config

# A valid X-Request-Id. One that contains an API key is not.
REQUEST_ID = re.compile(r"(?!.*ig_)[\w.:/+=@-]{1,128}", re.ASCII)

# What later steps fill in. `lostLines` counts the lines before this one that could not be written.
EMPTY_LINE = {"status": 0, "error": None, "ms": 0.0, "organization": None, "apiKeyId": None}
EMPTY_LINE |= {"ingested": 0, "rejected": 0, "lostLines": 0}


class LossyOutput:
    """Writes to a file descriptor without waiting for its reader."""

    def __init__(self, descriptor: int) -> None:
        self.lost = 0  # lines that could not be written, and that no later line has counted
        self._is_cut = False  # the last text was written in part
        self.is_terminal = os.isatty(descriptor)
        self._descriptor = descriptor
        self._socket = None
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISSOCK(mode):  # systemd's journal
            self._socket = socket.socket(fileno=os.dup(descriptor))
        elif stat.S_ISFIFO(mode) or self.is_terminal:
            # a separate open file where the system has them: other processes share this one, and may want to wait
            with suppress(OSError):
                self._descriptor = os.open(f"/dev/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK)
            os.set_blocking(self._descriptor, False)

    def write(self, text: str) -> bool:
        """Write a text, and return whether all of it was written: a long one can be cut."""
        data = ("\n" * self._is_cut + text).encode(errors="backslashreplace")
        try:
            written = self._socket.send(data, socket.MSG_DONTWAIT) if self._socket else os.write(self._descriptor, data)
        except OSError:  # no process reads, and the buffer is full
            written = 0
        if written:
            self._is_cut = written < len(data)
        return written == len(data)


def begin_line() -> None:
    """Begin the access line of a request, in the order of its keys."""
    environ = request.environ
    is_known = request.url_rule or isinstance(request.routing_exception, MethodNotAllowed)
    sent, length = environ.get("HTTP_X_REQUEST_ID"), environ.get("CONTENT_LENGTH")
    g.began = time.perf_counter()
    g.access_line = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "requestId": sent if sent and REQUEST_ID.fullmatch(sent) else f"{random.getrandbits(128):032x}",
        "method": environ["REQUEST_METHOD"],
        "path": environ["PATH_INFO"] if is_known else None,  # another path could hold an API key
        "bytes": int(length) if length else None,
    } | EMPTY_LINE


def end_line(response: Response, output: LossyOutput) -> Response:
    """Write the access line of a request, and return its response with the request's id."""
    line = g.access_line
    response.headers.add("X-Request-Id", line["requestId"])
    lost, output.lost = output.lost, 0  # no other line counts them, too
    line.update(status=response.status_code, ms=round((time.perf_counter() - g.began) * 1000, 2), lostLines=lost)
    if not output.write((as_text(line) if output.is_terminal else json.dumps(line)) + "\n"):
        output.lost += lost + 1
    return response


def as_text(line: dict[str, Any]) -> str:
    error, organization = (f" {line[name]}" if line[name] else "" for name in ("error", "organization"))
    text = f"{line['time'][11:19]} {line['method']} {line['path'] or '(no such path)'} {line['status']}{error}"
    events = f",{organization}: {line['ingested']} stored, {line['rejected']} rejected" if organization else ""
    return f"{text} in {line['ms']} ms{events}"


def add_request_id(record: logging.LogRecord) -> bool:
    if has_request_context() and "access_line" in g:
        record.request_id = g.access_line["requestId"]
    return True


def set_up(level: str) -> None:
    """Send what is logged to standard error, with the request's id."""
    config.set_up_logging(level, LossyOutput(2))
    logging.getLogger().handlers[0].addFilter(add_request_id)
