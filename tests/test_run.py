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

import pytest

from dev.service import ROOT, free_port

PARTS = ["*.py", "requirements.txt", "schema.sql", "openapi.yaml", "Procfile", "commands", "dev", "migrations"]


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

    def __init__(self, clone: Path, port: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "dev.run"],
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
            assert line, self.output
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
        assert Path(sockets).stat().st_mode & 0o777 == 0o700
        assert str((clone / "var/postgres").resolve()) in run.output
        run.stop()
        assert not Path(sockets).exists()
    assert modes(clone) == before


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
