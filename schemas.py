"""What an event is: Igris's Zod rules as marshmallow fields, with Zod's messages in Zod's order.

The reference is Zod 3.25. A rule stands once, in the `wrong` of its field: marshmallow asks it for the message of
a bad event, and `faults` asks it first whether an event is bad at all.
"""

import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from marshmallow import EXCLUDE, Schema, ValidationError, fields, missing, pre_load

MAX_DETAILS = 1000
"""Of all that is wrong with a batch, this much is listed; the rest is counted."""

MAX_ZEROS = 2**24
"""PostgreSQL keeps 1e9999 in a few bytes and prints it with all its zeros: a body of such numbers could be stored, but
neither read nor dumped."""

Details = list[dict[str, str]]
"""What is wrong: a dotted path (`field`) and a sentence (`message`) each."""


class InvalidJSON(Exception):
    """The body is not JSON. The argument says why."""


class InvalidEvents(Exception):
    """The body is JSON, but breaks the rules of events. The argument is the Details."""


def _received(value: object) -> str:
    """Zod's name for the type of a JSON value."""
    if value is None:
        return "null"
    return {bool: "boolean", int: "number", float: "number", str: "string", list: "array", dict: "object"}[type(value)]


class _Rule(fields.Field[Any]):
    """A field whose whole rule is `wrong`: it takes a JSON value, or `missing`, and returns Zod's message or None."""

    expected: str

    def __init__(self, *, required: bool = False) -> None:
        super().__init__(
            required=required,
            error_messages={"required": "Required", "null": f"Expected {self.expected}, received null"},
        )

    def wrong(self, value: Any) -> str | None:
        raise NotImplementedError

    def mistyped(self, value: Any) -> str | None:
        """The message for a value of the wrong JSON type; None for an absent value that may be absent."""
        if value is missing:
            return "Required" if self.required else None
        return f"Expected {self.expected}, received {_received(value)}"

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> Any:
        if message := self.wrong(value):
            raise ValidationError(message)
        return value


class _Enum(_Rule):
    def __init__(self, *values: str, required: bool = False) -> None:
        self.values = values
        self.expected = " | ".join(f"'{value}'" for value in values)
        super().__init__(required=required)

    def wrong(self, value: Any) -> str | None:
        if type(value) is not str:
            return self.mistyped(value)
        if value in self.values:
            return None
        return f"Invalid enum value. Expected {self.expected}, received '{value}'"


class _String(_Rule):
    """The lengths count UTF-16 code units, as JavaScript does."""

    expected = "string"

    def __init__(self, least: int, most: int, *, required: bool = False) -> None:
        self.least, self.most = least, most
        super().__init__(required=required)

    def wrong(self, value: Any) -> str | None:
        if type(value) is not str:
            return self.mistyped(value)
        length = len(value) if value.isascii() else len(value.encode("utf-16-le", "surrogatepass")) // 2
        if length < self.least:
            return f"String must contain at least {self.least} character(s)"
        if length > self.most:
            return f"String must contain at most {self.most} character(s)"
        return None


_LAST_INSTANT = datetime.max.replace(tzinfo=UTC)


class _Instant(_Rule):
    """ISO 8601 with `Z` or an offset. Stricter than Zod: an instant of the years 1 to 9999 in UTC, a real offset.

    PostgreSQL knows no offset of 16 hours or more. It rounds to microseconds where Python cuts them off, so the last
    half microsecond of the year 9999 is in the year 10000 for it.
    """

    expected = "string"
    _shape = re.compile(
        r"\d{4}-\d\d-\d\dT(?:[01]\d|2[0-3]):[0-5]\d(?::[0-5]\d(?:\.\d+)?)?(?:Z|[+-](?:0\d|1[0-5]):?[0-5]\d)",
        re.ASCII,
    )

    def wrong(self, value: Any) -> str | None:
        if type(value) is not str:
            return self.mistyped(value)
        if self._shape.fullmatch(value):
            try:
                instant = datetime.fromisoformat(value)
                if 1 < instant.year < 9999:
                    return None
                if instant.astimezone(UTC) < _LAST_INSTANT or not self._rounds_up(value):
                    return None
            except (ValueError, OverflowError):
                pass
        return "Invalid datetime"

    def _rounds_up(self, value: str) -> bool:
        """Whether PostgreSQL takes the fraction of the second for a whole one; it computes in floating point too."""
        fraction = re.search(r"\.\d+", value)
        return fraction is not None and round(float(fraction[0]) * 1_000_000) == 1_000_000


class _Object(_Rule):
    expected = "object"

    def wrong(self, value: Any) -> str | None:
        return None if type(value) is dict else self.mistyped(value)


class Event(Schema):
    """An audit event as a client sends it; keys that are not named here are dropped."""

    class Meta:
        unknown = EXCLUDE

    type = _Enum("tool_call", "completion", "embedding", "custom", required=True)
    toolName = _String(1, 255, required=True)
    action = _Enum("allow", "deny", "alert", "log")
    timestamp = _Instant()
    metadata = _Object()

    @pre_load
    def must_be_an_object(self, data: Any, **kwargs: Any) -> Any:
        if type(data) is not dict:
            raise ValidationError(f"Expected object, received {_received(data)}")
        return data


_event = Event()
_rules = tuple((name, field.wrong) for name, field in _event.load_fields.items() if isinstance(field, _Rule))


def faults(event: Any) -> int:
    """How many rules an event breaks, in an eighth of the time that marshmallow takes to say which."""
    if type(event) is not dict:
        return 1
    count = 0
    get = event.get
    for name, wrong in _rules:
        if wrong(get(name, missing)) is not None:
            count += 1
    return count


def messages(event: Any) -> list[tuple[str, str]]:
    """Field and message of each rule that an event breaks; the field is empty if it is no object at all."""
    try:
        _event.load(event)
    except ValidationError as error:
        return [("" if name == "_schema" else name, texts[0]) for name, texts in error.messages_dict.items()]
    return []


@dataclass(frozen=True, slots=True)
class Batch:
    """The events of a body, in their order."""

    events: list[Any]
    faulty: dict[int, int]
    """The indexes of the events that break rules, ascending, with how many each breaks."""
    path: str = ""
    """What a field's path begins with: `events` or nothing."""
    single: bool = False
    """The body is the event itself, in no list."""

    @property
    def valid(self) -> list[int]:
        """The indexes of the events that can be stored."""
        return [index for index in range(len(self.events)) if index not in self.faulty]

    def details(self, past_quota: Collection[int] = (), root: Sequence[str] = (), more: int = 0) -> Details:
        """What is wrong: with the list itself (`root`), and with each event that is faulty or past the quota.

        Not more than MAX_DETAILS are listed; a last one says how many more there are, and `more` not known here.
        """
        details = [_detail(self.path, message) for message in root]
        unlisted = more
        for index in sorted({*self.faulty, *past_quota}):
            if len(details) >= MAX_DETAILS:
                unlisted += self.faulty.get(index, 1)
                continue
            for name, message in messages(self.events[index]) if index in self.faulty else [("", "Quota exceeded")]:
                details.append(_detail(".".join(filter(None, (self.path, str(index), name))), message))
        unlisted += max(0, len(details) - MAX_DETAILS)
        if unlisted:
            details[MAX_DETAILS:] = [_detail("", f"and {unlisted} more")]
        return details


def parse_json(body: bytes) -> tuple[str, Any]:
    """The text of a JSON body in UTF-8 (RFC 8259), and its value. Raises InvalidJSON.

    Python's parser takes NaN and Infinity for JSON; they are refused here. Its limits, about a thousand levels of
    nesting and 4,300 digits of an integer, become ours. MAX_ZEROS is the limit of all exponents together.
    """
    zeros = 0

    def parse_float(number: str) -> float:
        nonlocal zeros
        if "e" in number or "E" in number:
            zeros += abs(int(re.split("[eE]", number)[1]))
            if zeros > MAX_ZEROS:
                raise InvalidJSON("The numbers have too many digits")
        return float(number)

    try:
        text = body.decode()
        return text, json.loads(text, parse_constant=_refuse_constant, parse_float=parse_float)
    except UnicodeDecodeError as error:
        raise InvalidJSON(f"The body is not UTF-8: {error.reason} at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise InvalidJSON(str(error)) from None
    except RecursionError:
        raise InvalidJSON("Nested too deep") from None
    except ValueError:
        raise InvalidJSON("A number is too long") from None


def _refuse_constant(name: str) -> None:
    raise InvalidJSON(f"{name} is not JSON")


def load(data: Any, max_events: int) -> Batch:
    """The events of a parsed body: an object with the key `events` and an array are batches, all else is one event.

    Raises InvalidEvents if there is no list of 1 to `max_events` events, or if the only event is a bad one.
    """
    if type(data) is dict and "events" in data:
        events, path = data["events"], "events"
    elif type(data) is list:
        events, path = data, ""
    elif faults(data):
        raise InvalidEvents([_detail(name, message) for name, message in messages(data)])
    else:
        return Batch([data], {}, single=True)
    if type(events) is not list:
        raise InvalidEvents([_detail(path, f"Expected array, received {_received(events)}")])
    faulty: dict[int, int] = {}
    more = 0
    for index, event in enumerate(events):
        if count := faults(event):
            if index < max_events or len(faulty) < MAX_DETAILS:
                faulty[index] = count
            else:  # millions may follow where the limit is 10,000
                more += count
    batch = Batch(events, faulty, path)
    if not events:
        raise InvalidEvents(batch.details(root=["Array must contain at least 1 element(s)"]))
    if len(events) > max_events:
        raise InvalidEvents(batch.details(root=[f"Array must contain at most {max_events} element(s)"], more=more))
    return batch


def _detail(field: str, message: str) -> dict[str, str]:
    return {"field": field, "message": message}
