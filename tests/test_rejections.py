"""Every rejection of the contract: its response, and that nothing of it was stored."""

import json
import re
import socket
from collections.abc import Callable
from typing import Any

import pytest

from commands.keys import list_keys, revoke_key
from database import Connection
from dev.service import EVENT, PATH, ROOT, TOO_LARGE_A_NUMBER, Service, at_once
from storage import Storage
from tests.support import Account, assert_rejected

CASES = json.loads((ROOT / "tests/zod/cases.json").read_text())


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_the_result_is_zods(account: Account, case: dict[str, Any]) -> None:
    response = account.post(case["body"].encode())
    expected = case["expect"]
    if expected["status"] == 400:
        assert assert_rejected(response, 400, "Validation failed", account)["details"] == expected["details"]
    else:
        events = expected["events"]
        assert (response.status, response.json["data"]) == (200, {"ingested": len(events), "rejected": 0})
        assert account.rows("type, tool_name, action, metadata") == [
            (event["type"], event["toolName"], event["action"], event["metadata"]) for event in events
        ]


@pytest.mark.parametrize(
    "path",
    ["/", "/api/v1/ingest", PATH + "/", PATH + "//", "/" + PATH, "//" + PATH, "/api//v1/ingest/raw", "/%00", "/\u00e9"],
)
def test_it_does_not_know_other_paths(account: Account, path: str) -> None:
    headers = {"Authorization": f"Bearer {account.key}", "Content-Type": "application/json"}
    response = account.service.request("POST", path, json.dumps(EVENT).encode(), headers)
    assert_rejected(response, 404, "Not found", account)


def test_no_header_changes_the_path(service: Service) -> None:
    response = service.request("GET", "/healthz", headers={"SCRIPT_NAME": "/healthz"})
    assert (response.status, response.json["status"]) == (200, "ok")


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_it_names_the_allowed_methods(service: Service, method: str) -> None:
    response = service.request(method, PATH)
    assert_rejected(response, 405, "Method not allowed")
    assert response.headers["Allow"] == "POST"


@pytest.mark.parametrize(
    ("authorization", "challenge"),
    [
        (None, 'Bearer realm="igris"'),
        ("", 'Bearer realm="igris"'),
        ("Bearer", 'Bearer realm="igris"'),
        ("Bearer  ", 'Bearer realm="igris"'),
        ("Basic aWdyaXM6aWdyaXM=", 'Bearer realm="igris"'),
        ("Bearer nonsense", 'Bearer realm="igris", error="invalid_token"'),
        ("Bearer ig_" + "x" * 40, 'Bearer realm="igris", error="invalid_token"'),
        ("Bearer ig_' OR true --", 'Bearer realm="igris", error="invalid_token"'),
    ],
)
def test_it_needs_a_key_before_anything_else(service: Service, authorization: str | None, challenge: str) -> None:
    headers = {"Content-Type": "text/plain"}
    if authorization is not None:
        headers["Authorization"] = authorization
    response = service.request("POST", PATH, b"not JSON", headers)
    [detail] = assert_rejected(response, 401, "Unauthorized")["details"]
    assert "Authorization: Bearer ig_" in detail["message"]
    assert "revoked" in detail["message"]
    assert response.headers["WWW-Authenticate"] == challenge


def test_the_scheme_is_not_case_sensitive(account: Account) -> None:
    assert account.post(EVENT, Authorization=f"bearer {account.key}").status == 200


def test_a_strangers_body_is_not_waited_for(service: Service) -> None:
    with socket.create_connection(("127.0.0.1", service.port), timeout=10) as client:
        head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9999999\r\n\r\n"
        client.sendall(head.encode() + b"[")
        assert client.recv(1000).startswith(b"HTTP/1.1 401 ")


def test_a_revoked_key_is_rejected_from_the_next_request_on(account: Account, connection: Connection) -> None:
    assert {response.status for response in at_once(16, lambda _: account.send(EVENT))} == {200}
    [key] = list_keys(connection, account.org_id)
    revoke_key(connection, key["id"])
    for body in (EVENT, {}, b"not JSON", TOO_LARGE_A_NUMBER.encode()) * 4:
        response = account.post(body)  # whichever worker responds
        assert_rejected(response, 401, "Unauthorized")
        assert response.headers["WWW-Authenticate"] == 'Bearer realm="igris", error="invalid_token"'
    assert account.count() == account.used() == 16


def test_a_process_remembers_a_bounded_number_of_keys(
    storage: Storage, new_account: Callable[..., Account], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.MAX_SEEN_KEYS", 2)
    for account in [new_account() for _ in range(5)]:
        assert storage.identify(account.key).org_id == account.org_id
        assert len(storage._seen_keys) <= 2


def test_an_expired_key_is_rejected(account: Account) -> None:
    assert account.post(EVENT).status == 200
    account.execute("UPDATE api_keys SET expires_at = now() WHERE org_id = %s", account.org_id)
    for _ in range(8):
        assert_rejected(account.post(EVENT), 401, "Unauthorized")
    assert account.count() == 1


@pytest.mark.parametrize(
    "media_type", ["text/plain", "application/x-www-form-urlencoded", "application/jsonp", "", "json"]
)
def test_it_names_the_media_type(account: Account, media_type: str) -> None:
    response = account.post(EVENT, Content_Type=media_type)
    body = assert_rejected(response, 415, "Unsupported media type", account)
    assert "application/json" in body["details"][0]["message"]
    assert response.headers["Accept"] == "application/json, application/x-ndjson, application/jsonl"


@pytest.mark.parametrize("encoding", ["br", "deflate", "gzip, gzip", "x"])
def test_it_names_the_content_encodings(account: Account, encoding: str) -> None:
    response = account.post(EVENT, Content_Encoding=encoding)
    body = assert_rejected(response, 415, "Unsupported media type", account)
    assert response.headers["Accept-Encoding"] in body["details"][0]["message"]


@pytest.mark.parametrize("chunked", [False, True])
def test_a_large_body_is_rejected(
    new_account: Callable[..., Account], start_service: Callable[..., Service], chunked: bool
) -> None:
    account = new_account(service=start_service(MAX_BODY_BYTES=1000, WEB_CONCURRENCY=1))
    fits = json.dumps(EVENT).encode().ljust(1000)
    send = (lambda body: iter([body[:400], body[400:]])) if chunked else bytes
    body = assert_rejected(account.post(send(fits + b" ")), 413, "Payload too large", account)
    assert "1000 bytes" in body["details"][0]["message"]
    assert "split the batch" in body["details"][0]["message"]
    assert account.post(send(fits)).status == 200


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"type": "custom", "toolName": "x"} x',
        b"{'type': 'custom'}",
        b'{"type": "custom", "toolName": "x",}',
        b'{"type": "custom", "toolName": "a\x01b"}',
        b'{"type": "custom", "toolName": "\xff"}',
        b'{"type": "custom", "toolName": "\xed\xa0\x80"}',
        json.dumps(EVENT).encode("utf-16"),
        json.dumps(EVENT).encode("utf-16-le"),
        TOO_LARGE_A_NUMBER.encode(),
        *(
            b'{"type": "custom", "toolName": "x", "metadata": {"n": [%s]}}' % b",".join([number] * 10_000)
            for number in (b"1e" + b"0" * 20 + b"131071", b"-1.5E+00131071", b"0e-00016383", b"10e01000")
        ),
        b'{"type": "custom", "toolName": "x", "metadata": {"n": NaN}}',
        b'{"type": "custom", "toolName": "x", "metadata": {"n": -Infinity}}',
        b'{"type": "custom", "toolName": "x", "metadata": {"n": 1e999999}}',
        b'{"type": "custom", "toolName": "x", "metadata": {"n": 1e-999999}}',
        b'{"type": "custom", "toolName": "x", "metadata": {"n": [%s]}}' % b",".join([b"1e131071"] * 200),
        b'{"type": "custom", "toolName": "x", "metadata": {"n": 01}}',
        b'{"type": "custom", "toolName": "x", "metadata": {"n": %s}}' % (b"1" * 150_000),
        b'{"type": "custom", "toolName": "x", "metadata": {"n": 0.%s}}' % (b"1" * 150_000),
        b'{"type": "custom", "toolName": "x", "metadata": {"n": 1%s}}' % (b"0" * 150_000 + b".5"),
        b"[" * 50_000,
        b"[" * 50_000 + b"]" * 50_000,
        b'{"type": "custom", "toolName": "x", "metadata": %s1%s}' % (b'{"a":' * 50_000, b"}" * 50_000),
    ],
    ids=lambda body: repr(body[:60]),
)
def test_what_is_not_json_is_rejected(account: Account, body: bytes) -> None:
    response = assert_rejected(account.post(body), 400, "Invalid JSON", account)
    [detail] = response["details"]
    assert detail["field"] == ""


def test_doubles_of_any_size_are_no_long_numbers(account: Account) -> None:
    for number in ("1e308", "-1.7976931348623157E+308", "5e-324"):
        event = f'{{"type": "custom", "toolName": "x", "metadata": {{"n": [{",".join([number] * 10_000)}]}}}}'
        assert account.post(event.encode()).status == 200
    assert account.execute(
        "SELECT max(length(metadata::text)) < 10000000 FROM audit_events WHERE org_id = %s", account.org_id
    ) == [(True,)]


@pytest.mark.parametrize(
    ("body", "headers", "hint"),
    [
        (b'{"type": "custom", "toolName": "x"}\n' * 2, {}, "This looks like NDJSON: send it with Content-Type"),
        (b'{"type": "custom", "toolName": "x"}' * 2, {}, "several values in one line: curl keeps line feeds with"),
        (
            b'{"type": "custom", "toolName": "x"}' * 2,
            {"Content_Type": "application/x-ndjson"},
            "several values in one line: curl keeps line feeds with",
        ),
        ('{"type": "custom", "toolName": "é"}'.encode("cp1252"), {}, "[Text.Encoding]::UTF8.GetBytes($body)"),
    ],
)
def test_an_error_says_what_to_change(account: Account, body: bytes, headers: dict[str, str], hint: str) -> None:
    assert hint in json.dumps(account.post(body, **headers).json["details"])


def test_a_byte_order_mark_is_skipped_at_the_beginning_of_a_body_and_of_a_line(account: Account) -> None:
    event = b"\xef\xbb\xbf" + json.dumps(EVENT).encode()
    assert account.post(event).status == 200
    response = account.post(event + b"\r\n" + event, Content_Type="application/x-ndjson", Prefer="handling=lenient")
    assert response.json["data"] == {"ingested": 2, "rejected": 0}
    assert account.count() == 3


def test_more_than_1000_details_are_counted(account: Account) -> None:
    details = assert_rejected(account.post([{}] * 700), 400, "Validation failed", account)["details"]
    assert len(details) == 1001
    assert details[999] == {"field": "499.toolName", "message": "Required"}
    assert details[1000] == {"field": "", "message": "and 400 more"}


def test_a_batch_has_a_largest_size(account: Account) -> None:
    details = assert_rejected(account.post([EVENT] * 10_000 + [{}]), 400, "Validation failed", account)["details"]
    assert details == [
        {"field": "", "message": "Array must contain at most 10000 element(s)"},
        {"field": "10000.type", "message": "Required"},
        {"field": "10000.toolName", "message": "Required"},
    ]


def test_one_bad_event_keeps_the_good_ones_out(account: Account) -> None:
    details = assert_rejected(
        account.post({"events": [EVENT, {**EVENT, "action": "block"}]}), 400, "Validation failed", account
    )
    [detail] = details["details"]
    assert detail["field"] == "events.1.action"


def test_a_body_that_breaks_off_is_not_stored(account: Account) -> None:
    whole = json.dumps(EVENT)
    head = (
        f"POST {PATH} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {account.key}\r\nContent-Type: application/json\r\n"
    )
    for rest in (
        f"Content-Length: {len(whole) + 9}\r\n\r\n{whole}",
        f"Transfer-Encoding: chunked\r\n\r\nff\r\n{whole}",
    ):
        with socket.create_connection(("127.0.0.1", account.service.port), timeout=10) as client:
            client.sendall((head + rest).encode())
            client.shutdown(socket.SHUT_WR)
            response = client.recv(10_000)
        assert response.startswith(b"HTTP/1.1 400 "), response
    assert account.rows() == []


def test_a_request_gets_one_response_with_any_trailer(service: Service) -> None:
    head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: {'x' * 9000}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", service.port), timeout=10) as client:
        client.sendall(head.encode())
        received = b""
        while data := client.recv(10_000):
            received += data
    assert received.startswith(b"HTTP/1.1 401 ")
    assert received.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize("behind", ["\xa0", "\x85", "\x1f"])
def test_a_key_has_no_other_spelling(account: Account, behind: str) -> None:
    """nginx counts the requests of a key by its spelling."""
    head = (
        f"POST {PATH} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {account.key}{behind}\r\nContent-Length: 0\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", account.service.port), timeout=10) as client:
        client.sendall(head.encode("latin-1"))
        assert client.recv(10_000)[9:12] in (b"400", b"401")


@pytest.mark.parametrize("chunk", ["zz\r\n", "5\r\nabcdefgh\r\n", "-1\r\n\r\n"])
def test_a_badly_framed_body_is_rejected(account: Account, chunk: str) -> None:
    head = (
        f"POST {PATH} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {account.key}\r\nContent-Type: application/json\r\n"
    )
    with socket.create_connection(("127.0.0.1", account.service.port), timeout=10) as client:
        client.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n{chunk}".encode())
        assert re.match(rb"HTTP/1.1 400 ", client.recv(10_000))
    assert account.rows() == []


@pytest.mark.parametrize(
    ("request_line", "headers", "status"),
    [
        ("POST /" + "x" * 5000 + " HTTP/1.1", "Host: x", 414),
        (f"POST {PATH} HTTP/1.1", "Host: x\r\nX: " + "x" * 9000, 431),
        (f"POST {PATH} HTTP/1.1", "Host: x\r\nX : y", 400),
        ("nonsense", "Host: x", 400),
        (f"POST {PATH} HTTP/9.9", "Host: x", 400),
    ],
)
def test_a_request_that_is_not_http_gets_a_json_error(
    service: Service, request_line: str, headers: str, status: int
) -> None:
    with socket.create_connection(("127.0.0.1", service.port), timeout=10) as client:
        client.sendall(f"{request_line}\r\n{headers}\r\n\r\n".encode())
        head, _, body = client.recv(10_000).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert set(json.loads(body)) == ({"error", "details"} if status == 400 else {"error"})
