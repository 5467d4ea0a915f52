"""The documentation says what is so."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import click
import pytest

import database
import schemas
from commands.__main__ import main
from config import SETTINGS
from dev.service import EVENT, ROOT
from tests.support import Account

README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"```sh\n((?:curl|printf) .*?)```\n\n```json\n(.*?)```", README, re.DOTALL)


def test_every_setting_is_documented_in_the_order_of_the_code() -> None:
    rows = re.findall(r"^\| ([A-Z_]+) \| (.*?) ?\| (.*) \|$", README, re.MULTILINE)
    assert [(name, meaning) for name, _, meaning in rows] == [(each.name, each.meaning) for each in SETTINGS]
    for (name, default, _), setting in zip(rows, SETTINGS, strict=True):
        assert name == "WEB_CONCURRENCY" or default == (setting.default or "")

    example = re.findall(r"^# (.*)\n#?([A-Z_]+)=(.*)$", (ROOT / ".env.example").read_text(), re.MULTILINE)
    assert [(name, meaning) for meaning, name, _ in example] == [(each.name, each.meaning) for each in SETTINGS]
    for _, name, default in example:
        [setting] = [each for each in SETTINGS if each.name == name]
        assert name in ("DATABASE_URL", "WEB_CONCURRENCY") or default == setting.default


def test_the_timeouts_are_documented_and_the_inner_ones_are_shorter() -> None:
    waits = (ROOT / "docs/limits.md").read_text().partition("## Who waits")[2]
    rows = re.findall(r"^\| ([\w ]+) \| ([^|]+) \| ([\d.]+)[^|]* \|", waits, re.MULTILINE)
    assert [float(seconds) for _, _, seconds in rows] == [
        database.CONNECT_TIMEOUT,
        database.ATTEMPT_TIMEOUT,
        database.SHORT_LOCK_TIMEOUT,
        database.LOCK_TIMEOUT,
        database.STATEMENT_TIMEOUT,
        database.RESPONSE_TIMEOUT,
        30,  # gunicorn's graceful_timeout
        10,  # the timeouts of deploy/nginx.conf
        30,
    ]
    assert database.LOCK_TIMEOUT < database.STATEMENT_TIMEOUT < database.RESPONSE_TIMEOUT < 30


@pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")
def test_the_curl_examples_answer_what_they_say(new_account: Callable[..., Account], tmp_path: Path) -> None:
    account = new_account(quota=50_000)
    account.post(EVENT)  # as the command that `make run` prints
    (tmp_path / "var").mkdir()
    (tmp_path / "var/key").write_text(account.key + "\n")
    assert len(EXAMPLES) >= 3
    for command, answer in EXAMPLES:
        command = command.replace("http://127.0.0.1:${PORT:-8000}", account.service.url)
        done = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=True)
        assert done.stdout == answer


def test_every_command_is_documented() -> None:
    names = set()
    for name, each in main.commands.items():
        names |= {f"{name} {sub}" for sub in each.commands} if isinstance(each, click.Group) else {name}
    table = README.partition("## Commands")[2].partition("## Configuration")[0]
    documented = set(re.findall(r"^\| `((?:keys |imports |organizations )?[a-z-]+)", table, re.MULTILINE))
    assert names == documented


def test_the_fields_of_an_event_are_the_same_everywhere() -> None:
    fields = list(schemas.Event().fields)
    table = README.partition("## API")[2].partition("## Commands")[0]
    assert re.findall(r"^\| (\w+) \| (?:string|object) \|", table, re.MULTILINE) == fields
    schema = (ROOT / "schema.sql").read_text()
    records = re.findall(r"AS e \((type text, .+)\)", schema)
    [record] = records
    assert [column.split()[0].strip('"') for column in record.split(", ")] == fields


def test_every_file_that_the_documentation_names_is_there() -> None:
    pages = [*(ROOT / "docs").glob("*.md"), *(ROOT / f"{name}.md" for name in ("README", "SECURITY", "CONTRIBUTING"))]
    folders = "docs|deploy|bench|dev|tests|commands|migrations"
    for page in pages:
        for name in re.findall(rf"`((?:{folders})/[\w./-]*|\w+\.(?:py|sql|yaml))`", page.read_text()):
            assert (ROOT / name).exists() or list(ROOT.glob(f"**/{name}")), f"{page.name}: {name}"
