"""Turn rows into events: which column is which field, and what a value means."""

import difflib
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import simplejson

import json_text
import schemas
from commands.importer.files import InvalidRow, Reject, Row, Rows, Unreadable, one_line

FIELDS = tuple(schemas.Event().fields)

MAX_ROW_SHOWN = 2**16
"""The characters up to which a reject shows a row as a whole. Of a longer one it shows the beginning."""


class Event(NamedTuple):
    line: int
    """The line of the file on which the event's row begins; the first is 1."""
    text: str
    """JSON, ready to be stored."""


class ColumnMapping:
    """Says which column is which field, and what all rows have in common.

    `renamed` gives the columns of fields that are called something else, `constants` the fields with the same value in
    every row, `zone` is for timestamps without one. Columns that are no field become members of metadata. Raises
    ValueError if a constant is not a value of its field.
    """

    def __init__(
        self,
        renamed: Mapping[str, str] | None = None,
        constants: Mapping[str, str] | None = None,
        zone: ZoneInfo | None = None,
    ) -> None:
        self._renamed = dict(renamed or {})
        self._constants = dict(constants or {})
        self._zone = zone
        self._candidates = [(field, self._columns_of(field)) for field in FIELDS if field not in self._constants]
        try:
            self._event({"type": "custom", "toolName": "x"}, {})
        except InvalidRow as error:
            raise ValueError(f"{error}") from None

    def _columns_of(self, field: str) -> list[str]:
        """Return the columns that can hold a field; the first that a row has counts."""
        own = [name for name in dict.fromkeys((field, snake_case(field))) if name not in self._renamed.values()]
        return [self._renamed[field], *own] if field in self._renamed else own

    def check_header(self, names: list[str]) -> None:
        """Raise Unreadable if a row with these columns can't be an event."""
        for name, count in Counter(names).items():
            if name and count > 1:
                raise Unreadable(f"the header row has the column {name!r} twice")
        if len(names) == 1 and any(separator in names[0] for separator in ";\t|"):
            raise Unreadable(f"the header row has one column, {names[0]!r}: separate them by commas")
        for field, column in self._renamed.items():
            if column not in names:
                nearest = difflib.get_close_matches(column, names, 1)
                hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
                raise Unreadable(f"no column is called {column!r}, as --map {field}={column} has it{hint}")
        for field, columns in self._candidates:
            if field in ("type", "toolName") and not set(columns) & set(names):
                raise Unreadable(
                    f"no column is called {field!r} (there are {', '.join(map(repr, names))}): name one with "
                    f"--map {field}=COLUMN, or the same value for all rows with --set {field}=VALUE"
                )

    def events(self, rows: Rows) -> Iterator[Event | Reject]:
        """Yield the event of each row, or a Reject that says why it can't be one."""
        for row in rows:
            if isinstance(row, Reject):
                yield row
                continue
            try:
                yield Event(row.line, self.event_text(row))
            except InvalidRow as error:
                yield Reject(row.line, str(error), _shown(row))
            except RecursionError:  # it was just not too deep for the parser
                yield Reject(row.line, "Nested too deep", _shown(row))

    def event_text(self, row: Row) -> str:
        """Return the event of a row as JSON. Raises InvalidRow.

        A row that is an event as it is keeps its text. Null is an absent field, as in exports.
        """
        value = row.value
        if type(value) is not dict:
            return _validated(value, str(row.text))
        if row.text is not None:
            if self._is_event(value):
                return _validated(value, row.text)
            value = simplejson.loads(row.text, use_decimal=True)  # with every digit
        fields, others = {}, dict(value)
        for field, columns in self._candidates:
            for column in columns:
                if column in value:
                    del others[column]
                    if value[column] is not None:
                        fields[field] = value[column]
                    break
        others.pop("", None)
        return self._event(fields, others)

    def _is_event(self, value: dict[str, Any]) -> bool:
        """Return whether a JSON row is in the form of HTTP's bodies, so that nothing has to be converted."""
        if self._constants or self._renamed or None in value.values() or not value.keys() <= set(FIELDS):
            return False
        time = value.get("timestamp", "")
        return type(value.get("metadata")) is not str and type(time) is str and self._instant(time) == time

    def _event(self, fields: dict[str, Any], others: dict[str, Any]) -> str:
        fields.update(self._constants)
        time = fields.get("timestamp")
        if isinstance(time, Decimal | int) and _EPOCH.fullmatch(str(time)):
            time = str(time)
        if type(time) is str:
            fields["timestamp"] = self._instant(time)
        metadata = fields.pop("metadata", None)
        if type(metadata) is str:
            metadata = _parse_metadata(metadata)
        if others:
            if metadata is None:
                metadata = others
            elif type(metadata) is dict:
                if common := others.keys() & metadata.keys():
                    raise InvalidRow(f"metadata: Has {min(common)!r}, and there is a column of that name")
                metadata = {**others, **metadata}
        if metadata is not None:
            fields["metadata"] = metadata
        checked = {name: float(each) if isinstance(each, Decimal) else each for name, each in fields.items()}
        return _validated(checked, simplejson.dumps(fields, use_decimal=True))

    def _instant(self, text: str) -> str:
        """Return a timestamp of an export in the form of the schema, which refuses what is not a timestamp."""
        if match := _EPOCH.fullmatch(text):
            seconds, milliseconds, fraction = match.groups(default="")
            digits = milliseconds + fraction
            return f"{datetime.fromtimestamp(int(seconds), UTC):%Y-%m-%dT%H:%M:%S}{digits and '.' + digits}Z"
        if not (match := _EXPORTED.fullmatch(text)):
            return text
        date, time, fraction, offset = match.groups(default="")
        if offset == "":
            offset = self._offset(f"{date}T{time}")
        elif offset == "UTC":
            offset = "Z"
        elif len(offset) == 3:
            offset += ":00"
        return f"{date}T{time}{fraction}{offset}"

    def _offset(self, local: str) -> str:
        """Return the offset of a local time: the first of two when clocks go back. Raises InvalidRow."""
        if self._zone is None:
            raise InvalidRow("timestamp: Has no time zone: give one with --timezone, such as --timezone UTC")
        try:
            instant = datetime.fromisoformat(local).replace(tzinfo=self._zone)
            exists = instant.astimezone(UTC).astimezone(self._zone).replace(tzinfo=None) == instant.replace(tzinfo=None)
        except (ValueError, OverflowError):
            return ""
        if not exists:
            raise InvalidRow(f"timestamp: There was no such time in {self._zone}, where clocks went forward")
        return f"{instant:%z}"


def snake_case(name: str) -> str:
    return re.sub("[A-Z]", lambda letter: f"_{letter[0].lower()}", name)


def _parse_metadata(text: str) -> Any:
    try:
        json_text.Parser().parse(text.encode("utf-8", "surrogatepass"))
    except json_text.InvalidJSON as error:
        raise InvalidRow(f"metadata: Invalid JSON: {error}") from None
    return simplejson.loads(text, use_decimal=True)


def _validated(event: Any, text: str) -> str:
    """Return the text of an event that is valid. Raises InvalidRow with all that is wrong."""
    if schemas.count_errors(event):
        raise InvalidRow("; ".join(": ".join(filter(None, each)) for each in schemas.error_messages(event)))
    return text


def _shown(row: Row) -> str:
    """Return a row as JSON on one line: a reject can be mended and imported."""
    text = simplejson.dumps(row.value) if row.text is None else one_line(row.text)
    return text if len(text) <= MAX_ROW_SHOWN else simplejson.dumps(f"{text[:1000]}...")


# As PostgreSQL, SQLite, DuckDB, pandas and BigQuery write it: a blank or a T, an offset that may end with its hours.
_EXPORTED = re.compile(
    r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d(?::\d\d)?)((?<=:\d\d:\d\d)\.\d+)? ?(Z|UTC|[+-]\d\d(?::?\d\d)?)?", re.ASCII
)
# Seconds, or milliseconds without a point between: the years 2001 to 2286. Other lengths could be anything.
_EPOCH = re.compile(r"(\d{10})(\d{3})?(?:\.(\d+))?", re.ASCII)
