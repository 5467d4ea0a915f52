"""The service on several databases side by side: on one PostgreSQL and on Citus, say. Prints lines of Markdown.

    .venv/bin/python -m bench.databases postgresql://... postgresql://...

Each database gets 8 organizations with unlimited quotas; on Citus run `init-db` and `deploy/citus.sql` before. Figures
are medians of ROUNDS (3), each of SECONDS (3) on every database in turn.
"""

import statistics
import sys
import tempfile
import uuid
from pathlib import Path

from bench import load
from bench.run import ROUNDS, SECONDS, bodies
from dev.service import Service, set_up

CONNECTIONS = 8
ORGANIZATIONS = 8


def new_keys(url: str) -> list[str]:
    return [set_up(url, f"bench-{uuid.uuid4().hex[:12]}", None) for _ in range(ORGANIZATIONS)]


def events_per_second(service: Service, keys: list[str], size: int) -> float:
    result = load.run(load.Http(service.port, keys, bodies(size)), CONNECTIONS, SECONDS)
    assert set(result.statuses) == {200}, result.statuses
    return result.statuses[200] * size / result.seconds


def main(urls: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        services = [Service(url, Path(folder) / str(number)).start() for number, url in enumerate(urls)]
        try:
            keys = [new_keys(url) for url in urls]
            print("| events a request | database | events a second | of the first |\n|---|---|---|---|")
            for size in (1, 100):
                rounds = [
                    [events_per_second(service, keys[number], size) for number, service in enumerate(services)]
                    for _ in range(ROUNDS)
                ]
                medians = [statistics.median(figures) for figures in zip(*rounds, strict=True)]
                for number, figure in enumerate(medians, 1):
                    print(f"| {size} | {number} | {figure:,.0f} | {figure / medians[0]:.0%} |")
        finally:
            for service in services:
                service.stop()


if __name__ == "__main__":
    main(sys.argv[1:])
