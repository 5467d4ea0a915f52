"""What the tests share: accounts, commands, and the shape of an error."""

import json
import os
import re
import socket
import subprocess
import time
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import psycopg
from click.testing import CliRunner

from commands.__main__ import main
from dev.service import EVENT, PROGRAM, ROOT, Response, Service, wait_for


class Account:
    """A separate organization for a test, with a key: posts for it, and looks into its rows."""

    def __init__(self, service: Service, org_id: str, key: str) -> None:
        self.service, self.org_id, self.key = service, org_id, key

    def post(self, body: Any, **headers: str) -> Response:
        return self.service.post(body, self.key, **headers)

    def send(self, body: Any, **headers: str) -> Response:
        """Posts as a client does: again after a 503, which requests can get while a flush of the disk stalls."""

        def responded() -> Response | None:
            response = self.post(body, **headers)
            return None if response.status == 503 else response

        return wait_for(responded)  # type: ignore[no-any-return]

    def execute(self, query: str, *parameters: object) -> list[Any]:
        """Runs SQL as the owner of the database; returns the rows, if it has any."""
        with psycopg.connect(self.service.database_url, prepare_threshold=None) as connection:
            connection.execute("SET TimeZone = 'UTC'; SET DateStyle = 'ISO'")
            cursor = connection.execute(query.encode(), parameters)
            return [] if cursor.description is None else cursor.fetchall()

    def rows(self, columns: str = "*") -> list[Any]:
        return self.execute(
            f"SELECT {columns} FROM audit_events WHERE org_id = %s ORDER BY audit_events.id", self.org_id
        )

    def count(self) -> int:
        return len(self.rows("id"))

    def used(self) -> int:
        """What the quota counts, which has to be what the table holds."""
        query = "SELECT coalesce(sum(used), 0)::int FROM monthly_usage WHERE org_id = %s"
        [[used]] = self.execute(query, self.org_id)
        return int(used)


class LockedUsageRow:
    """While it lasts, requests of a limited organization wait for its usage row."""

    def __init__(self, account: Account) -> None:
        self.account = account

    def __enter__(self) -> None:
        self.account.post(EVENT)
        self.blocker = psycopg.connect(self.account.service.database_url)
        query = "SELECT FROM monthly_usage WHERE org_id = %s FOR UPDATE"
        self.blocker.execute(query, [self.account.org_id])

    def __exit__(self, *_: object) -> None:
        self.blocker.close()


def latencies(account: Account, requests: int) -> list[float]:
    """Stores events one by one; returns the seconds that each took, ascending."""
    seconds = []
    for _ in range(requests):
        began = time.monotonic()
        assert account.post(EVENT).status == 200
        seconds.append(time.monotonic() - began)
    return sorted(seconds)


def json_lines(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines()]


def receive(client: socket.socket) -> HTTPResponse:
    """Reads one response."""
    response = HTTPResponse(client)
    response.begin()
    response.read()
    return response


def waiting_for_locks(account: Account) -> int:
    query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    return int(account.execute(query)[0][0])


def igris(
    *arguments: str, database_url: str | None, stdin: str | None = None, cwd: Path | str = ROOT, **environ: str
) -> subprocess.CompletedProcess[str]:
    """Runs a command as its users do."""
    settings = {**os.environ, "DATABASE_URL": database_url or "", **environ}
    return subprocess.run(
        [PROGRAM, *arguments], cwd=cwd, env=settings, input=stdin, capture_output=True, text=True, check=False
    )


def command(*arguments: str, database_url: str | None, **environ: str) -> subprocess.CompletedProcess[str]:
    """Runs a command in this process: some hundred milliseconds faster than `igris`, and the same but for the start."""
    settings = {"DATABASE_URL": database_url or "", **environ}
    result = CliRunner().invoke(main, arguments, env=settings, prog_name="igris-ingest")
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return subprocess.CompletedProcess(arguments, result.exit_code, result.stdout, result.stderr)


def assert_rejected(response: Response, status: int, error: str, account: Account | None = None) -> Any:
    """The one shape of an error; for an account also that nothing of it was stored. Returns the whole body."""
    assert response.status == status, response.body
    body = response.json
    assert body["error"] == error
    assert set(body) <= {"error", "details", "meta"}
    for detail in body.get("details", []):
        assert set(detail) == {"field", "message"}
        assert isinstance(detail["field"], str)
        assert detail["message"]
    assert response.headers["Content-Type"] == "application/json"
    assert response.headers["Cache-Control"] == "no-store"
    assert re.fullmatch(r"[\w.-]+", response.headers["X-Request-Id"])
    if account:
        assert account.rows() == []
        assert account.used() == 0
    return body
