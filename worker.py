"""gunicorn's worker: threads, timeouts for clients, and errors as JSON.

It uses private parts of gunicorn 27's gthread worker. At an upgrade check `ThreadWorker.accept`, `pending_conns`,
`on_pending_socket_readable`, `_keepalive_after` and `handle_error`, and that `TConn` takes the same arguments.
"""

import errno
import json
import secrets
import selectors
import socket
import struct
import time
from functools import partial
from typing import Any

from gunicorn import util
from gunicorn.http.errors import LimitRequestHeaders, LimitRequestLine, ParseException
from gunicorn.workers.gthread import TConn, ThreadWorker

CLIENT_TIMEOUT = 10
"""Seconds without a byte from a client, or accepted by it."""

_PARSE_ERRORS = {
    LimitRequestLine: (414, "URI too long"),
    LimitRequestHeaders: (431, "Request header fields too large"),
    ParseException: (400, "Bad request"),
    Exception: (500, "Internal server error"),
}


class ClientSocket(socket.socket):
    """A blocking socket that gives up on its client after CLIENT_TIMEOUT, as if the client had hung up.

    gunicorn logs a traceback for a timeout, and nothing for a client that hangs up.
    """

    def __init__(self, accepted: socket.socket) -> None:
        super().__init__(fileno=accepted.detach())
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):  # they hold however gunicorn sets the socket
            self.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", CLIENT_TIMEOUT, 0))

    def recv(self, *args: Any) -> bytes:
        try:
            return super().recv(*args)
        except BlockingIOError:
            raise ConnectionResetError(errno.ECONNRESET, "the client sends nothing") from None

    def sendall(self, *args: Any) -> None:
        try:
            super().sendall(*args)
        except BlockingIOError:
            raise ConnectionResetError(errno.ECONNRESET, "the client reads nothing") from None


class Worker(ThreadWorker):
    """Keeps connections alive, and serves other requests while one waits for its commit."""

    def accept(self, listener: Any) -> None:
        """Accept a connection, and wait for its first byte without a thread.

        gunicorn's own method has a thread wait 5 seconds for it: a few silent connections would stop the service.
        """
        try:
            accepted, address = listener.accept()
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.ECONNABORTED, errno.EWOULDBLOCK):
                return
            raise
        self.nr_conns += 1
        connection = TConn(self.cfg, ClientSocket(accepted), address, listener.getsockname())
        connection.timeout = time.monotonic() + CLIENT_TIMEOUT
        self.pending_conns.append(connection)
        callback = partial(self.on_pending_socket_readable, connection)
        self.poller.register(connection.sock, selectors.EVENT_READ, callback)

    def _keepalive_after(self, conn: Any, keepalive: Any) -> bool:
        """Close the connection if the rest of a body makes no sense: its request has had its one answer."""
        try:
            return bool(super()._keepalive_after(conn, keepalive))
        except ParseException:
            return False

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """Answer what is not HTTP with JSON. The log gets its kind, not its words: they may hold an API key."""
        status, error = next(answer for kind, answer in _PARSE_ERRORS.items() if isinstance(exc, kind))
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
