"""deploy/keep-heads and the commands of docs/evidence.md, as they stand."""

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from dev import postgres
from dev.service import ROOT, Service, set_up
from tests.commands.trail import entries, receive
from tests.support import Account, json_lines


@pytest.fixture
def account(create_schema: Callable[[], str], start_service: Callable[..., Service]) -> Account:
    url = create_schema()
    account = Account(start_service(url), "acme", set_up(url, "acme", None))
    receive(account, "2026-03-01T10:00:00Z")
    return account


def test_the_commands_of_the_document_work_as_they_stand(account: Account, tmp_path: Path) -> None:
    text = (ROOT / "docs/evidence.md").read_text()
    url = account.service.database_url
    environ = {**os.environ, "DATABASE_URL": url, "PATH": f"{ROOT}:{os.environ['PATH']}"}
    found = re.findall(r"^ *```(\w*)\n(.+?)\n *```$", text, re.MULTILINE | re.DOTALL)
    blocks = [block for language, block in found if not language]
    packing, sealing, _, _, setting_back, handing_out, checking, hashing, verifying, *_ = blocks

    def shell(script: str) -> str:
        done = subprocess.run(
            ["sh", "-ec", script], cwd=tmp_path, env=environ, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "igris-ingest seal --org acme --clock-was-ahead --reason" in setting_back
    lines = shell(sealing).splitlines()
    [first] = json_lines(lines[0].split("  ", 1)[1])
    values = {"SINCE": first["since"], "UNTIL": first["until"]}
    shell(re.sub("SINCE|UNTIL", lambda name: values[name[0]], handing_out))
    assert shell(checking) == lines[-1].split("  ")[0] + "\n"
    assert shell(hashing).split()[0] == first["digest"]
    chain = (tmp_path / "chain.txt").read_text()
    (tmp_path / "chain.txt").write_text(chain.replace('"events": 3', '"events": 2'))
    assert shell(checking).startswith("changed: ")
    shell("igris-ingest verify --json > heads.ndjson")
    shell(packing.replace("2026-09-01", "2026-03-01"))
    assert shell("sh acme-2026-q4/check.sh").startswith("OK: ")
    assert shell(verifying).count("acme: intact: 3 events since 2026-03-01; 0 events not sealed yet") == 3


def test_heads_are_kept_only_of_a_trail_that_is_intact(account: Account, tmp_path: Path) -> None:
    file = tmp_path / "heads" / "heads.ndjson"
    environ = {
        **os.environ,
        "DATABASE_URL": account.service.database_url,
        "HEADS_FILE": str(file),
        "HEADS_SEND": f"cat >> {tmp_path}/sent",
        "KEPT_FOR": "4000d",
    }

    def keep(**more: str) -> tuple[int, str]:
        settings = {**environ, **more}
        done = subprocess.run([ROOT / "deploy/keep-heads"], env=settings, capture_output=True, text=True, check=False)
        assert {path.name for path in file.parent.iterdir()} <= {"heads.ndjson", "heads.ndjson.unsent"}
        return done.returncode, done.stderr

    entries(account)
    assert keep() == (0, "")
    file.write_text(file.read_text().removesuffix("\n"))  # as an editor may leave it
    assert keep() == (0, "")
    kept = file.read_text()
    assert len({line["head"]["entryDigest"] for line in json_lines(kept)}) == 1
    assert (tmp_path / "sent").read_text() == kept
    assert keep(HEADS_SEND="false") == (1, "HEADS_SEND failed: false\n")
    assert keep() == (0, "")  # sends what could not be sent
    assert (tmp_path / "sent").read_text() == file.read_text()
    kept = file.read_text()
    with postgres.temporary() as server:
        pass
    status, errors = keep(DATABASE_URL=server.url)
    assert (status, "could not verify: nothing is said about the trail" in errors, file.read_text()) == (1, True, kept)
    account.execute("UPDATE audit_events SET tool_name = 'x' WHERE org_id = 'acme'")
    account.execute("DELETE FROM chain_entries")
    entries(account)
    status, errors = keep()
    assert (status, file.read_text()) == (3, kept)
    assert errors.startswith("NOT INTACT:\n")
    assert "1 kept entry not in the chain" in errors
    assert account.execute("SELECT count(*) > 0 FROM audit_events") == [(True,)]
