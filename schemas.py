"""Validate audit events: Igris's Zod rules as marshmallow fields, with Zod's messages in Zod's order.

The reference is Zod 3.25: tests/zod has the schema, and bodies with its results. marshmallow holds the declaration of
an event, and each field's `check` is its whole rule. marshmallow's own loading takes eight times as long.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Any

from marshmallow import Schema, fields, missing

from json_text import InvalidJSON, Parser, check_value_count

MAX_DETAILS = 1000  # a response lists at most this many problems and counts the rest

MAX_ECHO = 1000  # a message repeats at most this many characters of a client's value. Zod repeats all of them.

Details = list[dict[str, str]]  # the problems of a body: each has a dotted path (`field`) and a sentence (`message`)


class ValidationFailed(Exception):
    """Events, or a header, break the rules. The arguments are the Details and the number of events."""


def _type_name(value: object) -> str:
    """Return Zod's name for the type of a JSON value."""
    if value is None:
        return "null"
    return {bool: "boolean", int: "number", float: "number", str: "string", list: "array", dict: "object"}[type(value)]


class Rule(fields.Field[Any]):
    expected = "string"

    def check(self, value: Any) -> str | None:
        """Return Zod's message for a JSON value, or for `missing`; None if the value is valid."""
        raise NotImplementedError

    def type_error(self, value: Any) -> str | None:
        """Return the message for a value of the wrong JSON type; None for an absent value that may be absent."""
        if value is missing:
            return "Required" if self.required else None
        return f"Expected {self.expected}, received {_type_name(value)}"


class Enum(Rule):
    def __init__(self, *values: str, required: bool = False) -> None:
        super().__init__(required=required)
        self.values = values
        self.expected = " | ".join(f"'{value}'" for value in values)

    def check(self, value: Any) -> str | None:
        if type(value) is not str:
            return self.type_error(value)
        if value in self.values:
            return None
        echo = value if len(value) <= MAX_ECHO else f"{value[:MAX_ECHO]}..."
        return f"Invalid enum value. Expected {self.expected}, received '{echo}'"


class String(Rule):
    """A string whose length is counted in UTF-16 code units, as JavaScript does."""

    def __init__(self, min_length: int, max_length: int, *, required: bool = False) -> None:
        super().__init__(required=required)
        self.min_length, self.max_length = min_length, max_length

    def check(self, value: Any) -> str | None:
        if type(value) is not str:
            return self.type_error(value)
        length = len(value) if value.isascii() else len(value.encode("utf-16-le", "surrogatepass")) // 2
        if length < self.min_length:
            return f"String must contain at least {self.min_length} character(s)"
        if length > self.max_length:
            return f"String must contain at most {self.max_length} character(s)"
        return None


class Instant(Rule):
    """An ISO 8601 time with `Z` or an offset. It is stricter than Zod: years 1 to 9999 in UTC, a real offset.

    PostgreSQL accepts no offset of 16 hours or more. It rounds to microseconds where Python truncates, so the last
    microsecond of the year 9999 may have no further digits.
    """

    _shape = re.compile(
        r"\d{4}-\d\d-\d\dT(?:[01]\d|2[0-3]):[0-5]\d(?::[0-5]\d(?:\.\d+)?)?(?:Z|[+-](?:0\d|1[0-5]):?[0-5]\d)",
        re.ASCII,
    )
    _last = datetime.max.replace(tzinfo=UTC)
    _exact = re.compile(r"\.\d{6}0*(?!\d)", re.ASCII)

    def check(self, value: Any) -> str | None:
        if type(value) is not str:
            return self.type_error(value)
        if self._shape.fullmatch(value):
            try:
                instant = datetime.fromisoformat(value)
                if 1 < instant.year < 9999 or instant.astimezone(UTC) < self._last or self._exact.search(value):
                    return None
            except (ValueError, OverflowError):
                pass
        return "Invalid datetime"


class Object(Rule):
    expected = "object"

    def check(self, value: Any) -> str | None:
        return None if type(value) is dict else self.type_error(value)


class Event(Schema):
    """An audit event as a client sends it. Unknown keys are ignored."""

    type = Enum("tool_call", "completion", "embedding", "custom", required=True)
    toolName = String(1, 255, required=True)
    action = Enum("allow", "deny", "alert", "log")
    timestamp = Instant()
    metadata = Object()


_checks = tuple((name, rule.check) for name, rule in Event().fields.items() if isinstance(rule, Rule))


def error_messages(event: Any) -> list[tuple[str, str]]:
    """Return the field and message of each rule that an event breaks. The field is empty if it is not an object."""
    if isinstance(event, InvalidJSON):
        return [("", f"Invalid JSON: {event}")]
    if type(event) is not dict:
        return [("", f"Expected object, received {_type_name(event)}")]
    get = event.get
    return [(name, message) for name, check in _checks if (message := check(get(name, missing)))]


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
        """List the problem of the list itself (`root`), then those of each invalid event: at most MAX_DETAILS.

        One more entry says how many are not listed.
        """
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
    """Parse a body and validate its events. `ndjson` means one event a line; empty lines are skipped.

    An object with the key `events` and an array are batches; anything else is one event. Raises InvalidJSON,
    TooLarge, and ValidationFailed if there is no list of 1 to `max_events` events, or if the only event is invalid.
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
        if has_events:
            raise ValidationFailed([{"field": path, "message": f"Expected array, received {_type_name(events)}"}], 0)
        if messages := error_messages(data):
            raise ValidationFailed([{"field": name, "message": message} for name, message in messages], 1)
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
