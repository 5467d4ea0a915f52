"""deploy/nginx.conf: a real nginx with this very file in front of the service."""

import gzip
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

import config
from dev.bodies import WORST
from dev.service import EVENT, PATH, ROOT, Nginx, Service, at_once, free_port, wait_for
from tests.support import Account, assert_rejected, latencies

pytestmark = pytest.mark.skipif(not shutil.which("nginx"), reason="needs nginx")

MAX_BODY_BYTES = int(next(setting.default or "" for setting in config.SETTINGS if setting.name == "MAX_BODY_BYTES"))


@pytest.fixture
def start_nginx(tmp_path: Path) -> Iterator[Callable[..., Nginx]]:
    running: list[Nginx] = []

    def start(upstream: int, *, ssl: bool = False, **replaced: str) -> Nginx:
        running.append(Nginx(upstream, tmp_path, replaced, ssl=ssl))
        return running[-1].start()

    try:
        yield start
    finally:
        for nginx in running:
            nginx.stop()


@pytest.fixture
def account(account: Account, start_nginx: Callable[..., Nginx]) -> Account:
    """Posts through nginx."""
    nginx = start_nginx(account.service.port)
    nginx.database_url = account.service.database_url
    return Account(nginx, account.org_id, account.key)


def test_its_limits_agree_with_the_services() -> None:
    nginx = (ROOT / "deploy/nginx.conf").read_text()
    assert f"client_max_body_size {MAX_BODY_BYTES};" in nginx
    [upstream_keepalive] = re.findall(r"^    keepalive_timeout (\d+)s;  #", nginx, re.MULTILINE)
    [keepalive] = re.findall(r"^keepalive = (\d+)", (ROOT / "gunicorn.conf.py").read_text(), re.MULTILINE)
    assert int(upstream_keepalive) < int(keepalive)
    assert "proxy_read_timeout 30s;" in nginx
    assert "| nginx | gunicorn's response (`proxy_read_timeout`) | 30 |" in (ROOT / "docs/limits.md").read_text()


def test_nginx_finds_nothing_wrong_with_it(tmp_path: Path) -> None:
    checked = subprocess.run(
        ["nginx", "-t", "-c", Nginx(8000, tmp_path, {}).file], capture_output=True, text=True, check=True
    )
    assert "warn" not in checked.stderr
    assert "syntax is ok" in checked.stderr


def test_the_contract_holds_through_it(account: Account) -> None:
    response = account.post([EVENT, EVENT], Idempotency_Key="a", X_Request_Id="abc")
    assert (response.status, response.json) == (
        200,
        {"data": {"ingested": 2, "rejected": 0}, "meta": {"remainingQuota": 49_998}},
    )
    assert (response.headers["X-Request-Id"], response.headers["Cache-Control"]) == ("abc", "no-store")
    assert account.post([EVENT, EVENT], Idempotency_Key="a").headers["Idempotency-Replayed"] == "true"
    assert_rejected(account.post([EVENT], Idempotency_Key="a"), 422, "Idempotency-Key reused")
    assert account.post([EVENT, {}], Prefer="handling=lenient").headers["Preference-Applied"] == "handling=lenient"
    assert account.post(gzip.compress(json.dumps(EVENT).encode()), Content_Encoding="gzip").status == 200
    assert account.post(iter([b'{"type": "custom", ', b'"toolName": "x"}'])).status == 200
    assert account.count() == account.used() == 5
    assert_rejected(account.post({}), 400, "Validation failed")
    assert_rejected(account.post(b"{"), 400, "Invalid JSON")
    assert_rejected(account.post(EVENT, Content_Type="text/plain"), 415, "Unsupported media type")
    rejected = account.service.post(EVENT, "ig_" + "x" * 40)
    assert_rejected(rejected, 401, "Unauthorized")
    assert rejected.headers["WWW-Authenticate"] == 'Bearer realm="igris", error="invalid_token"'
    assert_rejected(account.service.get("/nowhere"), 404, "Not found")
    assert account.service.request("DELETE", PATH).headers["Allow"] == "POST"
    assert account.service.get("/readyz").json == {"status": "ok"}


def test_the_largest_body_passes_and_a_larger_one_is_rejected_by_nginx(account: Account) -> None:
    event = json.dumps(EVENT).encode()
    assert account.post(event.ljust(MAX_BODY_BYTES)).status == 200
    response = account.service.send(  # type: ignore[attr-defined]
        b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (PATH.encode(), MAX_BODY_BYTES + 1)
    )
    assert_rejected(response, 413, "Payload too large")
    assert response.json["details"][0]["message"] == f"The body must be at most {MAX_BODY_BYTES} bytes: split the batch"
    assert account.count() == 1


def test_nginx_responds_what_is_no_http_in_the_same_shape(account: Account) -> None:
    for data, status, error in (
        (b"nonsense\r\n\r\n", 400, "Bad request"),
        (b"GET /%s HTTP/1.1\r\nHost: x\r\n\r\n" % (b"x" * 40_000), 414, "URI too long"),
        (b"TRACE / HTTP/1.1\r\nHost: x\r\n\r\n", 405, "Method not allowed"),
        (b"GET / HTTP/3.0\r\nHost: x\r\n\r\n", 505, "Bad request"),
        (b"GET /igris-error HTTP/1.1\r\nHost: x\r\n\r\n", 404, "Not found"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: %s\r\n\r\n" % (b"x" * 40_000), 431, "Request header fields too large"),
    ):
        assert_rejected(account.service.send(data), status, error)  # type: ignore[attr-defined]


def test_a_dead_service_is_a_502(account: Account, start_nginx: Callable[..., Nginx], tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        account.service.stop()
        nginx = start_nginx(silent.getsockname()[1], **{"proxy_read_timeout 30s": "proxy_read_timeout 1s"})
        response = nginx.post(EVENT, account.key, X_Request_Id="abc")
        assert_rejected(response, 502, "Bad gateway")
        assert (response.headers["Retry-After"], response.headers["X-Request-Id"]) == ("2", "abc")
        silent.listen()
        response = nginx.post(EVENT, account.key)
        assert_rejected(response, 504, "Gateway timeout")
        assert response.headers["Retry-After"] == "2"
    assert_rejected(nginx.get("/readyz"), 502, "Bad gateway")


def test_a_response_of_the_service_is_not_replaced(
    start_service: Callable[..., Service], start_nginx: Callable[..., Nginx]
) -> None:
    away = start_service("postgresql://igris@127.0.0.1:1/igris")
    response = start_nginx(away.port).post(EVENT, "ig_" + "x" * 40)
    assert_rejected(response, 503, "Service unavailable")
    assert 1 <= int(response.headers["Retry-After"]) <= 5


@pytest.mark.measures
def test_slow_senders_do_not_hold_up_others(account: Account) -> None:
    head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {account.key}\r\nContent-Type: application/json"
    body = json.dumps(EVENT).encode()
    slow = []
    for _ in range(150):
        slow.append(socket.create_connection(("127.0.0.1", account.service.port), timeout=20))
        slow[-1].sendall(f"{head}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body[:-1])
    latencies = []
    for _ in range(200):
        began = time.monotonic()
        assert account.post(EVENT).status == 200
        latencies.append(time.monotonic() - began)
    assert max(latencies) < 5  # a worker's thread that waited for a slow one would take 10 s
    for each in slow:
        each.sendall(body[-1:])
    assert [each.recv(10_000)[9:12] for each in slow] == [b"200"] * 150
    for each in slow:
        each.close()
    assert account.count() == account.used() == 350


@pytest.mark.measures
def test_clients_that_are_silent_or_never_read_do_not_hold_up_others(account: Account) -> None:
    address = ("127.0.0.1", account.service.port)
    with ExitStack() as stack:
        for request in (b"", b"GET /openapi.yaml HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", b"GET /hea"):
            for _ in range(50):
                client = stack.enter_context(socket.create_connection(address))
                client.sendall(request)
        began = time.monotonic()
        for _ in range(20):
            assert account.service.get("/healthz").status == 200
        assert time.monotonic() - began < 2


def test_one_address_can_not_hold_all_connections(account: Account) -> None:
    address = ("127.0.0.1", account.service.port)
    head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{{".encode()
    with ExitStack() as stack:
        slow = [stack.enter_context(socket.create_connection(address, timeout=20)) for _ in range(400)]
        for client in slow:
            client.sendall(head)
        responses = [client.recv(1000) for client in slow[300:]]
        assert all(response.startswith(b"HTTP/1.1 429 ") for response in responses)
        assert b"Retry-After: 1" in responses[0]
        with socket.create_connection(address, source_address=("127.0.0.3", 0)) as other:
            other.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert other.recv(1000).startswith(b"HTTP/1.1 200 ")


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl")
def test_with_tls_plain_http_is_rejected_as_json(
    account: Account, service: Service, start_nginx: Callable[..., Nginx], tmp_path: Path
) -> None:
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost -keyout key.pem -out certificate.pem"
    )
    subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True)
    conf = (ROOT / "deploy/nginx.conf").read_text()
    tls = conf[conf.index("    # listen 443 ssl;") : conf.index("    server_name _;\n    server_tokens")]
    uncommented = tls.replace("    # ", "    ").replace("listen [::]:443 ssl;", "")
    plain, rejecting = free_port(), conf[conf.index("# server {") :]
    nginx = start_nginx(
        service.port,
        **{
            tls: re.sub(r"/etc/ssl/(private/)?igris.example.com.(pem|key)", f"{tmp_path}/\\2", uncommented)
            .replace(f"{tmp_path}/pem", f"{tmp_path}/certificate.pem")
            .replace(f"{tmp_path}/key;", f"{tmp_path}/key.pem;"),
            rejecting: re.sub("^# ?", "", rejecting, flags=re.MULTILINE)
            .replace("listen 80;", f"listen 127.0.0.1:{plain};")
            .replace("listen [::]:80;", ""),
        },
        ssl=True,
    )
    context = ssl.create_default_context(cafile=tmp_path / "certificate.pem")
    context.check_hostname = False
    with socket.create_connection(("127.0.0.1", nginx.port)) as raw, context.wrap_socket(raw) as client:
        client.sendall(b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert client.recv(1000).startswith(b"HTTP/1.1 200 ")
    assert_rejected(nginx.send(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n"), 400, "Bad request")
    nginx.port = plain
    rejected = nginx.send(b"POST / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (rejected.status, rejected.json["error"]) == (403, "Forbidden")


@pytest.mark.measures
def test_one_key_with_large_bodies_leaves_threads_to_others(
    account: Account, new_account: Callable[..., Account], start_nginx: Callable[..., Nginx]
) -> None:
    other = new_account(service=account.service)
    body = gzip.compress(WORST['objects, `{"a":0}`']().encode())
    over = threading.Event()
    statuses: list[int] = []

    def send(number: int) -> None:
        spelling = ("Bearer", "bearer", "BEARER ")[number % 3]  # all are the same key
        headers = {"Authorization": f"{spelling} {account.key}", "Content-Type": "application/json"}
        while not over.is_set():
            sent = account.service.request("POST", PATH, body, {**headers, "Content-Encoding": "gzip"})
            statuses.append(sent.status)
            if sent.status == 429:
                over.wait(1)  # as Retry-After says

    senders = [threading.Thread(target=send, args=[number]) for number in range(60)]
    for sender in senders:
        sender.start()
    wait_for(lambda: 429 in statuses)
    median = latencies(other, 20)[10]
    over.set()
    for sender in senders:
        sender.join()
    assert set(statuses) == {200, 429}
    assert median < 1
    assert account.count() == account.used() == statuses.count(200)


def test_one_key_with_many_connections_and_small_bodies_is_not_limited(account: Account) -> None:
    assert {response.status for response in at_once(32, lambda _: account.send([EVENT] * 100))} == {200}


SEND_FROM_A_NETWORK = """
import collections, socket, sys
counts = collections.Counter()
for number in range(1500):
    with socket.socket(socket.AF_INET6) as client:
        client.bind((f"fd00::{number + 1:x}", 0))
        client.connect(("fd00::1", int(sys.argv[1])))
        client.sendall(b"GET /healthz HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n")
        counts[client.recv(1000)[9:12].decode()] += 1
print(counts["429"], counts["502"])
"""


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("ip"), reason="needs root and ip, for a separate network")
def test_the_addresses_of_an_ipv6_network_are_one_client(tmp_path: Path) -> None:
    nginx = Nginx(free_port(), tmp_path, {})  # where no service listens
    conf = tmp_path / "igris.conf"
    conf.write_text(conf.read_text().replace(f"listen 127.0.0.1:{nginx.port};", f"listen [::]:{nginx.port};"))
    (tmp_path / "send.py").write_text(SEND_FROM_A_NETWORK)
    script = f"""
        ip link set lo up
        ip -6 route add local fd00::/64 dev lo
        echo 1 > /proc/sys/net/ipv6/ip_nonlocal_bind
        nginx -c {nginx.file} & server=$!
        while ! [ -s {tmp_path}/pid ]; do kill -0 $server || exit 1; done
        {sys.executable} {tmp_path}/send.py {nginx.port}
        kill $server
    """
    done = subprocess.run(["unshare", "--net", "sh", "-c", script], capture_output=True, text=True, check=True)
    rejected, passed = map(int, done.stdout.split())
    assert rejected + passed == 1500
    assert rejected > 100


def test_a_request_that_is_not_sent_to_its_end_is_closed_without_a_response(tmp_path: Path) -> None:
    nginx = Nginx(free_port(), tmp_path, {"client_body_timeout 10s;": "client_body_timeout 1s;"})
    try:
        nginx.start()
        with socket.create_connection(("127.0.0.1", nginx.port), timeout=20) as client:
            client.sendall(f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{{".encode())
            assert client.recv(1000) == b""
    finally:
        nginx.stop()


def test_too_many_requests_are_rejected_by_nginx(account: Account) -> None:
    def flood(_: int) -> bytes:
        """As many requests on a connection as nginx takes, without waiting for responses."""
        received = b""
        with socket.create_connection(("127.0.0.1", account.service.port), timeout=20) as client:
            client.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" * 999 + b"GET /healthz HTTP/1.0\r\n\r\n")
            while data := client.recv(100_000):
                received += data
        return received

    received = b"".join(at_once(4, flood))
    assert received.count(b"HTTP/1.1 200 OK") >= 600
    rejected = received.count(b"HTTP/1.1 429 Too Many Requests")
    assert rejected > 0
    assert received.count(b"Retry-After: 1\r\n") == rejected
    assert received.count(b'{"error": "Too many requests", "details"') == rejected
    assert received.count(b"HTTP/1.1 ") == 4000


def test_neither_keys_nor_paths_are_logged(account: Account, tmp_path: Path) -> None:
    account.post(EVENT, X_Request_Id="abc")
    account.post(EVENT, X_Request_Id=account.key)
    account.service.request("GET", f"/{account.key}?key={account.key}")
    account.service.send(f"GET /{account.key} HTTP/1.1\r\n\r\n".encode())  # type: ignore[attr-defined]
    account.service.stop()
    lines = [json.loads(line) for line in account.service.output().splitlines()]
    assert [line["status"] for line in lines] == [200, 200, 404, 400]
    assert lines[0]["requestId"] == "abc"
    assert all(re.fullmatch(r"[0-9a-f]{32}", line["requestId"]) for line in lines[1:])
    assert {line["address"] for line in lines} == {"127.0.0.1"}
    logs = "".join(file.read_text() for file in tmp_path.glob("*.log"))
    assert account.key[3:] not in logs


def test_a_reload_of_the_service_loses_no_request(
    new_account: Callable[..., Account], start_service: Callable[..., Service], start_nginx: Callable[..., Nginx]
) -> None:
    service = start_service()
    nginx = start_nginx(service.port, **{"rate=300r/s": "rate=90000r/s"})
    account = new_account(quota=None, service=service)
    statuses: list[int] = []
    done = threading.Event()

    def send() -> None:
        while not done.is_set():
            statuses.append(nginx.post(EVENT, account.key).status)

    senders = [threading.Thread(target=send) for _ in range(4)]
    for sender in senders:
        sender.start()
    for reloads in range(1, 4):
        wait_for(lambda: len(statuses) > 100 * reloads)  # noqa: B023
        service.process.send_signal(signal.SIGHUP)
        wait_for(lambda: service.output().count("Worker exiting") == 2 * reloads)  # noqa: B023
    done.set()
    for sender in senders:
        sender.join()
    assert set(statuses) == {200}
    assert account.count() == len(statuses)
