"""`make run`: the service as production runs it, on a PostgreSQL of its own under ./var. Ctrl-C stops both."""

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from dev import postgres

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


def flask(*arguments: str) -> str:
    done = subprocess.run(
        [BIN / "flask", "--app", "app", *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout.strip()


def api_key() -> str:
    """The key of the first start."""
    file = VAR / "key"
    if not file.exists():
        key = flask("keys", "create", "demo", "--label", "make run")
        file.touch(mode=0o600)
        file.write_text(key + "\n")
    return file.read_text().strip()


def wait_until_ready(server: subprocess.Popen[bytes]) -> None:
    while server.poll() is None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{PORT}/readyz", timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    sys.exit(server.returncode)


def serve() -> None:
    key = api_key()
    server = subprocess.Popen([BIN / "gunicorn", "app:create_app()"], cwd=ROOT, start_new_session=True)
    try:
        wait_until_ready(server)
        print(f"""
Serving on http://127.0.0.1:{PORT}; Ctrl-C stops it. Data and key are kept in ./var. Try, in another terminal:

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
            os.environ["DATABASE_URL"] = database.get_uri()
            flask("init-db")
            serve()
        finally:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            database.stop()
    print("stopped")


if __name__ == "__main__":
    main()
