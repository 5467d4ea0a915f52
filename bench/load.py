"""A load from this machine: each connection sends its next request when it has the last response."""

import multiprocessing
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import quantiles
from typing import Protocol

import storage
from dev.service import PATH


class Sender(Protocol):
    def connect(self) -> Callable[[int], int]:
        """Opens a connection; what it returns sends the request of a number, and returns the response's status."""


@dataclass
class Http:
    """Requests to a service, under the keys in turn."""

    port: int
    keys: Sequence[str]
    bodies: Sequence[bytes]

    def connect(self) -> Callable[[int], int]:
        head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        heads = [f"{head}Authorization: Bearer {key}\r\n".encode() for key in self.keys]
        ends = [f"Content-Length: {len(body)}\r\n\r\n".encode() + body for body in self.bodies]
        client = socket.create_connection(("127.0.0.1", self.port))
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def send(number: int) -> int:
            client.sendall(heads[number % len(heads)] + ends[number % len(ends)])
            return _read_response(client)

        return send


@dataclass
class Sql:
    """The service's storing statement alone, without HTTP."""

    database_url: str
    key: str
    bodies: Sequence[bytes]
    size: int

    def connect(self) -> Callable[[int], int]:
        database = storage.Storage(self.database_url, 1, 7)
        api_key = database.authenticate(self.key)
        valid = list(range(self.size))
        requests = [storage.EventBatch(body.decode(), valid, self.size) for body in self.bodies]

        def send(number: int) -> int:
            database.store(api_key, requests[number % len(requests)])
            return 200

        return send


@dataclass
class Result:
    seconds: float
    statuses: Counter[int]
    latencies: list[float]
    """In seconds."""

    def percentile(self, percent: int) -> float:
        return quantiles(self.latencies, n=100)[percent - 1] if len(self.latencies) > 1 else self.latencies[0]


def run(sender: Sender, connections: int, seconds: float) -> Result:
    """Sends over that many connections, from two processes, for that long."""
    processes = min(connections, 2)
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(processes)
    with context.Pool(processes, initializer=_set_ready, initargs=[ready]) as pool:
        shares = [connections // processes + (i < connections % processes) for i in range(processes)]
        jobs = [pool.apply_async(_drive, (sender, share, seconds)) for share in shares]
        parts = [job.get() for job in jobs]
    return Result(
        max(part.seconds for part in parts),
        sum((part.statuses for part in parts), Counter[int]()),
        [latency for part in parts for latency in part.latencies],
    )


_ready: threading.Barrier
"""All processes are connected."""


def _set_ready(barrier: threading.Barrier) -> None:
    global _ready
    _ready = barrier


def _drive(sender: Sender, connections: int, seconds: float) -> Result:
    result = Result(0, Counter(), [])

    def use(send: Callable[[int], int], number: int) -> None:
        while (now := time.perf_counter()) < until:
            result.statuses[send(number)] += 1
            result.latencies.append(time.perf_counter() - now)
            number += 1

    senders = [sender.connect() for _ in range(connections)]
    _ready.wait()
    began = time.perf_counter()
    until = began + seconds
    threads = [threading.Thread(target=use, args=[send, number]) for number, send in enumerate(senders)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    result.seconds = time.perf_counter() - began
    return result


def _read_response(client: socket.socket) -> int:
    data = b""
    while b"\r\n\r\n" not in data:
        if not (more := client.recv(65536)):
            raise ConnectionError("the connection was closed")
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    missing = int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0]) - len(body)
    while missing > 0:
        missing -= len(client.recv(65536))
    return int(head[9:12])
