"""What is responded, and what is stored."""

import json
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from config import VERSION
from dev.service import EVENT, Service
from tests.support import Account


def test_it_works(account: Account) -> None:
    response = account.post(
        {
            "type": "tool_call",
            "toolName": "generate_report",
            "action": "allow",
            "timestamp": "2026-03-19T10:00:00.000Z",
            "metadata": {"model": "gpt-4o", "userId": "user_42", "latencyMs": 340},
        }
    )
    assert response.status == 200
    assert response.json == {"data": {"ingested": 1, "rejected": 0}, "meta": {"remainingQuota": 49_999}}
    [row] = account.rows('type, tool_name, action, "timestamp", metadata, source')
    assert row == (
        "tool_call",
        "generate_report",
        "allow",
        datetime(2026, 3, 19, 10, tzinfo=UTC),
        {"model": "gpt-4o", "userId": "user_42", "latencyMs": 340},
        "raw",
    )


def test_absent_fields_get_their_defaults(account: Account) -> None:
    before = datetime.now(UTC)
    account.post(EVENT)
    [(action, timestamp, metadata, received_at)] = account.rows('action, "timestamp", metadata, received_at')
    assert (action, metadata) == ("log", {})
    assert timestamp == received_at
    assert before - timedelta(seconds=1) < received_at < datetime.now(UTC) + timedelta(seconds=1)


def test_a_row_names_its_organization_and_key(account: Account) -> None:
    account.post({**EVENT, "id": 1, "org_id": "other", "orgId": "other", "api_key_id": 0, "source": "evil"})
    [(org_id, api_key_id, source)] = account.rows("org_id, api_key_id, source")
    [[key]] = account.execute("SELECT id FROM api_keys WHERE org_id = %s", account.org_id)
    assert (org_id, api_key_id, source) == (account.org_id, key, "raw")


@pytest.mark.parametrize("wrap", [lambda events: {"events": events}, lambda events: events], ids=["events", "array"])
def test_a_batch_is_stored_in_its_order_with_one_received_at(account: Account, wrap: Callable[..., object]) -> None:
    response = account.post(wrap([{**EVENT, "toolName": f"tool-{i}"} for i in range(2_000)]))
    assert response.json == {"data": {"ingested": 2_000, "rejected": 0}, "meta": {"remainingQuota": 48_000}}
    assert account.rows("tool_name") == [(f"tool-{i}",) for i in range(2_000)]
    assert len(set(account.rows("received_at"))) == 1


@pytest.mark.parametrize(
    "number",
    [
        "12345678901234567890.123456789",
        "-0.000000000000000000000000000000001",
        "1" * 4_000,
        "0." + "3" * 10_000,
        "1e400",
        "1.10",
    ],
)
def test_a_number_keeps_every_digit(account: Account, number: str) -> None:
    response = account.post(b'{"type": "custom", "toolName": "x", "metadata": {"n": %s}}' % number.encode())
    assert response.status == 200
    [(stored,)] = account.rows("metadata ->> 'n'")
    expected = "1" + "0" * 400 if number == "1e400" else number
    assert stored == expected


@pytest.mark.parametrize(
    ("sent", "stored"),
    [
        (r"\u0000", "\ufffd"),
        (r"a\ud800b", "a\ufffdb"),
        (r"\udc00\ud83d", "\ufffd\ufffd"),
        (r"\ud83d\ud83d\ude00", "\ufffd😀"),
        (r"\uD83D\uDE00", "😀"),
        (r"\\u0000", r"\u0000"),
        (r"\\\u0000", "\\\ufffd"),
        (r"\\ud83d\udc00", "\\ud83d\ufffd"),
        (r"\u005cu0000", r"\u0000"),
        ("日本語 é\u0301 🧰 \u2028 \x7f", "日本語 é\u0301 🧰 \u2028 \x7f"),
        (r"\u0001\n\"\/", '\u0001\n"/'),
    ],
)
def test_all_unicode_is_kept_but_what_jsonb_cannot_hold(account: Account, sent: str, stored: str) -> None:
    body = f'{{"type": "custom", "toolName": "{sent}", "metadata": {{"{sent}": ["{sent}"]}}}}'
    assert account.post(body.encode()).status == 200
    assert account.rows("tool_name, metadata") == [(stored, {stored: [stored]})]


def test_any_nesting_that_is_accepted_is_kept(account: Account) -> None:
    nested = '{"a":[' * 300 + "1" + "]}" * 300
    assert account.post(f'{{"type": "custom", "toolName": "x", "metadata": {nested}}}'.encode()).status == 200
    assert account.rows("metadata") == [(json.loads(nested),)]


def test_the_last_of_equal_keys_counts(account: Account) -> None:
    body = b'{"type": 1, "type": "custom", "toolName": "x", "metadata": {"a": 1, "a": 2}, "metadata": {"a": 3, "a": 4}}'
    assert account.post(body).status == 200
    assert account.rows("type, metadata") == [("custom", {"a": 4})]


def test_postgresql_reads_every_accepted_timestamp_as_python_does(account: Account) -> None:
    chance = random.Random(20261123)
    texts = ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999Z", "9999-12-31T23:59:59.9999990Z"]
    texts += ["0001-01-01T15:59:00+15:59", "9999-12-31T08:00:59.9-15:59", "2026-03-19T10:00Z", "2024-02-29T00:00Z"]
    texts += [f"2026-03-19T10:00:00.{'1234567890' * 50}Z", f"2026-03-19T10:00:00.{'9' * 500}+05:30"]
    for _ in range(4_000):
        day = datetime(chance.randint(2, 9998), 1, 1) + timedelta(seconds=chance.randrange(365 * 86400))  # noqa: DTZ001
        fraction = chance.choice(["", "." + str(chance.randrange(10 ** chance.randint(1, 9)))])
        offset = f"{chance.choice('+-')}{chance.randrange(16):02}{chance.choice([':', ''])}{chance.randrange(60):02}"
        texts.append(f"{day:%Y-%m-%dT%H:%M:%S}".rjust(19, "0") + fraction + chance.choice(["Z", offset]))
    response = account.post([{**EVENT, "timestamp": text} for text in texts])
    assert response.status == 200, response.body[:500]
    for text, (stored,) in zip(texts, account.rows('"timestamp"'), strict=True):
        # Python cuts off what is below a microsecond, PostgreSQL rounds it
        assert timedelta(0) <= stored - datetime.fromisoformat(text) <= timedelta(microseconds=1), text


@pytest.mark.parametrize(
    "text",
    [
        "0000-12-31T23:59:59Z",
        "0001-01-01T00:30:00+01:00",
        "9999-12-31T23:30:00-01:00",
        "9999-12-31T23:59:59.9999991Z",
        "9999-12-31T23:59:59.9999995Z",
        "9999-12-31T23:59:59.99999949999999999999Z",
        "2026-03-19T10:00:00+16:00",
        "2026-03-19T10:00:00+05:60",
        "2026-03-19T10:00:00+99:99",
        "२०२६-03-19T10:00:00Z",
        "2026-03-19T10:00:00Z\n",
    ],
)
def test_an_instant_that_cannot_be_held_is_rejected(account: Account, text: str) -> None:
    response = account.post({**EVENT, "timestamp": text})
    assert (response.status, response.json["details"]) == (400, [{"field": "timestamp", "message": "Invalid datetime"}])
    assert account.rows() == []


def test_a_batch_of_the_largest_size_is_stored(account: Account) -> None:
    assert account.post([EVENT] * 10_000).json["data"] == {"ingested": 10_000, "rejected": 0}
    assert account.count() == account.used() == 10_000


def test_the_body_may_come_in_chunks(account: Account) -> None:
    parts = [b'{"type": "tool_call", ', b'"toolName": "x"}']
    assert account.post(iter(parts)).status == 200
    assert account.rows("tool_name") == [("x",)]


@pytest.mark.parametrize(
    "media_type", ["application/json; charset=utf-8", "APPLICATION/JSON", "application/cloudevents+json"]
)
def test_every_json_media_type_is_accepted(account: Account, media_type: str) -> None:
    assert account.post(EVENT, Content_Type=media_type).status == 200


def test_the_request_id_is_the_clients_if_it_is_valid(account: Account) -> None:
    assert account.post(EVENT, X_Request_Id="trace-1/a.b").headers["X-Request-Id"] == "trace-1/a.b"
    for other in ("", "a b", "x" * 129, 'a"b', "é", account.key):
        given = account.post(EVENT, X_Request_Id=other).headers["X-Request-Id"]
        assert given != other
        assert len(given) == 32


def test_probes_response_without_a_key(service: Service) -> None:
    for path, more in (("/healthz", {"version": VERSION}), ("/readyz", {})):
        response = service.get(path)
        assert (response.status, response.json) == (200, {"status": "ok", **more})
        assert response.headers["Cache-Control"] == "no-store"
