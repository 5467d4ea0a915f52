"""The interface in this process: what each kind of request gets."""

import gzip
import json
from collections.abc import Callable
from typing import Any

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from dev.service import EVENT, PATH, set_up

Post = Callable[..., TestResponse]


def test_it_works(post: Post) -> None:
    response = post({"events": [EVENT, EVENT]})
    assert (response.status_code, response.json) == (
        200,
        {"data": {"ingested": 2, "rejected": 0}, "meta": {"remainingQuota": None}},
    )
    assert response.headers["Cache-Control"] == "no-store"
    assert len(response.headers["X-Request-Id"]) == 32


@pytest.mark.parametrize(
    ("body", "headers", "status", "error", "detail"),
    [
        ({}, {"Authorization": "Bearer ig_x"}, 401, "Unauthorized", ("", "Send `Authorization: Bearer ig_")),
        ({}, {"Authorization": "Bearer ig_" + "x" * 40}, 401, "Unauthorized", ("", "Send `Authorization: Bearer ig_")),
        (b"", {"Content_Type": "text/plain"}, 415, "Unsupported media type", ("", "Content-Type must be one of")),
        (b"", {"Content_Encoding": "br"}, 415, "Unsupported media type", ("", "Content-Encoding must be one of")),
        (b" " * 10_001, {}, 413, "Payload too large", ("", "The body must be at most 10000 bytes: split the batch")),
        (b"[" + b"0," * 2000, {}, 413, "Payload too large", ("", "The body must have at most 1000 JSON values")),
        (b"{", {}, 400, "Invalid JSON", ("", "Expecting property name")),
        (b"\xff", {}, 400, "Invalid JSON", ("", "Not UTF-8")),
        (b"[NaN]", {}, 400, "Invalid JSON", ("", "NaN is not JSON")),
        (b"[" * 999, {}, 400, "Invalid JSON", ("", "")),
        (b"not gzip", {"Content_Encoding": "gzip"}, 400, "Invalid JSON", ("", "The body is not gzip")),
        (EVENT, {"Idempotency_Key": "é"}, 400, "Validation failed", ("Idempotency-Key", "Must be 1 to 255")),
        (EVENT, {"Idempotency_Key": ""}, 400, "Validation failed", ("Idempotency-Key", "Must be 1 to 255")),
        ([], {}, 400, "Validation failed", ("", "Array must contain at least 1 element(s)")),
        ([EVENT] * 21, {}, 400, "Validation failed", ("", "Array must contain at most 20 element(s)")),
        ({"events": 1}, {}, 400, "Validation failed", ("events", "Expected array, received number")),
        ({"events": [EVENT, {}]}, {}, 400, "Validation failed", ("events.1.type", "Required")),
    ],
)
def test_each_error_has_its_status_and_a_detail(
    post: Post, body: Any, headers: dict[str, str], status: int, error: str, detail: tuple[str, str]
) -> None:
    response = post(body, **headers)
    assert (response.status_code, response.json["error"]) == (status, error)  # type: ignore[index]
    first = response.json["details"][0]  # type: ignore[index]
    assert first["field"] == detail[0]
    assert first["message"].startswith(detail[1])


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/", 404), ("GET", PATH, 405), ("POST", "/healthz", 405)]
)
def test_other_paths_and_methods_are_not_found(client: FlaskClient, method: str, path: str, status: int) -> None:
    assert client.open(path, method=method).status_code == status


def test_a_malformed_idempotency_key_is_found_before_the_body_is_read(post: Post) -> None:
    response = post(b"\xff" * 20_000, Idempotency_Key="é")
    assert response.json["details"][0]["field"] == "Idempotency-Key"  # type: ignore[index]


def test_an_unsupported_media_type_is_reported_first(post: Post) -> None:
    assert post(b"", Content_Type="text/plain", Idempotency_Key="é").status_code == 415


def test_lenient_stores_the_valid_events(post: Post) -> None:
    response = post([EVENT, {}, 5], Prefer="handling=lenient")
    assert response.json["data"] == {"ingested": 1, "rejected": 2}  # type: ignore[index]
    assert response.headers["Preference-Applied"] == "handling=lenient"
    assert [each["field"] for each in response.json["details"]] == ["1.type", "1.toolName", "2"]  # type: ignore[index]


def test_a_retry_gets_the_first_response(post: Post) -> None:
    first, again = (post(EVENT, Idempotency_Key="fast") for _ in range(2))
    assert (first.data, again.data) == (first.data, first.data)
    assert again.headers["Idempotency-Replayed"] == "true"
    assert post([EVENT], Idempotency_Key="fast").status_code == 422


def test_gzip_and_ndjson_are_read(post: Post) -> None:
    lines = b"\n".join([json.dumps(EVENT).encode()] * 3)
    response = post(gzip.compress(lines), Content_Encoding="gzip", Content_Type="application/x-ndjson")
    assert response.json["data"]["ingested"] == 3  # type: ignore[index]


def test_the_error_of_a_used_up_quota_has_the_time_of_the_next(
    client: FlaskClient, post: Post, database_url: str
) -> None:
    key = set_up(database_url, "fast-limited", 1)
    assert post(EVENT, Authorization=f"Bearer {key}").status_code == 200
    response = post(EVENT, Authorization=f"Bearer {key}")
    assert response.status_code == 429
    assert set(response.json["meta"]) == {"remainingQuota", "quotaResetsAt"}  # type: ignore[index]
    assert "Retry-After" not in response.headers


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"{", {}),
        ({}, {}),
        (b"", {"Content_Type": "text/plain"}),
        (EVENT, {"Idempotency_Key": "é"}),
        (b" " * 10_001, {}),
        (EVENT, {}),
    ],
)
def test_a_key_that_was_revoked_meanwhile_gets_401_before_other_errors(
    post: Post, client: FlaskClient, database_url: str, body: Any, headers: dict[str, str]
) -> None:
    key = set_up(database_url, "fast-revoked", None)
    assert post(EVENT, Authorization=f"Bearer {key}").status_code == 200  # the process remembers the key
    with client.application.extensions["storage"].database.connection() as connection:
        connection.execute("UPDATE api_keys SET revoked_at = now() WHERE org_id = 'fast-revoked'")
    assert post(body, Authorization=f"Bearer {key}", **headers).status_code == 401


def test_the_probes_and_the_description_need_no_key(client: FlaskClient) -> None:
    assert [client.get(path).status_code for path in ("/healthz", "/readyz", "/openapi.yaml")] == [200] * 3
