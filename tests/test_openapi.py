"""openapi.yaml says what is so."""

import copy
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from marshmallow import fields

import config
import schemas
from dev.service import BIN, PATH, ROOT, Service
from tests.support import Account

OPENAPI: Any = yaml.safe_load((ROOT / "openapi.yaml").read_text())
EVENT = OPENAPI["components"]["schemas"]["Event"]


def test_it_is_served(service: Service) -> None:
    response = service.get("/openapi.yaml")
    assert (response.status, response.headers["Content-Type"]) == (200, "application/yaml")
    assert response.body == (ROOT / "openapi.yaml").read_bytes()


def test_the_fields_are_those_of_the_schema() -> None:
    rules = schemas.Event().fields
    assert list(EVENT["properties"]) == list(rules)
    assert EVENT["required"] == [name for name, rule in rules.items() if rule.required]
    for name, rule in rules.items():
        documented = EVENT["properties"][name]
        assert "enum" in documented or documented["type"] == ("object" if isinstance(rule, fields.Dict) else "string")
        for validator in rule.validators:
            match validator:
                case schemas.OneOf():
                    assert documented["enum"] == list(validator.values)
                case schemas.length:
                    assert (documented["minLength"], documented["maxLength"]) == (1, schemas.MAX_LENGTH)
                case _:
                    assert validator is schemas.instant
    events = OPENAPI["components"]["schemas"]["Events"]
    defaults = {setting.name: setting.default for setting in config.SETTINGS}
    assert str(events["maxItems"]) == defaults["MAX_BATCH_EVENTS"]
    operation = OPENAPI["paths"][PATH]["post"]
    assert f"{defaults['MAX_BODY_BYTES']} bytes" in operation["description"]
    assert OPENAPI["components"]["schemas"]["Details"]["maxItems"] == schemas.MAX_DETAILS + 1


def is_valid(timestamp: str) -> bool:
    return not schemas.error_messages({"type": "custom", "toolName": "x", "timestamp": timestamp})


def test_the_rule_of_timestamps_is_that_of_the_schema() -> None:
    pattern = re.compile(EVENT["properties"]["timestamp"]["pattern"], re.ASCII)
    for year in ("0000", "0001", "0004", "0100", "1900", "2000", "2023", "2024", "2100", "2400", "9996", "9999"):
        for month in range(14):
            for day in range(33):
                text = f"{year}-{month:02}-{day:02}T12:00Z"
                assert bool(pattern.search(text)) == is_valid(text), text
    for text in (
        "2026-03-19T10:00:00.000Z", "2026-03-19T24:00Z", "2026-03-19T10:60Z", "2026-03-19T10:00:60Z",
        "2026-03-19T10:00.5Z", "2026-03-19T10:00+15:59", "2026-03-19T10:00+16:00", "2026-03-19T10:00-0530",
        "2026-03-19T10:00+05", "2026-03-19 10:00Z", "2026-03-19T10:00", "2026-03-19t10:00z", "2026-03-19", "",
    ):  # fmt: skip
        assert bool(pattern.search(text)) == is_valid(text), text


def test_every_route_and_rejection_is_described(service: Service) -> None:
    for path, operations in OPENAPI["paths"].items():
        [method] = operations
        other = "get" if method == "post" else "post"
        assert service.request(other.upper(), path).status == 405
        assert service.request(method.upper(), path).status != 404
    of_the_service, _ = (ROOT / "docs/api.md").read_text().split("Other statuses come from gunicorn and nginx")
    statuses = re.findall(r"^\| ([45]\d\d) \|", of_the_service, re.MULTILINE)
    assert set(OPENAPI["paths"][PATH]["post"]["responses"]) == {"200", *statuses, "default"} - {"404"}


def test_schemathesis_finds_nothing(new_account: Callable[..., Account], tmp_path: Path) -> None:
    """Without NDJSON, which it can't write, and without lenient handling, which responds invalid events with 200."""
    account = new_account(quota=None)
    description = copy.deepcopy(OPENAPI)
    operation = description["paths"][PATH]["post"]
    del operation["requestBody"]["content"]["application/x-ndjson"]
    operation["parameters"] = [each for each in operation["parameters"] if each.get("name") != "Prefer"]
    (tmp_path / "openapi.yaml").write_text(yaml.safe_dump(description))
    command = [
        str(BIN / "schemathesis"), f"--config-file={ROOT}/tests/schemathesis.toml",
        "run", "openapi.yaml", "--url", account.service.url, "--header", f"Authorization: Bearer {account.key}",
        "--phases", "examples,coverage,fuzzing", "--checks", "all", "--max-examples", "20", "--seed", "1",
        "--continue-on-failure", "--no-color",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert account.count() > 20
