"""What a request of one event costs in a worker, without network and database, beside Flask's own floor.

    .venv/bin/python -m bench.layers

The floor is a Flask that parses the same body and responds. Between two waits for the network each instruction costs
two to four times as much as in this hot loop: what counts is the ratio. The last lines are the shares of what is ours.
"""

import cProfile
import io
import json
import logging
import os
import pstats
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import logs
import storage
from app import create_app
from bench.peers import floor
from bench.run import bodies
from dev.service import PATH, ROOT

REQUESTS = int(os.environ.get("REQUESTS", "3000"))
ROUNDS = 9
FLOOR = "Flask's floor"
KEY = "ig_" + "x" * 40


class Nowhere(storage.Storage):
    """Knows every key, and stores nothing."""

    def identify(self, key: str) -> storage.ApiKey:
        return storage.ApiKey(1, "acme")

    def store(self, key: storage.ApiKey, batch: storage.EventBatch) -> storage.StoreResult:
        return storage.StoreResult(len(batch.valid), 49_999, False)


class Discarded(logs.LossyOutput):
    def write(self, text: str) -> bool:
        """Write nothing: what the kernel does with a line is not of interest."""
        return True


def environ(body: bytes) -> dict[str, Any]:
    return {
        "REQUEST_METHOD": "POST",
        "PATH_INFO": PATH,
        "QUERY_STRING": "",
        "SCRIPT_NAME": "",
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "8000",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "HTTP_HOST": "127.0.0.1:8000",
        "HTTP_AUTHORIZATION": f"Bearer {KEY}",
        "HTTP_USER_AGENT": "bench",
        "HTTP_ACCEPT": "*/*",
        "CONTENT_TYPE": "application/json",
        "CONTENT_LENGTH": str(len(body)),
        "wsgi.input": io.BytesIO(body),
        "wsgi.url_scheme": "http",
        "wsgi.errors": io.StringIO(),
        "wsgi.version": (1, 0),
        "wsgi.input_terminated": True,
    }


def microseconds(call: Callable[[dict[str, Any]], Any], body: bytes) -> float:
    environs = [environ(body) for _ in range(REQUESTS)]
    began = time.perf_counter()
    for each in environs:
        call(each)
    return (time.perf_counter() - began) / REQUESTS * 1e6


def through(app: Any) -> Callable[[dict[str, Any]], None]:
    def call(environ: dict[str, Any]) -> None:
        statuses: list[str] = []
        response = app.wsgi_app(environ, lambda status, headers: statuses.append(status))
        b"".join(response)
        response.close()
        assert statuses == ["200 OK"], statuses

    return call


def main() -> None:
    os.environ["DATABASE_URL"] = "postgresql:///nowhere"
    logs.LossyOutput = Discarded  # type: ignore[misc]
    ours = create_app()
    ours.extensions["storage"] = Nowhere("postgresql:///nowhere", 4, 7)
    logging.disable()
    [body] = bodies(1)[:1]
    body = json.dumps(json.loads(body)[0]).encode()
    calls = {FLOOR: through(floor()), "the service": through(ours)}
    figures: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            figures[name].append(microseconds(call, body))
    medians = {name: statistics.median(values) for name, values in figures.items()}
    print("| what | microseconds a request | ratio |\n|---|---|---|")
    for name, value in medians.items():
        print(f"| {name} | {value:.1f} us | {value / medians[FLOOR]:.2f} |")

    print("\n| our own function | microseconds, with the profiler's cost |\n|---|---|")
    profile = cProfile.Profile()
    environs = [environ(body) for _ in range(REQUESTS)]
    profile.enable()
    for each in environs:
        calls["the service"](each)
    profile.disable()
    for (file, _, function), (_, _, _, seconds, _) in sorted(pstats.Stats(profile).stats.items(), key=_cumulative):  # type: ignore[attr-defined]
        if Path(file).parent == ROOT and seconds / REQUESTS > 1e-6:
            print(f"| `{Path(file).name}`: `{function}` | {seconds / REQUESTS * 1e6:.1f} |")


def _cumulative(entry: Any) -> float:
    return -float(entry[1][3])


if __name__ == "__main__":
    main()
