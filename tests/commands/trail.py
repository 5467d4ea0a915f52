"""What the tests of the trail share: events with a time of receipt, and the commands in short."""

import json
import subprocess
from pathlib import Path
from typing import Any

import psycopg

from tests.support import Account, command, json_lines

ODD = [
    {"type": "tool_call", "toolName": "=1+1", "action": "deny", "timestamp": "0001-01-01T00:00:00Z"},
    {"type": "completion", "toolName": "'quoted\"\n\t\u0001\u2028😀\x7f", "timestamp": "9999-12-31T23:59:59.999999Z"},
    {"type": "custom", "toolName": "-", "action": "alert", "timestamp": "2026-03-19T10:00:00.123456+14:00"},
    {
        "type": "embedding",
        "toolName": "\\x",
        "timestamp": "2026-03-19T10:00:00Z",
        "metadata": {"b": [], "a": {"c": None}},
    },
]
EXACT = (
    b'{"type": "custom", "toolName": "x", "timestamp": "2026-03-19T10:00:00Z", "metadata": {"n": 1.50, "big": 1e40}}'
)


def run(account: Account, *arguments: str) -> subprocess.CompletedProcess[str]:
    return command(*arguments, database_url=account.service.database_url)


def export(account: Account, folder: Path, *options: str, name: str = "trail.ndjson") -> bytes:
    file = folder / name
    file.unlink(missing_ok=True)
    done = run(account, "export", "--org", account.org_id, "--output", str(file), *options)
    assert done.returncode == 0, done.stderr
    return file.read_bytes()


def receive(account: Account, *moments: str) -> None:
    """Stores three events for each moment, as if they had been received then, and nothing else."""
    for moment in moments:
        account.post([{"type": "tool_call", "toolName": f"{moment} {n}", "metadata": {"n": n}} for n in range(3)])
        query = "UPDATE audit_events SET received_at = %s WHERE org_id = %s AND tool_name LIKE %s"
        account.execute(query, moment, account.org_id, f"{moment}%")


def entries(account: Account) -> list[dict[str, Any]]:
    """Seals, and returns the new entries of the chain."""
    done = run(account, "seal", "--org", account.org_id, "--json")
    assert done.returncode == 0, done.stderr
    return json_lines(done.stdout)


def seals(account: Account) -> list[dict[str, Any]]:
    """Seals, and returns the new entries that have events: each quiet day has an entry, too."""
    return [entry for entry in entries(account) if entry["events"]]


def verify(account: Account, *options: str) -> tuple[int, dict[str, Any]]:
    done = run(account, "verify", "--org", account.org_id, "--json", *options)
    return done.returncode, json.loads(done.stdout)


def change(account: Account, query: str) -> None:
    """Changes rows of an organization (%(org)s), as the owner of the database can."""
    with psycopg.connect(account.service.database_url) as connection:
        assert connection.execute(query.encode(), {"org": account.org_id}).rowcount > 0
