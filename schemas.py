"""Validate audit events: Igris's Zod rules as marshmallow fields, with Zod's messages in Zod's order.

The reference is Zod 3.25. Each rule is written once, in its field's `check`. `count_errors` calls it directly, which is
fast; marshmallow collects the messages of the events that fail.
"""

import json
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from marshmallow import EXCLUDE, Schema, ValidationError, fields, missing, pre_load

MAX_DETAILS = 1000
"""A response lists at most this many problems and counts the rest."""

MAX_ECHO = 1000
"""A message repeats at most this many characters of a client's value. Zod repeats all of them."""

MAX_ZEROS = 2**24
"""The exponents of a body may add up to this. PostgreSQL stores 1e9999 in a few bytes and prints it with all its zeros:
a body of many such numbers could be stored, but neither read nor dumped."""

MAX_UNSTORABLE = 100_000
"""The places in a body where characters are replaced because PostgreSQL can't store them: each takes time."""

Details = list[dict[str, str]]
"""The problems of a body: each has a dotted path (`field`) and a sentence (`message`)."""


class InvalidJSON(Exception):
    """The body is not JSON. The argument says why."""


class LimitExceeded(InvalidJSON):
    """The body as a whole, whatever its lines are, has more of something than a body may have."""


class TooManyValues(Exception):
    """The body has more JSON values than a body may have. The argument is the limit."""

    def __str__(self) -> str:
        return f"The body must have at most {self.args[0]} JSON values: split the batch"


class InvalidEvents(Exception):
    """The body is JSON, but its events break the rules. The arguments are the Details and the number of events."""


def _type_name(value: object) -> str:
    """Return Zod's name for the type of a JSON value."""
    if value is None:
        return "null"
    return {bool: "boolean", int: "number", float: "number", str: "string", list: "array", dict: "object"}[type(value)]


class _Rule(fields.Field[Any]):
    """A field whose whole rule is `check`."""

    expected: str

    def __init__(self, *, required: bool = False) -> None:
        super().__init__(
            required=required,
            error_messages={"required": "Required", "null": f"Expected {self.expected}, received null"},
        )

    def check(self, value: Any) -> str | None:
        """Return Zod's message for a JSON value, or for `missing`; None if the value is valid."""
        raise NotImplementedError

    def type_error(self, value: Any) -> str | None:
        """Return the message for a value of the wrong JSON type; None for an absent value that may be absent."""
        if value is missing:
            return "Required" if self.required else None
        return f"Expected {self.expected}, received {_type_name(value)}"

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> Any:
        if message := self.check(value):
            raise ValidationError(message)
        return value


class _Enum(_Rule):
    def __init__(self, *values: str, required: bool = False) -> None:
        self.values = values
        self.expected = " | ".join(f"'{value}'" for value in values)
        super().__init__(required=required)

    def check(self, value: Any) -> str | None:
        if type(value) is not str:
            return self.type_error(value)
        if value in self.values:
            return None
        echo = value if len(value) <= MAX_ECHO else f"{value[:MAX_ECHO]}..."
        return f"Invalid enum value. Expected {self.expected}, received '{echo}'"


class _String(_Rule):
    """A string whose length is counted in UTF-16 code units, as JavaScript does."""

    expected = "string"

    def __init__(self, min_length: int, max_length: int, *, required: bool = False) -> None:
        self.min_length, self.max_length = min_length, max_length
        super().__init__(required=required)

    def check(self, value: Any) -> str | None:
        if type(value) is not str:
            return self.type_error(value)
        length = len(value) if value.isascii() else len(value.encode("utf-16-le", "surrogatepass")) // 2
        if length < self.min_length:
            return f"String must contain at least {self.min_length} character(s)"
        if length > self.max_length:
            return f"String must contain at most {self.max_length} character(s)"
        return None


_LAST_INSTANT = datetime.max.replace(tzinfo=UTC)


class _Instant(_Rule):
    """An ISO 8601 time with `Z` or an offset. It is stricter than Zod: years 1 to 9999 in UTC, a real offset.

    PostgreSQL accepts no offset of 16 hours or more. It rounds to microseconds where Python truncates, so it puts the
    last half microsecond of the year 9999 into the year 10000.
    """

    expected = "string"
    _shape = re.compile(
        r"\d{4}-\d\d-\d\dT(?:[01]\d|2[0-3]):[0-5]\d(?::[0-5]\d(?:\.\d+)?)?(?:Z|[+-](?:0\d|1[0-5]):?[0-5]\d)",
        re.ASCII,
    )

    def check(self, value: Any) -> str | None:
        if type(value) is not str:
            return self.type_error(value)
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
        """Return whether PostgreSQL, which computes in floating point too, rounds the fraction up to a whole second."""
        fraction = re.search(r"\.\d+", value)
        return fraction is not None and round(float(fraction[0]) * 1_000_000) == 1_000_000


class _Object(_Rule):
    expected = "object"

    def check(self, value: Any) -> str | None:
        return None if type(value) is dict else self.type_error(value)


class Event(Schema):
    """An audit event as a client sends it. Keys that are not named here are dropped."""

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
            raise ValidationError(f"Expected object, received {_type_name(data)}")
        return data


_event = Event()
_checks = tuple((name, field.check) for name, field in _event.load_fields.items() if isinstance(field, _Rule))


def count_errors(event: Any) -> int:
    """Return how many rules an event breaks, in an eighth of the time that marshmallow takes to name them."""
    if type(event) is not dict:
        return 1
    count = 0
    get = event.get
    for name, check in _checks:
        if check(get(name, missing)) is not None:
            count += 1
    return count


def error_messages(event: Any) -> list[tuple[str, str]]:
    """Return the field and message of each rule that an event breaks. The field is empty if it is not an object."""
    if isinstance(event, InvalidJSON):
        return [("", f"Invalid JSON: {event}")]
    try:
        _event.load(event)
    except ValidationError as error:
        return [("" if name == "_schema" else name, texts[0]) for name, texts in error.messages_dict.items()]
    return []


@dataclass(frozen=True, slots=True)
class Batch:
    """The events of a body, in their order."""

    text: str
    """The JSON text that the events can be stored from: an array, or an object whose `events` is one."""
    events: list[Any]
    """The parsed events; an InvalidJSON stands for a line that could not be parsed."""
    error_counts: dict[int, int]
    """The indexes of the invalid events, ascending, with how many rules each breaks."""
    path: str = ""
    """The beginning of each field's path: `events` or nothing."""

    @property
    def valid(self) -> list[int]:
        """The indexes of the events that can be stored."""
        return [index for index in range(len(self.events)) if index not in self.error_counts]

    def details(self, root: Sequence[str] = ()) -> Details:
        """List the problems of the list itself (`root`), then those of each invalid event: at most MAX_DETAILS.

        One more entry says how many are not listed.
        """
        details = [_detail(self.path, message) for message in root]
        unlisted = 0
        for index, count in self.error_counts.items():
            if len(details) >= MAX_DETAILS:
                unlisted += count
                continue
            for name, message in error_messages(self.events[index]):
                details.append(_detail(".".join(filter(None, (self.path, str(index), name))), message))
        unlisted += max(0, len(details) - MAX_DETAILS)
        if unlisted:
            details[MAX_DETAILS:] = [_detail("", f"and {unlisted} more")]
        return details


def load(body: bytes, max_events: int, max_values: int, *, ndjson: bool = False) -> Batch:
    """Parse a body and validate its events. `ndjson` means one event a line; empty lines are skipped.

    An object with the key `events` and an array are batches; anything else is one event. Raises InvalidJSON,
    TooManyValues, and InvalidEvents if there is no list of 1 to `max_events` events, or if the only event is invalid.
    """
    check_value_count(body, max_values)
    if ndjson:
        return _load_lines(body, max_events)
    text, data = parse_json(body)
    if type(data) is dict and "events" in data:
        events, path = data["events"], "events"
    elif type(data) is list:
        events, path = data, ""
    elif count_errors(data):
        raise InvalidEvents([_detail(name, message) for name, message in error_messages(data)], 1)
    else:
        return Batch(f"[{text}]", [data], {})
    if type(events) is not list:
        raise InvalidEvents([_detail(path, f"Expected array, received {_type_name(events)}")], 0)
    return _validate(text, events, path, max_events)


def _load_lines(body: bytes, max_events: int) -> Batch:
    texts: list[str] = []
    events: list[Any] = []
    budget = Budget()
    for line in re.finditer(rb"[^ \t\r\n][^\n]*", body):
        if len(events) > max_events:  # one event too many is enough to refuse the batch
            break
        try:
            text, event = parse_json(line[0], budget)
        except LimitExceeded:
            raise
        except InvalidJSON as error:
            number = body.count(b"\n", 0, line.start()) + 1
            text, event = "null", InvalidJSON(f"{error} (in line {number} of the body)")
        texts.append(text)
        events.append(event)
    return _validate(f"[{','.join(texts)}]", events, "", max_events)


def _validate(text: str, events: list[Any], path: str, max_events: int) -> Batch:
    error_counts: dict[int, int] = {}
    for index, event in enumerate(events):
        if index >= max_events and len(error_counts) >= MAX_DETAILS:
            break  # millions of events may follow, and no message would name them
        if count := count_errors(event):
            error_counts[index] = count
    batch = Batch(text, events, error_counts, path)
    if not events:
        raise InvalidEvents(batch.details(["Array must contain at least 1 element(s)"]), 0)
    if len(events) > max_events:
        raise InvalidEvents(batch.details([f"Array must contain at most {max_events} element(s)"]), len(events))
    return batch


def check_value_count(body: bytes, max_values: int) -> None:
    """Raise TooManyValues if a JSON text has more than `max_values` values, before anything is built from it.

    Elements, members, arrays and objects count. PostgreSQL takes up to 700 bytes of memory for each.
    """
    if len(body) <= max_values or _count_values(body) <= max_values:
        return
    # of the quotes that are not escaped, two enclose a key or a value
    if _without_escapes(body).count(b'"') > 4 * max_values or _count_values(_outside_strings(body)) > max_values:
        raise TooManyValues(max_values)


def _count_values(body: bytes) -> int:
    return body.count(b",") + body.count(b"{") + body.count(b"[")


def _without_escapes(body: bytes) -> bytes:
    return body.replace(rb"\\", b"").replace(rb"\"", b"")


def _outside_strings(body: bytes) -> bytes:
    return b"".join(_without_escapes(body).split(b'"')[::2])


class Budget:
    """What the lines of a body may still have together. Raises LimitExceeded."""

    def __init__(self) -> None:
        self._zeros, self._unstorable = MAX_ZEROS, MAX_UNSTORABLE

    def spend_zeros(self, count: int) -> None:
        self._zeros -= count
        if self._zeros < 0:
            raise LimitExceeded("The numbers have too many digits")

    def spend_unstorable(self, count: int) -> None:
        self._unstorable -= count
        if self._unstorable < 0:
            raise LimitExceeded("There are too many characters that can't be stored, such as U+0000")


def parse_json(body: bytes, budget: Budget | None = None) -> tuple[str, Any]:
    """Return the text of a JSON body in UTF-8 (RFC 8259), and its value. Raises InvalidJSON.

    Python's parser accepts NaN and Infinity, which are refused here. Its limits are ours: about a thousand levels of
    nesting, and 4,300 digits of an integer. MAX_ZEROS limits the exponents. The fractions in the value are all 0.0:
    nobody needs them, and this notes their texts at the speed of C.
    """
    budget = budget or Budget()
    fractions: defaultdict[str, float] = defaultdict(float)
    try:
        text = body.decode()
        check = _check_keys if _ESCAPE.search(text) else None
        if check:
            budget.spend_unstorable(len(_UNSTORABLE_RUN.findall(text)))
        value = json.loads(
            text, parse_constant=_refuse_constant, parse_float=fractions.__getitem__, object_pairs_hook=check
        )
    except UnicodeDecodeError as error:
        raise InvalidJSON(f"The body is not UTF-8: {error.reason} at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise InvalidJSON(str(error)) from None
    except RecursionError:
        raise InvalidJSON("Nested too deep") from None
    except ValueError:
        raise InvalidJSON("A number is too long") from None
    if any("e" in number or "E" in number for number in fractions):
        budget.spend_zeros(_count_zeros(body))
    return text, value


def _refuse_constant(name: str) -> None:
    raise InvalidJSON(f"{name} is not JSON")


_EXPONENT = re.compile(rb"[0-9][eE][+-]?([0-9]+)")


def _count_zeros(body: bytes) -> int:
    """Return the sum of all exponents in a JSON text."""
    return sum(int(digits[:20]) for digits in _EXPONENT.findall(_outside_strings(body)))


# jsonb can hold neither U+0000 nor half of a surrogate pair. Possessive quantifiers keep the search linear.
_PAIR = r"\\u[dD][89abAB]..\\u[dD][c-fC-F].."
_UNSTORABLE = r"\\u(?:0000|[dD][c-fC-F]..|[dD][89abAB]..(?!\\u[dD][c-fC-F]))"
_STORABLE = rf"[^\\]++|\\[^u]|{_PAIR}|\\u(?!0000|[dD][89a-fA-F])...."
_ESCAPE = re.compile(r"\\u(?:0000|[dD][89a-fA-F])")
_UNSTORABLE_RUN = re.compile(
    r"(?:\\u0000|\\u[dD][89abAB]..(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB]..)\\u[dD][c-fC-F]..)++"
)
_SPLIT = re.compile(rf"((?:{_STORABLE})*+)((?:{_UNSTORABLE})++)?+", re.DOTALL)


def storable_text(json_text: str) -> str:
    """Return JSON that jsonb can hold: U+0000 and unpaired surrogates become U+FFFD, all else stays as it is."""
    if not _ESCAPE.search(json_text):
        return json_text
    return _SPLIT.sub(lambda part: part[1] + r"\ufffd" * (len(part[2] or "") // 6), json_text)


def _check_keys(members: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of its members. Raises InvalidJSON if two different keys would become one when they are stored."""
    value = dict(members)
    if unprintable := [key for key in value if not key.isprintable()]:
        changed = [key.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for key in unprintable]
        stored = {key.replace("\0", "\ufffd") for key in changed}.union(key for key in value if key.isprintable())
        if len(stored) < len(value):
            raise InvalidJSON("Two keys of an object differ only in characters that can't be stored, such as U+0000")
    return value


def _detail(field: str, message: str) -> dict[str, str]:
    return {"field": field, "message": message}
