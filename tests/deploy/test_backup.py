"""docs/backup.md: its commands move events, to an older PostgreSQL too."""

import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from dev import postgres
from dev.service import EVENT, ROOT, Service, set_up
from tests.support import Account

DEBIANS = Path("/usr/lib/postgresql/15/bin")
BACK_UP, RESTORE, MOVE = re.findall(r"```sh\n(.*?)```", (ROOT / "docs/backup.md").read_text(), re.DOTALL)


@pytest.mark.skipif(not DEBIANS.exists(), reason="needs Debian's PostgreSQL 15")
def test_events_move_to_an_older_postgresql_and_are_restored(
    start_service: Callable[..., Service], tmp_path: Path
) -> None:
    def run(script: str, **urls: str) -> None:
        environ = {**os.environ, **urls, "PATH": f"{postgres.embedded_programs()}:{os.environ['PATH']}"}
        command = ["bash", "-o", "pipefail", "-c", script]
        done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    with postgres.temporary() as old, postgres.temporary(programs=DEBIANS) as new, postgres.temporary() as restored:
        key = set_up(old.url, "acme", 100)
        before = Account(start_service(old.url), "acme", key)
        before.post(b'{"type": "custom", "toolName": "x", "metadata": {"n": 1.10000000000000000001, "c": "\\u00e9"}}')
        before.post([EVENT] * 9, Idempotency_Key="a")
        run(BACK_UP, DATABASE_URL=old.url)
        run(MOVE, OLD=old.url, NEW=new.url)
        run(RESTORE, NEW=restored.url)
        for server in (new, restored):
            after = Account(start_service(server.url), "acme", key)
            assert after.rows("id, tool_name, metadata::text") == before.rows("id, tool_name, metadata::text")
            assert after.post([EVENT] * 9, Idempotency_Key="a").headers["Idempotency-Replayed"] == "true"
            assert after.post(EVENT).json["meta"] == {"remainingQuota": 89}
            after.service.stop()
        before.service.stop()


def test_the_backup_keeps_the_newest_dumps_private(create_schema: Callable[[], str], tmp_path: Path) -> None:
    url = create_schema()
    set_up(url, "acme", 100, "billing agent")
    environ = {**os.environ, "BACKUP_DATABASE": url, "BACKUP_FOLDER": str(tmp_path), "BACKUP_KEEP": "2"}
    environ["PATH"] = f"{postgres.embedded_programs()}:{environ['PATH']}"
    for year in (2001, 2002):
        for ending in ("", ".keys.json"):
            (tmp_path / f"igris-{year}-01-01T00-00-00Z.dump{ending}").touch()
    subprocess.run(["deploy/backup"], cwd=ROOT, env=environ, check=True)
    oldest, dump = sorted(path.name for path in tmp_path.glob("*.dump"))
    assert oldest.startswith("igris-2002")
    assert len(list(tmp_path.iterdir())) == 4
    assert {path.stat().st_mode & 0o777 for path in tmp_path.glob(f"{dump}*")} == {0o600}
    assert json.loads((tmp_path / f"{dump}.keys.json").read_text())["label"] == "billing agent"

    environ["BACKUP_DATABASE"] = f"{url} user=x"
    broken = subprocess.run(["deploy/backup"], cwd=ROOT, env=environ, check=False)
    assert broken.returncode != 0
    assert len(list(tmp_path.glob("*.dump"))) == 2
