"""`import`: files that want to do harm."""

import gzip
import json
import os
from pathlib import Path

import pytest

from commands.importer.files import Unreadable
from dev.service import EVENT
from tests.commands.importing import MAX_BYTES, ndjson, read, run, write
from tests.support import Account


@pytest.mark.parametrize("kind", ["dangling link", "link", "FIFO", "folder"])
def test_rejects_go_into_no_file_that_is_not_ordinary(account: Account, tmp_path: Path, kind: str) -> None:
    file = write(tmp_path, "a.ndjson", ndjson([{}]))
    elsewhere = tmp_path / "elsewhere"
    rejects = tmp_path / "a.ndjson.rejects.ndjson"
    if kind == "link":
        elsewhere.write_text("precious")
    if "link" in kind:
        rejects.symlink_to(elsewhere)
    elif kind == "FIFO":
        os.mkfifo(rejects)
    else:
        rejects.mkdir()
    done = run(account, str(file))
    assert done.stdout.endswith(f": see {rejects.with_suffix('')}-2.ndjson\n")
    given = run(account, str(file), "--rejects", str(rejects))
    assert given.returncode == 1
    assert given.stderr == f"Error: {rejects}: there is a file of that name; move it away\n"
    assert elsewhere.exists() == (kind == "link")
    assert kind != "link" or elsewhere.read_text() == "precious"


def test_a_name_can_not_touch_the_terminal(account: Account, tmp_path: Path) -> None:
    file = write(tmp_path, "a\x1b[2Jb.ndjson", ndjson([{}]))
    done = run(account, str(file))
    assert "\x1b" not in done.stdout + done.stderr
    assert r"a\x1b[2Jb.ndjson.rejects.ndjson" in done.stdout
    file.write_bytes(gzip.compress(ndjson([EVENT]).encode())[:30])
    done = run(account, str(file))
    assert "\x1b" not in done.stdout + done.stderr


def test_what_a_reject_shows_is_cut(tmp_path: Path) -> None:
    lines = [b"x" * MAX_BYTES, b"x" * MAX_BYTES * 3, json.dumps({"a": "x" * (MAX_BYTES - 20)}).encode()]
    rows = read(tmp_path, "a.ndjson", b"\n".join(lines))
    assert [len(row.row) for row in rows[:2]] == [1005, 1005]
    assert json.loads(rows[2].row) == json.loads(lines[2])  # it can be fixed


@pytest.mark.parametrize("lines", [3, 3000])
def test_a_quote_that_is_never_closed_ends_the_import_with_one_message(tmp_path: Path, lines: int) -> None:
    content = 'type,toolName\ncustom,a\ncustom,"b\n' + "custom,c\n" * lines
    with pytest.raises(Unreadable, match="line 3: a quote in this row is never closed"):
        read(tmp_path, "a.csv", content)
