"""The month's quota: exact to the event, with any requests at once."""

from collections.abc import Callable

import pytest

import storage
from commands.quota import set_quota
from database import LOCK_TIMEOUT, Connection, TimeoutConnection
from dev.service import EVENT, at_once
from tests.support import Account, assert_rejected


def test_a_batch_that_does_not_fit_is_rejected_completely(new_account: Callable[..., Account]) -> None:
    account = new_account(quota=12)
    body = assert_rejected(account.post([EVENT] * 13), 429, "Quota exceeded", account)
    assert body["meta"]["remainingQuota"] == 12
    response = account.post([EVENT] * 12)
    assert (response.status, response.json["meta"]) == (200, {"remainingQuota": 0})
    response = account.post(EVENT)
    [[resets_at]] = account.execute("""
        SELECT to_char(date_trunc('month', now() AT TIME ZONE 'UTC') + interval '1 month', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')
    """)
    assert assert_rejected(response, 429, "Quota exceeded")["meta"] == {"remainingQuota": 0, "quotaResetsAt": resets_at}
    assert "Retry-After" not in response.headers
    assert account.count() == account.used() == 12


def test_a_quota_of_nothing_stores_nothing(new_account: Callable[..., Account]) -> None:
    account = new_account(quota=0)
    assert_rejected(account.post(EVENT), 429, "Quota exceeded", account)


@pytest.mark.parametrize("size", [1, 7])
def test_24_clients_at_the_edge_get_exactly_the_quota(new_account: Callable[..., Account], size: int) -> None:
    account = new_account(quota=100)
    responses = [
        response
        for responses in at_once(24, lambda _: [account.send([EVENT] * size) for _ in range(6)])
        for response in responses
    ]
    stored = [response for response in responses if response.status == 200]
    rejected = [response for response in responses if response.status == 429]
    assert len(stored) + len(rejected) == 24 * 6
    assert len(stored) == 100 // size
    assert account.count() == account.used() == len(stored) * size
    remaining = sorted(response.json["meta"]["remainingQuota"] for response in stored)
    assert remaining == [100 - size * n for n in range(len(stored), 0, -1)]
    assert {response.json["meta"]["remainingQuota"] for response in rejected} <= {100 % size}


def test_a_changed_quota_counts_from_the_next_request_on(
    new_account: Callable[..., Account], connection: Connection
) -> None:
    account = new_account(quota=5)
    account.post([EVENT] * 5)
    set_quota(connection, account.org_id, 8)
    assert account.post([EVENT] * 2).json["meta"] == {"remainingQuota": 1}
    set_quota(connection, account.org_id, 3)
    assert assert_rejected(account.post(EVENT), 429, "Quota exceeded")["meta"]["remainingQuota"] == 0
    assert account.count() == account.used() == 7


def test_use_counts_on_when_an_unlimited_organization_becomes_limited(
    new_account: Callable[..., Account], connection: Connection
) -> None:
    account = new_account(quota=None)
    at_once(8, lambda _: account.send([EVENT] * 5))
    set_quota(connection, account.org_id, 43)
    assert assert_rejected(account.post([EVENT] * 4), 429, "Quota exceeded")["meta"]["remainingQuota"] == 3
    statuses = [response.status for response in at_once(8, lambda _: account.send(EVENT))]
    assert sorted(statuses) == [200] * 3 + [429] * 5
    assert account.count() == account.used() == 43


def test_a_new_month_begins_with_the_full_quota(new_account: Callable[..., Account]) -> None:
    account = new_account(quota=5)
    account.post([EVENT] * 5)
    query = "UPDATE monthly_usage SET month = month - interval '1 month' WHERE org_id = %s"
    account.execute(query, account.org_id)
    assert account.post(EVENT).json["meta"] == {"remainingQuota": 4}


def test_unlimited_is_null(new_account: Callable[..., Account]) -> None:
    account = new_account(quota=None)
    assert account.post([EVENT] * 3).json["meta"] == {"remainingQuota": None}
    assert account.used() == 3


def test_requests_of_an_unlimited_organization_do_not_wait_for_each_other(
    new_account: Callable[..., Account], database_url: str
) -> None:
    account = new_account(quota=None)
    batch = storage.EventBatch('[{"type": "custom", "toolName": "x"}]', [0], 1)
    # holds what a request holds before its commit
    with TimeoutConnection.open(database_url, LOCK_TIMEOUT) as blocker, blocker.transaction():
        storage.call_store_events(blocker, account.org_id, None, batch, None)
        assert [response.status for response in at_once(8, lambda _: account.post(EVENT))] == [200] * 8
    assert account.count() == account.used() == 9
