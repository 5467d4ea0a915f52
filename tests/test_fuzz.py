"""For any input, the response is one of the contract's, and the rows are those that were acknowledged.

`make fuzz` goes on for FUZZ_MINUTES, with new bodies each time.
"""

import gzip
import json
import os
import time
from collections.abc import Callable
from decimal import Decimal
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dev.service import EVENT
from schemas import Event
from tests.support import Account


def dump(document: Any, ascii_only: bool) -> bytes:
    return json.dumps(document, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")


FIELDS = list(Event().load_fields)

numbers = st.one_of(
    st.integers(),
    st.floats(),
    st.integers(-400, 400).map(lambda exponent: float(f"1e{exponent}")),
)
json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, st.text(st.characters(codec=None), max_size=20)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(
            st.sampled_from([*Event().load_fields, "events", "", "a.b", "\0", "\ud800"]), inner, max_size=6
        ),
    ),
    max_leaves=12,
)
timestamps = st.from_regex(
    r"\d{4}-[01]\d-[0-3]\d[T ][0-2]\d:[0-6]\d(:[0-6]\d(\.\d{1,99})?)?(Z|[+-]\d\d:?\d\d)?", fullmatch=True
)
valid_events = st.fixed_dictionaries(
    {
        "type": st.sampled_from(["tool_call", "completion", "embedding", "custom"]),
        "toolName": st.text(st.characters(codec=None), min_size=1, max_size=130),
    },
    optional={
        "action": st.sampled_from(["allow", "deny", "alert", "log"]),
        "timestamp": st.just("2026-03-19T10:00:00.123456789+05:30"),
        "metadata": st.dictionaries(st.text(st.characters(codec=None), max_size=9), json_values, max_size=4),
    },
)
mutated_events = st.builds(
    lambda event, changes, dropped: {name: value for name, value in {**event, **changes}.items() if name != dropped},
    valid_events,
    st.dictionaries(st.sampled_from(FIELDS), st.one_of(json_values, timestamps), max_size=2),
    st.sampled_from([None, *FIELDS]),
)
events = st.one_of(valid_events, mutated_events)
batches = st.lists(events, max_size=5)
documents = st.one_of(json_values, events, batches, batches.map(lambda batch: {"events": batch}))
texts = st.builds(dump, documents, st.booleans())
fragments = st.sampled_from(
    [
        b"",
        b"NaN",
        b"1e999999",
        b"-",
        b"9" * 5000,
        b"\\u0000",
        b"\\ud800",
        b"\\",
        b'"',
        b"[" * 3000,
        b"\xff",
        b"\0",
        b"{}",
        b",",
    ]
)
broken = st.builds(
    lambda text, at, length, fragment: text[: at % (len(text) + 1)] + fragment + text[at % (len(text) + 1) + length :],
    texts,
    st.integers(0, 10_000),
    st.integers(0, 3),
    st.one_of(fragments, st.binary(max_size=3)),
)
bodies = st.one_of(texts, broken, st.binary(max_size=50))
encoded = st.one_of(
    bodies.map(lambda body: (body, {})),
    bodies.map(lambda body: (gzip.compress(body), {"Content-Encoding": "gzip"})),
    broken.map(lambda body: (gzip.compress(body)[:-3] + body, {"Content-Encoding": "gzip"})),
)
headers = st.fixed_dictionaries(
    {},
    optional={
        "Prefer": st.sampled_from(["handling=lenient", "handling=strict", "x; y=z,, =", '"']),
        "Idempotency-Key": st.one_of(st.sampled_from(["a", "b", '"c"']), st.text("ab \"'~é", max_size=3)),
    },
)


def fuzz(function: Callable[..., None], *strategies: st.SearchStrategy[Any], examples: int) -> None:
    run = settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))(
        given(*strategies)(function)
    )
    until = time.monotonic() + float(os.environ.get("FUZZ_MINUTES", "0")) * 60
    run()
    while time.monotonic() < until:
        run()


def test_no_body_causes_anything_but_a_response_of_the_contract(new_account: Callable[..., Account]) -> None:
    account = new_account(quota=None)
    acknowledged = 0

    def post(body: tuple[bytes, dict[str, str]], headers: dict[str, str]) -> None:
        nonlocal acknowledged
        response = account.post(body[0], **body[1], **headers)
        assert response.status in (200, 400, 413, 422), (response.status, response.body)
        if response.status == 200:
            if "Idempotency-Replayed" not in response.headers:
                acknowledged += response.json["data"]["ingested"]
        else:
            assert response.json["error"]

    fuzz(post, encoded, headers, examples=400)
    assert acknowledged > 0
    assert account.count() == account.used() == acknowledged
    assert account.post(EVENT).status == 200


def test_metadata_comes_back_as_it_was_sent(new_account: Callable[..., Account]) -> None:
    account = new_account(quota=None)

    def post(body: bytes) -> None:
        # a 400: a number that is none in JSON, or a name of too many UTF-16 code units
        if account.post(body).status == 200:
            sent = [(event["toolName"], event.get("metadata", {})) for event in exact(body)]
            query = "SELECT tool_name, metadata::text FROM audit_events WHERE org_id = %s ORDER BY id DESC LIMIT %s"
            stored = reversed(account.execute(query, account.org_id, len(sent)))
            assert [(name, exact(metadata)) for name, metadata in stored] == storable(sent)

    fuzz(post, st.builds(dump, st.lists(valid_events, min_size=1, max_size=5), st.just(value=True)), examples=100)
    assert account.count() > 0


def exact(text: bytes | str) -> Any:
    return json.loads(text, parse_int=Decimal, parse_float=Decimal)


def storable(value: Any) -> Any:
    """The value with U+FFFD for what jsonb can't hold."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace").replace("\0", "\ufffd")
    if isinstance(value, list | tuple):
        return type(value)(storable(item) for item in value)
    if isinstance(value, dict):
        return {storable(key): storable(item) for key, item in value.items()}
    return value
