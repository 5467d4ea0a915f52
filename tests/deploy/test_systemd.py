"""deploy/*.service and what systemd expects of gunicorn: readiness, reload, stop."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import urllib3

from dev.service import BIN, EVENT, ROOT, TOO_LARGE_A_NUMBER, Service, wait_for
from tests.support import Account

UNITS = sorted(path.name for path in (ROOT / "deploy").iterdir() if path.suffix in (".service", ".timer"))


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
def test_systemd_finds_nothing_wrong_with_the_units(tmp_path: Path) -> None:
    for name in UNITS:
        installed = (ROOT / "deploy" / name).read_text().replace("/opt/igris-ingest", str(ROOT))
        (tmp_path / name).write_text(installed)
    command = ["systemd-analyze", "verify", "--man=no", *UNITS]
    checked = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
def test_the_unit_leaves_the_service_little_to_reach() -> None:
    """0 is a service without any right, and 10 one without any restriction."""
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", "deploy/igris-ingest.service"]
    report = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    [exposure] = re.findall(r"exposure level for igris-ingest.service: ([\d.]+)", report)
    assert float(exposure) <= 1.2


def test_the_units_name_what_is_there() -> None:
    for name in UNITS:
        text = (ROOT / "deploy" / name).read_text()
        for path in re.findall(r"/opt/igris-ingest/(\S+)", text):
            assert (ROOT / path).exists(), path
        for command in re.findall(r"^ExecStart=\S+/igris-ingest (.+)$", text, re.MULTILINE):
            assert command in ("prune --before ${PRUNE_BEFORE}", "prune", "seal", "check")
    unit = (ROOT / "deploy/igris-ingest.service").read_text()
    [check] = re.findall(r"^ExecReload=/opt/igris-ingest/.venv/bin/(.+)$", unit, re.MULTILINE)
    environ = {**os.environ, "DATABASE_URL": "postgresql:///igris"}
    for port, good in (("8000", True), ("http", False)):
        command = f"{BIN}/{check}"
        checked = subprocess.run(
            command, shell=True, cwd=ROOT, env={**environ, "PORT": port}, capture_output=True, check=False
        )
        assert (checked.returncode == 0) == good
    web = re.findall(r"^ExecStart=/opt/igris-ingest/.venv/bin/(.+)$", unit, re.MULTILINE)
    assert f"web: HOST=0.0.0.0 {web[0]}" in (ROOT / "Procfile").read_text()


def test_the_units_user_is_no_role_of_postgresql() -> None:
    """A system user with a role's name could reach PostgreSQL's socket as that role, without a password."""
    [owner] = re.findall(r"^DATABASE_URL=postgresql://(\w+):", (ROOT / ".env.example").read_text(), re.MULTILINE)
    operations = (ROOT / "docs/operations.md").read_text()
    for name in UNITS:
        text = (ROOT / "deploy" / name).read_text()
        for user in re.findall(r"^User=(.+)$", text, re.MULTILINE):
            if name == "igris-ingest-backup.service":  # pg_dump reads everything, as PostgreSQL's own user
                assert user == "postgres"
                continue
            assert user not in (owner, "igris_web")
            assert re.search(rf"^useradd --system .* {user}$", operations, re.MULTILINE)
    assert "InaccessiblePaths=-/run/postgresql\n" in (ROOT / "deploy/igris-ingest.service").read_text()


def test_gunicorn_says_when_it_is_ready(start_service: Callable[..., Service], tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(15)
        start_service(NOTIFY_SOCKET=str(tmp_path / "notify"))
        assert "READY=1" in systemd.recv(1000).decode()


def test_a_reload_takes_up_new_code(new_account: Callable[..., Account], database_url: str, tmp_path: Path) -> None:
    for file in [*ROOT.glob("*.py"), ROOT / "openapi.yaml"]:
        shutil.copy(file, tmp_path)
    service = Service(database_url, tmp_path / "log")
    service.folder = tmp_path
    account = new_account(service=service.start())
    body = TOO_LARGE_A_NUMBER.encode()
    try:
        assert account.post(body).json["details"][0]["message"].startswith("A number is too large")
        for name in ("database_errors.py", "config.py"):
            changed = (tmp_path / name).read_text().replace("A number is too large", "That is no number")
            (tmp_path / name).write_text(changed.replace("10 * 2**20", "3000"))
        service.process.send_signal(signal.SIGHUP)
        wait_for(lambda: service.output().count("Worker exiting") == 2)
        assert account.post(body).json["details"][0]["message"].startswith("That is no number")
        assert account.post(body + b" " * 3000).status == 413
    finally:
        service.stop()


def test_a_stop_under_load_cuts_off_no_response(
    new_account: Callable[..., Account], start_service: Callable[..., Service]
) -> None:
    """Who is connected gets a response or no connection; what was stored was responded."""
    service = start_service()
    account = new_account(quota=None, service=service)
    stored: list[int] = []

    def send() -> None:
        while True:
            try:
                stored.append(account.post(EVENT).status)
            except Exception:  # noqa: BLE001
                return

    senders = [threading.Thread(target=send) for _ in range(4)]
    for sender in senders:
        sender.start()
    wait_for(lambda: len(stored) > 100)
    service.stop()
    for sender in senders:
        sender.join()
    assert set(stored) == {200}
    assert account.count() == len(stored)


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl")
def test_gunicorns_own_tls_works(account: Account, start_service: Callable[..., Service], tmp_path: Path) -> None:
    files = ["-keyout", str(tmp_path / "key"), "-out", str(tmp_path / "cert")]
    made = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "1",
        "-subj",
        "/CN=localhost",
        "-addext",
        "subjectAltName=DNS:localhost",
        *files,
    ]
    subprocess.run(made, check=True, capture_output=True)
    service = Service(account.service.database_url, tmp_path / "log")
    service.command[2] += f" --certfile {tmp_path}/cert --keyfile {tmp_path}/key"
    service.url = f"https://localhost:{service.port}"
    service.http = urllib3.PoolManager(ca_certs=str(tmp_path / "cert"), retries=False, timeout=30)
    try:
        assert service.start().post(EVENT, account.key).status == 200
        with socket.create_connection(("127.0.0.1", service.port), timeout=10) as client:
            client.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            with contextlib.suppress(ConnectionError):
                client.recv(1000)  # no TLS
        assert service.get("/healthz").status == 200
    finally:
        service.stop()
    assert "Traceback" not in service.output()
