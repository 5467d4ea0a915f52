"""How fast `import` is, and where its time goes. Writes bench/import.md.

    .venv/bin/python -m bench.import_speed

ROWS (400,000) of the documented example's size are imported from a file of each kind, ROUNDS (3) times each.
"""

import csv
import json
import os
import random
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import psycopg

from bench.run import bodies, measured_on
from commands.importer.files import Source
from commands.importer.formats import read_rows
from commands.importer.mapping import Options
from commands.importer.rows import EventMaker
from commands.quota import quota_use
from dev import postgres
from dev.service import PROGRAM, set_up

ROWS = int(os.environ.get("ROWS", "400000"))
ROUNDS = int(os.environ.get("ROUNDS", "3"))


def write_files(folder: Path) -> dict[str, Path]:
    chance = random.Random(0)
    events = [event for body in bodies(1000) for event in json.loads(body)]
    files = {name: folder / f"events.{name}" for name in ("csv", "ndjson", "json")}
    with files["csv"].open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["type", "tool_name", "action", "created_at", "model", "userId", "latencyMs"])
        for number in range(ROWS):
            event = chance.choice(events)
            fields = [event["type"], event["toolName"], event["action"], event["timestamp"].replace("T", " ")]
            writer.writerow([*fields, event["metadata"]["model"], f"user_{number}", event["metadata"]["latencyMs"]])
    with files["ndjson"].open("w") as file:
        for number in range(ROWS):
            event = chance.choice(events)
            event["metadata"]["userId"] = f"user_{number}"
            file.write(json.dumps(event) + "\n")
    files["json"].write_text("[" + ",\n".join(files["ndjson"].read_text().splitlines()) + "]")
    return files


def import_file(url: str, file: Path, *, by_id: bool = False) -> float:
    """Into a new organization, as a command; rows a second."""
    org_id = f"org-{time.monotonic_ns()}"
    set_up(url, org_id, None)
    began = time.perf_counter()
    command = [PROGRAM, "import", str(file), "--org", org_id, "--map", "timestamp=created_at"]
    command = command if file.suffix == ".csv" else command[:-2]
    if by_id:
        command += ["--id", "userId" if file.suffix == ".csv" else "metadata.userId"]
    subprocess.run(command, env={**os.environ, "DATABASE_URL": url}, check=True, capture_output=True)
    seconds = time.perf_counter() - began
    with psycopg.connect(url) as connection:
        assert quota_use(connection, org_id).used == ROWS
    return ROWS / seconds


def reading(file: Path) -> float:
    """Microseconds a row: from the file to the event's JSON text, validated."""
    mapping = EventMaker(Options({"timestamp": "created_at"} if file.suffix == ".csv" else {}))
    began = time.perf_counter()
    with Source(str(file), None) as source:
        for _ in mapping.events(read_rows(source, file.suffix[1:], 2**20, mapping.check_header)):
            pass
    return (time.perf_counter() - began) / ROWS * 1e6


def main() -> None:
    with postgres.temporary() as server, tempfile.TemporaryDirectory() as folder:
        url = server.url
        lines = [
            "# Import",
            "",
            measured_on(url),
            "",
            f"`import` of {ROWS:,} rows of the documented example's size; the median of {ROUNDS} rounds.",
            "",
            "| file | rows a second | with `--id` | microseconds a row | of that reading, converting and validating |",
            "|---|---|---|---|---|",
        ]
        set_up(url, "bench", None)
        files = write_files(Path(folder))
        figures: dict[str, list[tuple[float, float, float]]] = {name: [] for name in files}
        for _ in range(ROUNDS):
            for name, file in files.items():
                figures[name].append((import_file(url, file), import_file(url, file, by_id=True), reading(file)))
        for name, rounds in figures.items():
            speed, by_id, read = (statistics.median(values) for values in zip(*rounds, strict=True))
            lines.append(f"| {name} | {speed:,.0f} | {by_id:,.0f} | {1e6 / speed:.1f} | {read:.1f} |")
    print("\n".join(lines))
    Path(__file__).with_name("import.md").write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
