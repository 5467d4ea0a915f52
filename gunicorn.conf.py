"""gunicorn's settings, in production and in `make run`; most of them come from config.py."""

import gc
import json
import os
import resource
import runpy
import secrets
import select
import selectors
import ssl
import time
import traceback
from collections import deque
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from gunicorn.http.errors import LimitRequestHeaders, LimitRequestLine, ParseException
from gunicorn.workers.gthread import ThreadWorker

# A fresh copy: the master, from which the workers are forked, never imports the application, so that a reload (SIGHUP)
# picks up new code. An invalid setting stops the start here, and not in each worker.
_config = runpy.run_path(str(Path(__file__).with_name("config.py")))
_settings = _config["load_settings"]()
# Else a name server that doesn't respond holds a request for longer than PostgreSQL may. glibc reads it.
os.environ.setdefault("RES_OPTIONS", "timeout:1 attempts:2")


FIRST_BYTE_WAIT = 10  # seconds after which a connection is closed on which the client has sent nothing
NEXT_REQUEST_WAIT = 2  # milliseconds that a thread waits for the next request of its connection
ACCEPT_DELAY = 20e-6  # seconds that a worker waits before it accepts a connection, for each connection it has
MAX_ACCEPT_DELAY = 200e-6


class Worker(ThreadWorker):
    """gunicorn's gthread worker. It overrides `accept`, `enqueue_req`, `handle`, `handle_error` and `handle_quit`."""

    alive: bool
    log: Any
    nr_conns: int
    pending_conns: deque[Any]
    poller: selectors.BaseSelector

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.waiting: deque[Any] = deque()  # connections that have a request, and no thread

    def accept(self, listener: Any) -> None:
        """Accept a connection, unless another worker was first: one with fewer connections waits less.

        With gunicorn's own, one of two workers got 31 or all of 32 connections in 6 of 10 runs (2026-11-29).
        """
        time.sleep(min(self.nr_conns * ACCEPT_DELAY, MAX_ACCEPT_DELAY))
        super().accept(listener)

    def enqueue_req(self, conn: Any) -> None:
        """Give a thread a request. gunicorn's own also lets it wait 5 s for the first byte of a new connection."""
        if conn.initialized or conn.data_ready:
            self.waiting.append(conn)
            super().enqueue_req(conn)
        else:
            conn.sock.setblocking(False)
            conn.timeout = time.monotonic() + FIRST_BYTE_WAIT
            self.pending_conns.append(conn)
            self.poller.register(conn.sock, selectors.EVENT_READ, partial(self.on_pending_socket_readable, conn))

    def handle(self, conn: Any) -> Any:
        """Handle a request, and the connection's next ones that come at once while no other connection waits.

        gunicorn's own passes the connection to the main thread and back for each request: at one event, over 8
        connections, 5% fewer requests a second (2026-11-29).
        """
        self.waiting.popleft()
        client = select.poll()
        client.register(conn.sock, select.POLLIN)
        while (is_kept := super().handle(conn)) is True and self.alive and not self.waiting:
            if not client.poll(NEXT_REQUEST_WAIT):
                break
        return is_kept

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """Respond to invalid HTTP with JSON. The log gets only the kind of the error: the words may hold an API key."""
        status, error, hint = 500, "Internal server error", ""
        if isinstance(exc, LimitRequestLine):
            status, error = 414, "URI too long"
        elif isinstance(exc, LimitRequestHeaders):
            status, error = 431, "Request header fields too large"
        elif isinstance(exc, ParseException | ssl.SSLError):
            status, error, hint = (
                400,
                "Bad request",
                "Is there a line break in a header, such as a CR behind the API key?",
            )
        else:
            self.log.error("Traceback (most recent call last):\n%s", "".join(traceback.format_tb(exc.__traceback__)))
        request_id = secrets.token_hex(16)
        self.log.warning("%s %s: %s", request_id, status, type(exc).__name__)
        if req and status != 500:
            return  # the rest of a body can't be parsed: the request has its response already
        content = {"error": error} | ({"details": [{"field": "", "message": hint}]} if hint else {})
        body = json.dumps(content) + "\n"
        head = (
            f"HTTP/1.1 {status} {error}\r\nConnection: close\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nCache-Control: no-store\r\nX-Request-Id: {request_id}\r\n\r\n"
        )
        client.sendall((head + body).encode())

    def handle_quit(self, sig: int, frame: Any) -> None:
        """End at SIGINT and SIGQUIT as at SIGTERM. gunicorn's own raises SystemExit wherever the main thread is."""
        self.handle_exit(sig, frame)


worker_class = Worker
_host = f"[{_settings['HOST']}]" if ":" in _settings["HOST"] else _settings["HOST"]
bind = f"{_host}:{_settings['PORT']}"
workers = _settings["WEB_CONCURRENCY"]
threads = _settings["THREADS"]
# A worker that runs out of files ends. Besides its clients it has a connection to PostgreSQL for each thread.
worker_connections = max(threads + 1, min(1000, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - threads - 64))
keepalive = 95  # longer than a proxy keeps idle connections, else it sends into one that was just closed: a 502
# gunicorn's main thread can wait 2 s for each of 60 clients that don't hang up, before it shows that it lives.
timeout = 150
accesslog = None  # logs.py writes a line for each request
loglevel = "warning"  # until on_reload sets up the log. With `logconfig_dict`, gunicorn makes access lines.
statsd_host = _settings["STATSD_HOST"]
statsd_prefix = "igris"
control_socket_disable = True
forwarded_allow_ips = "*"  # nothing depends on what a proxy forwards; else each client's address would be parsed
forwarder_headers = ""  # else a request's SCRIPT_NAME header would change its path


def on_starting(server: Any) -> None:
    """Log the settings in force. DATABASE_URL, which may hold a password, is not among them."""
    on_reload(server)
    shown = " ".join(f"{name}={value}" for name, value in _settings.items() if name != "DATABASE_URL")
    server.log.info("igris-ingest %s, settings: %s", _config["VERSION"], shown)


def on_reload(server: Any) -> None:
    _config["set_up_logging"](_settings["LOG_LEVEL"])


def post_worker_init(worker: Any) -> None:
    # gunicorn looks up some thirty settings for each request, and slowly
    names = [*worker.cfg.settings, *(name for name in dir(worker.cfg) if not name.startswith("_"))]
    worker.cfg = SimpleNamespace(**{name: getattr(worker.cfg, name) for name in names})
    gc.freeze()  # the application's own objects stay
