"""Turn rows into events: what their values mean, and what becomes metadata."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple, cast
from zoneinfo import ZoneInfo

import simplejson

import json_text
import schemas
from commands.importer.expressions import Expression
from commands.importer.files import (
    MAX_ROW_SHOWN,
    MAX_SHOWN,
    InvalidRow,
    Reject,
    Row,
    Rows,
    Unreadable,
    one_line,
)
from commands.importer.mapping import FIELDS, FieldFinder, Options, entered

RECEIPT = ("id", "organization", "apiKeyId", "source", "receivedAt")
"""What `export` adds to an event. It is left out again, so that an exported file is imported as what was sent."""

FIRST_ROWS, FIRST_BYTES = 1000, 2**22
"""The rows of NDJSON or JSON, and their bytes, in which the columns of --map and a timestamp are looked for."""


class Event(NamedTuple):
    line: int  # the line of the file on which the event's row begins; the first is 1
    text: str  # JSON, ready to be stored
    row_id: bytes = b""  # of --id: the beginning of the id's SHA-256

    @property
    def content(self) -> bytes:
        """The beginning of the text's SHA-256."""
        return _digest(self.text)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()[:16]


class EventMaker:
    """Makes events of rows. `zone` is for timestamps without one, `time_format` (of strptime) for other forms.

    Rows for which `where` finds nothing are left out. Columns that are no field become members of metadata. Raises
    ValueError if a constant is not a value of its field.
    """

    def __init__(
        self,
        options: Options | None = None,
        zone: ZoneInfo | None = None,
        time_format: str = "",
        where: Expression | None = None,
    ) -> None:
        self._options = options or Options()
        self._zone = zone
        # strptime takes any name for %Z, and forgets it
        self._time_formats = list(dict.fromkeys(_with_zone(time_format, name) for name in _UTC_NAMES if time_format))
        self._where = where
        self.left_out = 0  # rows, by `where`
        latest = datetime.now(UTC) + timedelta(days=1)
        self._latest_epoch = int(latest.timestamp())
        self._latest_day = f"{latest + timedelta(days=1):%Y-%m-%d}"
        self.first_day, self.last_day = "9999", ""  # of the events' timestamps
        self._finder: FieldFinder | None = None
        self._is_exported = False
        self.may_lack_columns = False  # set for rejects: they need not have all the columns that the options name
        changing = (self._options.sources, self._options.constants, self._options.translations, self._options.dropped)
        self._keeps_form = not any(changing)
        self._constants: dict[str, Any] = dict(self._options.constants)
        try:
            if "metadata" in self._constants:
                self._constants["metadata"] = _parse_metadata(self._constants["metadata"])
            self._event({"type": "custom", "toolName": "x", **self._constants}, {})
        except InvalidRow as error:
            raise ValueError(f"{error}") from None

    @property
    def notes(self) -> list[str]:
        """Possible mistakes in the options."""
        if self._finder is None:
            return []
        given = [
            (field, value) for field, table in self._options.translations.items() for value in table if value != "*"
        ]
        unused = [each for each in given if each not in self._finder.translated]
        return [*self._finder.notes, *(f"no row had the {field} {value!r} of --map-value" for field, value in unused)]

    def check_header(self, names: list[str]) -> None:
        """Raise Unreadable if a row with these columns can't be an event."""
        for name, count in Counter(names).items():
            if name and count > 1:
                raise Unreadable(f"the header row has the column {name!r} twice")
        self._is_exported = {f"receipt.{name}" for name in RECEIPT} <= set(names)
        self._finder = FieldFinder(self._options, names, is_complete=True, where=self._where)

    def events(self, rows: Rows) -> Iterator[Event | Reject]:
        """Yield the event of each row, or a Reject that says why it can't be one."""
        if self._finder is None:
            rows = self._check_first_rows(rows)
        rows = self._chosen(rows) if self._where else rows
        has_id = bool(self._options.row_id)
        for row in rows:
            if isinstance(row, Reject):
                yield row
                continue
            try:
                yield Event(row.line, self.event_text(row), self._row_id(row) if has_id else b"")
            except InvalidRow as error:
                yield Reject(row.line, str(error), _shown(row))
            except RecursionError:  # it was just not too deep for the parser
                yield Reject(row.line, "Nested too deep", _shown(row))

    def _chosen(self, rows: Rows) -> Rows:
        """Yield the rows that `where` matches, and rejects."""
        for row in rows:
            if isinstance(row, Row) and isinstance(row.value, dict):
                try:
                    if not cast(Expression, self._where).matches(entered(_with_fractions(row))):
                        self.left_out += 1
                        continue
                except (ValueError, TypeError) as error:
                    yield Reject(row.line, f"The expression of --where fails: {error}", _shown(row))
                    continue
            yield row

    def _row_id(self, row: Row) -> bytes:
        """Return the digest of the id of a row. Raises InvalidRow."""
        value = _with_fractions(row, use_decimal=True)
        found = cast(FieldFinder, self._finder).row_id(value) if isinstance(value, dict) else None
        if found is None or found == "":
            raise InvalidRow("Has no id, as --id names it: leave --id out, or name another value for such rows with ||")
        return _digest(found if isinstance(found, str) else simplejson.dumps(found, use_decimal=True, sort_keys=True))

    def _check_first_rows(self, rows: Rows) -> Rows:
        """Look at which members the first rows have; return all rows. Raises Unreadable if the options don't fit."""
        first: list[Row | Reject] = []
        names: dict[str, None] = {}
        size = 0
        problem = None
        try:
            for row in rows:
                first.append(row)
                if isinstance(row, Row) and isinstance(row.value, dict):
                    names.update(dict.fromkeys(row.value))
                    size += len(row.text or "")
                if len(first) >= FIRST_ROWS or size >= FIRST_BYTES or len(names) >= FIRST_ROWS:
                    break
        except Unreadable as error:
            problem = error
        if self._finder is None:  # reading the first row may have read the header
            self._finder = FieldFinder(
                self._options, list(names), may_lack_columns=self.may_lack_columns, where=self._where
            )
        yield from first
        if problem:
            raise problem
        yield from rows

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
        sent = self._as_sent(value)
        is_exported = sent is not value
        value = sent
        fields, others = cast(FieldFinder, self._finder).find(value)
        fields, others = _with_metadata(fields, others)
        fields.update(self._constants)
        if "timestamp" not in fields and not self._options.is_dated_now:
            raise InvalidRow("timestamp: Is missing; --timestamp-now dates such rows at the time of the import")
        return self._event(fields, others, is_exported=is_exported)

    def _as_sent(self, value: dict[str, Any]) -> dict[str, Any]:
        """Return an exported row without what `export` added: the receipt, and apostrophes for spreadsheets."""
        if self._is_exported:
            value = {name: cell for name, cell in value.items() if not name.startswith("receipt.")}
            return {**value, "toolName": str(value.get("toolName", "")).removeprefix("'")}
        receipt = value.get("receipt")
        if type(receipt) is dict and tuple(receipt) == RECEIPT and value.keys() == {*FIELDS, "receipt"}:
            return {name: value[name] for name in FIELDS}
        return value

    def _is_event(self, value: dict[str, Any]) -> bool:
        """Return whether a JSON row is in the form of HTTP's bodies, so that nothing has to be converted."""
        if not self._keeps_form or None in value.values() or not value.keys() <= set(FIELDS):
            return False
        if type(value.get("metadata", {})) is not dict:
            return False
        if "timestamp" not in value:
            return self._options.is_dated_now
        time = value["timestamp"]
        return type(time) is str and self._dated(self._instant(time)) == time

    def _dated(self, instant: str, *, is_exported: bool = False) -> str:
        """Return an instant, and note its day. Raises InvalidRow if the day is in the future."""
        day = instant[:10]
        if day > self._latest_day and not is_exported:
            raise InvalidRow(f'timestamp "{instant[:60]}": Is in the future')
        self.first_day, self.last_day = min(self.first_day, day), max(self.last_day, day)
        return instant

    def _event(self, fields: dict[str, Any], others: dict[str, Any], *, is_exported: bool = False) -> str:
        time = fields.get("timestamp")
        if isinstance(time, Decimal | int | float) and not isinstance(time, bool):
            time = str(time)
        if type(time) is str:
            fields["timestamp"] = self._dated(self._instant(time), is_exported=is_exported)
        metadata = fields.pop("metadata", None)
        if others:
            if metadata is None:
                metadata = others
            elif type(metadata) is dict:
                metadata = _merged(others, metadata)
        if metadata is not None:
            fields["metadata"] = metadata
        checked = {name: float(each) if isinstance(each, Decimal) else each for name, each in fields.items()}
        return _validated(checked, simplejson.dumps(fields, use_decimal=True))

    def _instant(self, text: str) -> str:
        """Return a timestamp of an export in the form of the schema. Raises InvalidRow if its form is not known."""
        if time := self._formatted(text):
            return time
        text = text.strip()
        if match := _EPOCH.fullmatch(text):
            seconds, part, fraction = match.groups(default="")
            if int(seconds) > self._latest_epoch:
                year = datetime.fromtimestamp(int(seconds), UTC).year
                raise InvalidRow(
                    f'timestamp "{text}": Is in {year}, if it counts from 1970; give its form with --time-format'
                )
            digits = part + fraction
            return f"{datetime.fromtimestamp(int(seconds), UTC):%Y-%m-%dT%H:%M:%S}{digits and '.' + digits}Z"
        if _DATE.fullmatch(text):
            return f"{text}T00:00:00{self._offset(text, is_date=True)}"
        if not (match := _EXPORTED.fullmatch(text)):
            if self._time_formats:
                raise InvalidRow(f'timestamp "{text[:60]}": Does not have the form of --time-format')
            raise InvalidRow(f'timestamp "{text[:60]}": Has no known form; give its form with --time-format')
        date, time, fraction, offset = match.groups(default="")
        if offset == "":
            offset = self._offset(f"{date}T{time}")
        elif offset in ("UTC", "GMT"):
            offset = "Z"
        elif len(offset) == 3:
            offset += ":00"
        return f"{date}T{time}{fraction.replace(',', '.')}{offset}"

    def _formatted(self, text: str) -> str:
        """Return a timestamp that has the form of --time-format; nothing if it has not."""
        for time_format in self._time_formats:
            with suppress(ValueError):
                instant = datetime.strptime(text, time_format)  # noqa: DTZ007
                if len(self._time_formats) > 1:
                    instant = instant.replace(tzinfo=UTC)
                return instant.isoformat() + ("" if instant.tzinfo else self._offset(instant.isoformat()))
        return ""

    def _offset(self, local: str, *, is_date: bool = False) -> str:
        """Return the offset of a local time: the first of two when clocks go back. Raises InvalidRow.

        A date begins when clocks go forward at its midnight, too.
        """
        if self._zone is None:
            raise InvalidRow("timestamp: Has no time zone: give one with --timezone, such as --timezone UTC")
        try:
            instant = datetime.fromisoformat(local).replace(tzinfo=self._zone)
            exists = instant.astimezone(UTC).astimezone(self._zone).replace(tzinfo=None) == instant.replace(tzinfo=None)
        except (ValueError, OverflowError):
            return ""
        if not exists and not is_date:
            raise InvalidRow(f"timestamp: There was no such time in {self._zone}, where clocks went forward")
        return f"{instant:%z}"


class MixedForms(Exception):
    """Some of the first rows have another form. The arguments are how many, of how many, and the first one's reason."""


def check_forms(items: Iterator[Event | Reject]) -> Iterator[Event | Reject]:
    """Yield the items. Raises MixedForms, before the first, if some of FIRST_ROWS have other timestamps or bytes.

    A wrong order of day and month, or a wrong encoding, would store some rows and reject the rest.
    """
    first: list[Event | Reject] = []
    size = 0
    for item in items:
        first.append(item)
        size += len(item.text if isinstance(item, Event) else item.row)
        if len(first) >= FIRST_ROWS or size >= FIRST_BYTES // 4:
            break
    odd = [item for item in first if isinstance(item, Reject) and item.reason.startswith(('timestamp "', "Not UTF-8"))]
    if odd and any(isinstance(item, Event) for item in first):
        raise MixedForms(len(odd), len(first), odd[0].reason)
    yield from first
    yield from items


def _with_fractions(row: Row, *, use_decimal: bool = False) -> Any:
    """Return the value of a row with its fractions, for which `json_text.Parser` has 0.0; as floats or as Decimals."""
    if row.text is None or not _FRACTION.search(row.text):
        return row.value
    return simplejson.loads(row.text, use_decimal=use_decimal)


def _with_zone(time_format: str, name: str) -> str:
    """Return a form of times with the name of a zone in the place of %Z."""
    return re.sub(r"(?<!%)((?:%%)*)%Z", rf"\1{name}", time_format)


def _merged(columns: dict[str, Any], metadata: dict[str, Any]) -> dict[str, Any]:
    """Return both. A column that has the name of another value in metadata becomes `column_NAME`."""
    merged = dict(columns)
    for name, value in columns.items():
        if name in metadata and not _is_same(value, metadata[name]):
            other = f"column_{name}"
            while other in metadata or other in columns:
                other = f"column_{other}"
            merged[other] = value
    return {**merged, **metadata}


def _is_same(column: Any, value: Any) -> bool:
    """Return whether a column holds a value, or its JSON. 1 and true are two values, which Python takes for equal."""
    texts = [simplejson.dumps(each, use_decimal=True, sort_keys=True) for each in (column, value)]
    return texts[0] == texts[1] or column == simplejson.dumps(value, use_decimal=True)


def _with_metadata(fields: dict[str, Any], others: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return both with metadata that is an object or absent. Another value becomes a member of it, called metadata."""
    fields = dict(fields)
    metadata = fields.pop("metadata", None)
    if type(metadata) is str:
        try:
            metadata = _parse_metadata(metadata)
        except InvalidRow:
            if metadata.lstrip()[:1] == "{":  # it was to be an object: else it is a text, which is kept
                raise
    if type(metadata) is dict:
        return {**fields, "metadata": metadata}, others
    return fields, others if metadata is None else _merged({"metadata": metadata}, others)


def _parse_metadata(text: str) -> Any:
    try:
        json_text.Parser().parse(text.encode("utf-8", "surrogatepass"))
    except json_text.InvalidJSON as error:
        raise InvalidRow(f"metadata: Invalid JSON: {error}") from None
    return simplejson.loads(text, use_decimal=True)


def _validated(event: Any, text: str) -> str:
    """Return the text of an event that is valid. Raises InvalidRow with all that is wrong."""
    if messages := schemas.error_messages(event):
        raise InvalidRow("; ".join(": ".join(filter(None, each)) for each in messages))
    return text


def _shown(row: Row) -> str:
    """Return a row as JSON on one line: a reject can be fixed and imported."""
    text = simplejson.dumps(row.value) if row.text is None else one_line(row.text)
    return text if len(text) <= MAX_ROW_SHOWN else simplejson.dumps(f"{text[:MAX_SHOWN]}...")


# As PostgreSQL, SQLite, DuckDB, pandas and BigQuery write it: a blank or a T, an offset that may end with its hours.
_EXPORTED = re.compile(
    r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d(?::\d\d)?)((?<=:\d\d:\d\d)[.,]\d+)? ?(Z|UTC|GMT|[+-]\d\d(?::?\d\d)?)?", re.ASCII
)
# Seconds, milliseconds, microseconds or nanoseconds since 1970: the years 2001 to 2286.
_EPOCH = re.compile(r"(\d{10})(\d{3}|\d{6}|\d{9})?(?:\.(\d+))?", re.ASCII)
_UTC_NAMES = ("UTC", "GMT", "Z")
_DATE = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
_FRACTION = re.compile(r"[0-9][.eE]")  # also in strings
