"""The service as its users meet it: real gunicorn and nginx, and a client that speaks HTTP to them.

For tests and benchmarks.
"""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import urllib3

from commands.init_db import create_or_upgrade
from commands.keys import create_key
from commands.organizations import create_organization

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
PROGRAM = str(ROOT / "igris-ingest")
WEB = (
    f"exec {shlex.quote(str(BIN))}/gunicorn "
    + re.findall(r"^web: HOST=0.0.0.0 gunicorn (.+)", (ROOT / "Procfile").read_text(), re.M)[0]
)
PATH = "/api/v1/ingest/raw"
EVENT = {"type": "tool_call", "toolName": "generate_report"}
# An event with a number that only PostgreSQL finds to be too large.
TOO_LARGE_A_NUMBER = f'{{"type": "custom", "toolName": "x", "metadata": {{"n": {" " * 2048}1e131072}}}}'


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(condition: Any, seconds: float = 15) -> Any:
    """Asks until the response is true, and returns it; raises TimeoutError."""
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{condition} is still false after {seconds} s")
        time.sleep(0.01)
    return result


@dataclass
class Response:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def set_up(database_url: str, org_id: str, quota: int | None, label: str | None = None) -> str:
    """Create the schema, if it is not there, and an organization; return a new API key."""
    with psycopg.connect(database_url) as connection:
        create_or_upgrade(connection)
        create_organization(connection, org_id, quota)
        return create_key(connection, org_id, label)[1]


def high_water_mark(pid: int) -> int:
    """Returns the most memory that a process ever had, in bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) * 1024


class Service:
    """A gunicorn with its workers, on a free port; its output goes to a file."""

    def __init__(
        self, database_url: str, log: Path, application: str = "app:create_app()", before: str = "", **settings: Any
    ) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.database_url = database_url
        self.log = log
        self.folder = ROOT
        self.command = ["sh", "-c", before + WEB.replace("app:create_app()", application)]
        self.environ = {
            **{name: value for name, value in os.environ.items() if name not in ("MAX_BODY_BYTES", "THREADS")},
            "DATABASE_URL": database_url,
            "PORT": str(self.port),
            "WEB_CONCURRENCY": "2",
            **{name: str(value) for name, value in settings.items()},
        }
        self.process: Any = None
        self.http = urllib3.PoolManager(maxsize=64, retries=False, timeout=30)

    def start(self) -> "Service":
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                cwd=self.folder,
                env=self.environ,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_for(self.is_alive)
        return self

    def stop(self) -> None:
        self.http.clear()  # gunicorn waits for connections that are kept alive
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(timeout=60)

    def is_alive(self) -> bool:
        if self.process.poll() is not None:
            raise RuntimeError(f"gunicorn ended: {self.output()}")
        return self.responses()

    def responses(self) -> bool:
        try:
            return self.get("/healthz").status == 200
        except urllib3.exceptions.HTTPError:
            return False

    def output(self) -> str:
        return self.log.read_text()

    def request(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Response:
        response = self.http.request(method, self.url + path, body=body, headers=headers)
        return Response(response.status, response.headers, response.data)

    def get(self, path: str) -> Response:
        return self.request("GET", path)

    def post(self, body: Any, key: str, **headers: str) -> Response:
        """Posts bytes as they are, an iterator of bytes in chunks, and anything else as JSON."""
        if not isinstance(body, bytes | Iterator):
            body = json.dumps(body).encode()
        return self.request(
            "POST",
            PATH,
            body,
            {
                "Authorization": f"Bearer {key}",
                "Content-Type": "application/json",
                **{name.replace("_", "-"): value for name, value in headers.items()},
            },
        )


class Nginx(Service):
    """An nginx with deploy/nginx.conf in front of a port: only addresses, folders and what is `replaced` are others."""

    def __init__(self, upstream: int, folder: Path, replaced: dict[str, str], *, ssl: bool = False) -> None:
        super().__init__("", folder / "igris-access.log")
        text = (ROOT / "deploy/nginx.conf").read_text()
        listen = "" if ssl else f"listen 127.0.0.1:{self.port};"
        addresses = {
            "    listen 80;\n    listen [::]:80;\n    #": f"    {listen}\n    #",
            "server 127.0.0.1:8000;": f"server 127.0.0.1:{upstream};",
            "/var/log/nginx": str(folder),
        }
        for old, new in {**addresses, **replaced}.items():
            assert old in text
            text = text.replace(old, new)
        text = text.replace("listen 443 ssl;", f"listen 127.0.0.1:{self.port} ssl;") if ssl else text
        (folder / "igris.conf").write_text(text)
        self.file = folder / "nginx.conf"
        self.file.write_text(f"""
            daemon off; pid {folder}/pid; error_log {folder}/error.log;
            {"user root;" if os.geteuid() == 0 else ""}
            events {{ worker_connections 1024; }}
            http {{
                client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
                scgi_temp_path {folder}/scgi; uwsgi_temp_path {folder}/uwsgi;
                include {folder}/igris.conf;
            }}
        """)

    def start(self) -> "Nginx":
        self.process = subprocess.Popen(["nginx", "-c", self.file])
        wait_for(self.listens)
        return self

    def listens(self) -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", self.port)) == 0

    def send(self, data: bytes) -> Response:
        """The response to bytes that are sent as they are."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as client:
            client.sendall(data)
            headers = urllib3.HTTPHeaderDict()
            head, _, body = client.recv(100_000).partition(b"\r\n\r\n")
            status, *lines = head.decode().split("\r\n")
            for line in lines:
                headers.add(*line.split(": ", 1))
            while len(body) < int(headers["Content-Length"]):
                body += client.recv(100_000)
            return Response(int(status.split()[1]), headers, body)


def at_once(threads: int, function: Any) -> list[Any]:
    """Calls function(i) in as many threads at the same moment, and returns what each returned."""
    barrier = threading.Barrier(threads)
    results: list[Any] = [None] * threads

    def run(i: int) -> None:
        barrier.wait()
        results[i] = function(i)

    running = [threading.Thread(target=run, args=[i]) for i in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return results
