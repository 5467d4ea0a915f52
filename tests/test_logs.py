"""What the operator sees: the access lines, metrics, and no secrets."""

import json
import os
import pty
import re
import signal
import socket
import subprocess
import threading
from collections import Counter
from collections.abc import Callable

from dev.service import EVENT, PATH, ROOT, WEB, Service, at_once, wait_for
from logs import LossyOutput
from tests.support import Account, assert_rejected


def access_lines(service: Service, count: int) -> list[dict[str, object]]:
    """The lines about events, as soon as there are so many: a response comes before its line is read."""

    def lines() -> list[dict[str, object]]:
        parsed = [json.loads(line) for line in service.output().splitlines() if line.startswith("{")]
        return [line for line in parsed if line["path"] == PATH]

    wait_for(lambda: len(lines()) >= count)
    return lines()


def test_a_request_is_a_line_of_json(
    new_account: Callable[..., Account], start_service: Callable[..., Service]
) -> None:
    account = new_account(service=start_service())
    body = json.dumps([EVENT, EVENT, {}]).encode()
    account.post(body, X_Request_Id="abc", Prefer="handling=lenient")
    account.service.post(EVENT, "ig_" + "x" * 40)
    account.service.get(PATH)
    [stored, rejected, not_allowed] = access_lines(account.service, 3)
    assert (not_allowed["status"], not_allowed["error"]) == (405, "Method not allowed")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", str(stored.pop("time")))
    assert 0 < float(str(stored.pop("ms"))) < 30_000
    [(key_id,)] = account.execute("SELECT id FROM api_keys WHERE org_id = %s", account.org_id)
    assert stored == {
        "requestId": "abc",
        "method": "POST",
        "path": PATH,
        "status": 200,
        "bytes": len(body),
        "organization": account.org_id,
        "apiKeyId": key_id,
        "error": None,
        "ingested": 2,
        "rejected": 1,
        "lostLines": 0,
    }
    assert (rejected["status"], rejected["error"], rejected["organization"]) == (401, "Unauthorized", None)


def test_the_settings_in_force_are_logged_without_the_secret_one(
    database_url: str, start_service: Callable[..., Service]
) -> None:
    output = start_service(THREADS=3, MAX_BATCH_EVENTS=77).output()
    assert re.search(r"settings: .*\bTHREADS=3\b.*\bMAX_BATCH_EVENTS=77\b", output)
    assert "DATABASE_URL" not in output
    assert database_url not in output


def test_on_a_terminal_it_is_a_line_of_text(new_account: Callable[..., Account], database_url: str) -> None:
    terminal, end = pty.openpty()
    service = Service(database_url, ROOT / "unused")
    process = subprocess.Popen(
        WEB, shell=True, cwd=ROOT, env=service.environ, stdout=end, stderr=subprocess.DEVNULL, start_new_session=True
    )
    service.process = process
    try:
        wait_for(service.is_alive)
        account = new_account(service=service)
        account.post([EVENT, EVENT])
        service.get("/nowhere")
        output = ""
        while "/nowhere" not in output and "(no such path)" not in output:
            output += os.read(terminal, 10_000).decode()
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)
        os.close(end)
        os.close(terminal)
    assert re.search(r"\d\d:\d\d:\d\d GET /healthz 200 in [\d.]+ ms\r\n", output)
    assert re.search(
        rf"\d\d:\d\d:\d\d POST {PATH} 200 in [\d.]+ ms, {account.org_id}: 2 stored, 0 rejected\r\n", output
    )


def test_after_a_line_that_was_cut_the_next_is_complete() -> None:
    reader, writer = os.pipe()
    output = LossyOutput(writer)
    lost = "x" * 1_000_000 + "\n"  # more than a pipe holds
    assert not output.write(lost)
    held = os.read(reader, 2**20)
    assert len(held) < len(lost)
    assert output.write("second\n")
    assert output.write("third\n")
    assert os.read(reader, 100) == b"\nsecond\nthird\n"
    os.close(reader)
    os.close(writer)


def test_metrics_count_the_requests_of_all_workers(
    new_account: Callable[..., Account], start_service: Callable[..., Service]
) -> None:
    received: Counter[str] = Counter()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.settimeout(15)

        def receive() -> None:
            # gunicorn sends the gauge when it has started all workers: the first may have responded by then
            while received["igris.gunicorn.request.status.401"] < 60 or not received["igris.gunicorn.workers"]:
                name, _, rest = listener.recv(10_000).decode().partition(":")
                value, kind = rest.split("|")[:2]
                received[name] += int(value) if kind == "c" else 1

        receiver = threading.Thread(target=receive)
        receiver.start()
        service = start_service(STATSD_HOST=f"127.0.0.1:{listener.getsockname()[1]}", WEB_CONCURRENCY=3)
        at_once(60, lambda _: service.post(EVENT, "ig_" + "x" * 40))
        receiver.join()
        assert received["igris.gunicorn.request.status.401"] == 60
        assert received["igris.gunicorn.requests"] == received["igris.gunicorn.request.duration"] >= 60
        assert received["igris.gunicorn.workers"] > 0


def test_neither_keys_nor_bodies_are_logged(
    new_account: Callable[..., Account], start_service: Callable[..., Service]
) -> None:
    service = start_service(LOG_LEVEL="debug")
    account = new_account(service=service)
    secret = "the-secret-of-a-body"
    headers = {"Authorization": f"Bearer {account.key}", "Content-Type": "application/json"}
    account.post({**EVENT, "metadata": {"note": secret}})
    account.post({**EVENT, "type": secret})
    account.post(secret.encode())
    account.post(b'{"type": "custom", "toolName": "x", "metadata": {"%s": 1e999999}}' % secret.encode())
    account.post(EVENT, X_Request_Id=account.key)
    service.request("POST", f"{PATH}?key={account.key}", json.dumps(EVENT).encode(), headers)
    service.request("GET", f"/{account.key}")
    service.request("POST", PATH, b"", {"Authorization": account.key})
    with socket.create_connection(("127.0.0.1", service.port), timeout=10) as client:
        client.sendall(f"POST {PATH} HTTP/1.1\r\nHost: x\r\nAuthorization : Bearer {account.key}\r\n\r\n".encode())
        client.recv(10_000)
    with socket.create_connection(("127.0.0.1", service.port), timeout=10) as client:
        client.sendall(f"POST {PATH} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {account.key}\r\nX-Half".encode())
    service.stop()
    output = service.output()
    assert account.key[4:] not in output
    assert secret not in output
    lines = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    assert [line["status"] for line in lines if line["path"] == PATH] == [200, 400, 400, 400, 200, 200, 401]
    assert all(line["requestId"] for line in lines)


def fail(environ: dict[str, str], start_response: Callable[..., object]) -> list[bytes]:
    """A WSGI application with a defect."""
    if environ["PATH_INFO"] != "/healthz":
        raise RuntimeError(environ["HTTP_AUTHORIZATION"])
    start_response("200 OK", [])
    return []


def test_a_defect_outside_flask_gets_a_response_and_a_trace(start_service: Callable[..., Service]) -> None:
    service = start_service(application="tests.test_logs:fail")
    assert_rejected(service.post(EVENT, "ig_secret"), 500, "Internal server error")
    assert "in fail" in service.output()
    assert "ig_secret" not in service.output()
