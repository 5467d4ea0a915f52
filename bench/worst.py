"""What the worst bodies cost that are accepted: CPU and memory, in a worker and in PostgreSQL. Writes bench/worst.md.

    .venv/bin/python -m bench.worst

Each is sent to a separate service, as gzip, so that both processes are fresh.
"""

import gzip
import tempfile
from pathlib import Path

import psutil
import psycopg

from bench.run import measured_on
from dev import postgres
from dev.bodies import WORST
from dev.service import Service, high_water_mark, set_up

BACKEND = "SELECT pid FROM pg_stat_activity WHERE application_name = 'igris-ingest'"


def measure(url: str, key: str, name: str, body: bytes) -> str:
    with tempfile.NamedTemporaryFile() as log, psycopg.connect(url, autocommit=True) as connection:
        service = Service(url, Path(log.name), WEB_CONCURRENCY=1, THREADS=1).start()
        service.post({"type": "custom", "toolName": "x"}, key)
        [worker] = psutil.Process(service.process.pid).children()
        [(pid,)] = connection.execute(BACKEND).fetchall()
        processes = worker, psutil.Process(pid)
        before = [sum(process.cpu_times()[:2]) for process in processes]
        headers = {"Content_Encoding": "gzip"}
        if name.endswith("NDJSON"):
            headers["Content_Type"] = "application/x-ndjson"
        if name.endswith("lenient"):
            headers["Prefer"] = "handling=lenient"
        status = service.post(gzip.compress(body), key, **headers).status
        seconds = [sum(process.cpu_times()[:2]) - then for process, then in zip(processes, before, strict=True)]
        memory = [high_water_mark(process.pid) / 2**20 for process in processes]
        service.stop()
    return (
        f"{len(body) / 2**20:.1f} | {status} | {seconds[0]:.2f} s | {seconds[1]:.2f} s "
        f"| {memory[0]:.0f} MiB | {memory[1]:.0f} MiB |"
    )


def main() -> None:
    with postgres.temporary() as server:
        lines = [
            "# What the worst bodies cost",
            "",
            measured_on(server.url),
            "",
            "One request, with the default limits. Up to 130 MiB of a backend are PostgreSQL's shared buffers.",
            "",
            "| body | MiB | status | worker, CPU | PostgreSQL, CPU | worker, peak | backend, peak |",
            "|---|---|---|---|---|---|---|",
        ]
        key = set_up(server.url, "bench", None)
        for name, make in WORST.items():
            lines.append(f"| {name} | {measure(server.url, key, name, make().encode())}")
            print(lines[-1], flush=True)
    Path(__file__).with_name("worst.md").write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
