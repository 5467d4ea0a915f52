import os
import signal
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from commands.init_db import create_or_upgrade
from commands.keys import create_key
from commands.organizations import create_organization
from database import LOCK_TIMEOUT, TimeoutConnection
from dev import postgres
from dev.service import ROOT, Service
from storage import SCHEMA_VERSION, Storage
from tests.support import Account

# Debian's users don't have the folder of nginx and pgbouncer in their PATH.
os.environ["PATH"] += f"{os.pathsep}/usr/sbin{os.pathsep}/sbin"

# The end of a run by SIGTERM is that of one by Ctrl-C: fixtures stop what they have started.
signal.signal(signal.SIGTERM, signal.default_int_handler)


@pytest.fixture(scope="session")
def server_url() -> Iterator[str]:
    """A PostgreSQL: TEST_DATABASE_URL, whose role may create databases, or an embedded one."""
    if url := os.environ.get("TEST_DATABASE_URL"):
        yield url
        return
    with postgres.temporary() as server:
        yield server.url


@pytest.fixture(scope="session")
def create_database(server_url: str) -> Iterator[Callable[[], str]]:
    """Makes empty databases, and removes them in the end."""
    names = []
    with psycopg.connect(server_url, autocommit=True) as connection:

        def create() -> str:
            names.append(f"igris_test_{uuid.uuid4().hex}")
            connection.execute(f"CREATE DATABASE {names[-1]} ENCODING 'UTF8' TEMPLATE template0".encode())
            return make_conninfo(server_url, dbname=names[-1])

        yield create
        for name in names:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@pytest.fixture(scope="session")
def create_schema(create_database: Callable[[], str]) -> Callable[[], str]:
    """Makes databases with the schema."""

    def create() -> str:
        url = create_database()
        with psycopg.connect(url) as connection:
            create_or_upgrade(connection)
        return url

    return create


@pytest.fixture(scope="session")
def database_url(create_schema: Callable[[], str]) -> str:
    """The database of the service that most tests share."""
    return create_schema()


@pytest.fixture
def connection(database_url: str) -> Iterator[TimeoutConnection]:
    """A connection of the owner of the shared database, in autocommit mode."""
    with TimeoutConnection.open(database_url, LOCK_TIMEOUT) as connection:
        yield connection


@pytest.fixture(scope="session")
def service(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    service = Service(database_url, tmp_path_factory.mktemp("service") / "log")
    try:
        yield service.start()
    finally:
        service.stop()
    assert "Traceback" not in service.output()


@pytest.fixture
def start_service(database_url: str, tmp_path: Path) -> Iterator[Callable[..., Service]]:
    """Starts a service with other settings, and stops it after the test."""
    running: list[Service] = []

    def start(url: str = database_url, **settings: Any) -> Service:
        running.append(Service(url, tmp_path / f"log-{len(running)}", **settings))
        return running[-1].start()

    try:
        yield start
    finally:
        for service in running:
            service.stop()


@pytest.fixture
def storage(database_url: str) -> Iterator[Storage]:
    storage = Storage(database_url, 1, 7)
    yield storage
    storage.database.close()


@pytest.fixture
def new_account(service: Service, connection: psycopg.Connection[Any]) -> Callable[..., Account]:
    """Makes an organization with a quota (None: unlimited) and a key, on the shared service or another."""

    def new(quota: int | None = 50_000, service: Service = service) -> Account:
        org_id = f"org-{uuid.uuid4().hex[:8]}"
        create_organization(connection, org_id, quota)
        return Account(service, org_id, create_key(connection, org_id)[1])

    return new


@pytest.fixture
def account(new_account: Callable[..., Account]) -> Account:
    return new_account()


STEP = "ALTER TABLE organizations ADD COLUMN note text; CREATE INDEX ON organizations (note);"


@pytest.fixture
def add_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], None]:
    """Makes the next schema version: a step in migrations/, and the program that needs it."""

    def add() -> None:
        folder = tmp_path / "program"
        (folder / "migrations").mkdir(parents=True)
        (folder / "migrations" / f"{SCHEMA_VERSION + 1:03}_add_a_note.sql").write_text(STEP)
        (folder / "schema.sql").write_text((ROOT / "schema.sql").read_text() + STEP)
        monkeypatch.setattr("commands.init_db.ROOT", folder)
        monkeypatch.setattr("commands.init_db.SCHEMA_VERSION", SCHEMA_VERSION + 1)

    return add
