"""`make bench`: how fast the service is, beside the framework's floor, an idiomatic variant and PostgreSQL itself.

Every figure is the median of ROUNDS rounds of SECONDS each; in a round each target is measured once, in turn, so that
what else the machine does meets all of them. Rows are counted against acknowledgements after each run. Results go to
bench/results.md and bench/results.svg.
"""

import contextlib
import json
import os
import platform
import random
import shutil
import statistics
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import psycopg

from bench import load
from dev import postgres
from dev.service import Nginx, Service, set_up

mpl.use("svg")
from matplotlib import pyplot as plt

SECONDS = float(os.environ.get("SECONDS", "3"))
ROUNDS = int(os.environ.get("ROUNDS", "3"))
SIZES = (1, 10, 100, 1_000, 10_000)
CONNECTIONS = (1, 2, 4, 8, 16, 32, 64)
HERE = Path(__file__).parent


class Target(NamedTuple):
    name: str
    key: str
    port: int | None
    """None: PostgreSQL itself."""
    stores: bool = True


class Figure(NamedTuple):
    events: float
    """Acknowledged a second."""
    p50: float
    p99: float
    """Latencies in milliseconds."""


def bodies(size: int) -> list[bytes]:
    """Batches like the documented example's, the same in every run."""
    chance = random.Random(size)
    now = datetime(2026, 11, 1, tzinfo=UTC)
    tools = ["generate_report", "search_database", "send_email", "claude-sonnet-4-20250514", "embed_chunk"]

    def event() -> dict[str, Any]:
        return {
            "type": chance.choice(["tool_call", "completion", "embedding", "custom"]),
            "toolName": chance.choice(tools),
            "action": chance.choice(["allow", "deny", "alert", "log"]),
            "timestamp": (now + timedelta(milliseconds=chance.randrange(10**9))).isoformat(timespec="milliseconds"),
            "metadata": {
                "model": "gpt-4o",
                "userId": f"user_{chance.randrange(5000)}",
                "latencyMs": chance.randrange(9000),
            },
        }

    return [json.dumps([event() for _ in range(size)]).encode() for _ in range(16 if size <= 100 else 4)]


class Bench:
    def __init__(self, url: str) -> None:
        self.url = url
        self.sql = psycopg.connect(url, autocommit=True)

    def measure_once(self, target: Target, size: int, connections: int) -> Figure:
        self.sql.execute("TRUNCATE audit_events")
        self.sql.execute("CHECKPOINT")
        sent = bodies(size)
        sender: load.Sender
        if target.port is None:
            sender = load.Sql(self.url, target.key, sent, size)
        else:
            sender = load.Http(target.port, [target.key], sent)
        result = load.run(sender, connections, SECONDS)
        acknowledged = result.statuses[200] * size
        assert set(result.statuses) == {200}, (target, result.statuses)
        if target.stores:
            [(rows,)] = self.sql.execute("SELECT count(*) FROM audit_events").fetchall()
            assert rows == acknowledged, (target, rows, acknowledged)
        return Figure(acknowledged / result.seconds, result.percentile(50) * 1000, result.percentile(99) * 1000)

    def measure(self, targets: list[Target], size: int, connections: int) -> dict[str, Figure]:
        figures: dict[str, list[Figure]] = {target.name: [] for target in targets}
        for _ in range(ROUNDS):
            for target in targets:
                figures[target.name].append(self.measure_once(target, size, connections))
        medians = {
            name: Figure(*(statistics.median(values) for values in zip(*rounds, strict=True)))
            for name, rounds in figures.items()
        }
        for name, figure in medians.items():
            print(
                f"{size:>6} a batch, {connections:>2} connections, {name:<22} {figure.events:>9,.0f} events/s",
                flush=True,
            )
        return medians

    @contextlib.contextmanager
    def slow_commit(self) -> Iterator[None]:
        """Every commit waits 5 ms before its flush, as for a slow disk; those that wait together share it."""
        self.sql.execute("ALTER SYSTEM SET commit_delay = 5000")
        self.sql.execute("ALTER SYSTEM SET commit_siblings = 0")
        self.sql.execute("SELECT pg_reload_conf()")
        yield
        self.sql.execute("ALTER SYSTEM RESET ALL")
        self.sql.execute("SELECT pg_reload_conf()")


def plot(by_size: dict[int, dict[str, Figure]], by_connections: dict[int, dict[str, Figure]]) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for name in next(iter(by_size.values())):
        sizes = [size for size, figures in by_size.items() if name in figures]
        left.plot(sizes, [by_size[size][name].events for size in sizes], marker="o", label=name)
    left.set(xscale="log", yscale="log", xlabel="events a batch", ylabel="events a second", title="8 connections")
    for name in next(iter(by_connections.values())):
        values = [figures[name].events for figures in by_connections.values()]
        right.plot(list(by_connections), values, marker="o", label=name)
    right.set(xscale="log", xlabel="connections", ylabel="events a second", title="1 event a batch", ylim=0)
    right.set_xticks(list(by_connections), [str(count) for count in by_connections])
    for axes in (left, right):
        axes.grid(visible=True, alpha=0.3)
        axes.legend()
    figure.savefig(HERE / "results.svg", metadata={"Date": None})


def table(title: str, column: str, rows: dict[str, dict[str, Figure]]) -> str:
    names = list(dict.fromkeys(name for figures in rows.values() for name in figures))
    lines = [f"## {title}", "", "Events a second (p50 / p99 in ms).", ""]
    lines += [f"| {column} | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for label, figures in rows.items():
        cells = (
            f"{figure.events:,.0f} ({figure.p50:.1f} / {figure.p99:.1f})" if (figure := figures.get(name)) else ""
            for name in names
        )
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def measured_on(url: str) -> str:
    """Return a sentence with the date and the machine."""
    with psycopg.connect(url) as connection:
        version = connection.info.parameter_status("server_version")
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        model = Path("/proc/cpuinfo").read_text().partition("model name\t: ")[2].partition("\n")[0] or model
    return (
        f"Measured on {datetime.now(UTC):%Y-%m-%d}: {os.cpu_count()} cores ({model}), "
        f"{platform.system()} {platform.release().split('-')[0]}, Python {platform.python_version()}, PostgreSQL "
        f"{version} with its default settings. The load, the service and PostgreSQL share the cores."
    )


def main() -> None:
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(postgres.temporary()).url
        limited, unlimited = set_up(url, "limited", 10**12), set_up(url, "unlimited", None)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))

        def start(application: str) -> int:
            service = Service(url, folder / application, application, WEB_CONCURRENCY=2, THREADS=4).start()
            stack.callback(service.stop)
            return service.port

        port = start("app:create_app()")
        ours = Target("igris-ingest", limited, port)
        ours_unlimited = Target("the same, unlimited", unlimited, port)
        idiomatic = Target("idiomatic", limited, start("bench.peers:idiomatic()"))
        floor = Target("Flask alone", limited, start("bench.peers:floor()"), stores=False)
        alone = Target("PostgreSQL alone", limited, None)

        bench = Bench(url)
        stack.callback(bench.sql.close)
        by_size = {size: bench.measure([ours, ours_unlimited, idiomatic, floor, alone], size, 8) for size in SIZES}
        by_connections = {
            count: bench.measure([ours, ours_unlimited, idiomatic, floor], 1, count) for count in CONNECTIONS
        }
        tables = [
            table("By size of the batch", "events a batch, 8 connections", {f"{n:,}": by_size[n] for n in by_size}),
            table("By connections", "connections, 1 event", {str(n): by_connections[n] for n in by_connections}),
        ]
        if shutil.which("nginx"):
            limits = {"rate=300r/s": "rate=1000000r/s", "limit_conn igris_large 3;": "limit_conn igris_large 100;"}
            nginx = Nginx(port, folder, limits).start()
            stack.callback(nginx.stop)
            through = ours._replace(name="through nginx", port=nginx.port)
            rows = {f"{size:,}": bench.measure([ours, through], size, 8) for size in (1, 100, 1_000)}
            tables.append(table("Through nginx", "events a batch, 8 connections", rows))
        with bench.slow_commit():
            rows = {"1": bench.measure([ours, ours_unlimited, idiomatic], 1, 32)}
        tables.append(table("A commit that takes 5 ms", "events a batch, 32 connections", rows))

        rounds = f"{measured_on(url)} 2 workers of 4 threads; the median of {ROUNDS} rounds of {SECONDS:g} s."
        rounds += " Each section was measured for itself: compare figures within a section."
        (HERE / "results.md").write_text("\n".join(["# Results", "", rounds, "", *tables]))
        plot(by_size, by_connections)


if __name__ == "__main__":
    main()
