"""A trail of 400 days. PostgreSQL and the commands have a simulated clock. The service takes times from PostgreSQL."""

import os
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from dev import postgres
from dev.service import Service, set_up
from tests.support import igris, json_lines

DAYS = 400
LIBRARY = next(iter(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")), None)


class Clock:
    """What time it is for the programs with `environ`: `days_left` before the real time."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "clock"
        self.environ = {
            "LD_PRELOAD": str(LIBRARY),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",  # timeouts last as long as they do
        }
        self.set(DAYS)

    def set(self, days_left: int) -> datetime:
        new = self._file.with_suffix(".new")
        new.write_text(f"-{days_left}d")
        new.chmod(0o644)
        new.replace(self._file)
        return datetime.now(UTC) - timedelta(days=days_left)


@pytest.fixture
def clock() -> Iterator[Clock]:
    """In a folder that PostgreSQL's user can enter."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Clock(Path(folder))


def events_of(day: int) -> list[dict[str, Any]]:
    """No events at weekends, and up to five on the other days. Every second one is of user_1."""
    count = 0 if day % 7 > 4 else 1 + day % 5
    return [
        {"type": "tool_call", "toolName": f"day-{day}", "metadata": {"userId": f"user_{n % 2}"}} for n in range(count)
    ]


@pytest.mark.measures  # it needs a core for itself
@pytest.mark.skipif(not LIBRARY, reason="needs faketime")
def test_a_year_with_seals_prunes_an_erasure_imports_and_a_restore_ends_intact(
    clock: Clock, start_service: Callable[..., Service], tmp_path: Path
) -> None:
    with postgres.temporary(environ=clock.environ) as first, postgres.temporary(environ=clock.environ) as second:
        key = set_up(first.url, "acme", 50_000)
        url = first.url
        service = start_service(url)
        heads = tmp_path / "heads.ndjson"
        calls = tmp_path / "calls.csv"
        calls.write_text("id,toolName\n" + "".join(f"call-{n},imported\n" for n in range(40)))
        import_calls = ["import", str(calls), "--org", "acme", "--set", "type=completion", "--timestamp-now"]

        def run(*arguments: str) -> str:
            done = igris(*arguments, database_url=url, **clock.environ)
            assert done.returncode == 0, done.stderr
            return done.stdout

        received: Counter[str] = Counter()  # events by month
        for day in range(DAYS):
            month = f"{clock.set(DAYS - day):%Y-%m}"
            if events := events_of(day):
                response, retry = (service.post(events, key, Idempotency_Key=f"day-{day}") for _ in range(2))
                assert (response.status, retry.headers["Idempotency-Replayed"]) == (200, "true")
                assert retry.body == response.body
                received[month] += len(events)
            if day % 8 == 0:
                with heads.open("a") as file:
                    file.write(run("seal", "--json"))
            if day in (100, 260):
                assert run(*import_calls) == "read 40, stored 40, already stored 0, rejected 0\n"
                received[month] += 40
            if day == 110:
                [imported] = json_lines(run("imports", "list", "--json"))
                run("imports", "undo", str(imported["id"]), "--sealed", "--reason", "the wrong organization", "--yes")
            if day == 250:
                run("erase", "--org", "acme", "--metadata", "userId=user_1", "--reason", "request 17", "--yes")
            if day == 261:
                assert run(*import_calls, "--changed-file") == "read 40, stored 0, already stored 40, rejected 0\n"
            if day == 300:
                service.stop()
                dump = f"pg_dump --format=custom '{url}' | pg_restore --exit-on-error --dbname='{second.url}'"
                programs = {**os.environ, "PATH": f"{postgres.embedded_programs()}:{os.environ['PATH']}"}
                subprocess.run(["bash", "-o", "pipefail", "-c", dump], env=programs, check=True)
                url = second.url
                service = start_service(url)
            if day in (220, 330):
                run("prune", "--before", "120d", "--yes")

        clock.set(0)
        run("seal")
        left = Counter({"imported": 40})
        for day in range(330 - 120, DAYS):
            left[f"day-{day}"] = len(events_of(day)[:: 2 if day <= 250 else 1])
        run("export", "--org", "acme", "--output", str(tmp_path / "trail.ndjson"))
        assert Counter(event["toolName"] for event in json_lines((tmp_path / "trail.ndjson").read_text())) == +left
        [report] = json_lines(run("verify", "--heads", str(heads), "--json"))
        assert (report["problems"], report["events"], report["unsealedEvents"]) == ([], left.total(), 0)
        assert report["entries"] > DAYS
        for command in ("imports undo", "erase", "prune"):
            assert any(f": {command}" in amendment for amendment in report["amendments"])
        for month, count in received.items():
            [usage] = json_lines(run("usage", "--month", month, "--json"))
            assert usage["stored"] == count
        pack = tmp_path / "pack"
        run("evidence", "--org", "acme", "--heads", str(heads), "--output", str(pack))
        subprocess.run(["sh", pack / "check.sh"], check=True, stdout=subprocess.DEVNULL)
