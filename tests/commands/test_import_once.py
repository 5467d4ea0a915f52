"""`import`: events are stored exactly once."""

import gzip
import math
import os
import pty
import random
import re
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest

from commands.base import exclusive
from commands.importer import chunks as chunks_module
from commands.importer.chunks import CHUNK_ROWS, Import, QuotaEnded
from commands.importer.rows import Event
from commands.prune import find_prunable, prune_events
from commands.quota import set_quota
from database import TimeoutConnection
from dev.service import EVENT, PROGRAM, TOO_LARGE_A_NUMBER, wait_for
from tests.commands.importing import events, ndjson, run, write
from tests.support import Account, assert_rejected

# Exactly once


def test_a_file_is_stored_once_and_what_was_added_to_it_too(account: Account, tmp_path: Path) -> None:
    file = tmp_path / "a.ndjson"
    stored = 0
    for rows in (1, 1, 700, 1700, 1700, 1701, 4001):
        file.write_text(ndjson(events(rows)))
        done = run(account, str(file))
        assert done.stdout == f"read {rows}, stored {rows - stored}, already stored {stored}, rejected 0\n"
        stored = rows
    assert [row[0] for row in account.rows("tool_name")] == [f"tool-{i}" for i in range(4001)]
    assert account.used() == 4001


@pytest.mark.parametrize("rows", [2, CHUNK_ROWS - 1])
def test_a_file_that_grew_in_the_middle_of_its_last_row_is_a_changed_one(
    account: Account, rows: int, tmp_path: Path
) -> None:
    file = tmp_path / "a.csv"
    before = "type,toolName\n" + "custom,x\n" * rows
    file.write_text(before + "custom,hel")
    run(account, str(file))
    file.write_text(before + "custom,hello\ncustom,c\n")
    changed = run(account, str(file))
    assert (changed.returncode, account.count()) == (1, rows + 1)
    assert f"stored 2, already stored {rows}, rejected 0" in run(account, str(file), "--changed-file").stdout
    assert [row[0] for row in account.rows("tool_name")] == ["x"] * rows + ["hel", "hello", "c"]


def test_equal_rows_of_a_file_are_all_stored(account: Account, tmp_path: Path) -> None:
    file = write(tmp_path, "a.ndjson", ndjson([EVENT] * 3000).encode())
    for stored in (3000, 0):
        assert f"stored {stored}, already stored {3000 - stored}," in run(account, str(file)).stdout
    assert account.count() == 3000


def test_large_events_make_smaller_chunks(account: Account, tmp_path: Path) -> None:
    rows = [{**event, "metadata": {"text": "x" * 300_000}} for event in events(9)]
    file = write(tmp_path, "a.ndjson", ndjson(rows).encode())
    for stored in (9, 0):
        assert f"stored {stored}, already stored {9 - stored}," in run(account, str(file)).stdout
    query = "SELECT ingested FROM idempotency_keys WHERE org_id = %s ORDER BY stored_at"
    assert account.execute(query, account.org_id) == [(4,), (4,), (1,)]


def test_at_the_end_of_the_quota_it_stops_and_goes_on_later(
    new_account: Callable[..., Account], connection: TimeoutConnection, tmp_path: Path
) -> None:
    account = new_account(quota=1234)
    file = write(tmp_path, "a.ndjson", ndjson(events(3000)).encode())
    for _ in range(2):
        done = run(account, str(file))
        assert done.returncode == 4
        assert done.stderr == (
            f"Error: the month's quota is used up; line 1235 of {file} is the first not stored; "
            "run it again with the same options to go on from there\n"
        )
        assert account.count() == account.used() == 1234
    set_quota(connection, account.org_id, 2500)
    assert run(account, str(file)).returncode == 4
    set_quota(connection, account.org_id, None)
    done = run(account, str(file))
    assert (done.returncode, done.stdout) == (0, "read 3000, stored 500, already stored 2500, rejected 0\n")
    assert [row[0] for row in account.rows("tool_name")] == [f"tool-{i}" for i in range(3000)]


def begin(account: Account, file: Path) -> subprocess.Popen[str]:
    """Starts an import, and returns when it has stored something."""
    process = subprocess.Popen(
        [PROGRAM, "import", str(file), "--org", account.org_id],
        env={**os.environ, "DATABASE_URL": account.service.database_url},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(account.used)
    return process


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_import_is_completed_by_a_rerun(
    new_account: Callable[..., Account], how: signal.Signals, tmp_path: Path
) -> None:
    account = new_account(quota=None)
    file = write(tmp_path, "a.ndjson", ndjson(events(60_000)).encode())
    process = begin(account, file)
    process.send_signal(how)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == (130 if how == signal.SIGINT else -how), errors
    assert "Traceback" not in errors
    # PostgreSQL carries out what was asked of it last, and then notices
    locks = "SELECT FROM pg_locks l JOIN pg_database d ON d.oid = l.database AND d.datname = current_database()"
    wait_for(lambda: not account.execute(f"{locks} WHERE locktype = 'advisory'"))
    stored = account.count()
    assert 0 < stored < 60_000
    done = run(account, str(file))
    assert done.stdout == f"read 60000, stored {60_000 - stored}, already stored {stored}, rejected 0\n"
    assert done.stderr == ""
    assert [row[0] for row in account.rows("tool_name")] == [f"tool-{i}" for i in range(60_000)]
    assert account.used() == 60_000


def test_a_terminal_shows_a_bar(account: Account, tmp_path: Path) -> None:
    file = write(tmp_path, "a.ndjson", ndjson(events(5000)).encode())
    terminal, end = pty.openpty()
    command = [PROGRAM, "import", str(file), "--org", account.org_id]
    environ = {**os.environ, "DATABASE_URL": account.service.database_url, "COLUMNS": "100", "TERM": "xterm"}
    subprocess.run(command, env=environ, stdout=subprocess.PIPE, stderr=end, check=True)
    os.close(end)
    shown = b""
    with suppress(OSError):  # the end
        while data := os.read(terminal, 10_000):
            shown += data
    os.close(terminal)
    assert re.search(rb"\[#+-+\] +\d+% .*2,\d{3} rows, [\d,]+ a second", shown)
    assert re.search(rb"\[#+\] +100% .*5,000 rows, ", shown)


def test_one_import_at_a_time_into_an_organization(new_account: Callable[..., Account], tmp_path: Path) -> None:
    account = new_account(quota=None)
    file = write(tmp_path, "a.ndjson", ndjson(events(300_000)).encode())
    process = begin(account, file)
    second = run(account, str(file))
    process.kill()
    process.communicate()
    assert second.returncode == 1
    holder = f"{account.org_id!r}: another process holds the lock `import`"
    assert second.stderr == f"Error: {holder}; try again when it has ended\n"


def test_what_comes_before_damage_is_stored(account: Account, tmp_path: Path) -> None:
    whole = gzip.compress(ndjson(events(5000)).encode())
    file = write(tmp_path, "a.ndjson.gz", whole[: len(whole) // 2])
    done = run(account, str(file))
    assert done.returncode == 1
    assert done.stderr.startswith(f"Error: {file}: Compressed file ended before the end-of-stream marker was reached")
    stored = account.count()
    assert 1000 < stored < 5000
    file.write_bytes(whole)
    assert f"already stored {stored}," in run(account, str(file)).stdout
    assert account.count() == 5000


@pytest.mark.parametrize("seed", range(20))
def test_no_history_of_runs_doubles_or_loses_an_event(
    connection: TimeoutConnection, account: Account, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs are cut off, end with the quota, meet a longer file; the oldest chunks are pruned in between."""
    chance = random.Random(seed)
    monkeypatch.setattr(chunks_module, "CHUNK_ROWS", 7)
    rejected = TOO_LARGE_A_NUMBER  # by PostgreSQL only
    rows: list[tuple[int, str, bool]] = []

    def run_import(cut_off_after: float) -> None:
        items = (Event(1, rejected if bad else text) for _, text, bad in rows)
        chunks = chunks_module.Chunks(connection, account.org_id)
        with exclusive(connection, "import", account.org_id), suppress(QuotaEnded):
            for steps, _ in enumerate(Import(chunks, lambda _: None).run(items)):
                if steps >= cut_off_after:
                    return

    def stored() -> list[int]:
        return sorted(int(row[0]) for row in account.rows("tool_name"))

    for _ in range(12):
        action = chance.choice(["grow", "grow", "prune", "quota"])
        if action == "grow":
            for number in range(len(rows), len(rows) + chance.randrange(20)):
                text = f'{{"type": "custom", "toolName": "{number}"}}'
                rows.append((number, text, chance.random() < 0.05))
        elif action == "prune":
            oldest = account.execute(
                "SELECT stored_at FROM idempotency_keys WHERE org_id = %s ORDER BY stored_at", account.org_id
            )
            before = chance.choice(oldest)[0] if oldest else datetime.now(UTC)
            for prunable in find_prunable(connection, before, account.org_id):
                list(prune_events(connection, prunable))
        else:
            set_quota(connection, account.org_id, account.used() + chance.randrange(20))
        run_import(chance.choice([0, 1, 2, math.inf]))
        assert len(set(stored())) == len(stored())
    set_quota(connection, account.org_id, None)
    run_import(math.inf)
    assert stored() == [number for number, _, bad in rows if not bad]


def test_a_key_of_a_client_can_not_be_that_of_a_chunk(account: Account) -> None:
    assert_rejected(account.post(EVENT, Idempotency_Key="import\tx"), 400, "Validation failed", account)


def test_a_copy_that_was_cut_is_known_among_many_events_of_one_time(account: Account, tmp_path: Path) -> None:
    lines = ndjson(events(22_000)).splitlines(keepends=True)
    assert run(account, str(write(tmp_path, "a.ndjson", "".join(lines)))).returncode == 0
    cut = write(tmp_path, "b.ndjson", "".join(lines[:21_500]))
    dry = run(account, str(cut), "--dry-run").stdout
    assert dry.startswith("read 21500, valid 21500, of these already stored 21500, stored none, rejected 0\n")
    assert run(account, str(cut)).stdout == "read 21500, stored 0, already stored 21500, rejected 0\n"
