"""How cost grows: with the rows stored, with the organizations, and with time. Writes bench/growth.md.

    .venv/bin/python -m bench.growth

ROWS (in millions), ORGANIZATIONS and SOAK (minutes) change what is tried. 50 million rows need 15 GB of disk.
"""

import contextlib
import os
import secrets
import tempfile
from pathlib import Path

import psutil
import psycopg

from bench import load
from bench.run import bodies, measured_on
from dev import postgres
from dev.service import Service, set_up

ROWS = [int(millions) * 10**6 for millions in os.environ.get("ROWS", "0,1,10,50").split(",")]
ORGANIZATIONS = [int(count) for count in os.environ.get("ORGANIZATIONS", "1,100,10000").split(",")]
SOAK = int(os.environ.get("SOAK", "10"))
SECONDS = 6.0

FILL = """
    INSERT INTO audit_events (org_id, api_key_id, type, tool_name, action, "timestamp", metadata, received_at)
    SELECT 'org-0', 1, 'tool_call', 'generate_report', 'allow', at, jsonb_build_object(
               'model', 'gpt-4o', 'userId', 'user_' || i %% 5000, 'latencyMs', i %% 9000), at
    FROM generate_series(%s, %s) AS i, LATERAL (SELECT now() - interval '400 days' + i * interval '0.5 s' AS at) AS t
"""


class Growth:
    def __init__(self, url: str, service: Service) -> None:
        self.sql = psycopg.connect(url, autocommit=True)
        self.service = service
        self.lines: list[str] = []

    def write(self, line: str = "") -> None:
        print(line, flush=True)
        self.lines.append(line)

    def measure(self, keys: list[str], size: int, seconds: float = SECONDS) -> str:
        figure, rejected = self.measure_with_rejected(keys, size, seconds)
        return f"{figure}, {rejected} rejected" if rejected else figure

    def measure_with_rejected(self, keys: list[str], size: int, seconds: float) -> tuple[str, int]:
        """Return the figure, and how many requests got a 503, as some do while the disk stalls."""
        result = load.run(load.Http(self.service.port, keys, bodies(size)), 8, seconds)
        assert set(result.statuses) <= {200, 503}, result.statuses
        events = result.statuses[200] * size / result.seconds
        latencies = f"{result.percentile(50) * 1000:.1f} / {result.percentile(99) * 1000:.1f}"
        return f"{events:,.0f} ({latencies})", result.statuses[503]

    def create_keys(self, count: int) -> list[str]:
        keys = ["ig_" + secrets.token_hex(20) for _ in range(count)]
        names = [f"org-{i}" for i in range(count)]
        self.sql.execute("INSERT INTO organizations SELECT unnest(%s::text[]), 10 ^ 12 ON CONFLICT DO NOTHING", [names])
        self.sql.execute(
            """
            INSERT INTO api_keys (org_id, key_hash, prefix)
            SELECT org_id, sha256(key::bytea), 'bench' FROM unnest(%s::text[], %s::text[]) AS made (org_id, key)
            """,
            [names, keys],
        )
        self.sql.execute("ANALYZE")
        return keys

    def rows(self) -> None:
        keys = self.create_keys(1)
        self.write("## With the rows stored\n\n| rows | 1 event a request | 100 | table | indexes | bytes a row |")
        self.write("|---|---|---|---|---|---|")
        filled = 0
        for rows in ROWS:
            for start in range(filled, rows, 10**6):
                self.sql.execute(FILL, [start + 1, min(start + 10**6, rows)])
            filled = max(filled, rows)
            self.sql.execute("CHECKPOINT")
            [(table, indexes)] = self.sql.execute(
                "SELECT pg_table_size('audit_events'), pg_indexes_size('audit_events')"
            ).fetchall()
            one, hundred = self.measure(keys, 1), self.measure(keys, 100)
            per_row = f"{(table + indexes) / rows:.0f}" if rows else ""
            self.write(
                f"| {rows:,} | {one} | {hundred} | {table / 2**20:,.0f} MiB | {indexes / 2**20:,.0f} MiB | {per_row} |"
            )

    def organizations(self) -> None:
        self.write("\n## With the organizations\n\n| organizations | 1 event a request | 100 |\n|---|---|---|")
        for count in ORGANIZATIONS:
            keys = self.create_keys(count)
            self.write(f"| {count:,} | {self.measure(keys, 1)} | {self.measure(keys, 100)} |")

    def soak(self) -> None:
        keys = self.create_keys(1)
        self.write("\n## With time\n\n| minute | 10 events a request | rejected with 503 | memory |\n|---|---|---|---|")
        workers = psutil.Process(self.service.process.pid).children()
        for minute in range(1, SOAK + 1):
            figure, rejected = self.measure_with_rejected(keys, 10, 60)
            memory = ", ".join(f"{worker.memory_info().rss / 2**20:.0f}" for worker in workers)
            self.write(f"| {minute} | {figure} | {rejected} | {memory} MiB |")


def main() -> None:
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(postgres.temporary()).url
        set_up(url, "bench", None)
        log = Path(stack.enter_context(tempfile.TemporaryDirectory()), "log")
        service = Service(url, log, WEB_CONCURRENCY=2, THREADS=4).start()
        stack.callback(service.stop)
        growth = Growth(url, service)
        stack.callback(growth.sql.close)
        growth.write(
            f"# How cost grows\n\n{measured_on(url)}\n\nEvents a second over 8 connections (p50 / p99 in ms).\n"
        )
        growth.rows()
        growth.organizations()
        growth.soak()
        Path(__file__).with_name("growth.md").write_text("\n".join([*growth.lines, ""]))


if __name__ == "__main__":
    main()
