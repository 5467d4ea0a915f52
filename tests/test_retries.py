"""Idempotency-Key: a retried request stores nothing twice, and is responded as it was."""

import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from commands.keys import list_keys, revoke_key
from commands.quota import set_quota
from database import Connection
from dev.service import EVENT, Response, at_once, wait_for
from tests.support import Account, assert_rejected, waiting_for_locks


def is_replayed(response: Response) -> bool:
    return response.headers.get("Idempotency-Replayed") == "true"


def test_a_retry_gets_the_same_response_and_stores_nothing(account: Account) -> None:
    first = account.post([EVENT] * 3, Idempotency_Key="a-1")
    assert (first.status, is_replayed(first)) == (200, False)
    account.post(EVENT)
    again = account.post([EVENT] * 3, Idempotency_Key="a-1")
    assert (again.status, again.body, is_replayed(again)) == (200, first.body, True)
    assert account.count() == account.used() == 4


@pytest.mark.parametrize("quota", [None, 50_000, 1])
def test_16_identical_requests_at_once_store_once(new_account: Callable[..., Account], quota: int | None) -> None:
    account = new_account(quota=quota)
    responses = at_once(16, lambda _: account.send(EVENT, Idempotency_Key="once"))
    assert {response.status for response in responses} == {200}
    assert len({response.body for response in responses}) == 1
    assert sum(map(is_replayed, responses)) == 15
    assert account.count() == account.used() == 1


def test_a_retry_gets_the_same_response_though_the_first_request_used_up_the_quota(
    new_account: Callable[..., Account],
) -> None:
    account = new_account(quota=1)
    body = json.dumps(EVENT).encode()
    first = "SELECT outcome FROM store_events_v1(%s, NULL, 'raw', %s, NULL, 1, 'once', %s, 7)"
    with ThreadPoolExecutor(1) as pool, psycopg.connect(account.service.database_url) as connection:
        connection.execute("LOCK TABLE monthly_usage")
        retry = pool.submit(account.post, body, Idempotency_Key="once")
        wait_for(lambda: waiting_for_locks(account) == 1)  # it is about to read the usage
        parameters = [account.org_id, f"[{body.decode()}]", hashlib.sha256(body).digest()]
        assert connection.execute(first, parameters).fetchall() == [("stored",)]
        connection.commit()
        assert (retry.result().status, is_replayed(retry.result())) == (200, True)
    assert account.count() == account.used() == 1


def test_another_body_under_the_key_is_rejected(account: Account) -> None:
    account.post(EVENT, Idempotency_Key="a")
    for body in ([EVENT], {**EVENT, "action": "deny"}, json.dumps(EVENT).encode() + b" "):
        assert_rejected(account.post(body, Idempotency_Key="a"), 422, "Idempotency-Key reused")
    assert account.count() == account.used() == 1


def test_of_two_bodies_at_once_under_a_key_one_is_stored(account: Account) -> None:
    bodies = [[EVENT], [EVENT, EVENT]] * 8
    responses = at_once(16, lambda i: account.send(bodies[i], Idempotency_Key="race"))
    assert sorted(response.status for response in responses) == [200] * 8 + [422] * 8
    assert (
        account.count()
        == account.used()
        == next(response.json["data"]["ingested"] for response in responses if response.status == 200)
    )


def test_a_key_belongs_to_an_organization(new_account: Callable[..., Account]) -> None:
    for account in (new_account(), new_account()):
        response = account.post(EVENT, Idempotency_Key="shared")
        assert (response.status, is_replayed(response), account.count()) == (200, False, 1)


def test_quotes_are_not_part_of_the_key(account: Account) -> None:
    account.post(EVENT, Idempotency_Key='"a key"')
    assert is_replayed(account.post(EVENT, Idempotency_Key="a key"))


@pytest.mark.parametrize("key", ["", '""', '"open', "x" * 256, "é", "a\tb"])
def test_a_malformed_key_is_rejected(account: Account, key: str) -> None:
    body = assert_rejected(account.post(EVENT, Idempotency_Key=key), 400, "Validation failed", account)
    assert body["details"][0]["field"] == "Idempotency-Key"


@pytest.mark.parametrize("key", ["x" * 255, '"' + "x" * 255 + '"', "!", "ig_" + "x" * 40, "'; DROP TABLE api_keys; --"])
def test_any_printable_key_works(account: Account, key: str) -> None:
    account.post(EVENT, Idempotency_Key=key)
    assert is_replayed(account.post(EVENT, Idempotency_Key=key))
    assert account.count() == 1


def test_rejections_are_not_kept(new_account: Callable[..., Account], connection: Connection) -> None:
    account = new_account(quota=1)
    assert_rejected(account.post({}, Idempotency_Key="a"), 400, "Validation failed", account)
    assert_rejected(account.post([EVENT] * 2, Idempotency_Key="a"), 429, "Quota exceeded", account)
    set_quota(connection, account.org_id, 2)
    response = account.post([EVENT] * 2, Idempotency_Key="a")
    assert (response.status, is_replayed(response)) == (200, False)


def test_a_retry_gets_its_response_when_the_quota_is_used_up(new_account: Callable[..., Account]) -> None:
    account = new_account(quota=2)
    first = account.post([EVENT] * 2, Idempotency_Key="last")
    again = account.post([EVENT] * 2, Idempotency_Key="last")
    assert (again.status, again.body, is_replayed(again)) == (200, first.body, True)


def test_a_key_is_forgotten_when_its_days_are_over(account: Account) -> None:
    account.post(EVENT, Idempotency_Key="old")
    [[days]] = account.execute(
        "SELECT expires_at - now() < '7 days' FROM idempotency_keys WHERE org_id = %s", account.org_id
    )
    assert days
    account.execute("UPDATE idempotency_keys SET expires_at = now() WHERE org_id = %s", account.org_id)
    responses = [account.post({**EVENT, "action": "deny"}, Idempotency_Key="old") for _ in range(2)]
    assert [is_replayed(response) for response in responses] == [False, True]
    assert account.count() == account.used() == 2


def test_a_revoked_key_replays_nothing(account: Account, connection: Connection) -> None:
    account.post(EVENT, Idempotency_Key="a")
    revoke_key(connection, list_keys(connection, account.org_id)[0]["id"])
    assert_rejected(account.post(EVENT, Idempotency_Key="a"), 401, "Unauthorized")
