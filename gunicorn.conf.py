"""How gunicorn serves the application, in production and in `make run`; the settings are config.py's."""

import gc
import json
import secrets
import socket
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

from gunicorn import util
from gunicorn.http.errors import LimitRequestHeaders, LimitRequestLine, ParseException
from gunicorn.workers.gthread import ThreadWorker

CLIENT_TIMEOUT = 10
"""Seconds without a byte from a client, or taken by it."""

# Here too, so that a senseless value stops the start and not each worker. In a process of its own, so that this one,
# from which the workers come, holds none of the program: a reload (SIGHUP) takes up new code.
_loaded = subprocess.run(
    [sys.executable, "-m", "config"], cwd=Path(__file__).parent, stdout=subprocess.PIPE, check=False
)
if _loaded.returncode:
    sys.exit(_loaded.returncode)
_settings = json.loads(_loaded.stdout)


class Worker(ThreadWorker):
    """gthread: keeps connections alive, and serves others while one waits for its commit.

    What its parser refuses is answered as JSON, and logged without the client's words: they may hold a key.
    A client that stops in the middle of sending or receiving is waited for no longer than CLIENT_TIMEOUT.
    """

    def enqueue_req(self, conn: Any) -> None:
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):  # they hold whatever gunicorn makes of the socket
            conn.sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", CLIENT_TIMEOUT, 0))
        super().enqueue_req(conn)

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        status, error = 500, "Internal server error"
        if isinstance(exc, LimitRequestLine):
            status, error = 414, "URI too long"
        elif isinstance(exc, LimitRequestHeaders):
            status, error = 431, "Request header fields too large"
        elif isinstance(exc, ParseException):
            status, error = 400, "Bad request"
        request_id = secrets.token_hex(16)
        self.log.warning("%s %s: %s", request_id, status, type(exc).__name__)
        body = json.dumps({"error": error}) + "\n"
        head = (
            f"HTTP/1.1 {status} {error}",
            "Connection: close",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            "Cache-Control: no-store",
            f"X-Request-Id: {request_id}",
        )
        try:
            util.write_nonblock(client, "\r\n".join((*head, "", body)).encode())
        except OSError:
            self.log.debug("the client is gone")


def pre_request(worker: Any, req: Any) -> None:
    """Instead of gunicorn's own, which logs the path: it may hold a key."""


worker_class = Worker
bind = f"127.0.0.1:{_settings['PORT']}"
workers = _settings["WEB_CONCURRENCY"]
threads = _settings["THREADS"]
keepalive = 75  # longer than a proxy keeps idle connections: else it sends into one that is just closed, a 502
accesslog = None  # the application writes a line for each request itself
loglevel = _settings["LOG_LEVEL"]
statsd_host = _settings["STATSD_HOST"]
statsd_prefix = "igris"
control_socket_disable = True
forwarder_headers = ""  # else SCRIPT_NAME of a request would change its path


def post_worker_init(worker: Any) -> None:
    """A batch's JSON is thousands of objects without a cycle: the garbage collector would search them in vain."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
