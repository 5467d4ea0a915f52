"""gunicorn's worker: threads that wait for requests, timeouts for clients, and errors as JSON.

It uses private parts of gunicorn 27. At an upgrade check in `ThreadWorker` what is overridden here and what calls it,
`handle_request`, `nr_conns`, `max_keepalived` (for gunicorn.conf.py) and `method_queue`; in `TConn` its arguments,
`init`, `parser` and `set_timeout`; the readers of bodies that `_call` looks at; that `recv` is all they read with; and
`_access_log_enabled`.
"""

import json
import math
import os
import secrets
import select
import socket
import struct
import threading
import time
import traceback
from contextlib import suppress
from functools import partial
from typing import Any

from gunicorn.http.errors import LimitRequestHeaders, LimitRequestLine, ParseException
from gunicorn.workers.gthread import TConn, ThreadWorker

CLIENT_TIMEOUT = 10  # seconds in which a client neither sends nor reads anything
REQUEST_TIMEOUT = 20  # seconds that a client has to send a request, but for its last bytes
HANG_UP_TIMEOUT = 2  # seconds that a client has to hang up after its last answer
MAX_UNSENT = 2**26  # bytes of answers that a worker keeps for clients that are slow to read

_PARSE_ERRORS = {
    LimitRequestLine: (414, "URI too long"),
    LimitRequestHeaders: (431, "Request header fields too large"),
    ParseException: (400, "Bad request"),
    Exception: (500, "Internal server error"),
}


class ClientSocket(socket.socket):
    """A socket that waits CLIENT_TIMEOUT for its client to send, and never for it to read: `flush` sends the answers.

    After `deadline` it receives nothing more. It ignores gunicorn's setblocking and settimeout: at each system call
    Python may switch to another thread.
    """

    def __init__(self, accepted: socket.socket) -> None:
        super().__init__(fileno=accepted.detach())
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):  # gunicorn itself sends "100 Continue", and may wait
            self.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", CLIENT_TIMEOUT, 0))
        self.unsent = b""
        self.deadline = math.inf

    def setblocking(self, flag: bool) -> None:
        """Do nothing."""

    def settimeout(self, value: float | None) -> None:
        """Do nothing."""

    def recv(self, *args: Any) -> bytes:
        if time.monotonic() > self.deadline:
            raise TimeoutError
        return super().recv(*args)

    def sendall(self, data: Any, flags: int = 0) -> None:
        self.unsent += data

    def flush(self) -> None:
        """Send what the client takes without waiting."""
        with suppress(BlockingIOError):
            self.unsent = self.unsent[self.send(self.unsent, socket.MSG_DONTWAIT) :]


class Connection(TConn):
    """A connection to a client. While nothing can be done for it, it is idle, and no thread waits for it."""

    parser: Any

    def __init__(self, cfg: Any, accepted: socket.socket, *addresses: Any) -> None:
        super().__init__(cfg, ClientSocket(accepted), *addresses)
        self.timeout = time.monotonic() + CLIENT_TIMEOUT
        self.is_kept = False  # it can have another request after the present one
        self.hangs_up = False  # the last answer has been sent

    def hang_up(self) -> None:
        """Tell the client that nothing follows. Closing could take its last answer away (RFC 9112, section 9.6)."""
        self.hangs_up, self.parser = True, None
        self.timeout = self.sock.deadline = time.monotonic() + HANG_UP_TIMEOUT
        self.sock.shutdown(socket.SHUT_WR)

    def awaited_event(self) -> int:
        """Return what has to happen before a thread can go on: the client sends, or can take more of an answer.

        If a request was read ahead, it is the second, which comes at once: its turn is after those that wait already.
        """
        is_read_ahead = self.parser and self.parser.unreader.buf.getvalue().strip(b"\r\n")
        return select.EPOLLOUT if self.sock.unsent or is_read_ahead else select.EPOLLIN

    def waits_for_thread(self) -> bool:
        """Return whether the awaited event has come, and no thread was free."""
        poll = select.poll()
        poll.register(self.sock, self.awaited_event())
        return not self.hangs_up and bool(poll.poll(0))


class CachedConfig:
    """gunicorn's settings, each looked up once: gunicorn looks up thirty for each request, and slowly."""

    def __init__(self, config: Any) -> None:
        self._config = config

    def __getattr__(self, name: str) -> Any:
        value = self.__dict__[name] = getattr(self._config, name)
        return value


class Worker(ThreadWorker):
    """Has each thread wait for a request, answer it and wait again. The main thread accepts and times out connections.

    In gunicorn's own worker the main thread waits for requests, hands each to a thread and takes the connection back,
    which costs a tenth of the throughput. It also waits for clients that don't hang up: a few of them stop the service.
    """

    cfg: Any
    log: Any
    wsgi: Any
    _end_of_idling = math.inf
    _next_look = 0.0

    def run(self) -> None:
        self.cfg = CachedConfig(self.cfg)
        self.wsgi = partial(self._call, self.wsgi)
        self.log._access_log_enabled = False  # gunicorn makes its line even if nothing writes it; logs.py has ours
        self._events = select.epoll()
        self._end = os.eventfd(0)
        self._events.register(self._end, select.EPOLLIN)
        self._idle: dict[int, Connection] = {}
        self._is_over = False
        try:
            for _ in range(self.cfg.threads):
                threading.Thread(target=self._serve).start()
            super().run()
        finally:  # the process ends when its threads have answered their requests
            self._is_over = True
            os.eventfd_write(self._end, 1)

    def accept(self, listener: Any) -> None:
        try:
            accepted, address = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        self.nr_conns += 1
        connection = Connection(self.cfg, accepted, address, listener.getsockname())
        self._idle[connection.sock.fileno()] = connection
        self._events.register(connection.sock, select.EPOLLIN | select.EPOLLONESHOT)

    def _make_idle(self, connection: Connection) -> None:
        descriptor, event = connection.sock.fileno(), connection.awaited_event()
        self._idle[descriptor] = connection
        with suppress(OSError):  # the main thread has closed it meanwhile
            self._events.modify(descriptor, event | select.EPOLLONESHOT)

    def _serve(self) -> None:
        while not self._is_over:
            for descriptor, _ in self._events.poll(maxevents=1):
                # whoever takes a connection out of the idle ones has it alone
                if connection := self._idle.pop(descriptor, None):
                    self._advance(connection)

    def _advance(self, connection: Connection) -> None:
        """Answer a request, send more of its answer, or read on until the client hangs up."""
        is_open = True
        try:
            if connection.hangs_up:
                is_open = bool(connection.sock.recv(2**16))
            else:
                if is_new := not connection.sock.unsent:
                    connection.is_kept = self._answer(connection)
                connection.sock.flush()
                if connection.sock.unsent:
                    connection.timeout = time.monotonic() + CLIENT_TIMEOUT
                    of_others = sum(len(each.sock.unsent) for each in list(self._idle.values()))
                    is_open = not is_new or of_others + len(connection.sock.unsent) <= MAX_UNSENT
                elif connection.is_kept:
                    connection.set_timeout()
                else:
                    connection.hang_up()
        except (OSError, StopIteration):
            is_open = False
        if is_open:
            self._make_idle(connection)
        else:
            connection.close()
            self.method_queue.defer(self._count_closed)

    def _count_closed(self) -> None:
        self.nr_conns -= 1

    def _answer(self, connection: Connection) -> bool:
        """Make the answer of a request, and return whether the connection can have another.

        Raises OSError or StopIteration if the client is gone.
        """
        try:
            connection.init()
            connection.sock.deadline = time.monotonic() + REQUEST_TIMEOUT
            return bool(self.handle_request(next(connection.parser), connection))
        except (OSError, StopIteration):
            raise
        except Exception as error:  # noqa: BLE001
            self.handle_error(None, connection.sock, connection.client, error)
            return False

    def _call(self, application: Any, environ: dict[str, Any], start_response: Any) -> Any:
        """Call the application, and end the connection if it has refused a request without reading the whole body."""
        answer = application(environ, start_response)
        reader = environ["wsgi.input"].reader
        if getattr(reader, "length", None) or getattr(reader, "parser", None):
            start_response.__self__.force_close()
        return answer

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """Answer what is not HTTP with JSON. The log gets the error's kind, not its words: they may hold an API key."""
        status, error = next(answer for kind, answer in _PARSE_ERRORS.items() if isinstance(exc, kind))
        request_id = secrets.token_hex(16)
        self.log.warning("%s %s: %s", request_id, status, type(exc).__name__)
        if status == 500:
            self.log.error("Traceback (most recent call last):\n%s", "".join(traceback.format_tb(exc.__traceback__)))
        body = json.dumps({"error": error}) + "\n"
        head = (
            f"HTTP/1.1 {status} {error}\r\nConnection: close\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nCache-Control: no-store\r\nX-Request-Id: {request_id}\r\n\r\n"
        )
        client.sendall((head + body).encode())

    def murder_keepalived(self, force: bool = False) -> None:
        """Close the connections that have been idle for too long. gunicorn calls it at each turn of its loop."""
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + 0.5
        for descriptor, connection in self._idle.copy().items():
            is_answered = not connection.hangs_up and not connection.sock.unsent
            timeout = min(connection.timeout, self._end_of_idling) if is_answered else connection.timeout
            if now < timeout or self._idle.pop(descriptor, None) is None:
                continue
            if connection.waits_for_thread():
                connection.timeout = now + CLIENT_TIMEOUT
                self._make_idle(connection)
            else:
                connection.close()
                self._count_closed()

    def _cap_keepalive(self, deadline: float) -> None:
        """Close what is idle by `deadline`: the worker ends."""
        self._end_of_idling = min(self._end_of_idling, deadline)
        self._next_look = 0
        self.murder_keepalived()

    def handle_quit(self, sig: int, frame: Any) -> None:
        """End as at SIGTERM, without waiting for idle connections.

        gunicorn's own raises SystemExit at each Ctrl-C, wherever the main thread is: it cuts requests, or hangs.
        """
        self._end_of_idling = 0
        self.handle_exit(sig, frame)
