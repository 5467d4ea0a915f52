"""deploy/roles.sql: the role that serves can't read, change or delete events."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

import database
from dev import postgres
from dev.service import EVENT, ROOT, Service, set_up
from tests.support import Account, igris

pytestmark = pytest.mark.skipif(not shutil.which("psql"), reason="needs psql")


def make_role(url: str) -> str:
    """Runs the script; returns what it reports."""
    script = ["psql", url, "-f", "deploy/roles.sql"]
    environ = {**os.environ, "IGRIS_WEB_PASSWORD": "secret"}
    return subprocess.run(script, cwd=ROOT, env=environ, check=True, capture_output=True, text=True).stderr


def fetch(url: str, query: str) -> list[Any]:
    with psycopg.connect(url) as connection:
        return connection.execute(query.encode()).fetchall()


def test_the_service_works_with_the_least_of_privileges(
    create_database: Callable[[], str], start_service: Callable[..., Service]
) -> None:
    owner_url = create_database()
    key = set_up(owner_url, "acme", 5)
    for _ in range(2):
        make_role(owner_url)
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
        "INSERT INTO audit_events (org_id) VALUES ('acme')",
        "UPDATE monthly_usage SET used = 0",
        "DELETE FROM idempotency_keys",
        "SELECT nextval('audit_events_id_seq')",
        "UPDATE api_keys SET revoked_at = NULL",
        "UPDATE organizations SET monthly_quota = NULL",
        "DELETE FROM monthly_usage",
        "DROP TABLE audit_events",
        "SELECT FROM chain_entries",
        "DELETE FROM chain_entries",
        "UPDATE chain_entries SET events = 0",
    ):
        with psycopg.connect(web_url) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute(statement.encode())
    with psycopg.connect(owner_url) as connection:
        assert connection.execute("SELECT count(*) FROM audit_events").fetchone() == (5,)


def test_the_role_can_not_harm_the_owner_or_the_service(create_schema: Callable[[], str]) -> None:
    owner_url = create_schema()
    make_role(owner_url)
    web_url = make_conninfo(owner_url, user="igris_web", password="secret")
    with psycopg.connect(web_url, autocommit=True) as web:
        for statement in (
            "CREATE FUNCTION public.make_interval(days smallint) RETURNS interval LANGUAGE sql AS $$ SELECT NULL $$",
            "CREATE TABLE mine ()",
            "CREATE TEMPORARY TABLE mine ()",
            "SELECT lo_create(0)",
            "SELECT lo_from_bytea(0, 'x')",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                web.execute(statement.encode())
        web.execute("ALTER ROLE igris_web SET synchronous_commit = off")
        web.execute("ALTER ROLE igris_web SET search_path = pg_catalog")
    make_role(owner_url)
    with psycopg.connect(web_url) as web:
        assert web.execute("SHOW synchronous_commit").fetchone() == ("on",)
        assert web.execute("SHOW search_path").fetchone() == ('"$user", public',)
    set_up(owner_url, "acme", 1)  # the owner still may do everything
    with psycopg.connect(owner_url) as owner:
        owner.execute("CREATE TEMPORARY TABLE mine ()")


def test_without_a_password_no_role_is_made(create_schema: Callable[[], str]) -> None:
    url = create_schema()
    script = ["psql", url, "-f", "deploy/roles.sql"]
    assert subprocess.run(script, cwd=ROOT, check=False, capture_output=True).returncode != 0


def test_the_role_gets_what_the_service_relies_on() -> None:
    script = (ROOT / "deploy/roles.sql").read_text()
    settings = {**database.SESSION_SETTINGS, **database.timeout_settings(database.SHORT_LOCK_TIMEOUT)}
    made = dict(re.findall(r"^ALTER ROLE igris_web SET (\w+) = '(.+)';$", script, re.MULTILINE))
    assert made == settings


def test_the_role_leaves_connections_and_disk_to_others(create_schema: Callable[[], str]) -> None:
    url = create_schema()
    make_role(url)
    [(limit, settings)] = fetch(url, "SELECT rolconnlimit, rolconfig FROM pg_roles WHERE rolname = 'igris_web'")
    assert (limit, "temp_file_limit=64MB" in settings) == (80, True)
    for name in ("postgres", "template1"):
        if name != conninfo_to_dict(url)["dbname"]:
            with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
                psycopg.connect(make_conninfo(url, user="igris_web", password="secret", dbname=name))


def test_a_count_that_is_not_the_events_stores_nothing(create_schema: Callable[[], str]) -> None:
    url = create_schema()
    set_up(url, "acme", None)
    make_role(url)
    query = "SELECT store_events_v1('acme', NULL, 'raw', %s, NULL, %s, NULL, NULL, NULL)"
    with psycopg.connect(make_conninfo(url, user="igris_web", password="secret"), autocommit=True) as web:
        for body, count in (("[]", -1_000_000), ("[]", 2**31 - 1), (json.dumps([EVENT] * 3), 1)):
            with pytest.raises(psycopg.errors.RaiseException):
                web.execute(query, [body, count])
    assert fetch(url, "SELECT count(*) FROM audit_events UNION ALL SELECT count(*) FROM monthly_usage") == [(0,), (0,)]


def test_an_owner_that_is_no_superuser_can_make_the_role(start_service: Callable[..., Service]) -> None:
    """As on a managed PostgreSQL, which has no superuser for its users."""
    with postgres.temporary() as server:
        with psycopg.connect(server.url, autocommit=True) as connection:
            connection.execute("CREATE ROLE igris LOGIN CREATEROLE")
            connection.execute("CREATE DATABASE igris OWNER igris")
        url = make_conninfo(server.url, user="igris", dbname="igris")
        key = set_up(url, "acme", 5)
        for _ in range(2):
            assert make_role(url).count("left out, since") == 3
        service = start_service(make_conninfo(url, user="igris_web", password="secret"))
        assert service.post(EVENT, key).status == 200
        service.stop()


def test_no_other_role_may_store_after_a_restore(create_schema: Callable[[], str]) -> None:
    url = create_schema()
    query = "SELECT has_function_privilege('public', to_regproc('store_events_v1'), 'EXECUTE')"
    for close in (lambda: make_role(url), lambda: igris("init-db", database_url=url)):
        with psycopg.connect(url) as connection:
            connection.execute("GRANT EXECUTE ON FUNCTION store_events_v1 TO PUBLIC")  # as after pg_restore
        close()
        assert fetch(url, query) == [(False,)]
