"""Parse JSON text within limits, and make it fit for PostgreSQL's jsonb."""

import json
import re
from collections import defaultdict
from typing import Any

# PostgreSQL stores 1e9999 in a few bytes and prints it with all its zeros: a body of many such numbers could be stored,
# but neither read nor dumped. So the exponents of a body have a bound, in which any doubles fit.
MAX_EXPONENT_SUM, MAX_EXPONENT_SUM_PER_BYTE = 2**24, 64

_EXPONENT = re.compile(rb"[0-9][eE][+-]?0*([0-9]*)")

# jsonb can hold neither U+0000 nor half of a surrogate pair. Before this is used, \\ has to be taken out of the text.
_UNSTORABLE = re.compile(
    r"\\u(?:0000|[dD][89abAB]..(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB]..\\u)[dD][c-fC-F]..)", re.DOTALL
)
_MAYBE_UNSTORABLE = re.compile(r"\\u(?:0000|[dD][89a-fA-F])")
_LOST = re.compile("[\\0\\ud800-\\udfff]")  # the same in a parsed string


class InvalidJSON(Exception):
    """The text is not JSON. The argument says why."""


class TooLarge(Exception):
    """A body has more of something than a body may have. The argument says how much it may have."""


def check_value_count(texts: list[bytes], max_values: int) -> None:
    """Raise TooLarge if JSON texts have too many elements, members, arrays and objects, before any is built.

    PostgreSQL takes up to 700 bytes of memory for each. The first two counts are quick, and never too low.
    """
    for count in (len, _count_values, lambda text: _count_values(_outside_strings(text))):
        if sum(map(count, texts)) <= max_values:
            return
    raise TooLarge(f"The body must have at most {max_values} JSON values")


def _count_values(text: bytes) -> int:
    return text.count(b",") + text.count(b"{") + text.count(b"[")


def _outside_strings(text: bytes) -> bytes:
    return b"".join(text.replace(rb"\\", b"").replace(rb"\"", b"").split(b'"')[::2])


class Parser:
    """Parses the JSON texts of a body, which share a limit for the sum of exponents.

    Python's limits count: about a thousand levels of nesting (from 3.12 on, more), and 4,300 digits of an integer. With
    `hints`, an error says what an HTTP client can change.
    """

    def __init__(self, *, hints: bool = False) -> None:
        self._hints = hints
        self._bytes = self._exponent_sum = 0

    def parse(self, body: bytes) -> tuple[str, Any]:
        """Return a JSON text in UTF-8 (RFC 8259), and its value, in which fractions are 0.0. Raises InvalidJSON."""
        self._bytes += len(body)
        # parse_float gets the text of a fraction. `__getitem__` keeps it as a key and returns 0.0, at the speed of C.
        fractions: defaultdict[str, float] = defaultdict(float)
        try:
            text = body.decode().removeprefix("\ufeff")
            check = _check_keys if _MAYBE_UNSTORABLE.search(text) else None
            value = json.loads(
                text, parse_constant=_reject_constant, parse_float=fractions.__getitem__, object_pairs_hook=check
            )
        except UnicodeDecodeError as error:
            hint = ". PowerShell sends UTF-8 with [Text.Encoding]::UTF8.GetBytes($body)" if self._hints else ""
            raise InvalidJSON(f"Not UTF-8: {error.reason} at byte {error.start}{hint}") from None
        except json.JSONDecodeError as error:
            raise InvalidJSON(f"{error}{_hint(error) if self._hints else ''}") from None
        except RecursionError:
            raise InvalidJSON("Nested too deep") from None
        except ValueError:
            raise InvalidJSON("A number is too long") from None
        if any("e" in number or "E" in number for number in fractions):
            exponents = _EXPONENT.findall(_outside_strings(body))
            exponent_sum = self._exponent_sum + sum(int(digits[:20] or 0) for digits in exponents)
            if exponent_sum > min(MAX_EXPONENT_SUM, MAX_EXPONENT_SUM_PER_BYTE * self._bytes):
                raise InvalidJSON("The numbers have too many digits")
            self._exponent_sum = exponent_sum  # a line that is rejected does not count
        return text, value


def _hint(error: json.JSONDecodeError) -> str:
    """Return what to change if a text has more than one value."""
    if error.msg != "Extra data":
        return ""
    if "\n" in error.doc[: error.pos]:
        return ". This looks like NDJSON: send it with Content-Type: application/x-ndjson"
    return ". There are several values in one line: curl keeps line feeds with --data-binary, and not with -d"


def _reject_constant(name: str) -> None:
    raise InvalidJSON(f"{name} is not JSON")


def _check_keys(members: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of its members. Raises InvalidJSON if two different keys would become one when they are stored."""
    value = dict(members)
    if changed := [key for key in value if _LOST.search(key)]:
        stored = {_LOST.sub("\ufffd", key) for key in changed}
        if len(stored) < len(changed) or not stored.isdisjoint(value):
            raise InvalidJSON("Two keys of an object differ only in characters that can't be stored, such as U+0000")
    return value


def storable_text(text: str) -> str:
    """Return JSON that jsonb can hold: U+0000 and unpaired surrogates become U+FFFD, all else stays as it is."""
    if not _MAYBE_UNSTORABLE.search(text):
        return text
    # a NUL, which no JSON text has, stands for an escaped backslash: then every other backslash begins an escape
    return _UNSTORABLE.sub(r"\\ufffd", text.replace(r"\\", "\0")).replace("\0", r"\\")
