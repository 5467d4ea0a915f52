"""Peak memory of a worker while it handles the largest bodies that are accepted, one and four at once.

.venv/bin/python -m bench.memory
"""

import json
import tempfile
from pathlib import Path

import psutil

from admin import Admin
from dev import postgres
from tests.service import EVENT, Service, at_once

LIMIT = 10 * 2**20


def high_water_mark(process: psutil.Process) -> int:
    """The most memory that a process ever had, in bytes."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    [line] = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def bodies() -> dict[str, bytes]:
    event = {**EVENT, "timestamp": "2026-03-19T10:00:00.000Z", "metadata": {"model": "gpt-4o", "text": "x" * 880}}
    filler = b'{"type": "custom", "toolName": "x", "metadata": {"a": [%s]}}'
    return {
        "one event": json.dumps(EVENT).encode(),
        "10,000 events of 1 kB": json.dumps([event] * 10_000).encode(),
        "one string of 10 MiB": filler % b'"%s"' % (b"x" * (LIMIT - 70)),
        "one event with 500,000 objects": filler % b",".join([b'{"a":1}'] * 500_000),
    }


def main() -> None:
    with postgres.temporary() as server:
        url = server.get_uri()
        admin = Admin(url)
        admin.init_db()
        admin.create_organization("bench", None)
        key = admin.create_key("bench")
        print("| body | MiB | 1 at once | 4 at once |\n|---|---|---|---|")
        for name, body in bodies().items():
            peaks = []
            for threads in (1, 4):
                with tempfile.NamedTemporaryFile() as log:
                    service = Service(url, Path(log.name), WEB_CONCURRENCY=1, THREADS=4).start()
                    for answer in at_once(threads, lambda _: service.post(body, key)):  # noqa: B023
                        assert answer.status == 200, answer.body
                    [worker] = psutil.Process(service.process.pid).children()
                    peaks.append(f"{high_water_mark(worker) / 2**20:.0f} MiB")
                    service.stop()
            print(f"| {name} | {len(body) / 2**20:.1f} | {' | '.join(peaks)} |", flush=True)


if __name__ == "__main__":
    main()
