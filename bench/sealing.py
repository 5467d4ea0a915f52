"""How fast `seal`, `verify` and `export` are, and what requests feel of `seal` meanwhile. Prints lines of Markdown.

    .venv/bin/python -m bench.sealing

EVENTS (2,000,000) of the documented example's size were received by one organization within 20 days.
"""

import os
import statistics
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import psycopg

from bench import load
from bench.run import bodies
from dev import postgres
from dev.service import PROGRAM, Service, set_up

EVENTS = int(os.environ.get("EVENTS", "2000000"))
ROUNDS = 3
SECONDS = 4.0

FILL = """
    INSERT INTO audit_events (org_id, api_key_id, source, type, tool_name, action, "timestamp", metadata, received_at)
    SELECT
        'acme', 1, 'raw', 'tool_call', 'generate_report_' || i %% 10, 'log', now() - i * interval '1 ms',
        jsonb_build_object('model', 'gpt-4o', 'userId', 'user_' || i, 'latencyMs', i %% 9000),
        now() - interval '21 days' + i * (interval '20 days' / %(events)s::float)
    FROM generate_series(1, %(events)s) AS i
"""


def seconds_of(url: str, *arguments: str) -> float:
    began = time.perf_counter()
    subprocess.run([PROGRAM, *arguments], env={**os.environ, "DATABASE_URL": url}, check=True, capture_output=True)
    return time.perf_counter() - began


def requests_per_second(service: Service, key: str) -> float:
    result = load.run(load.Http(service.port, [key], bodies(1)), 8, SECONDS)
    return sum(result.statuses.values()) / result.seconds


def main() -> None:
    with (
        postgres.temporary() as server,
        tempfile.TemporaryDirectory() as folder,
        psycopg.connect(server.url, autocommit=True) as sql,
    ):
        key = set_up(server.url, "other", None)
        set_up(server.url, "acme", None)
        sql.execute(FILL.encode(), {"events": EVENTS})
        sql.execute("VACUUM ANALYZE audit_events")  # as autovacuum does: the index on received_at needs it
        rates: dict[str, list[float]] = {"seal": [], "verify": [], "export": []}
        for number in range(ROUNDS):
            sql.execute("DELETE FROM chain_entries")
            rates["seal"].append(EVENTS / seconds_of(server.url, "seal", "--org", "acme"))
            rates["verify"].append(EVENTS / seconds_of(server.url, "verify", "--org", "acme"))
            output = ["--output", str(Path(folder) / f"{number}.ndjson")]
            rates["export"].append(EVENTS / seconds_of(server.url, "export", "--org", "acme", *output))
        for name, values in rates.items():
            print(f"| `{name}` | {statistics.median(values):,.0f} events/s |")
        service = Service(server.url, Path(folder) / "service.log").start()
        alone, during = [], []
        for _ in range(ROUNDS):
            alone.append(requests_per_second(service, key))
            over = threading.Event()

            def verify_again_and_again(over: threading.Event = over) -> None:
                while not over.is_set():
                    seconds_of(server.url, "verify", "--org", "acme")

            thread = threading.Thread(target=verify_again_and_again)
            thread.start()
            during.append(requests_per_second(service, key))
            over.set()
            thread.join()
        service.stop()
        print(f"| requests of one event, 8 connections | {statistics.median(alone):,.0f} a second |")
        print(f"| the same during `verify` | {statistics.median(during):,.0f} a second |")


if __name__ == "__main__":
    main()
