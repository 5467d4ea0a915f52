"""docs/backup.md: its commands move events, to an older PostgreSQL too."""

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
BACK_UP, MOVE, RESTORE = re.findall(r"```sh\n(.*?)```", (ROOT / "docs/backup.md").read_text(), re.DOTALL)


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
