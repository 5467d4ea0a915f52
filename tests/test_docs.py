"""The documentation says what is so."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import database
import schemas
from app import ERRORS
from config import SETTINGS
from dev import commands_document
from dev.service import EVENT, PROGRAM, ROOT, Service, set_up
from tests.support import Account

README = (ROOT / "README.md").read_text()
API = (ROOT / "docs/api.md").read_text()
EXAMPLES = re.findall(r"```sh\n((?:curl|printf) .*?)```\n\n```json\n(.*?)```", README + API, re.DOTALL)
DOCUMENTS = [
    *(ROOT / "docs").glob("*.md"),
    *ROOT.glob("*.md"),
    *(ROOT / "bench").glob("*.md"),
    *(ROOT / "migrations").glob("*.md"),
]


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
def test_the_curl_examples_response_what_they_say(new_account: Callable[..., Account], tmp_path: Path) -> None:
    account = new_account(quota=50_000)
    account.post(EVENT)  # as the command that `make run` prints
    (tmp_path / "var").mkdir()
    (tmp_path / "var/key").write_text(account.key + "\n")
    assert len(EXAMPLES) >= 3
    for command, response in EXAMPLES:
        command = command.replace("http://127.0.0.1:${PORT:-8000}", account.service.url)
        done = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=True)
        assert done.stdout == response


def test_the_document_of_the_commands_is_what_help_prints() -> None:
    assert commands_document.DOCUMENT.read_text() == commands_document.document()


def test_the_statuses_of_the_interface_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| (\d+) \| ([\w -]+) \|", API.partition("## Errors")[2], re.MULTILINE)
    assert {(int(status), error) for status, error in rows} == {(status, error) for status, error, _ in ERRORS.values()}


def test_the_fields_of_an_event_are_the_same_everywhere() -> None:
    fields = list(schemas.Event().fields)
    assert re.findall(r"^\| (\w+) \| (?:string|object) \|", API, re.MULTILINE) == fields
    schema = (ROOT / "schema.sql").read_text()
    records = re.findall(r"AS e \((type text, .+)\)", schema)
    [record] = records
    assert [column.split()[0].strip('"') for column in record.split(", ")] == fields


def anchors(document: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_link_leads_to_a_file_and_a_heading() -> None:
    for document in DOCUMENTS:
        for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
            if re.match(r"https?://", target):
                continue
            path, _, anchor = target.partition("#")
            file = (document.parent / path).resolve() if path else document
            assert file.exists(), f"{document.name}: {target}"
            assert not anchor or anchor in anchors(file), f"{document.name}: {target}"


def test_every_document_or_file_that_is_named_is_a_link() -> None:
    for document in DOCUMENTS:
        text = re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL)
        text = re.sub(r"\[[^\]]*\]\([^)]*\)", "", text)
        named = re.findall(
            r"`?\b((?:docs|deploy|bench|clients|commands|tests|migrations)/[\w./@-]+\w|[\w.]+\.(?:md|sql))\b`?", text
        )
        named = [name for name in named if name != "002_add_a_column.sql"]  # an example
        if document.name != "CHANGELOG.md":
            assert named == [], f"{document.name}: {named}"


def test_every_document_is_in_the_table_of_contents() -> None:
    listed = set(re.findall(r"\]\(([\w-]+\.md)", (ROOT / "docs/README.md").read_text()))
    assert listed == {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}


DIFFERING = {
    r"\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d:\d\d[\d.]*Z)?": r"\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d:\d\d[\d.]*Z)?",
    "c0ffee00": "[0-9a-f]+",
    r"\.\.\.": ".*",
    " +": " +",
}
"""What may differ from the tutorial in a line of output, and what may stand there."""


def pattern(line: str) -> str:
    """Return a line of the tutorial as a regular expression."""
    parts = re.split(f"({'|'.join(DIFFERING)})", line)
    return "".join(
        next((there for here, there in DIFFERING.items() if re.fullmatch(here, part)), re.escape(part))
        for part in parts
    )


@pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")
def test_the_tutorial_works_as_it_stands(
    create_schema: Callable[[], str], start_service: Callable[..., Service], tmp_path: Path
) -> None:
    url = create_schema()
    account = Account(start_service(url), "demo", set_up(url, "demo", 50_000))
    (tmp_path / "var").mkdir()
    (tmp_path / "var/key").write_text(account.key + "\n")
    (tmp_path / "var/database-url").write_text(url)
    (tmp_path / "igris-ingest").symlink_to(PROGRAM)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    text = (ROOT / "docs/tutorial.md").read_text()
    steps = re.findall(r"```sh\n(.*?)```\n+(?:[^`#]*?)```\n(.*?)```", text, re.DOTALL)
    assert len(steps) == 8
    environ = {**os.environ, "DATABASE_URL": url, "PORT": str(account.service.port)}
    for step, (commands, printed) in enumerate(steps):
        if "seal --org" in commands:
            account.execute("UPDATE audit_events SET received_at = received_at - interval '2 minutes'")
        done = subprocess.run(
            ["sh", "-c", commands], cwd=tmp_path, env=environ, capture_output=True, text=True, check=False
        )
        shown = done.stdout + done.stderr
        for line in printed.splitlines():
            assert re.search(pattern(line), shown, re.MULTILINE), (step, line, shown)
        assert done.returncode == (3 if step >= 6 else 0), shown
