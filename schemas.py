"""Validate audit events: Igris's Zod rules as a marshmallow schema, with Zod's messages in Zod's order.

The reference is Zod 3.25: tests/zod has its schema, and bodies with its results. `error_messages` applies the fields
and validators of `Event` itself: marshmallow's `load` has other messages, and takes ten times as long.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from itertools import islice
from typing import Any

from marshmallow import EXCLUDE, Schema, ValidationError, fields, missing

from json_text import InvalidJSON, Parser, check_value_count

MAX_LENGTH = 255  # of toolName
MAX_DETAILS = 1000  # a response lists at most this many problems and counts the rest
MAX_ECHO = 1000  # a message repeats at most this many characters of a client's value. Zod repeats all of them.

# Zod's names for the types of JSON values
TYPE_NAMES = {type(None): "null", bool: "boolean", int: "number", float: "number", str: "string"}
TYPE_NAMES |= {list: "array", dict: "object"}

Details = list[dict[str, str]]  # the problems of a body: each has a dotted path (`field`) and a sentence (`message`)


class ValidationFailed(Exception):
    """Events, or a header, break the rules. The arguments are the Details and the number of events."""


class OneOf:
    def __init__(self, *values: str) -> None:
        self.values = values
        self.expected = " | ".join(f"'{value}'" for value in values)

    def __call__(self, value: str) -> None:
        if value not in self.values:
            echo = value if len(value) <= MAX_ECHO else f"{value[:MAX_ECHO]}..."
            raise ValidationError(f"Invalid enum value. Expected {self.expected}, received '{echo}'")


def length(value: str) -> None:
    """Accept 1 to MAX_LENGTH UTF-16 code units, as JavaScript counts."""
    units = len(value) if value.isascii() else len(value.encode("utf-16-le", "surrogatepass")) // 2
    if not 1 <= units <= MAX_LENGTH:
        bound = f"at most {MAX_LENGTH}" if units else "at least 1"
        raise ValidationError(f"String must contain {bound} character(s)")


_INSTANT = re.compile(  # a safe date exists, and no zone moves it out of the years that PostgreSQL and Python have
    r"(?a)(?:(?P<safe>(?!000[01]|9999)\d{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|1\d|2[0-8]))|\d{4}-\d\d-\d\d)"
    r"T(?:[01]\d|2[0-3]):[0-5]\d(?::[0-5]\d(?:\.\d+)?)?(?:Z|[+-](?:0\d|1[0-5]):?[0-5]\d)"
)
_LAST_INSTANT = datetime.max.replace(tzinfo=UTC)
_WHOLE_MICROSECONDS = re.compile(r"\.\d{6}0*(?!\d)", re.ASCII)


def instant(value: str) -> None:
    """Accept an ISO 8601 time with a zone, as PostgreSQL can hold it: years 1 to 9999 in UTC, less than 16 hours."""
    if match := _INSTANT.fullmatch(value):
        try:  # PostgreSQL rounds to microseconds: the last one of the year 9999 may have no further digits
            time = None if match["safe"] else datetime.fromisoformat(value).astimezone(UTC)
            if time is None or time < _LAST_INSTANT or _WHOLE_MICROSECONDS.search(value):
                return
        except (ValueError, OverflowError):
            pass
    raise ValidationError("Invalid datetime")


class Event(Schema):
    """An audit event as a client sends it. Unknown keys are ignored."""

    class Meta:
        unknown = EXCLUDE

    type = fields.String(required=True, validate=OneOf("tool_call", "completion", "embedding", "custom"))
    toolName = fields.String(required=True, validate=length)
    action = fields.String(validate=OneOf("allow", "deny", "alert", "log"))
    timestamp = fields.String(validate=instant)
    metadata = fields.Dict()


# Of each field: name, type, validator (one at most), and Zod's words for a value of another type and an absent one.
_RULES: list[Any] = [
    (
        name,
        dict if isinstance(field, fields.Dict) else str,
        validator if validator in (bool, instant) else lru_cache(validator),  # batches repeat the same values
        getattr(validator, "expected", None),
        "Required" if field.required else None,
    )
    for name, field in Event().fields.items()
    for validator in field.validators or [bool]  # which accepts all
]


def error_messages(event: Any) -> list[tuple[str, str]]:
    """Return the field and message of each rule that an event breaks; the field is "" if it is not an object."""
    if isinstance(event, InvalidJSON):
        return [("", f"Invalid JSON: {event}")]
    if type(event) is not dict:
        return [("", f"Expected object, received {TYPE_NAMES[type(event)]}")]
    messages = []
    for name, kind, validate, expected, absent in _RULES:
        value = event.get(name, missing)
        if type(value) is kind:
            try:
                validate(value)
            except ValidationError as error:
                messages.append((name, str(error.messages[0])))
        elif value is not missing:
            messages.append((name, f"Expected {expected or TYPE_NAMES[kind]}, received {TYPE_NAMES[type(value)]}"))
        elif absent:
            messages.append((name, absent))
    return messages


@dataclass(frozen=True, slots=True)
class Batch:
    """The events of a body, in their order."""

    text: str  # the JSON text that the events can be stored from: an array, or an object whose `events` is one
    events: list[Any]  # the parsed events; an InvalidJSON stands for a line that could not be parsed
    error_counts: dict[int, int]  # the indexes of the invalid events, ascending, with how many rules each breaks
    path: str = ""  # the beginning of each field's path: `events` or nothing

    @property
    def valid(self) -> list[int]:
        """The indexes of the events that can be stored."""
        return [index for index in range(len(self.events)) if index not in self.error_counts]

    def details(self, root: str | None = None) -> Details:
        """List the problem of the list itself (`root`), then those of each invalid event, at most MAX_DETAILS."""
        details = [{"field": self.path, "message": root}] if root else []
        total = len(details) + sum(self.error_counts.values())
        for index in self.error_counts:
            if len(details) >= MAX_DETAILS:
                break
            for name, message in error_messages(self.events[index]):
                details.append({"field": ".".join(filter(None, (self.path, str(index), name))), "message": message})
        if total > MAX_DETAILS:
            details[MAX_DETAILS:] = [{"field": "", "message": f"and {total - MAX_DETAILS} more"}]
        return details


def parse_batch(body: bytes, max_events: int, max_values: int, *, ndjson: bool = False) -> Batch:
    """Parse a body, and validate its events. An array, and an object with the key `events`, are batches.

    Raises InvalidJSON, TooLarge, and ValidationFailed if there is no list of 1 to `max_events` events, or if the only
    event is invalid.
    """
    data: Any
    if ndjson:
        text, data = _parse_lines(body, max_events, max_values)
    else:
        check_value_count([body], max_values)
        text, data = Parser(hints=True).parse(body)
    has_events = type(data) is dict and "events" in data
    events, path = (data["events"], "events") if has_events else (data, "")
    if type(events) is not list:
        messages = [(path, f"Expected array, received {TYPE_NAMES[type(events)]}")] if path else error_messages(data)
        if messages:
            details = [{"field": name, "message": message} for name, message in messages]
            raise ValidationFailed(details, 0 if path else 1)
        return Batch(f"[{text}]", [data], {})
    error_counts: dict[int, int] = {}
    for index, event in enumerate(events):
        if index >= max_events and len(error_counts) >= MAX_DETAILS:
            break  # millions of events may follow, and no message would name them
        if messages := error_messages(event):
            error_counts[index] = len(messages)
    batch = Batch(text, events, error_counts, path)
    if not events:
        raise ValidationFailed(batch.details("Array must contain at least 1 element(s)"), 0)
    if len(events) > max_events:
        raise ValidationFailed(batch.details(f"Array must contain at most {max_events} element(s)"), len(events))
    return batch


def _parse_lines(body: bytes, max_events: int, max_values: int) -> tuple[str, list[Any]]:
    """Return the lines as the text of a JSON array, and their values. Raises TooLarge."""
    matches = list(islice(re.finditer(rb"[^ \t\r\n][^\n]*", body), max_events + 1))  # one too many rejects the batch
    lines = [match[0] for match in matches]
    rest = body[matches[-1].end() :] if len(matches) > max_events else b""
    check_value_count([*lines, rest], max_values)
    texts: list[str] = []
    events: list[Any] = []
    parser = Parser(hints=True)
    number, counted = 1, 0
    for match, line in zip(matches, lines, strict=True):
        try:
            text, event = parser.parse(line)
        except InvalidJSON as error:
            number += body.count(b"\n", counted, match.start())
            counted = match.start()
            text, event = "null", InvalidJSON(f"{error} (in line {number} of the body)")
        texts.append(text)
        events.append(event)
    return f"[{','.join(texts)}]", events
