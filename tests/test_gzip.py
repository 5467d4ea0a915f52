"""Content-Encoding: gzip."""

import functools
import gzip
import json
import os
from collections.abc import Callable

import psutil
import pytest

from dev.service import EVENT, Service, high_water_mark
from tests.support import Account, assert_rejected

BODY = json.dumps(EVENT).encode()
compress = functools.partial(gzip.compress, mtime=0)  # the same at any time: it is in the names of tests
GZIP = {"Content_Encoding": "gzip"}


@pytest.mark.parametrize(
    "body",
    [
        compress(BODY),
        compress(BODY[:10]) + compress(BODY[10:]),
        compress(b"") * 300 + compress(BODY) + compress(b""),
        b"".join(compress(bytes([byte])) for byte in BODY),
    ],
)
def test_it_is_inflated_with_all_its_members(account: Account, body: bytes) -> None:
    assert account.post(body, **GZIP).status == 200
    assert account.post(iter([body[:7], body[7:]]), Content_Encoding="GZIP").status == 200
    assert account.rows("tool_name") == [("generate_report",)] * 2


def test_x_gzip_is_gzip(account: Account) -> None:
    """RFC 9110, section 8.4.1.3."""
    body = gzip.compress(json.dumps(EVENT).encode())
    assert account.post(body, Content_Encoding="X-Gzip").status == 200


def test_identity_is_no_encoding(account: Account) -> None:
    assert account.post(EVENT, Content_Encoding="identity").status == 200


def test_a_large_batch_is_decompressed_completely(account: Account) -> None:
    chance = os.urandom(3_000_000).hex()
    body = compress(json.dumps({**EVENT, "metadata": {"text": chance}}).encode())
    assert account.post(body, **GZIP).status == 200
    assert account.rows("metadata ->> 'text'") == [(chance,)]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        BODY,
        compress(BODY)[:-1],
        compress(BODY)[:20],
        compress(BODY) + b"x",
        compress(BODY) + compress(BODY)[:8],
        compress(BODY)[:-8] + b"\0" * 8,
        compress(compress(BODY)),
    ],
)
def test_what_is_broken_is_rejected(account: Account, body: bytes) -> None:
    assert_rejected(account.post(body, **GZIP), 400, "Invalid JSON", account)


def test_the_limit_is_that_of_the_inflated_body(
    new_account: Callable[..., Account], start_service: Callable[..., Service]
) -> None:
    account = new_account(service=start_service(MAX_BODY_BYTES=1000))
    assert account.post(compress(BODY.ljust(1000)), **GZIP).status == 200
    assert_rejected(account.post(compress(BODY.ljust(1001)), **GZIP), 413, "Payload too large")
    halves = compress(BODY.ljust(600)) + compress(b" " * 401)
    assert_rejected(account.post(halves, **GZIP), 413, "Payload too large")
    assert_rejected(account.post(compress(os.urandom(1000)), **GZIP), 413, "Payload too large")
    assert account.count() == 1


@pytest.mark.measures
def test_a_bomb_takes_no_more_memory_than_the_limit(
    new_account: Callable[..., Account], start_service: Callable[..., Service]
) -> None:
    limit = 2**20
    service = start_service(MAX_BODY_BYTES=limit, WEB_CONCURRENCY=1, THREADS=1)
    account = new_account(service=service)
    account.post(EVENT)
    [worker] = psutil.Process(service.process.pid).children()
    bomb = compress(b" " * 50_000_000)
    peak_before = high_water_mark(worker.pid)
    assert_rejected(account.post(bomb, **GZIP), 413, "Payload too large")
    # the body as sent, the decompressed part of it, and its next size as it grows: 2.3 of it, and 50 without the limit
    assert high_water_mark(worker.pid) - peak_before < 3 * limit
