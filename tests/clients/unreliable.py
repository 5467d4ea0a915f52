"""A network that loses requests and responses."""

import socket
import threading
from contextlib import suppress
from typing import Self

TOO_MANY_REQUESTS = b"""HTTP/1.1 429 Too Many Requests\r
Content-Type: application/json\r
Retry-After: 1\r
Content-Length: 30\r
Connection: close\r
\r
{"error": "Too many requests"}"""


class UnreliableProxy:
    """Passes connections to a port, but not the first ones.

    Some are closed before the service responds, some after it. Others get nginx's response to too many requests.
    """

    def __init__(self, port: int, *, lose_requests: int = 0, lose_responses: int = 0, limit: int = 0) -> None:
        self._target = port
        self._limit = limit
        self._lose_requests, self._lose_responses = lose_requests, lose_responses
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.connections = 0

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=[client, self.connections], daemon=True).start()

    def _serve(self, client: socket.socket, number: int) -> None:
        with client:
            if number <= self._lose_requests:
                return
            if number <= self._limit:
                client.recv(2**20)
                client.sendall(TOO_MANY_REQUESTS)
                return
            is_lost = number <= self._lose_requests + self._lose_responses
            with socket.create_connection(("127.0.0.1", self._target)) as server:
                there = threading.Thread(target=_pass, args=[client, server], daemon=True)
                there.start()
                if is_lost:
                    server.recv(1)
                else:
                    _pass(server, client)
                for each in (client, server):
                    with suppress(OSError):
                        each.shutdown(socket.SHUT_RDWR)
                there.join()


def _pass(source: socket.socket, target: socket.socket) -> None:
    """Pass bytes on until one of the two ends."""
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
