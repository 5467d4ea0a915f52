"""`import --id`: a row is stored once, in any file, order or chunk."""

import hashlib
import json
import os
import random
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from commands.importer.chunks import in_transaction
from database import TimeoutConnection
from dev.service import PROGRAM, wait_for
from tests.commands.importing import import_, ndjson, write
from tests.support import Account, command, json_lines


def rows(numbers: list[int], **members: Any) -> str:
    return ndjson(
        [
            {
                "type": "tool_call",
                "toolName": "t",
                "timestamp": "2026-03-19T10:00:00Z",
                "request_id": f"r{n}",
                **members,
            }
            for n in numbers
        ]
    )


def import_ids(account: Account, file: Path, *options: str) -> str:
    done = import_(account, str(file), "--id", "request_id", *options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def stored_ids(account: Account) -> list[str]:
    return [found for (found,) in account.rows("metadata ->> 'request_id'")]


def test_yesterdays_export_and_todays_have_each_row_once(account: Account, tmp_path: Path) -> None:
    """Tools list the newest first: the two files have no common beginning."""
    yesterday = write(tmp_path, "a.ndjson", rows(list(range(3000, 0, -1))))
    today = write(tmp_path, "b.ndjson", rows(list(range(3100, 100, -1))))
    assert import_ids(account, yesterday) == "read 3000, stored 3000, already stored 0, rejected 0\n"
    dry = import_(account, str(today), "--id", "request_id", "--dry-run")
    assert dry.stdout.startswith("read 3000, valid 3000, of these already stored 2900, stored none, rejected 0\n")
    assert import_ids(account, today) == "read 3000, stored 100, already stored 2900, rejected 0\n"
    shuffled = list(range(1, 3101))
    random.Random(1).shuffle(shuffled)
    assert import_ids(account, write(tmp_path, "c.ndjson", rows(shuffled))).startswith("read 3100, stored 0")
    assert sorted(stored_ids(account)) == sorted(f"r{n}" for n in range(1, 3101))
    assert account.used() == 3100


def test_a_row_twice_in_a_file_is_stored_once(account: Account, tmp_path: Path) -> None:
    file = write(tmp_path, "a.ndjson", rows([1, 2, 1, *range(3, 1500), 2]))
    assert import_ids(account, file) == "read 1501, stored 1499, already stored 2, rejected 0\n"


def test_a_row_that_has_other_content_now_is_reported_and_not_doubled(account: Account, tmp_path: Path) -> None:
    import_ids(account, write(tmp_path, "a.ndjson", rows([1, 2, 3])))
    done = import_(account, str(write(tmp_path, "b.ndjson", rows([1]) + rows([2], cost=1))), "--id", "request_id")
    assert (done.returncode, done.stdout) == (0, "read 2, stored 0, already stored 2, rejected 0\n")
    assert done.stderr == "Note: 1 row imported before with other content, the first on line 2: not stored again\n"


def test_a_column_that_is_not_unique_loses_no_row(account: Account, tmp_path: Path) -> None:
    file = write(tmp_path, "a.csv", "type,toolName,model\ncustom,x,m\ncustom,y,n\ncustom,z,m\n")
    done = import_(account, str(file), "--id", "model", "--timestamp-now")
    assert (done.returncode, account.count()) == (1, 0)
    assert (
        "line 4 has the id of another row of the file, and other content: --id has to name what is unique"
        in done.stderr
    )


def test_an_id_is_a_column_or_an_expression_and_has_to_be_there(account: Account, tmp_path: Path) -> None:
    file = write(tmp_path, "a.csv", "type,toolName,trace,span\ncustom,x,t,1\ncustom,x,t,2\ncustom,x,t,1\ncustom,x,,\n")
    done = import_(account, str(file), "--id", "[trace, span]", "--timestamp-now")
    assert done.stdout.startswith("read 4, stored 3, already stored 1, rejected 0")
    done = import_(account, str(file), "--id", "span", "--timestamp-now")
    assert (done.returncode, done.stdout[:50]) == (3, "read 4, stored 2, already stored 1, rejected 1: se")
    assert "  1 x Has no id, as --id names it: leave --id out" in done.stderr
    done = import_(account, str(file), "--id", "spam", "--timestamp-now")
    assert "no column is called 'spam', as --id spam has it; did you mean 'span'?" in done.stderr
    nested = write(
        tmp_path,
        "b.ndjson",
        ndjson([{"type": "custom", "toolName": "x", "metadata": {"id": n}} for n in (10, 10.5, 10.25)]),
    )
    assert "stored 3" in import_(account, str(nested), "--id", "metadata.id", "--timestamp-now").stdout


def test_organizations_do_not_share_ids(new_account: Callable[..., Account], tmp_path: Path) -> None:
    file = write(tmp_path, "a.ndjson", rows([1, 2]))
    for account in (new_account(), new_account()):
        assert "stored 2" in import_ids(account, file)


def test_rows_go_in_up_to_the_quota_and_the_rest_later(new_account: Callable[..., Account], tmp_path: Path) -> None:
    account = new_account(1200)
    import_ids(account, write(tmp_path, "a.ndjson", rows(list(range(500)))))
    file = write(tmp_path, "b.ndjson", rows(list(range(3000))))
    done = import_(account, str(file), "--id", "request_id")
    assert (done.returncode, done.stdout) == (4, "read 3000, stored 700, already stored 500, rejected 0\n")
    assert "line 1201 of" in done.stderr
    assert command("quota", account.org_id, "unlimited", database_url=account.service.database_url).returncode == 0
    assert import_ids(account, file) == "read 3000, stored 1800, already stored 1200, rejected 0\n"
    assert account.count() == account.used() == 3000


def test_a_row_that_postgresql_rejects_is_rejected_alone(account: Account, tmp_path: Path) -> None:
    odd = (
        '{"type": "custom", "toolName": "x", "timestamp": "2026-03-19T10:00:00Z", "request_id": "odd", "n": 1e200000}\n'
    )
    file = write(tmp_path, "a.ndjson", rows(list(range(700))) + odd + rows(list(range(700, 1300))))
    done = import_(account, str(file), "--id", "request_id")
    assert (done.returncode, done.stdout.split(":")[0]) == (3, "read 1301, stored 1300, already stored 0, rejected 1")
    assert account.count() == 1300


def test_rows_are_stored_once_through_kills(account: Account, tmp_path: Path) -> None:
    file = write(tmp_path, "a.ndjson", rows(list(range(20_000))))
    arguments = [PROGRAM, "import", str(file), "--org", account.org_id, "--id", "request_id"]
    environ = {**os.environ, "DATABASE_URL": account.service.database_url}
    for _ in range(4):
        before = account.count()
        process = subprocess.Popen(arguments, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for(lambda before=before: account.count() > before)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    wait_for(lambda: import_(account, str(file), "--id", "request_id").returncode == 0)
    assert len(set(stored_ids(account))) == account.count() == account.used() == 20_000


def test_what_is_undone_or_pruned_can_be_imported_again(account: Account, tmp_path: Path) -> None:
    first, second = (
        write(tmp_path, name, rows(list(numbers)))
        for name, numbers in (("a.ndjson", range(10)), ("b.ndjson", range(5, 15)))
    )
    import_ids(account, first)
    import_ids(account, second)
    url = account.service.database_url
    [one, _] = json_lines(command("imports", "list", "--org", account.org_id, "--json", database_url=url).stdout)
    assert command("imports", "undo", str(one["id"]), "--yes", database_url=url).returncode == 0
    assert account.count() == 5
    assert "stored 5, already stored 5" in import_ids(account, second)
    assert "stored 5, already stored 5" in import_ids(account, first)
    command("prune", "--before", "0d", "--org", account.org_id, database_url=url)
    assert "stored 10" in import_ids(account, first)


def test_an_undo_that_was_interrupted_is_ended_before_the_next_import(account: Account, tmp_path: Path) -> None:
    file = write(tmp_path, "a.ndjson", rows(list(range(10))))
    import_ids(account, file)
    [[number]] = account.execute("SELECT id FROM imports WHERE org_id = %s", account.org_id)
    account.execute(
        "UPDATE imports SET undone_at = now() WHERE org_id = %s", account.org_id
    )  # as if it was killed then
    done = import_(account, str(file), "--id", "request_id")
    assert f"first run `imports undo {number}` again" in done.stderr
    undo = command("imports", "undo", str(number), "--yes", database_url=account.service.database_url)
    assert undo.returncode == 0, undo.stderr
    assert "stored 10" in import_ids(account, file)


@pytest.mark.measures
def test_memory_does_not_grow_with_the_ids(account: Account, tmp_path: Path) -> None:
    with psycopg.connect(account.service.database_url) as connection:
        query = """
            INSERT INTO imported_rows (org_id, row_id, content)
            SELECT %s, decode(md5(n::text), 'hex'), ''
            FROM generate_series(1, 1000000) AS n
        """
        connection.execute(query, [account.org_id])
    peak = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    environ = {**os.environ, "DATABASE_URL": account.service.database_url}

    def run(name: str, numbers: range) -> int:
        file = write(tmp_path, name, rows(list(numbers)))
        command = ["python3", "-c", peak, PROGRAM, "import", str(file), "--org", account.org_id, "--id", "request_id"]
        done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
        return int(done.stdout.splitlines()[-1]) // 1024

    small = run("a.ndjson", range(3000))
    assert run("b.ndjson", range(3000, 33_000)) < small + 5  # MiB
    account.execute("DELETE FROM imported_rows WHERE org_id = %s", account.org_id)


# Without ids


def test_a_copy_that_was_cut_within_a_chunk_is_not_doubled(account: Account, tmp_path: Path) -> None:
    lines = [
        json.dumps({"type": "custom", "toolName": f"t{n}", "timestamp": "2026-03-19T10:00:00Z"}) + "\n"
        for n in range(3500)
    ]
    assert import_(account, str(write(tmp_path, "a.ndjson", "".join(lines)))).returncode == 0
    done = import_(account, str(write(tmp_path, "b.ndjson", "".join(lines[:2700]))))
    assert (done.returncode, done.stdout) == (0, "read 2700, stored 0, already stored 2700, rejected 0\n")


def test_a_file_whose_first_rows_are_stored_already_is_not_doubled(account: Account, tmp_path: Path) -> None:
    lines = [
        json.dumps({"type": "custom", "toolName": f"t{n}", "timestamp": "2026-03-19T10:00:00Z"}) + "\n"
        for n in range(3100)
    ]
    assert import_(account, str(write(tmp_path, "a.ndjson", "".join(lines[100:])))).returncode == 0
    newest_first = write(tmp_path, "b.ndjson", "".join(lines))
    dry = import_(account, str(newest_first), "--dry-run")
    assert "valid 3100, of these already stored 3000, stored none" in dry.stdout
    done = import_(account, str(newest_first))
    assert (done.returncode, account.count()) == (1, 3000)
    assert "900 of 1000 rows are stored already, as equal events of an earlier import. Undo that import" in done.stderr
    assert "--id COLUMN" in done.stderr
    assert import_(account, str(newest_first), "--changed-file").returncode == 0
    assert account.count() == 6100


def test_files_that_share_their_ids_do_not_hide_each_other(account: Account, tmp_path: Path) -> None:
    assert "stored 20" in import_ids(account, write(tmp_path, "a.ndjson", rows(list(range(20)))))
    other = write(tmp_path, "b.ndjson", rows(list(range(20)), table="b"))
    done = import_(account, str(other), "--id", "request_id")
    assert (done.returncode, account.count()) == (1, 20)
    assert "20 of the first 20 rows have ids that were imported before, with other content" in done.stderr
    assert import_(account, str(other), "--id", "['b', request_id]").returncode == 0
    assert account.count() == 40


def test_rows_that_were_imported_without_ids_are_not_doubled_with_them(account: Account, tmp_path: Path) -> None:
    file = write(tmp_path, "a.ndjson", rows(list(range(20))))
    assert import_(account, str(file)).returncode == 0
    done = import_(account, str(file), "--id", "request_id")
    assert (done.returncode, account.count()) == (1, 20)
    assert "Undo that import, and import all files with a row's id" in done.stderr


def test_an_id_twice_in_a_file_with_other_content_stops_wherever_it_is(account: Account, tmp_path: Path) -> None:
    file = write(tmp_path, "a.ndjson", rows(list(range(9000))) + rows([5], cost=1))
    done = import_(account, str(file), "--id", "request_id")
    assert done.returncode == 1
    assert "line 9001 has the id of another row of the file, and other content" in done.stderr


def test_equal_rows_of_a_file_are_stored_each_time_the_file_has_them(account: Account, tmp_path: Path) -> None:
    row = {"type": "custom", "toolName": "x", "timestamp": "2026-03-19T10:00:00Z"}
    file = write(tmp_path, "a.ndjson", ndjson([row] * 20_000))
    assert import_(account, str(file)).stdout == "read 20000, stored 20000, already stored 0, rejected 0\n"
    assert import_(account, str(file)).stdout == "read 20000, stored 0, already stored 20000, rejected 0\n"


@pytest.mark.measures
def test_rows_of_one_time_are_imported_without_a_timeout(new_account: Callable[..., Account], tmp_path: Path) -> None:
    account = new_account(None)
    lines = [
        f'{{"type": "custom", "toolName": "t", "timestamp": "2026-03-19T10:00:00Z", "metadata": {{"n": {n}}}}}\n'
        for n in range(70_000)
    ]
    done = import_(account, str(write(tmp_path, "a.ndjson", "".join(lines))))
    assert (done.returncode, account.used()) == (0, 70_000)
    newer = write(tmp_path, "b.ndjson", "".join(lines[35_000:]))
    done = import_(account, str(newer), "--dry-run")
    assert done.returncode == 0, done.stderr


def test_fractions_count_in_conditions_and_ids(account: Account, tmp_path: Path) -> None:
    lines = [{"type": "custom", "toolName": "x", "t": 1773914400.5 + n, "cost": n / 10} for n in range(10)]
    file = write(tmp_path, "a.ndjson", ndjson(lines))
    options = ["--id", "[toolName, t]", "--map", "timestamp=t", "--where", "cost > `0.45`"]
    done = import_(account, str(file), *options)
    assert (done.returncode, done.stdout) == (0, "read 5, stored 5, already stored 0, rejected 0, left out 5\n")
    assert [cost for (cost,) in account.rows("(metadata -> 'cost')::float")] == [0.5, 0.6, 0.7, 0.8, 0.9]


def test_the_ids_of_rows_stay_what_they_are(account: Account, tmp_path: Path) -> None:
    """If they changed, rows imported before an upgrade of this program would be stored again after it."""
    lines = [
        {"type": "custom", "toolName": "x", "timestamp": "2026-03-19T10:00:00Z", "metadata": {"id": row_id}}
        for row_id in ("r1", 17, 0.5, ["b", {"d": 1, "c": "ü"}])
    ]
    file = write(tmp_path, "a.ndjson", ndjson(lines))
    assert import_(account, str(file), "--id", "metadata.id").returncode == 0
    query = "SELECT row_id, content FROM imported_rows WHERE org_id = %s"
    rows = dict(account.execute(query, account.org_id))
    texts = ("r1", "17", "0.5", '["b", {"c": "\\u00fc", "d": 1}]')
    assert rows == {
        hashlib.sha256(text.encode()).digest()[:16]: hashlib.sha256(line.encode()).digest()[:16]
        for text, line in zip(texts, file.read_text().splitlines(), strict=True)
    }


def test_a_conflict_with_a_request_is_tried_again(account: Account, tmp_path: Path) -> None:
    """The quota of the month ends between the count and the check of a row: there is no way to do that from outside."""
    tries = []
    with TimeoutConnection.open(account.service.database_url, 1) as connection:

        def store() -> None:
            tries.append(connection.info.transaction_status)
            connection.execute(
                "INSERT INTO organizations (id) VALUES (%s)", [account.org_id if len(tries) == 1 else "x"]
            )

        in_transaction(connection, store, force_rollback=True)
    assert tries == [psycopg.pq.TransactionStatus.INTRANS] * 2
    assert account.execute("SELECT FROM organizations WHERE id = 'x'") == []
