"""Write a line for each request to standard output (text on a terminal, else JSON), everything else to standard error.

If nobody reads the output, lines are lost, and no request waits. The next access line counts those before it.
"""

import json
import logging
import logging.config
import os
import random
import re
import socket
import stat
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache

from flask import Flask, Response, g, has_request_context, request
from werkzeug.exceptions import MethodNotAllowed

import config

STANDARD_OUTPUT, STANDARD_ERROR = 1, 2

REQUEST_ID = re.compile(r"(?!.*ig_)[\w.:/+=@-]{1,128}", re.ASCII)
"""An X-Request-Id that is taken over. One that contains an API key is not."""


@dataclass
class AccessLine:
    """What is logged of a request, in this order. Whoever learns something about it fills it in."""

    time: str
    requestId: str  # noqa: N815
    method: str
    path: str | None
    """One of the service's own paths; another could hold an API key."""
    bytes: int | None
    """The Content-Length."""
    status: int = 0
    error: str | None = None
    ms: float = 0
    organization: str | None = None
    apiKeyId: int | None = None  # noqa: N815
    ingested: int = 0
    rejected: int = 0
    lostLines: int = 0  # noqa: N815
    """How many lines before this one could not be written."""

    def as_text(self) -> str:
        events = f", {self.organization}: {self.ingested} stored, {self.rejected} rejected" if self.organization else ""
        error = f" {self.error}" if self.error else ""
        path = self.path or "(no such path)"
        return f"{self.time[11:19]} {self.method} {path} {self.status}{error} in {self.ms} ms{events}"


class LossyOutput:
    """Writes to a file descriptor without waiting for its reader."""

    def __init__(self, descriptor: int) -> None:
        self.lost = 0  # how many texts could not be written since the last that could
        mode = os.fstat(descriptor).st_mode
        self.is_terminal = os.isatty(descriptor)
        self._descriptor = descriptor
        self._socket = None
        if stat.S_ISSOCK(mode):  # systemd's journal
            self._socket = socket.socket(fileno=os.dup(descriptor))
        elif stat.S_ISFIFO(mode) or self.is_terminal:
            try:
                # an open file of our own: the other one is shared with other processes, which may want to wait
                self._descriptor = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK)
            except OSError:
                os.set_blocking(descriptor, False)

    def write(self, text: str) -> None:
        """Write a text, or count it as lost; a long one can be cut, and counts as lost, too."""
        data = text.encode(errors="backslashreplace")
        try:
            written = self._socket.send(data, socket.MSG_DONTWAIT) if self._socket else os.write(self._descriptor, data)
        except OSError:  # nobody reads
            written = 0
        self.lost = 0 if written == len(data) else self.lost + 1


@cache
def access_output() -> LossyOutput:
    """Return the standard output. Only web workers ask for it: a command has to wait for its reader."""
    return LossyOutput(STANDARD_OUTPUT)


def begin_line() -> None:
    environ = request.environ
    is_known = request.url_rule or isinstance(request.routing_exception, MethodNotAllowed)
    sent = environ.get("HTTP_X_REQUEST_ID")
    length = environ.get("CONTENT_LENGTH")
    g.began = time.perf_counter()
    g.access_line = AccessLine(
        datetime.now(UTC).isoformat(timespec="milliseconds"),
        sent if sent and REQUEST_ID.fullmatch(sent) else f"{random.getrandbits(128):032x}",
        environ["REQUEST_METHOD"],
        environ["PATH_INFO"] if is_known else None,
        int(length) if length else None,
    )


def end_line(response: Response) -> Response:
    line: AccessLine = g.access_line
    response.headers.add("X-Request-Id", line.requestId)
    output = access_output()
    line.status = response.status_code
    line.ms = round((time.perf_counter() - g.began) * 1000, 2)
    line.lostLines = output.lost
    output.write((line.as_text() if output.is_terminal else json.dumps(vars(line))) + "\n")
    return response


def add_request_id(record: logging.LogRecord) -> bool:
    if has_request_context() and "access_line" in g:
        record.request_id = g.access_line.requestId
    return True


def init_app(app: Flask, level: str) -> None:
    """Set up the logs, and begin and end the line of each request."""
    logging.config.dictConfig(config.logging_config(level))
    [handler] = logging.getLogger().handlers
    handler.setStream(LossyOutput(STANDARD_ERROR))  # type: ignore[attr-defined]
    handler.addFilter(add_request_id)
    app.before_request(begin_line)
    app.after_request(end_line)
