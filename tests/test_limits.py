"""What a client may cost: no body, no lock and no silent connection stops the service for others."""

import gzip
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from dev import postgres
from dev.bodies import MAX_VALUES, WORST
from dev.service import EVENT, PATH, ROOT, Service, at_once, high_water_mark, set_up, wait_for
from tests.support import Account, LockedUsageRow, assert_rejected, latencies, waiting_for_locks

BACKENDS = "SELECT pid FROM pg_stat_activity WHERE application_name = 'igris-ingest' AND datname = current_database()"


# Bodies


def test_a_body_may_have_so_many_values(account: Account) -> None:
    def body(values: int) -> bytes:
        return b'{"type":"custom","toolName":"x","metadata":{"a":[%s]}}' % b",".join([b"0"] * (values - 4))

    assert account.post(body(MAX_VALUES)).status == 200
    rejected = assert_rejected(account.post(body(MAX_VALUES + 1)), 413, "Payload too large")
    assert rejected["details"][0]["message"] == "The body must have at most 500000 JSON values: split the batch"
    assert account.count() == 1


def test_the_limit_is_a_setting_and_counts_no_strings(
    new_account: Callable[..., Account], start_service: Callable[..., Service]
) -> None:
    account = new_account(service=start_service(MAX_BODY_VALUES=20, WEB_CONCURRENCY=1))
    for text in ("[{,,,,", "\\", '\\"[[[[[[', "\\\\"):
        event = {**EVENT, "metadata": {text * 20: text * 20}}
        assert account.post([event, event]).status == 200
    event = {**EVENT, "metadata": {"a": ["\\", [], {}, "", "\\\\"] * 3}}
    assert_rejected(account.post(event), 413, "Payload too large")
    compressed = account.post(gzip.compress(json.dumps(event).encode()), Content_Encoding="gzip")
    assert_rejected(compressed, 413, "Payload too large")
    assert account.count() == 8


@pytest.mark.parametrize("headers", [{}, {"Prefer": "handling=lenient"}])
def test_the_values_of_each_line_are_counted_by_themselves(
    new_account: Callable[..., Account], start_service: Callable[..., Service], headers: dict[str, str]
) -> None:
    account = new_account(service=start_service(MAX_BODY_VALUES=20, MAX_BATCH_EVENTS=10, WEB_CONCURRENCY=1))
    event = json.dumps({**EVENT, "metadata": {"a": [0] * 20}}).encode()
    for faulty in (b'"', b'{"', b'"\\"'):
        response = account.post(faulty + b"\n" + event, Content_Type="application/x-ndjson", **headers)
        assert_rejected(response, 413, "Payload too large", account)
    too_many = account.post(b"{}\n" * 30, Content_Type="application/x-ndjson", **headers)
    assert_rejected(too_many, 413, "Payload too large", account)
    few = b"\n".join([b'"', json.dumps(EVENT).encode(), b" "] * 3)
    assert account.post(few, Content_Type="application/x-ndjson", **headers).status == (200 if headers else 400)


def test_ten_thousand_events_with_thirty_members_each_pass(new_account: Callable[..., Account]) -> None:
    account = new_account(quota=None)
    event = {**EVENT, "timestamp": "2026-03-19T10:00:00Z", "metadata": {f"member_{i}": i for i in range(30)}}
    assert account.post([event] * 10_000).status == 200


@pytest.mark.measures
@pytest.mark.parametrize("name", ['objects in objects, `{"":{}}`', 'objects, `{"a":0}`', "different numbers"])
def test_the_worst_bodies_keep_to_their_memory(
    create_database: Callable[[], str], start_service: Callable[..., Service], name: str
) -> None:
    url = create_database()
    account = Account(start_service(url, WEB_CONCURRENCY=1, THREADS=1), "acme", set_up(url, "acme", None))
    assert account.post(WORST[name]().encode()).status == 200
    [worker] = psutil.Process(account.service.process.pid).children()
    assert high_water_mark(worker.pid) < 400 * 2**20
    for (pid,) in account.execute(BACKENDS):
        if psutil.pid_exists(pid):  # TEST_DATABASE_URL may be elsewhere
            assert high_water_mark(pid) < 512 * 2**20


def test_a_body_for_which_postgresql_has_too_little_memory_is_not_to_be_sent_again(
    start_service: Callable[..., Service],
) -> None:
    with postgres.temporary(memory_limit=300 * 2**20) as server:
        account = Account(start_service(server.url), "acme", set_up(server.url, "acme", None))
        body = assert_rejected(account.post(WORST['objects, `{"a":0}`']().encode()), 413, "Payload too large", account)
        assert "split the batch" in body["details"][0]["message"]
        assert account.post(EVENT).status == 200
        account.service.stop()


def test_events_past_the_limit_are_validated_only_until_a_thousand_problems_are_listed(account: Account) -> None:
    details = assert_rejected(account.post([{}] * 20_000), 400, "Validation failed", account)["details"]
    assert details[0]["message"] == "Array must contain at most 10000 element(s)"
    assert details[-1] == {"field": "", "message": "and 19001 more"}  # of the first 10,000 events
    response = account.post([EVENT] * 10_000 + [{}] * 10_000)
    details = assert_rejected(response, 400, "Validation failed", account)["details"]
    assert details[1] == {"field": "10000.type", "message": "Required"}
    assert len(details) == 1001


def test_a_message_repeats_no_more_than_a_thousand_characters(account: Account) -> None:
    response = account.post({"type": "x" * 1_000_000, "toolName": "x"})
    [detail] = assert_rejected(response, 400, "Validation failed", account)["details"]
    assert detail["message"].endswith(f"received '{'x' * 1000}...'")


def test_keys_that_would_become_one_are_rejected(account: Account) -> None:
    for keys in ((r"a\u0000", r"a\ufffd"), (r"a\u0000", r"a\ud800"), (r"a\udfffb", "a\ufffdb")):
        first, second = keys
        body = f'{{"type": "custom", "toolName": "x", "metadata": {{"b": [{{"{first}": 1, "{second}": 2}}]}}}}'
        [detail] = assert_rejected(account.post(body.encode()), 400, "Invalid JSON", account)["details"]
        assert "Two keys of an object differ only in characters that can't be stored" in detail["message"]
    metadata = rb'{"a\u0000": 1, "a\u0000": 2, "\ud83d\ude00": 3, "\\u0000": 4}'
    assert account.post(b'{"type": "custom", "toolName": "x", "metadata": %s}' % metadata).status == 200
    assert account.rows("metadata") == [({"a\ufffd": 2, "😀": 3, "\\u0000": 4},)]


def test_a_body_full_of_characters_to_replace_is_stored(account: Account) -> None:
    text = rb"\u0000\udc00\ud83d\ude00\\" * 350_000
    assert account.post(b'{"type": "custom", "toolName": "x", "metadata": {"a": "%s"}}' % text).status == 200
    assert account.rows("md5(metadata ->> 'a')") == [
        (hashlib.md5(("\ufffd\ufffd😀\\" * 350_000).encode()).hexdigest(),)
    ]


def test_the_lines_of_ndjson_have_the_limit_of_exponents_together(account: Account) -> None:
    line = f'{{"type": "custom", "toolName": "x", "metadata": {{"a": [{",".join(["1e16000"] * 60)}]}}}}{" " * 15_000}'
    assert_rejected(account.post(f"[{','.join([line] * 20)}]".encode()), 400, "Invalid JSON", account)
    lines = "\n".join([line] * 20).encode()
    rejected = account.post(lines, Content_Type="application/x-ndjson")
    [first, *_] = assert_rejected(rejected, 400, "Validation failed", account)["details"]
    assert first == {
        "field": "17",
        "message": "Invalid JSON: The numbers have too many digits (in line 18 of the body)",
    }
    lenient = account.post(lines, Content_Type="application/x-ndjson", Prefer="handling=lenient")
    assert json.loads(lenient.body)["data"] == {"ingested": 17, "rejected": 3}


# Locks


@pytest.mark.measures
def test_an_organization_that_waits_for_a_lock_leaves_threads_to_others(
    new_account: Callable[..., Account], start_service: Callable[..., Service]
) -> None:
    service = start_service()
    stuck, other = new_account(service=service), new_account(service=service)
    over = threading.Event()
    statuses = []

    def send() -> None:
        while not over.is_set():
            statuses.append(stuck.post(EVENT).status)
            if statuses[-1] == 503:
                over.wait(1)  # the least that Retry-After says

    with LockedUsageRow(stuck):
        senders = [threading.Thread(target=send) for _ in range(10)]
        for sender in senders:
            sender.start()
        of_the_other = latencies(other, 200)
        over.set()
    for sender in senders:
        sender.join()
    assert of_the_other[100] < 0.2
    assert of_the_other[-1] < 2
    assert set(statuses) <= {200, 503}
    assert {response.status for response in at_once(8, lambda _: stuck.send(EVENT))} == {200}
    assert stuck.count() == stuck.used()


@pytest.mark.skipif(not (shutil.which("gcc") and Path("/proc").exists()), reason="needs gcc and LD_PRELOAD")
@pytest.mark.parametrize("seconds", [0.7, 1.5])
def test_a_flush_that_takes_longer_costs_an_organization_few_requests(
    start_service: Callable[..., Service], seconds: float
) -> None:
    """While a transaction of a limited organization is flushed, the others of the organization wait for its row."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)  # PostgreSQL may run as another user
        stall = Path(folder, "stall")
        library = f"{folder}/stalling_disk.so"
        subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, ROOT / "tests/stalling_disk.c"], check=True)
        environ = {"LD_PRELOAD": library, "STALL_FILE": str(stall)}
        with postgres.temporary(environ=environ) as server:
            account = Account(start_service(server.url), "acme", set_up(server.url, "acme", 10**9))
            statuses: Counter[int] = Counter()
            over = threading.Event()

            def send() -> None:
                while not over.is_set():
                    statuses[account.post(EVENT).status] += 1

            senders = [threading.Thread(target=send) for _ in range(8)]
            for sender in senders:
                sender.start()
            wait_for(lambda: statuses[200] > 100)
            stall.touch()
            wait_for(lambda: waiting_for_locks(account) >= 2)
            account.execute("SELECT pg_sleep(%s)", seconds)
            stall.unlink()
            again = statuses[200] + 100
            wait_for(lambda: statuses[200] > again)
            over.set()
            for sender in senders:
                sender.join()
            assert set(statuses) <= {200, 503}
            assert statuses[503] <= 40 * seconds  # two threads of two workers, 0.2 s each
            assert statuses[200] == account.count() == account.used()
            account.service.stop()


# Connections


def test_requests_that_are_sent_ahead_get_their_responses_in_order(start_service: Callable[..., Service]) -> None:
    service = start_service(WEB_CONCURRENCY=1, THREADS=1)
    with (
        socket.create_connection(("127.0.0.1", service.port), timeout=10) as client,
        client.makefile("rb") as responses,
    ):
        request = "GET /healthz HTTP/1.1\r\nHost: x\r\nX-Request-Id: {}\r\n\r\n"
        client.sendall("".join(request.format(number) for number in range(500)).encode())
        for number in range(500):
            head = b"".join(iter(responses.readline, b"\r\n"))
            assert head.startswith(b"HTTP/1.1 200 ")
            assert b"X-Request-Id: %d\r\n" % number in head
            assert json.loads(responses.readline())["status"] == "ok"


def test_a_busy_connection_shares_its_thread(start_service: Callable[..., Service]) -> None:
    service = start_service(WEB_CONCURRENCY=1, THREADS=1)
    over, busy = threading.Event(), 0

    def send(client: socket.socket) -> None:
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        received = b""
        while not received.endswith(b"}\n"):
            received += client.recv(1000)

    def send_without_a_pause() -> None:
        nonlocal busy
        with socket.create_connection(("127.0.0.1", service.port), timeout=10) as client:
            while not over.is_set():
                send(client)
                busy += 1

    sender = threading.Thread(target=send_without_a_pause)
    sender.start()
    try:
        wait_for(lambda: busy)
        with socket.create_connection(("127.0.0.1", service.port), timeout=10) as client:
            before = busy
            for _ in range(100):
                send(client)
            served = busy - before
    finally:
        over.set()
        sender.join()
    assert served < 300  # as a rule about 100


@pytest.mark.measures
def test_the_workers_share_the_connections(start_service: Callable[..., Service]) -> None:
    service = start_service(WEB_CONCURRENCY=2)
    workers = psutil.Process(service.process.pid).children()

    def connections(number: int) -> list[int]:
        """Open connections, send a request on each, and return how many each worker has, ascending."""
        with ExitStack() as stack:
            address = ("127.0.0.1", service.port)
            clients = [stack.enter_context(socket.create_connection(address, timeout=10)) for _ in range(number)]
            for client in clients:
                client.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            for client in clients:
                assert client.recv(1000).startswith(b"HTTP/1.1 200 ")
            ours = (psutil.CONN_ESTABLISHED, service.port)
            lists = [[(each.status, each.laddr.port) for each in worker.net_connections("tcp")] for worker in workers]
            return sorted(each.count(ours) for each in lists)

    wait_for(lambda: connections(8)[0])  # both workers have started
    for _ in range(5):
        assert connections(32)[0] >= 4  # as a rule at least 10


def test_connections_on_which_nothing_is_sent_hold_no_thread(start_service: Callable[..., Service]) -> None:
    service = start_service(WEB_CONCURRENCY=1, THREADS=2)
    request = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    with ExitStack() as stack:

        def connect(timeout: float) -> socket.socket:
            return stack.enter_context(socket.create_connection(("127.0.0.1", service.port), timeout=timeout))

        silent, later = [connect(20) for _ in range(20)], connect(20)
        client = connect(4)  # gunicorn's own lets each silent one hold a thread for 5 s
        client.sendall(request)
        assert client.recv(1000).startswith(b"HTTP/1.1 200 ")
        later.sendall(request)
        assert later.recv(1000).startswith(b"HTTP/1.1 200 ")
        assert [each.recv(1) for each in silent] == [b""] * 20  # closed after 10 s


def test_more_connections_than_files_end_no_worker(start_service: Callable[..., Service]) -> None:
    service = start_service(WEB_CONCURRENCY=1, THREADS=16, before="ulimit -n 200;")
    [worker] = psutil.Process(service.process.pid).children()
    clients = []
    for number in range(300):
        clients.append(socket.create_connection(("127.0.0.1", service.port)))
        if number < 100:  # gunicorn accepts 120
            clients[-1].sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert clients[-1].recv(1000).startswith(b"HTTP/1.1 200 ")
    for client in clients:
        client.close()
    wait_for(service.is_alive)
    assert psutil.Process(service.process.pid).children() == [worker]
    assert "Traceback" not in service.output()


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        (PATH, "", 401),
        ("/nowhere", "", 404),
        ("/healthz", "", 405),
        (PATH, "Authorization: Bearer {key}\r\nContent-Type: text/plain\r\n", 415),
    ],
)
def test_a_rejected_request_with_a_badly_framed_body_gets_one_response(
    account: Account, path: str, headers: str, status: int
) -> None:
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\n{headers.format(key=account.key)}Transfer-Encoding: chunked\r\n\r\n"
    with socket.create_connection(("127.0.0.1", account.service.port), timeout=10) as client:
        client.sendall(f"{head}nonsense\r\nnonsense\r\n".encode())
        received = b""
        while data := client.recv(10_000):
            received += data
    assert received.startswith(b"HTTP/1.1 %d " % status)
    assert received.count(b"HTTP/1.1") == 1


# Logs


def test_a_log_that_no_process_reads_loses_lines_and_not_the_service(
    new_account: Callable[..., Account], database_url: str
) -> None:
    service = Service(database_url, ROOT / "unused", WEB_CONCURRENCY=1)
    service.process = subprocess.Popen(
        service.command,
        cwd=ROOT,
        env=service.environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        wait_for(service.responses)
        account = new_account(service=service)
        for _ in range(600):
            assert account.post([{}]).status == 400
        assert service.process.stdout
        os.set_blocking(service.process.stdout.fileno(), False)
        read = b""
        while data := service.process.stdout.read(2**16):
            read += data
        account.post(EVENT)
        lines: list[bytes] = []
        wait_for(lambda: lines.extend((service.process.stdout.read(2**16) or b"").splitlines()) or lines)  # type: ignore[func-returns-value]
        last = json.loads(lines[-1])
        assert last["lostLines"] + sum(b'"status": 400' in line for line in read.splitlines()) == 600
        assert last["lostLines"] > 100
    finally:
        service.process.send_signal(signal.SIGTERM)
        service.process.communicate(timeout=60)
