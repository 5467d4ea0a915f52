"""Prefer: handling=lenient stores what can be stored of a batch."""

from collections.abc import Callable

import pytest

from commands.keys import list_keys, revoke_key
from commands.quota import set_quota
from database import Connection
from dev.bodies import WORST
from dev.service import EVENT, at_once
from tests.support import Account, assert_rejected

LENIENT = {"Prefer": "handling=lenient"}


def test_the_valid_events_are_stored_and_the_rejected_ones_listed(account: Account) -> None:
    body = b"""{"events": [
        {"type": "custom", "toolName": "a", "metadata": {"n": 12345678901234567890.123456789}},
        {"type": "custom"},
        {"type": "custom", "toolName": "\\u0000", "timestamp": "2026-03-19T10:00:00.123456789Z"},
        7,
        {"type": "nope", "toolName": "", "timestamp": "yesterday", "metadata": []},
        {"type": "custom", "toolName": "c"}
    ]}"""
    response = account.post(body, **LENIENT)
    assert response.status == 200
    assert response.headers["Preference-Applied"] == "handling=lenient"
    assert response.json["data"] == {"ingested": 3, "rejected": 3}
    assert response.json["meta"] == {"remainingQuota": 49_997}
    fields = [detail["field"] for detail in response.json["details"]]
    assert fields == [
        "events.1.toolName",
        "events.3",
        "events.4.type",
        "events.4.toolName",
        "events.4.timestamp",
        "events.4.metadata",
    ]
    assert account.rows("tool_name, metadata ->> 'n'") == [
        ("a", "12345678901234567890.123456789"),
        ("\ufffd", None),
        ("c", None),
    ]
    assert account.used() == 3


def test_a_batch_without_faults_has_no_details(account: Account) -> None:
    response = account.post([EVENT] * 2, **LENIENT)
    assert response.headers["Preference-Applied"] == "handling=lenient"
    assert response.json == {"data": {"ingested": 2, "rejected": 0}, "meta": {"remainingQuota": 49_998}}


def test_valid_events_that_do_not_fit_in_the_quota_are_all_rejected(new_account: Callable[..., Account]) -> None:
    account = new_account(quota=3)
    body = assert_rejected(account.post([EVENT, {}, EVENT, EVENT, EVENT], **LENIENT), 429, "Quota exceeded", account)
    assert body["meta"]["remainingQuota"] == 3
    assert account.post([EVENT, {}, EVENT, EVENT], **LENIENT).json["data"] == {"ingested": 3, "rejected": 1}


def test_a_batch_without_a_valid_event_gets_its_details(new_account: Callable[..., Account]) -> None:
    account = new_account(quota=0)
    for body, fields in (
        ([{}, 7], ["0.type", "0.toolName", "1"]),
        ({"events": [{"type": "custom"}]}, ["events.0.toolName"]),
    ):
        response = account.post(body, **LENIENT)
        assert (response.status, response.json["data"]["ingested"]) == (200, 0)
        assert response.json["meta"] == {"remainingQuota": 0}
        assert [detail["field"] for detail in response.json["details"]] == fields
    assert account.rows() == []


def test_a_batch_without_a_valid_event_gets_its_details_with_any_quota(
    new_account: Callable[..., Account], connection: Connection
) -> None:
    account = new_account(quota=None)
    assert account.post([{}], **LENIENT).json["meta"] == {"remainingQuota": None}
    account.post([EVENT] * 3)
    set_quota(connection, account.org_id, 2)  # below what was used
    response = account.post([{}], **LENIENT)
    assert (response.status, response.json["meta"]) == (200, {"remainingQuota": 0})


def test_a_batch_without_a_valid_event_needs_a_valid_key(account: Account, connection: Connection) -> None:
    account.post([{}], **LENIENT, Idempotency_Key="a")
    account.post(EVENT, Idempotency_Key="a")
    assert_rejected(account.post([{}], **LENIENT, Idempotency_Key="a"), 422, "Idempotency-Key reused")
    revoke_key(connection, list_keys(connection, account.org_id)[0]["id"])
    for _ in range(4):  # whichever worker responds
        assert_rejected(account.post([{}], **LENIENT), 401, "Unauthorized")


def test_24_clients_at_the_edge_get_exactly_the_quota(new_account: Callable[..., Account]) -> None:
    account = new_account(quota=100)
    responses = at_once(24, lambda _: account.send([EVENT] * 7 + [{}], **LENIENT))
    assert sorted(response.status for response in responses) == [200] * 14 + [429] * 10
    assert account.count() == account.used() == 98


def test_what_is_no_batch_is_rejected_as_without(account: Account) -> None:
    bodies: list[object] = [[], {"events": []}, {"type": "custom"}, [EVENT] * 10_001, {"events": {}}]
    for body in bodies:
        assert_rejected(account.post(body, **LENIENT), 400, "Validation failed", account)


@pytest.mark.parametrize(
    ("preference", "applied"),
    [
        ("handling=lenient", True),
        ('respond-async, wait=10, Handling="Lenient"; foo', True),
        ("handling = lenient", True),
        ("handling=strict", False),
        ('x="a,handling=lenient"', False),
        ("handling=strict, handling=lenient", False),
        ("handling", False),
        ("lenient", False),
        ("", False),
    ],
)
def test_the_header_is_read_as_rfc_7240_says(account: Account, preference: str, applied: bool) -> None:
    response = account.post([EVENT, {}], Prefer=preference)
    assert response.status == (200 if applied else 400)
    assert account.count() == applied


def test_a_retry_of_a_partial_batch_gets_the_same_response(new_account: Callable[..., Account]) -> None:
    account = new_account(quota=3)
    events = [EVENT, {}, EVENT, EVENT]
    first = account.post(events, **LENIENT, Idempotency_Key="a")
    assert first.json["data"] == {"ingested": 3, "rejected": 1}
    again = account.post(events, **LENIENT, Idempotency_Key="a")
    assert (again.body, again.headers["Idempotency-Replayed"]) == (first.body, "true")
    assert account.count() == account.used() == 3


def test_16_identical_partial_batches_at_once_store_once(new_account: Callable[..., Account]) -> None:
    account = new_account(quota=20)
    responses = at_once(16, lambda _: account.send([EVENT, {}] * 15, **LENIENT, Idempotency_Key="a"))
    assert len({(response.status, response.body) for response in responses}) == 1
    assert account.count() == account.used() == 15


def test_the_cost_of_a_large_partial_batch_grows_with_its_size_alone(new_account: Callable[..., Account]) -> None:
    account = new_account(quota=None)
    events: list[object] = [{}, *[{**EVENT, "metadata": {"text": "x" * 900}}] * 9_999]
    for _ in range(24):  # on each connection often enough for PostgreSQL's generic plan, which once took 4 s
        assert account.post({"events": events[:3]}, **LENIENT).status == 200
    statuses = [response.status for response in at_once(6, lambda _: account.post({"events": events}, **LENIENT))]
    assert statuses == [200] * 6


def test_a_partial_batch_with_many_members_is_stored_in_time(new_account: Callable[..., Account]) -> None:
    """PostgreSQL's jsonb_agg took 8 s for it, which is longer than a statement may take."""
    account = new_account(quota=None)
    body = WORST["different keys beside an invalid event, lenient"]().encode()
    assert account.post(body, **LENIENT).status == 200
    assert account.count() == 1
