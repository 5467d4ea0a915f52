"""What an event is, without HTTP and database: schemas.py and json_text.py."""

import json
import re
from typing import Any

import pytest

import schemas
from dev.service import EVENT, ROOT
from json_text import InvalidJSON, Parser, TooLarge, check_value_count, storable_text

CASES = json.loads((ROOT / "tests/zod/cases.json").read_text())


def details(body: bytes, **options: Any) -> schemas.Details:
    """The problems of a body; an empty list if it is valid."""
    try:
        return schemas.parse_batch(body, 10_000, 500_000, **options).details()
    except schemas.ValidationFailed as error:
        return error.args[0]  # type: ignore[no-any-return]


def test_the_results_are_those_of_zod() -> None:
    assert len(CASES) == 224
    for case in CASES:
        assert details(case["body"].encode()) == case["expect"].get("details", []), case["name"]


def test_a_batch_names_its_valid_events() -> None:
    batch = schemas.parse_batch(json.dumps([EVENT, 1, EVENT, {}]).encode(), 10, 100)
    assert (batch.valid, batch.error_counts) == ([0, 2], {1: 1, 3: 2})


def test_a_faulty_line_is_a_faulty_event() -> None:
    body = b'{"type": "custom", "toolName": "x"}\n\n{\n'
    [detail] = details(body, ndjson=True)
    assert detail["field"] == "1"
    assert re.fullmatch(r"Invalid JSON: .* \(in line 3 of the body\)", detail["message"])


def test_no_more_than_a_thousand_problems_are_listed() -> None:
    listed = details(json.dumps([{}] * 600).encode())
    assert (len(listed), listed[-1]) == (1001, {"field": "", "message": "and 200 more"})


@pytest.mark.parametrize("text", ["NaN", "-Infinity", "[" * 200_000 + "]" * 200_000, "{", '"\x00"'])
def test_what_is_not_json_is_rejected(text: str) -> None:
    with pytest.raises(InvalidJSON):
        Parser().parse(text.encode())


def test_values_in_strings_do_not_count() -> None:
    check_value_count([b'["[,,,,{{{", "\\",\\"[,,,"]'], 2)
    with pytest.raises(TooLarge):
        check_value_count([b'["a", "b"]'], 1)


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        (r'"\u0000"', r'"\ufffd"'),
        (r'"\\u0000"', r'"\\u0000"'),
        (r'"\ud800"', r'"\ufffd"'),
        (r'"\ud83d\ude00"', r'"\ud83d\ude00"'),
        (r'"\ude00\ud83d"', r'"\ufffd\ufffd"'),
    ],
)
def test_what_jsonb_can_not_hold_is_replaced(text: str, stored: str) -> None:
    assert storable_text(text) == stored
