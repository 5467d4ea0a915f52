"""PostgreSQL as people set it up: defaults of databases and roles, constraints and triggers of their own, read-only."""

from collections.abc import Callable

import pytest
from psycopg.conninfo import make_conninfo

from dev.service import EVENT, TOO_LARGE_A_NUMBER, Service, at_once, set_up
from tests.support import Account, assert_rejected, command


@pytest.fixture
def account(create_database: Callable[[], str], start_service: Callable[..., Service]) -> Account:
    """An account on a separate service and database."""
    url = create_database()
    return Account(start_service(url), "acme", set_up(url, "acme", 1000))


def set_default(account: Account, setting: str) -> None:
    """Sets a default of the database; it counts for new connections."""
    [(name,)] = account.execute("SELECT current_database()")
    account.execute(f"ALTER DATABASE {name} SET {setting}")


@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
def test_defaults_of_the_database_change_nothing(account: Account, isolation: str) -> None:
    for setting in (
        f"default_transaction_isolation = '{isolation}'",
        "standard_conforming_strings = off",
        "DateStyle = 'SQL, DMY'",
        "IntervalStyle = 'iso_8601'",
        "TimeZone = 'Asia/Kolkata'",
        "bytea_output = 'escape'",
    ):
        set_default(account, setting)
    event = {**EVENT, "timestamp": f"2026-03-19T10:00:00.{'1' * 100}Z"}
    assert {response.status for response in at_once(16, lambda _: account.send(event))} == {200}
    assert {response.status for response in at_once(8, lambda _: account.send(event, Idempotency_Key="a"))} == {200}
    assert account.count() == account.used() == 17
    assert {str(row[0]) for row in account.rows('"timestamp"')} == {"2026-03-19 10:00:00.111111+00:00"}
    url = account.service.database_url
    assert "2026-03-19T10:00:00.111111Z" in command("events", "--json", database_url=url).stdout
    assert "deleted 17 events" in command("prune", "--before", "0d", database_url=url).stdout


def test_an_acknowledged_event_is_on_disk_with_any_default(account: Account) -> None:
    set_default(account, "synchronous_commit = off")
    account.execute("CREATE TABLE seen (value text)")
    account.execute("""
        CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN INSERT INTO seen VALUES (current_setting('synchronous_commit')); RETURN NULL; END $$
    """)
    account.execute("CREATE TRIGGER see AFTER INSERT ON audit_events EXECUTE FUNCTION see()")
    account.post(EVENT)
    assert account.execute("SELECT value FROM seen") == [("on",)]


def test_a_read_only_database_is_not_ready(account: Account, start_service: Callable[..., Service]) -> None:
    set_default(account, "default_transaction_read_only = on")
    service = start_service(account.service.database_url)
    assert service.get("/readyz").json == {"status": "unavailable", "reason": "the database is read-only"}
    assert_rejected(service.post(EVENT, account.key), 503, "Service unavailable")


def test_a_role_that_can_not_store_is_not_ready(account: Account, start_service: Callable[..., Service]) -> None:
    role = "reader_" + account.execute("SELECT current_database()")[0][0]
    account.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'secret'")
    try:
        account.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")
        service = start_service(make_conninfo(account.service.database_url, user=role, password="secret"))
        assert service.get("/readyz").json["reason"] == "the database role lacks a privilege"
        assert_rejected(service.post(EVENT, account.key), 503, "Service unavailable")
    finally:
        account.execute(f"DROP OWNED BY {role}")
        account.execute(f"DROP ROLE {role}")


def test_a_constraint_of_the_operators_is_not_taken_for_the_quota(account: Account) -> None:
    account.execute("ALTER TABLE audit_events ADD CONSTRAINT no_reports CHECK (tool_name <> 'generate_report')")
    assert_rejected(account.post(EVENT), 503, "Service unavailable", account)
    assert "no_reports" in account.service.output()
    account.execute("ALTER TABLE audit_events DROP CONSTRAINT no_reports")
    account.execute("CREATE UNIQUE INDEX one_tool ON audit_events (tool_name)")
    assert account.post(EVENT).status == 200
    assert_rejected(account.post(EVENT), 503, "Service unavailable")
    assert "one_tool" in account.service.output()
    assert account.count() == account.used() == 1


def test_a_trigger_that_fails_is_not_the_clients_fault(account: Account) -> None:
    for failure in (
        "PERFORM 1 / 0",
        "PERFORM 'x'::jsonb",
        "PERFORM 10 ^ 1000000::numeric",
        "RAISE 'no'",
        "PERFORM * FROM nowhere",
        "RAISE unique_violation",
    ):
        account.execute(f"""
            CREATE OR REPLACE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {failure}; RETURN NEW; END $$
        """)
        account.execute("CREATE TRIGGER fail BEFORE INSERT ON audit_events FOR EACH ROW EXECUTE FUNCTION fail()")
        assert_rejected(account.post(EVENT), 503, "Service unavailable", account)
        account.execute("DROP TRIGGER fail ON audit_events")
    body = TOO_LARGE_A_NUMBER.encode()
    assert_rejected(account.post(body), 400, "Invalid JSON", account)
    assert account.post(EVENT).status == 200


def test_the_log_says_when_postgresql_rejects_and_holds_no_body(account: Account) -> None:
    set_default(account, "log_parameter_max_length_on_error = -1")
    account.execute("""
        CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF NEW.action = 'deny' THEN PERFORM (NEW.metadata ->> 'note')::int; END IF;
            RAISE 'not today';
        END
        $$
    """)
    account.execute("CREATE TRIGGER fail BEFORE INSERT ON audit_events FOR EACH ROW EXECUTE FUNCTION fail()")
    others = "pid <> pg_backend_pid() AND datname = current_database()"
    account.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}")  # for new connections
    for number in range(8):
        action = ("log", "deny")[number % 2]
        account.post({**EVENT, "action": action, "metadata": {"note": "the-secret-of-a-body"}})
    assert "not today" in account.service.output()
    assert "PL/pgSQL function fail() failed" in account.service.output()
    assert "the-secret-of-a-body" not in account.service.output()
