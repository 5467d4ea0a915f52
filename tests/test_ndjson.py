"""Content-Type: application/x-ndjson: an event a line."""

import gzip
import json
from typing import Any

import pytest

from dev.service import EVENT
from tests.support import Account, assert_rejected

NDJSON = {"Content_Type": "application/x-ndjson"}
LINE = json.dumps(EVENT).encode()


@pytest.mark.parametrize(
    "media_type", ["application/x-ndjson", "application/jsonl; charset=utf-8", "Application/X-NDJSON"]
)
@pytest.mark.parametrize("body", [LINE, LINE + b"\n", b"\r\n \n" + LINE + b"\r\n\n"])
def test_a_line_is_an_event(account: Account, media_type: str, body: bytes) -> None:
    assert account.post(body, Content_Type=media_type).json["data"] == {"ingested": 1, "rejected": 0}
    assert account.rows("tool_name") == [("generate_report",)]


def test_lines_are_stored_in_their_order_with_every_digit(account: Account) -> None:
    line = '{"type": "custom", "toolName": "%d", "metadata": {"n": 12345678901234567890.123456789, "c": "\\u0000"}}\n'
    response = account.post("".join(line % number for number in range(500)).encode(), **NDJSON)
    assert response.json["data"] == {"ingested": 500, "rejected": 0}
    rows = account.rows("tool_name, metadata ->> 'n', metadata ->> 'c'")
    assert rows == [(str(number), "12345678901234567890.123456789", "\ufffd") for number in range(500)]


@pytest.mark.parametrize(
    ("body", "details"),
    [
        (b'\n{"type": "custom"}\n', [("0.toolName", "Required")]),
        (LINE + b"\n\noops\n7\n", [
            ("1", "Invalid JSON: Expecting value: line 1 column 1 (char 0) (in line 3 of the body)"),
            ("2", "Expected object, received number"),
        ]),
        (b"[" + LINE + b"]", [("0", "Expected object, received array")]),
        (b'{"events": []}', [("0.type", "Required"), ("0.toolName", "Required")]),
        (LINE + b"\n\xff", [
            (
                "1",
                "Invalid JSON: Not UTF-8: invalid start byte at byte 0. PowerShell sends UTF-8 with "
                "[Text.Encoding]::UTF8.GetBytes($body) (in line 2 of the body)",
            ),
        ]),
        (b"", [("", "Array must contain at least 1 element(s)")]),
        (b" \n\r\n", [("", "Array must contain at least 1 element(s)")]),
        (LINE.replace(b" ", b"\n"), None),
        ((LINE + b"\n") * 10_001, [("", "Array must contain at most 10000 element(s)")]),
    ],
)  # fmt: skip
def test_a_faulty_line_is_a_faulty_event(account: Account, body: bytes, details: Any) -> None:
    told = assert_rejected(account.post(body, **NDJSON), 400, "Validation failed", account)["details"]
    assert details is None or [(detail["field"], detail["message"]) for detail in told] == details


def test_lenient_stores_the_lines_that_are_events(account: Account) -> None:
    body = b"oops\n" + LINE + b'\n{"type": "custom"}\n' + LINE
    response = account.post(body, Prefer="handling=lenient", **NDJSON)
    assert response.json["data"] == {"ingested": 2, "rejected": 2}
    assert [detail["field"] for detail in response.json["details"]] == ["0", "2.toolName"]
    assert account.count() == account.used() == 2


def test_gzip_and_idempotency_keys_are_as_for_json(account: Account) -> None:
    body = gzip.compress(LINE + b"\n" + LINE)
    for replayed in (None, "true"):
        response = account.post(body, Idempotency_Key="a", Content_Encoding="gzip", **NDJSON)
        assert response.json["data"] == {"ingested": 2, "rejected": 0}
        assert response.headers.get("Idempotency-Replayed") == replayed
    assert_rejected(account.post(LINE, Idempotency_Key="a", **NDJSON), 422, "Idempotency-Key reused")
    assert account.count() == 2


def test_a_line_with_too_many_digits_keeps_no_other_out(account: Account) -> None:
    lines = [b'{"type": "custom", "toolName": "x", "metadata": {"a": %s}}' % number for number in (b"1e99999", b"1e5")]
    response = account.post(b"\n".join(lines), **NDJSON, Prefer="handling=lenient")
    assert response.json["data"] == {"ingested": 1, "rejected": 1}
