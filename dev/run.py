"""`make run`: the service as production runs it, on a PostgreSQL of its own under ./var. Ctrl-C stops both."""

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import config
from admin import Admin
from dev import postgres
from storage import Storage, Unauthorized

ROOT = Path(__file__).parent.parent
VAR = ROOT / "var"
BIN = Path(sys.executable).parent
PORT = os.environ.get("PORT") or "8000"


@contextlib.contextmanager
def only_one() -> Iterator[None]:
    with (VAR / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit("make run: it runs already in this folder")
        yield


def check_port() -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", int(PORT)))
        except OSError:
            sys.exit(f"make run: port {PORT} is taken; choose another with `make run PORT=8001`")
        except (ValueError, OverflowError):
            sys.exit(f"make run: PORT is no port number: {PORT}")


def api_key(admin: Admin, storage: Storage, monthly_quota: int | None) -> str:
    """The key of the first start, or a new one if the database doesn't know it."""
    file = VAR / "key"
    if file.exists():
        with contextlib.suppress(Unauthorized):
            key = file.read_text().strip()
            storage.authenticate(key)
            return key
    admin.create_organization("demo", monthly_quota)
    key = admin.create_key("demo", "make run")
    file.touch(mode=0o600)
    file.write_text(key + "\n")
    return key


def wait_until_ready(server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 15
    while server.poll() is None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{PORT}/readyz", timeout=1).close()
        except OSError as error:
            if time.monotonic() > deadline:
                sys.exit(f"make run: not ready after 15 seconds: {error}")
            time.sleep(0.05)
        else:
            return
    sys.exit(server.returncode)


def serve(database_url: str) -> None:
    os.environ["DATABASE_URL"] = database_url
    settings = config.load()
    admin = Admin(database_url)
    admin.init_db()
    storage = Storage(database_url, 1, settings["IDEMPOTENCY_DAYS"])
    key = api_key(admin, storage, settings["DEFAULT_MONTHLY_QUOTA"])
    storage.close()
    server = subprocess.Popen([BIN / "gunicorn", "app:create_app()"], cwd=ROOT, start_new_session=True)
    try:
        wait_until_ready(server)
        print(f"""
Serving on http://127.0.0.1:{PORT}; Ctrl-C stops it. Data and key are kept in ./var. For commands and psql:

export DATABASE_URL='{database_url}'

Try, in another terminal:

curl http://127.0.0.1:{PORT}/api/v1/ingest/raw \\
  -H "Authorization: Bearer {key}" \\
  -H "Content-Type: application/json" \\
  -d '{{"type": "tool_call", "toolName": "generate_report", "metadata": {{"model": "gpt-4o"}}}}'
""")
        sys.stdout.flush()
        server.wait()
    finally:
        server.terminate()
        server.wait()


def main() -> None:
    VAR.mkdir(exist_ok=True)
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt), only_one():
        check_port()
        database = postgres.start(VAR / "postgres")
        try:
            serve(database.get_uri())
        finally:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            database.stop()
    print("stopped")


if __name__ == "__main__":
    main()
