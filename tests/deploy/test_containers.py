"""Dockerfile and compose.yaml, as far as they can be tried without containers: what they name is there, and runs."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from dev.service import BIN, EVENT, ROOT, Service, free_port
from tests.support import Account

DOCKERFILE = (ROOT / "Dockerfile").read_text().replace("\\\n", "")
COMPOSE: Any = yaml.safe_load((ROOT / "compose.yaml").read_text())


def command(instruction: str) -> list[str]:
    """The last CMD, or the CMD of HEALTHCHECK, with the programs of this virtual environment."""
    [arguments] = re.findall(rf"^{instruction}(\[.*\])$", DOCKERFILE, re.MULTILINE)
    program, *rest = json.loads(arguments)
    return [str(BIN / program), *rest]


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
    environ = {"DATABASE_URL": url, "PATH": f"{BIN}:/usr/bin:/bin"}
    schema = COMPOSE["services"]["schema"]["command"]
    subprocess.run([BIN / schema[0], *schema[1:]], cwd=image, env=environ, check=True, capture_output=True)
    create = re.findall(r"docker compose exec service flask (.+)$", (ROOT / "compose.yaml").read_text(), re.MULTILINE)[
        0
    ]
    made = subprocess.run([BIN / "flask", *create.split()], cwd=image, env=environ, check=True, capture_output=True)

    service = Service(url, tmp_path_factory.mktemp("log") / "log")
    service.folder = image
    service.command = [each.replace("0.0.0.0:8000", f"127.0.0.1:{service.port}") for each in command("CMD ")]
    account = Account(service.start(), "acme", made.stdout.decode().strip())
    try:
        assert account.post(EVENT).status == 200
        check = command(r"HEALTHCHECK .* CMD ")
        assert subprocess.run(check, env={"PORT": str(service.port)}, check=False).returncode == 0
    finally:
        service.stop()
    assert subprocess.run(check, env={"PORT": str(service.port)}, check=False, capture_output=True).returncode != 0


def test_services_start_in_order() -> None:
    services = COMPOSE["services"]
    for service in services.values():
        for name, needed in service.get("depends_on", {}).items():
            if needed["condition"] == "service_healthy":
                assert "test" in services[name].get("healthcheck", {}) or services[name].get("build") == "."
            else:
                assert needed["condition"] == "service_completed_successfully"
                assert services[name]["command"] == ["flask", "--app", "app", "init-db"]
    assert "HEALTHCHECK" in DOCKERFILE
    assert [service for service in services.values() if "ports" in service] == [services["nginx"]]


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
        made.replace("service:8000", "127.0.0.1:8000").replace("listen 80", f"listen {free_port()}")
    )
    (tmp_path / "nginx.conf").write_text(
        f"pid {tmp_path}/pid; error_log stderr; events {{}} http {{ include {tmp_path}/default.conf; }}"
    )
    checked = subprocess.run(
        ["nginx", "-t", "-c", tmp_path / "nginx.conf"], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr
