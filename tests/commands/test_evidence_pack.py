"""`evidence`: the folder that is handed out, and its check.sh."""

import hashlib
import json
import shutil
import subprocess
import zipfile
from pathlib import Path

import psycopg
import pytest

from dev.service import ROOT
from tests.commands.trail import export, receive, run, seals, verify
from tests.support import Account

SHELLS = [shell for shell in (["dash"], ["bash"], ["busybox", "sh"]) if shutil.which(shell[0])] or [["sh"]]
DAYS = ("2026-03-01", "2026-03-02", "2026-03-03", "2026-03-06")


@pytest.fixture
def sealed(account: Account) -> Account:
    receive(account, *(f"{day}T10:00:00Z" for day in DAYS))
    seals(account)
    return account


def pack(account: Account, folder: Path, *options: str) -> Path:
    chosen = ["--since", "2026-03-01", "--until", "2026-03-08", *options]
    done = run(account, "evidence", "--org", account.org_id, *chosen, "--output", str(folder))
    assert done.returncode in (0, 3), done.stderr
    return folder


def check(folder: Path, *digests: str, shell: list[str] | None = None) -> tuple[int, str]:
    command = [*(shell or SHELLS[0]), str(folder / "check.sh"), *digests]
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return done.returncode, done.stdout


def test_a_pack_has_the_files_that_export_writes_and_their_digests(sealed: Account, tmp_path: Path) -> None:
    folder = pack(sealed, tmp_path / "pack")
    assert sorted(path.name for path in folder.iterdir()) == [
        *("SHA256SUMS", "chain.ndjson", "check.sh", "events", "index.html")
    ]
    names = sorted(path.name for path in (folder / "events").iterdir())
    assert names == [f"00000{number}-{day}.ndjson" for number, day in zip((1, 2, 3, 6), DAYS, strict=True)]
    entries = [json.loads(line) for line in (folder / "chain.ndjson").read_text().splitlines()]
    for name in names:
        entry = entries[int(name[:6]) - 1]
        content = (folder / "events" / name).read_bytes()
        assert content == export(sealed, tmp_path, "--since", entry["since"], "--until", entry["until"])
        assert hashlib.sha256(content).hexdigest() == entry["digest"]
    chain = [line.split("  ", 1)[1] for line in run(sealed, "seals", "--org", sealed.org_id).stdout.splitlines()]
    assert (folder / "chain.ndjson").read_text().splitlines() == chain
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=folder, check=True)


@pytest.mark.parametrize("shell", SHELLS, ids=" ".join)
def test_the_script_checks_the_chain_the_files_and_a_kept_digest(
    sealed: Account, tmp_path: Path, shell: list[str]
) -> None:
    run(sealed, "erase", "--org", sealed.org_id, "--metadata", "n=1", "--since", "2026-03-02", "--reason", "request 17")
    run(sealed, "prune", "--yes", "--before", "2026-03-02", "--org", sealed.org_id)
    head = verify(sealed)[1]["head"]["entryDigest"]
    folder = pack(sealed, tmp_path / "a pack")
    status, shown = check(folder, head, shell=shell)
    assert (status, shown[:4], shown.count("\n")) == (0, "OK: ", 1)
    assert f"linked; 3 files as the chain names them; 1 kept digests found in it; the newest entry is {head}" in shown
    assert "no kept digest was compared: its maker could have made all of it again" in check(folder)[1]
    assert "NOT OK: no entry has the digest" in check(folder, "0" * 64)[1]
    text = (folder / "chain.ndjson").read_text()
    lines = text.splitlines(keepends=True)
    for changed, found in (
        (text.replace('"events": 3', '"events": 4', 1), "entry 2 does not follow from the entry before it"),
        ("".join(lines[1:]), "line 1 of chain.ndjson is entry 2"),
        (lines[0] + "".join(lines[2:]), "line 2 of chain.ndjson is entry 3"),
        ("".join(lines[:2]), "SHA256SUMS does not list the files that the chain names"),
    ):
        (folder / "chain.ndjson").write_text(changed)
        assert check(folder, shell=shell) == (1, f"NOT OK: {found}\n")
    (folder / "chain.ndjson").write_text(text)
    sums = (folder / "SHA256SUMS").read_text()
    (folder / "SHA256SUMS").write_text("".join(sums.splitlines(keepends=True)[1:]))
    assert "SHA256SUMS does not list the files" in check(folder, shell=shell)[1]
    (folder / "SHA256SUMS").write_text(sums)
    file = min((folder / "events").iterdir())
    file.write_bytes(file.read_bytes().replace(b'"log"', b'"deny"'))
    assert f"events/{file.name}" in check(folder, shell=shell)[1]
    file.unlink()
    assert check(folder, shell=shell)[0] == 1


def test_the_script_does_without_coreutils_of_linux(sealed: Account, tmp_path: Path) -> None:
    """macOS has shasum, and no sha256sum."""
    folder = pack(sealed, tmp_path / "pack")
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in (
        "sh",
        "awk",
        "split",
        "ls",
        "xargs",
        "cut",
        "grep",
        "sed",
        "sort",
        "cmp",
        "wc",
        "tr",
        "tail",
        "head",
        "cat",
    ):
        (tools / name).symlink_to(str(shutil.which(name)))
    for name in ("mktemp", "rm", "mkdir", "dirname", "shasum", "perl"):
        (tools / name).symlink_to(str(shutil.which(name)))
    command = ["sh", str(folder / "check.sh")]
    done = subprocess.run(command, env={"PATH": str(tools)}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout[:4], done.stderr) == (0, "OK: ", "")


def test_a_trail_that_is_not_intact_is_handed_out_as_it_is(sealed: Account, tmp_path: Path) -> None:
    with psycopg.connect(sealed.service.database_url) as connection:
        query = "UPDATE audit_events SET action = 'allow' WHERE org_id = %s AND tool_name = '2026-03-02T10:00:00Z 1'"
        connection.execute(query, [sealed.org_id])
    output = str(tmp_path / "pack")
    done = run(sealed, "evidence", "--org", sealed.org_id, "--output", output)
    assert (done.returncode, done.stderr) == (3, f"{output}: NOT INTACT: 1 problem, above\n")
    assert check(tmp_path / "pack")[1].startswith("NOT OK: events/000002-2026-03-02.ndjson: FAILED")
    page = (tmp_path / "pack/index.html").read_text()
    assert "The trail is NOT INTACT: 1 problem." in page
    assert "2026-03-02: entry 2 (2026-03-02 to 2026-03-03): some of 3 events changed after they were sealed." in page


def test_a_pack_can_be_a_zip_file_and_leave_the_events_out(sealed: Account, tmp_path: Path) -> None:
    pack(sealed, tmp_path / "acme.zip")
    with zipfile.ZipFile(tmp_path / "acme.zip") as archive:
        archive.extractall(tmp_path)
    assert check(tmp_path / "acme")[1].startswith("OK: ")
    without = pack(sealed, tmp_path / "without", "--events", "no")
    assert sorted(path.name for path in without.iterdir()) == ["chain.ndjson", "check.sh", "index.html"]
    assert "linked; its files are not in this folder" in check(without)[1]
    assert "2026-03-01T10:00:00Z 1" not in (without / "chain.ndjson").read_text()


def test_a_pack_gets_its_name_when_it_is_complete(sealed: Account, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for output, said in (
        ("there", "there is a file or folder of that name"),
        ("no/folder", "No such file or directory"),
    ):
        done = run(sealed, "evidence", "--org", sealed.org_id, "--output", str(tmp_path / output))
        assert (done.returncode, said in done.stderr) == (1, True)
    assert run(sealed, "evidence", "--org", "nobody", "--output", str(tmp_path / "x")).returncode == 1
    period = ["--since", "2026-03-03", "--until", "2026-03-02"]
    assert run(sealed, "evidence", "--org", sealed.org_id, *period, "--output", str(tmp_path / "x")).returncode == 2
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_an_organization_without_events_has_a_pack(account: Account, tmp_path: Path) -> None:
    done = run(account, "evidence", "--org", account.org_id, "--output", str(tmp_path / "pack"))
    assert done.returncode == 0, done.stderr
    assert "Nothing is sealed yet" in (tmp_path / "pack/index.html").read_text()
    assert check(tmp_path / "pack") == (1, "NOT OK: chain.ndjson has no entry\n")


def test_the_vendored_library_is_the_one_that_was_published() -> None:
    """js-sha256 1.0.0, build/sha256.min.js."""
    content = (ROOT / "commands/evidence/page/sha256.min.js").read_bytes()
    assert hashlib.sha256(content).hexdigest() == "a050d794e170699bd1a69d33908d0942c68901cb88347016064b60b240f0067e"
