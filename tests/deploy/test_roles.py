"""deploy/roles.sql: the role that serves can't read, change or delete events."""

import shutil
import subprocess
from collections.abc import Callable

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from dev.service import EVENT, ROOT, Service, set_up
from tests.support import Account


@pytest.mark.skipif(not shutil.which("psql"), reason="needs psql")
def test_the_service_works_with_the_least_of_privileges(
    create_database: Callable[[], str], start_service: Callable[..., Service]
) -> None:
    owner_url = create_database()
    key = set_up(owner_url, "acme", 5)
    for _ in range(2):
        script = ["psql", owner_url, "-v", "password=secret", "-f", "deploy/roles.sql"]
        subprocess.run(script, cwd=ROOT, check=True, capture_output=True)
    web_url = make_conninfo(owner_url, user="igris_web", password="secret")
    account = Account(start_service(web_url), "acme", key)

    assert account.service.get("/readyz").status == 200
    assert account.post(EVENT).status == 200
    assert account.post([EVENT, {}] * 3, Prefer="handling=lenient").json["data"]["ingested"] == 3
    with psycopg.connect(owner_url) as connection:
        connection.execute("UPDATE idempotency_keys SET expires_at = now()")
    for replayed in (None, "true"):
        assert account.post(EVENT, Idempotency_Key="a").headers.get("Idempotency-Replayed") == replayed
    assert account.post(EVENT).status == 429

    for statement in (
        "SELECT * FROM audit_events",
        "DELETE FROM audit_events",
        "UPDATE audit_events SET action = 'allow'",
        "TRUNCATE audit_events",
        "UPDATE api_keys SET revoked_at = NULL",
        "UPDATE organizations SET monthly_quota = NULL",
        "DELETE FROM monthly_usage",
        "DROP TABLE audit_events",
    ):
        with psycopg.connect(web_url) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute(statement.encode())
    with psycopg.connect(owner_url) as connection:
        assert connection.execute("SELECT count(*) FROM audit_events").fetchone() == (5,)


@pytest.mark.skipif(not shutil.which("psql"), reason="needs psql")
def test_without_a_password_no_role_is_made(database_url: str) -> None:
    script = ["psql", database_url, "-f", "deploy/roles.sql"]
    assert subprocess.run(script, cwd=ROOT, check=False, capture_output=True).returncode != 0
