"""The service behind PgBouncer: in transaction mode, whichever connection of PostgreSQL a statement gets, it works."""

import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from database import TimeoutConnection
from dev.service import EVENT, Service, at_once, free_port, wait_for
from tests.support import Account, assert_rejected

pytestmark = pytest.mark.skipif(not shutil.which("pgbouncer"), reason="needs pgbouncer")


@pytest.fixture(params=["transaction", "session"])
def pgbouncer(request: pytest.FixtureRequest, database_url: str, tmp_path: Path) -> Iterator[str]:
    """A PgBouncer that takes no startup options, as many managed poolers; its URL."""
    given = conninfo_to_dict(database_url)
    server = " ".join(f"{name}={given[name]}" for name in ("host", "port", "user", "password") if given.get(name))
    port = free_port()
    # PgBouncer can't run as root. The owner of the socket's folder may use the socket.
    folder = Path(str(given.get("host")))
    owner = folder.owner() if folder.is_dir() else "nobody"
    user = "" if os.geteuid() else f"user = {owner}"
    (tmp_path / "pgbouncer.ini").write_text(f"""
        [databases]
        igris = {server} dbname={given["dbname"]}
        [pgbouncer]
        listen_addr = 127.0.0.1
        listen_port = {port}
        unix_socket_dir =
        auth_type = any
        pool_mode = {request.param}
        default_pool_size = {2 if request.param == "transaction" else 20}
        {user}
    """)
    with (tmp_path / "pgbouncer.log").open("wb") as log:
        process = subprocess.Popen(["pgbouncer", tmp_path / "pgbouncer.ini"], stderr=log)

    def listens() -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", port)) == 0

    wait_for(listens)
    yield make_conninfo(host="127.0.0.1", port=port, dbname="igris", user=given.get("user"))
    process.terminate()
    process.wait()


def test_the_service_works_behind_it(
    pgbouncer: str, new_account: Callable[..., Account], start_service: Callable[..., Service]
) -> None:
    with psycopg.connect(pgbouncer) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    service = start_service(pgbouncer, PREPARED_STATEMENTS="off")
    account = new_account(quota=100, service=service)
    statuses = [
        response.status for response in at_once(40, lambda i: account.send([EVENT] * 3, Idempotency_Key=f"{i % 20}"))
    ]
    assert statuses == [200] * 40
    responses = at_once(30, lambda _: account.send([EVENT] * 2))
    assert [response.status for response in responses].count(200) == 20
    assert_rejected(responses[[response.status for response in responses].index(429)], 429, "Quota exceeded")
    with psycopg.connect(pgbouncer, prepare_threshold=None) as connection:
        query = "SELECT count(*) FROM audit_events WHERE org_id = %s"
        assert connection.execute(query, [account.org_id]).fetchone() == (100,)
    assert service.get("/readyz").status == 200


def test_a_session_has_the_settings_that_the_service_relies_on(pgbouncer: str) -> None:
    with TimeoutConnection.open(pgbouncer, 7, prepare=False) as connection:
        query = "SELECT current_setting('TimeZone'), current_setting('lock_timeout')"
        assert connection.execute(query).fetchall() == [("UTC", "7s")]


def test_prepared_statements_that_fail_are_no_defect(
    pgbouncer: str, new_account: Callable[..., Account], start_service: Callable[..., Service]
) -> None:
    service = start_service(pgbouncer)
    account = new_account(quota=None, service=service)
    statuses = [response.status for response in at_once(40, lambda _: account.post(EVENT))]
    assert account.used() == statuses.count(200) > 0
    is_reported = "set PREPARED_STATEMENTS=off" in service.output()
    assert set(statuses) == ({200, 503} if is_reported else {200})
