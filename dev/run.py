"""`make run`: the service as production runs it, on a separate PostgreSQL. Ctrl-C stops both."""

import contextlib
import fcntl
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import config
from commands import base, init_db, keys, organizations
from database import Connection
from dev import postgres
from storage import AUTHENTICATE, key_hash

ROOT = Path(__file__).parent.parent
VAR = ROOT / "var"
PORT = os.environ.get("PORT") or "8000"
START_TIMEOUT = 15


@contextlib.contextmanager
def only_one(data: Path) -> Iterator[None]:
    with Path(f"{data}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit(f"make run: it already runs, on the data in {data}")
        yield


@contextlib.contextmanager
def ended_with_this_process(file: Path, *processes: tuple[int, signal.Signals]) -> Iterator[None]:
    """Have processes signalled, and a file removed, when this one has ended, even by SIGKILL.

    A shell finds its input closed then.
    """
    kills = "; ".join(f"kill -{number.value} {pid} 2> /dev/null" for pid, number in processes)
    script = f'cat > /dev/null; rm -f "$0"; {kills}'
    with subprocess.Popen(["sh", "-c", script, file], stdin=subprocess.PIPE, start_new_session=True) as shell:
        try:
            yield
        finally:
            shell.kill()
            file.unlink(missing_ok=True)


def check_port() -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", int(PORT)))
        except PermissionError:
            sys.exit(f"make run: only root may use port {PORT}; choose one above 1023 with `make run PORT=8001`")
        except OSError:
            sys.exit(f"make run: port {PORT} is taken; choose another with `make run PORT=8001`")
        except (ValueError, OverflowError):
            sys.exit(f"make run: PORT is not a port number: {PORT}")


def api_key(connection: Connection, monthly_quota: int | None) -> str:
    """Return the key of the first start, or a new one if the database does not know it."""
    file = VAR / "key"
    if file.exists():
        key = file.read_text().strip()
        if connection.execute(AUTHENTICATE, {"key_hash": key_hash(key)}).fetchone():
            return key
    organizations.create_organization(connection, "demo", monthly_quota)
    _, key = keys.create_key(connection, "demo", "make run")
    write_private(file, key + "\n")
    return key


def write_private(file: Path, text: str) -> None:
    file.unlink(missing_ok=True)
    file.touch(mode=0o600)
    file.write_text(text)


def wait_until_ready(server: subprocess.Popen[bytes]) -> None:
    """Wait with a connection, not a request, so that the greeting comes before the first access line."""
    deadline = time.monotonic() + START_TIMEOUT
    while server.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", int(PORT)), timeout=1).close()
        except OSError as error:
            if time.monotonic() > deadline:
                sys.exit(f"make run: not ready after {START_TIMEOUT} seconds: {error}")
            time.sleep(0.05)
        else:
            return
    sys.exit(server.returncode)


def serve(postgresql: postgres.Server) -> None:
    os.environ["DATABASE_URL"] = postgresql.url
    settings = config.load_settings()
    with base.connect(postgresql.url) as connection, connection.transaction():
        init_db.create_or_upgrade(connection)
        key = api_key(connection, settings["DEFAULT_MONTHLY_QUOTA"])
    server = subprocess.Popen([sys.executable, "-m", "gunicorn", "app:create_app()"], cwd=ROOT, start_new_session=True)
    file = VAR / "database-url"
    try:
        with ended_with_this_process(file, (server.pid, signal.SIGTERM), (postgresql.pid, signal.SIGINT)):
            write_private(file, postgresql.url)
            wait_until_ready(server)
            print(f"""
Serving on http://127.0.0.1:{PORT}; Ctrl-C stops it. The data is in {postgresql.data}, the key in {VAR}/key.
Commands use it from now on, such as ./igris-ingest events. For psql:

{shlex.quote(str(postgres.embedded_programs() / "psql"))} '{postgresql.url}'

Try, in another terminal:

curl http://127.0.0.1:{PORT}/api/v1/ingest/raw \\
  -H "Authorization: Bearer {key}" \\
  -H "Content-Type: application/json" \\
  -d '{{"type": "tool_call", "toolName": "generate_report", "metadata": {{"model": "gpt-4o"}}}}'
""")
            sys.stdout.flush()
            while server.poll() is None:
                time.sleep(0.2)  # a signal that arrives just before `wait` blocks would not be noticed
    finally:
        server.terminate()
        server.wait()


def main() -> None:
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.default_int_handler)
    try:
        VAR.mkdir(exist_ok=True)
        data = postgres.data_folder(VAR)
        with contextlib.suppress(KeyboardInterrupt), only_one(data):
            check_port()
            server = postgres.Server(data)
            try:
                server.start()
                serve(server)
            finally:
                for each in (signal.SIGINT, signal.SIGHUP):
                    signal.signal(each, signal.SIG_IGN)
                server.close()
    except PermissionError as error:
        sys.exit(f"make run: {error.filename} can't be written by this user")
    with contextlib.suppress(OSError):  # the terminal may have gone
        print("stopped")


if __name__ == "__main__":
    main()
