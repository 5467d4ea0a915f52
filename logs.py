"""Log: a line for each request on standard output (text on a terminal, else JSON), everything else on standard error.

Whoever reads the output may stop reading. Lines are lost then, and counted; no request waits.
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
from functools import cached_property

from flask import Flask, Response, g, has_request_context, request

import config

STANDARD_OUTPUT, STANDARD_ERROR = 1, 2

REQUEST_ID = re.compile(r"(?!.*ig_)[\w.:/+=@-]{1,128}", re.ASCII)
"""An X-Request-Id that is taken over. One that contains an API key is not."""


@dataclass(slots=True)
class AccessLine:
    """What is logged of a request. Whoever learns something about it fills it in."""

    time: str
    requestId: str  # noqa: N815
    method: str
    path: str | None
    """One of the service's own paths; another could hold an API key."""
    status: int = 0
    error: str | None = None
    ms: float = 0
    bytes: int | None = None
    """The Content-Length."""
    organization: str | None = None
    apiKeyId: int | None = None  # noqa: N815
    ingested: int = 0
    rejected: int = 0
    lostLines: int = 0  # noqa: N815
    """How many lines before this one could not be written."""

    def as_json(self) -> str:
        return json.dumps({name: getattr(self, name) for name in self.__slots__})

    def as_text(self) -> str:
        events = f", {self.organization}: {self.ingested} stored, {self.rejected} rejected" if self.organization else ""
        return (
            f"{self.time[11:19]} {self.method} {self.path or '(no such path)'} {self.status}"
            f"{f' {self.error}' if self.error else ''} in {self.ms} ms{events}"
        )


class LossyOutput:
    """Writes to a file descriptor without waiting for its reader."""

    def __init__(self, descriptor: int) -> None:
        self.lost = 0
        """How many texts could not be written since the last that could."""
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

    def flush(self) -> None:
        """Do nothing: `logging` wants to flush."""


class AccessLog:
    """Writes the line of each request when it ends."""

    @cached_property
    def _output(self) -> LossyOutput:
        return LossyOutput(STANDARD_OUTPUT)

    def begin(self) -> None:
        sent = request.headers.get("X-Request-Id", "")
        g.began = time.perf_counter()
        g.access_line = AccessLine(
            datetime.now(UTC).isoformat(timespec="milliseconds"),
            sent if REQUEST_ID.fullmatch(sent) else f"{random.getrandbits(128):032x}",
            request.method,
            request.url_rule.rule if request.url_rule else None,
            bytes=request.content_length,
        )

    def end(self, response: Response) -> Response:
        line: AccessLine = g.access_line
        response.headers["X-Request-Id"] = line.requestId
        line.status = response.status_code
        line.ms = round((time.perf_counter() - g.began) * 1000, 2)
        line.lostLines = self._output.lost
        self._output.write((line.as_text() if self._output.is_terminal else line.as_json()) + "\n")
        return response


class RequestIdFilter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        if has_request_context() and "access_line" in g:
            record.request_id = g.access_line.requestId
        return True


def init_app(app: Flask, level: str) -> None:
    """Set up the logs, and begin and end the line of each request."""
    logging.config.dictConfig(config.logging_config(level))
    [handler] = logging.getLogger().handlers
    handler.setStream(LossyOutput(STANDARD_ERROR))  # type: ignore[attr-defined]
    handler.addFilter(RequestIdFilter())
    access_log = AccessLog()
    app.before_request(access_log.begin)
    app.after_request(access_log.end)
