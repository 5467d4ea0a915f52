"""The worst day: processes die, PostgreSQL goes away, clients leave. Nothing acknowledged is lost, nothing doubled."""

import contextlib
import itertools
import json
import os
import random
import secrets
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import psycopg
import pytest
import urllib3
from psycopg.conninfo import make_conninfo

from database import LOCK_TIMEOUT, RESPONSE_TIMEOUT, STATEMENT_TIMEOUT, TimeoutConnection
from database_errors import NoRoom, Unavailable
from dev import postgres
from dev.service import EVENT, PATH, Response, Service, at_once, set_up, wait_for
from storage import EventBatch, Storage
from tests.support import Account, LockedUsageRow, assert_rejected, command, receive, waiting_for_locks


@pytest.fixture
def own_server() -> Iterator[postgres.Server]:
    """A PostgreSQL that the test may stop."""
    with postgres.temporary() as server:
        yield server


@pytest.fixture
def own_account(own_server: postgres.Server, start_service: Callable[..., Service]) -> Account:
    """An account on a separate service, over own_server."""
    url = own_server.url
    key = set_up(url, "acme", 1_000_000)
    return Account(start_service(url, THREADS=8), "acme", key)


def assert_unavailable(response: Response) -> None:
    assert_rejected(response, 503, "Service unavailable")
    assert 1 <= int(response.headers["Retry-After"]) <= 5


@pytest.mark.measures
def test_the_database_is_stopped_and_started_again(own_server: postgres.Server, own_account: Account) -> None:
    assert {response.status for response in at_once(8, lambda _: own_account.send(EVENT))} == {200}
    own_server.stop()
    for _ in range(3):
        began = time.monotonic()
        for response in at_once(8, lambda _: own_account.post(EVENT)):
            assert_unavailable(response)
        assert time.monotonic() - began < 4
    assert own_account.service.get("/healthz").status == 200
    ready = own_account.service.get("/readyz")
    assert ready.status == 503
    assert ready.json == {"status": "unavailable", "reason": "PostgreSQL can't be reached"}

    own_server.start()
    began = time.monotonic()
    wait_for(lambda: own_account.post(EVENT).status == 200)
    assert time.monotonic() - began < 2
    assert {response.status for response in at_once(8, lambda _: own_account.send(EVENT))} == {200}
    assert own_account.count() == own_account.used() == 17
    assert "PostgreSQL is back" in own_account.service.output()


def test_a_restart_between_requests_is_not_noticed(own_server: postgres.Server, own_account: Account) -> None:
    assert {response.status for response in at_once(8, lambda _: own_account.send(EVENT))} == {200}
    own_server.stop()
    own_server.start()
    assert {response.status for response in at_once(8, lambda _: own_account.send(EVENT))} == {200}
    assert own_account.count() == own_account.used() == 16


def test_an_idle_connection_that_has_something_to_say_is_kept(storage: Storage, database_url: str) -> None:
    with storage.database.connection() as connection:
        connection.execute("LISTEN news")
    with psycopg.connect(database_url, autocommit=True) as other:
        other.execute("NOTIFY news")
    wait_for(lambda: select.select([connection], [], [], 0)[0])
    with storage.database.connection() as again:
        assert again is connection


@pytest.mark.measures
def test_it_starts_without_the_database(
    own_server: postgres.Server, own_account: Account, start_service: Callable[..., Service]
) -> None:
    url = own_server.url
    own_server.stop()
    service = start_service(url)
    assert service.get("/healthz").status == 200
    assert_unavailable(service.post(EVENT, own_account.key))
    own_server.start()
    wait_for(lambda: service.post(EVENT, own_account.key).status == 200, seconds=2)


def test_a_rejection_shows_that_postgresql_is_back(own_server: postgres.Server, own_account: Account) -> None:
    own_account.execute("UPDATE organizations SET monthly_quota = 0")
    at_once(16, lambda _: own_account.post(EVENT))  # so that each worker knows the key
    own_server.crash()
    for response in at_once(8, lambda _: own_account.post(EVENT)):
        assert_unavailable(response)
    own_server.start()
    wait_for(lambda: own_account.post(EVENT).status == 429 and "PostgreSQL is back" in own_account.service.output())


def test_a_missing_table_is_not_the_clients_fault(account: Account) -> None:
    account.execute("ALTER TABLE audit_events RENAME TO away")
    try:
        assert_unavailable(account.post(EVENT))
    finally:
        account.execute("ALTER TABLE away RENAME TO audit_events")
    assert account.post(EVENT).status == 200


@pytest.mark.measures
def test_requests_that_wait_when_the_database_restarts_get_a_503(
    own_server: postgres.Server, own_account: Account
) -> None:
    with LockedUsageRow(own_account), ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(own_account.post, EVENT, Idempotency_Key=str(i)) for i in range(4)]
        wait_for(lambda: waiting_for_locks(own_account) == 4)
        own_server.crash()
        for future in waiting:
            assert_unavailable(future.result())
    own_server.start()
    wait_for(lambda: own_account.service.get("/readyz").status == 200, seconds=2)
    assert {own_account.post(EVENT, Idempotency_Key=str(i)).status for i in range(4)} == {200}
    assert own_account.count() == own_account.used() == 5


@pytest.mark.measures
def test_a_lock_that_is_never_released_pins_no_thread(own_account: Account) -> None:
    with LockedUsageRow(own_account):
        began = time.monotonic()
        for response in at_once(4, lambda _: own_account.post(EVENT)):
            assert_unavailable(response)
        assert LOCK_TIMEOUT <= time.monotonic() - began < STATEMENT_TIMEOUT + 1
    assert "lock timeout" in own_account.service.output()
    assert {response.status for response in at_once(4, lambda _: own_account.send(EVENT))} == {200}


def test_more_requests_than_connections_are_all_stored(own_account: Account) -> None:
    """A worker's last free connection waits 0.2 s for the lock: its client gets a 503, and tries again."""

    def post(number: int) -> int:
        return own_account.post(EVENT, Idempotency_Key=str(number)).status

    with ThreadPoolExecutor(40) as pool:
        with LockedUsageRow(own_account):
            waiting = [pool.submit(post, number) for number in range(40)]
            wait_for(lambda: waiting_for_locks(own_account) >= 8)
        statuses = [future.result() for future in waiting]
    assert set(statuses) <= {200, 503}
    assert {post(number) for number in range(40)} == {200}
    assert own_account.count() == own_account.used() == 41


@pytest.mark.measures
def test_a_stuck_database_pins_no_thread(own_server: postgres.Server, own_account: Account) -> None:
    assert {response.status for response in at_once(8, lambda _: own_account.send(EVENT))} == {200}
    postmaster = psutil.Process(own_server.pid)
    processes = [postmaster, *postmaster.children()]
    for process in processes:
        process.suspend()
    try:
        began = time.monotonic()
        for response in at_once(4, lambda _: own_account.post(EVENT)):
            assert_unavailable(response)
        assert time.monotonic() - began < RESPONSE_TIMEOUT + 2
        began = time.monotonic()  # from now on one request at a time tries
        with ThreadPoolExecutor(1) as pool:
            trying = pool.submit(own_account.post, EVENT)
            while not trying.done():
                assert own_account.service.get("/healthz").status == 200
        assert_unavailable(trying.result())
        assert time.monotonic() - began < RESPONSE_TIMEOUT + 2
    finally:
        for process in processes:
            process.resume()
    wait_for(lambda: own_account.post(EVENT).status == 200)


def test_a_commit_that_waits_for_a_standby_holds_up_no_other_request_and_is_stored(
    own_account: Account, start_service: Callable[..., Service]
) -> None:
    # one worker: each worker finds out for itself whether PostgreSQL responds
    own_account.service = start_service(own_account.service.database_url, WEB_CONCURRENCY=1)

    def require_standby(name: str) -> None:
        with psycopg.connect(own_account.service.database_url, autocommit=True) as connection:
            connection.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{name}'".encode())
            connection.execute("SELECT pg_reload_conf()")
        wait_for(lambda: own_account.execute("SHOW synchronous_standby_names") == [(name,)])

    require_standby("missing")
    responses: list[Response] = []

    def send() -> Response:
        responses.append(own_account.post(EVENT, Idempotency_Key=f"key-{len(responses)}"))
        return responses[-1]

    wait_for(lambda: send().status != 200)  # PostgreSQL's checkpointer has read the setting
    assert own_account.count() == len(responses) - 1
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(send)
        wait_for(lambda: waiting_for_locks(own_account))  # of the usage row, which the first commit holds
        for _ in range(3):
            assert own_account.service.get("/readyz").status == 200  # PostgreSQL responds to reads
        waiting.result()
    for response in responses[-2:]:
        assert_unavailable(response)
    require_standby("")
    wait_for(lambda: own_account.count() == len(responses) - 1)
    retry = own_account.post(EVENT, Idempotency_Key=f"key-{len(responses) - 2}")
    assert (retry.status, retry.headers["Idempotency-Replayed"]) == (200, "true")
    assert own_account.count() == own_account.used() == len(responses) - 1


def test_requests_are_unavailable_while_the_role_has_no_connection_left(
    own_server: postgres.Server, own_account: Account, start_service: Callable[..., Service]
) -> None:
    own_account.execute("CREATE ROLE crowded LOGIN CONNECTION LIMIT 0")
    own_account.execute("GRANT ALL ON ALL TABLES IN SCHEMA public TO crowded")
    own_account.execute("GRANT ALL ON ALL FUNCTIONS IN SCHEMA public TO crowded")
    service = start_service(make_conninfo(own_server.url, user="crowded"))
    for _ in range(3):
        assert_unavailable(service.post(EVENT, own_account.key))
    own_account.execute("ALTER ROLE crowded CONNECTION LIMIT 1")
    service = start_service(make_conninfo(own_server.url, user="crowded"), WEB_CONCURRENCY=1)
    assert {service.post(EVENT, own_account.key).status for _ in range(20)} == {200}  # whichever thread serves it


@pytest.mark.skipif(os.geteuid() != 0 or not Path("/proc/mounts").exists(), reason="needs root, to make a small disk")
def test_a_full_disk_is_a_503_until_there_is_room(start_service: Callable[..., Service]) -> None:
    disk = Path(tempfile.mkdtemp())
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=140m", "none", disk], check=True)
    server = postgres.Server(disk / "data")
    try:
        server.start()
        account = Account(start_service(server.url, WEB_CONCURRENCY=1), "acme", set_up(server.url, "acme", None))
        assert account.post(EVENT).status == 200
        # what compresses badly, and is not all stored in the row
        large = {**EVENT, "metadata": {"noise": secrets.token_hex(2_000_000)}}
        filler = disk / "filler"
        free = shutil.disk_usage(disk).free
        filler.write_bytes(bytes(free - 8 * 2**20))
        statuses = [account.post(large).status for _ in range(8)]
        assert set(statuses[-2:]) == {503}
        ready = account.service.get("/readyz")
        assert (ready.status, ready.json["reason"]) == (503, "PostgreSQL has no room on its disk")
        checked = command("check", database_url=server.url)
        assert (checked.returncode, checked.stdout) == (
            2,
            "disk: PostgreSQL's disk does not have room for 16 MiB more\n",
        )
        acknowledged = 1 + statuses.count(200)
        filler.unlink()
        wait_for(lambda: account.post(EVENT).status == 200)
        assert account.service.get("/readyz").status == 200
        assert account.count() == account.used() == acknowledged + 1
    finally:
        server.close()
        subprocess.run(["umount", "--lazy", disk], check=True)
        disk.rmdir()


def test_a_connection_that_can_not_be_opened_leaves_those_that_are(
    own_server: postgres.Server, own_account: Account
) -> None:
    own_account.execute("CREATE ROLE crowded LOGIN SUPERUSER")
    storage = Storage(make_conninfo(own_server.url, user="crowded"), 4, 7)
    first = storage.database.connection()
    first.__enter__()
    own_account.execute("ALTER ROLE crowded NOLOGIN")  # no other connection can be opened
    with pytest.raises(Unavailable), storage.database.connection():
        pass
    first.__exit__(None, None, None)
    for _ in range(5):
        assert storage.authenticate(own_account.key).org_id == "acme"
    storage.database.close()


def test_more_requests_than_threads_are_unavailable(database_url: str) -> None:
    """As with gunicorn's --threads beside a smaller THREADS."""
    storage = Storage(database_url, 1, 7)
    database = storage.database
    with database.connection(), pytest.raises(Unavailable, match="no connection came free"), database.connection():
        pass
    storage.database.close()


def test_clients_that_leave_in_the_middle_are_forgotten(account: Account) -> None:
    head = (
        f"POST {PATH} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {account.key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
    )
    for _ in range(40):
        with socket.create_connection(("127.0.0.1", account.service.port)) as client:
            client.sendall((head + '{"type": "custom",').encode())
    assert account.post(EVENT).status == 200
    assert account.count() == account.used() == 1


def test_a_second_ctrl_c_cuts_no_request(own_account: Account) -> None:
    with ThreadPoolExecutor(7) as pool:  # one less than there are threads: none takes the slot that gives up early
        with LockedUsageRow(own_account):
            waiting = [pool.submit(own_account.post, EVENT) for _ in range(7)]
            wait_for(lambda: waiting_for_locks(own_account) == 7)
            os.killpg(own_account.service.process.pid, signal.SIGINT)  # a terminal sends it to all processes
            wait_for(lambda: "Handling signal: int" in own_account.service.output())
            os.killpg(own_account.service.process.pid, signal.SIGINT)
        statuses = [future.result().status for future in waiting]
    assert 200 in statuses
    assert set(statuses) <= {200, 503}  # some may have waited too long for the lock
    assert own_account.service.process.wait(timeout=30) == 0
    assert own_account.count() == own_account.used() == 1 + statuses.count(200)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_finishes_and_responds_what_is_in_flight(own_account: Account, number: signal.Signals) -> None:
    with ThreadPoolExecutor(7) as pool:  # one less than there are threads: none takes the slot that gives up early
        with LockedUsageRow(own_account):
            waiting = [pool.submit(own_account.post, EVENT) for _ in range(7)]
            wait_for(lambda: waiting_for_locks(own_account) == 7)
            own_account.service.process.send_signal(number)
            wait_for(lambda: "Handling signal:" in own_account.service.output())
        assert {future.result().status for future in waiting} == {200}
    assert own_account.service.process.wait(timeout=30) == 0
    assert own_account.count() == own_account.used() == 8


def test_a_stop_responds_what_waits_for_a_thread(start_service: Callable[..., Service]) -> None:
    service = start_service(WEB_CONCURRENCY=1, THREADS=1)
    request = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    with contextlib.ExitStack() as stack:
        idle, slow, queued = (
            stack.enter_context(socket.create_connection(("127.0.0.1", service.port), timeout=10)) for _ in range(3)
        )
        idle.sendall(request)
        assert receive(idle).status == 200
        slow.sendall(request[:9])
        queued.sendall(request)
        service.process.send_signal(signal.SIGTERM)
        assert idle.recv(1000) == b""
        slow.sendall(request[9:])
        assert receive(slow).status == 200
        assert receive(queued).status == 200
    assert service.process.wait(timeout=10) == 0


def test_a_worker_that_ends_responds_on_the_connections_it_kept(own_account: Account) -> None:
    process = own_account.service.process
    address = ("127.0.0.1", own_account.service.port)
    with socket.create_connection(address, timeout=10) as client, socket.create_connection(address, timeout=10) as idle:

        def connection_header(connection: socket.socket) -> str | None:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            return receive(connection).getheader("Connection")

        assert connection_header(idle) == "keep-alive"
        process.send_signal(signal.SIGTERM)
        while (last := connection_header(client)) == "keep-alive":
            pass
        assert last == "close"
        assert process.wait(timeout=10) == 0


def test_kills_under_load_lose_nothing_and_double_nothing(
    own_server: postgres.Server, own_account: Account, capsys: pytest.CaptureFixture[str]
) -> None:
    """Clients retry every event under its Idempotency-Key until it is acknowledged, while processes are killed.

    `make crash-test` runs it for longer (CRASH_SECONDS) and shows the counts.
    """
    seconds = float(os.environ.get("CRASH_SECONDS", "8"))
    service = own_account.service
    acknowledged: list[str] = []
    responses: Counter[int | str] = Counter()
    slowest = 0.0
    over = threading.Event()

    def client(number: int) -> None:
        nonlocal slowest
        pause = random.Random(number)
        for i in itertools.count():
            name = f"{number}-{i}"
            while True:
                began = time.monotonic()
                try:
                    status: int | str = own_account.post({**EVENT, "toolName": name}, Idempotency_Key=name).status
                except urllib3.exceptions.HTTPError:
                    status = "broken connection"
                slowest = max(slowest, time.monotonic() - began)
                responses[status] += 1
                if status == 200:
                    break
                over.wait(pause.uniform(0.01, 0.1))
            acknowledged.append(name)
            if over.is_set():
                return

    def progress() -> None:
        goal = len(acknowledged) + 50
        wait_for(lambda: len(acknowledged) >= goal, seconds=30)

    kills: Counter[str] = Counter()
    recovery = 0.0
    clients = [threading.Thread(target=client, args=[number]) for number in range(8)]
    for thread in clients:
        thread.start()
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        progress()
        victim = random.choice(psutil.Process(service.process.pid).children())
        victim.kill()
        kills["worker"] += 1
        progress()
        own_server.crash()
        kills["PostgreSQL"] += 1
        own_server.start()
        back = time.monotonic()
        goal = len(acknowledged) + 1
        wait_for(lambda goal=goal: len(acknowledged) >= goal)
        recovery = max(recovery, time.monotonic() - back)
    over.set()
    for thread in clients:
        thread.join()

    stored = Counter(name for (name,) in own_account.rows("tool_name"))
    lost = set(acknowledged) - set(stored)
    doubled = [name for name, times in stored.items() if times > 1]
    with capsys.disabled():
        print(
            f"\nkilled: {dict(kills)}; acknowledged: {len(acknowledged)}, lost: {len(lost)}, doubled: {len(doubled)}; "
            f"responses: {dict(responses)}; slowest: {slowest:.1f} s; first response after PostgreSQL: {recovery:.2f} s"
        )
    assert not lost
    assert not doubled
    assert len(stored) == len(acknowledged) == own_account.used()
    assert set(responses) <= {200, 503, "broken connection"}
    assert slowest < RESPONSE_TIMEOUT
    assert recovery < 2


def test_the_service_is_ready_again_some_time_after_a_full_disk(
    account: Account, storage: Storage, connection: TimeoutConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A balancer that follows /readyz sends no request meanwhile."""
    connection.execute("""
        CREATE FUNCTION fill_disk() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN RAISE 'No space left on device' USING ERRCODE = '53100'; END $$
    """)
    connection.execute(
        f"""
        CREATE TRIGGER fill BEFORE INSERT ON audit_events FOR EACH ROW
        WHEN (NEW.org_id = '{account.org_id}') EXECUTE FUNCTION fill_disk()
    """.encode()
    )
    try:
        key, batch = storage.authenticate(account.key), EventBatch(f"[{json.dumps(EVENT)}]", [0], 1)
        with pytest.raises(NoRoom):
            storage.store(key, batch)
        with pytest.raises(NoRoom):
            storage.check_ready()
        monkeypatch.setattr("storage.NO_ROOM_SECONDS", 0)
        with pytest.raises(NoRoom):
            storage.store(key, batch)
        storage.check_ready()
    finally:
        connection.execute("DROP FUNCTION fill_disk CASCADE")
