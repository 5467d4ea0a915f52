"""Dockerfile and compose.yaml, as far as they can be tried without containers: what they name is there, and runs."""

import base64
import hashlib
import hmac
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from psycopg.conninfo import conninfo_to_dict

import config
from dev.service import BIN, EVENT, ROOT, Service, free_port
from tests.support import Account

DOCKERFILE = (ROOT / "Dockerfile").read_text().replace("\\\n", "")
COMPOSE: Any = yaml.safe_load((ROOT / "compose.yaml").read_text())


def command(instruction: str) -> list[str]:
    """The last CMD, or the CMD of HEALTHCHECK."""
    [arguments] = re.findall(rf"^{instruction}(\[.*\])$", DOCKERFILE, re.MULTILINE)
    return list(json.loads(arguments))


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A folder with what the image has."""
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for line in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE):
        for pattern in line.split():
            assert f"!{pattern}" in ignored
            paths = list(ROOT.glob(pattern))
            assert paths
            for path in paths:
                copy = shutil.copytree if path.is_dir() else shutil.copy
                copy(path, tmp_path / path.name)
    return tmp_path


def test_what_is_copied_is_enough_to_serve(
    image: Path, create_database: Callable[[], str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    url = create_database()
    environ = {"DATABASE_URL": url, "PATH": f"{image}:{BIN}:/usr/bin:/bin"}
    folder = tmp_path_factory.mktemp("somewhere")
    schema = COMPOSE["services"]["schema"]["command"]
    subprocess.run(shlex.join(schema), shell=True, cwd=folder, env=environ, check=True, capture_output=True)
    [create] = re.findall(r"commands (igris-ingest keys create .+)$", (ROOT / "compose.yaml").read_text(), re.MULTILINE)
    made = subprocess.run(create, shell=True, cwd=folder, env=environ, check=True, capture_output=True)

    service = Service(url, tmp_path_factory.mktemp("log") / "log")
    service.folder = image
    service.environ["PATH"] = environ["PATH"]
    service.command = command("CMD ")
    service.environ["HOST"] = "127.0.0.1"
    account = Account(service.start(), "acme", made.stdout.decode().strip())
    check = [sys.executable, *command(r"HEALTHCHECK .* CMD ")[1:]]
    try:
        assert account.post(EVENT).status == 200
        assert subprocess.run(check, env={"PORT": str(service.port)}, check=False).returncode == 0
    finally:
        service.stop()
    assert subprocess.run(check, env={"PORT": str(service.port)}, check=False, capture_output=True).returncode != 0


def test_the_procfile_serves_as_a_platform_calls_it(
    create_database: Callable[[], str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A platform gives PORT and DATABASE_URL, and connects from another address than 127.0.0.1."""
    url = create_database()
    environ = {"DATABASE_URL": url, "PATH": f"{BIN}:/usr/bin:/bin", "PORT": str(free_port())}
    lines = dict(line.split(": ", 1) for line in (ROOT / "Procfile").read_text().splitlines())
    subprocess.run(lines["release"], shell=True, cwd=ROOT, env=environ, check=True, capture_output=True)
    service = Service(url, tmp_path_factory.mktemp("log") / "log")
    service.command, service.environ = ["sh", "-c", f"exec env {lines['web']}"], environ
    service.url = f"http://127.0.0.2:{environ['PORT']}"
    try:
        assert service.start().get("/healthz").status == 200
    finally:
        service.stop()


def test_every_setting_reaches_the_container() -> None:
    services = COMPOSE["services"]
    environment = {**services["service"]["environment"], **services["commands"]["environment"]}
    for setting in config.SETTINGS:
        if setting.name not in ("DATABASE_URL", "HOST", "PORT"):
            assert environment[setting.name].startswith(f"${{{setting.name}:-")


def test_the_service_has_the_role_that_can_do_least() -> None:
    services = COMPOSE["services"]
    assert "postgresql://igris_web@" in services["service"]["environment"]["DATABASE_URL"]
    assert "IGRIS_WEB_PASSWORD" in services["service"]["environment"]["PGPASSWORD"]
    assert services["roles"]["volumes"] == ["./deploy/roles.sql:/roles.sql:ro"]


@pytest.mark.skipif(not shutil.which("psql"), reason="needs psql")
def test_a_password_may_have_any_character(create_schema: Callable[[], str]) -> None:
    url, password = create_schema(), "p/@#%: 'x\\"
    given = conninfo_to_dict(url)
    server = {"PGHOST": given.get("host"), "PGPORT": given.get("port"), "PGUSER": given.get("user")}
    environ = {**os.environ, **{name: str(value) for name, value in server.items() if value}}
    environ |= {"PGDATABASE": str(given["dbname"]), "PGPASSWORD": str(given.get("password") or "")}
    roles = COMPOSE["services"]["roles"]["command"]
    roles[-1] = f"--file={ROOT}/deploy/roles.sql"
    subprocess.run(roles, env={**environ, "IGRIS_WEB_PASSWORD": password}, check=True, capture_output=True)
    with psycopg.connect(url) as connection:
        [(stored,)] = connection.execute("SELECT rolpassword FROM pg_authid WHERE rolname = 'igris_web'").fetchall()
    _, rounds_and_salt, keys = stored.split("$")  # RFC 5803
    rounds, salt = rounds_and_salt.split(":")
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), base64.b64decode(salt), int(rounds))
    stored_key = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    assert base64.b64encode(stored_key).decode() == keys.split(":")[0]


def test_services_start_in_order() -> None:
    services = COMPOSE["services"]
    for service in services.values():
        for name, needed in service.get("depends_on", {}).items():
            if needed["condition"] == "service_healthy":
                assert "test" in services[name].get("healthcheck", {}) or services[name].get("build") == "."
            else:
                assert needed["condition"] == "service_completed_successfully"
                assert name in ("schema", "roles")
    assert "--host=127.0.0.1" in services["postgres"]["healthcheck"]["test"]
    assert "HEALTHCHECK" in DOCKERFILE
    assert [service for service in services.values() if "ports" in service] == [services["nginx"]]
    assert {service["image"] for service in services.values() if "build" in service} == {"igris-ingest"}


@pytest.mark.skipif(not shutil.which("nginx"), reason="needs nginx")
def test_nginx_gets_its_file_as_it_needs_it(tmp_path: Path) -> None:
    nginx = COMPOSE["services"]["nginx"]
    assert nginx["volumes"] == ["./deploy/nginx.conf:/nginx.conf:ro"]
    sed, _, exec_nginx = nginx["command"][2].partition("&&")
    assert exec_nginx.strip() == "exec nginx -g 'daemon off;'"
    sed = sed.replace("/etc/nginx/conf.d/default.conf", f"{tmp_path}/default.conf")
    subprocess.run(["sh", "-c", sed.replace("/nginx.conf", f"{ROOT}/deploy/nginx.conf", 1)], check=True)
    made = (tmp_path / "default.conf").read_text()
    assert "server service:8000;" in made
    assert "/var/log" not in made
    (tmp_path / "default.conf").write_text(
        made.replace("service:8000", "127.0.0.1:8000")
        .replace("listen 80", f"listen {free_port()}")
        .replace("listen [::]:80;", "")
    )
    (tmp_path / "nginx.conf").write_text(
        f"pid {tmp_path}/pid; error_log stderr; events {{}} http {{ include {tmp_path}/default.conf; }}"
    )
    checked = subprocess.run(
        ["nginx", "-t", "-c", tmp_path / "nginx.conf"], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr
