"""Read Parquet, with pyarrow."""

import datetime
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import simplejson

from commands.importer.files import MAX_ROW_SHOWN, MAX_SHOWN, InvalidRow, Reject, Row, Rows, Source, Unreadable


def read_parquet(source: Source, max_bytes: int, check_header: Callable[[list[str]], None]) -> Rows:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise Unreadable("Parquet needs a package: .venv/bin/pip install pyarrow; or export the rows as CSV") from None
    try:
        table = parquet.ParquetFile(source.file)
        check_header(table.schema_arrow.names)
        number = 0
        for batch in table.iter_batches(1000):
            for row in _with_nanoseconds_as_text(batch).to_pylist(maps_as_pydicts="strict"):
                number += 1
                try:
                    value = {name: each for name in row if (each := _as_json(row[name])) is not None}
                    if sum(len(each) for each in value.values() if isinstance(each, str)) > max_bytes:
                        raise InvalidRow(f"The row has more than {max_bytes} bytes")
                    yield Row(number, value, None)
                except InvalidRow as error:
                    yield Reject(number, str(error), _shown(row))
    except (ArrowException, OSError) as error:
        raise Unreadable(f"Not Parquet: {error}") from None


def _with_nanoseconds_as_text(batch: Any) -> Any:
    """Return a batch whose timestamps in nanoseconds are text: Python has no such timestamps."""
    import pyarrow

    columns = []
    for column in batch.columns:
        has_nanoseconds = pyarrow.types.is_timestamp(column.type) and column.type.unit == "ns"
        columns.append(column.cast(pyarrow.string()) if has_nanoseconds else column)
    return pyarrow.RecordBatch.from_arrays(columns, names=batch.schema.names)


def _shown(row: dict[str, Any]) -> str:
    """Return a row as JSON; what JSON can't hold is text, so that it can be fixed."""

    def text(value: Any) -> Any:
        try:
            return _as_json(value)
        except InvalidRow:
            return str(value)[:MAX_SHOWN]

    shown = simplejson.dumps({name: text(value) for name, value in row.items()}, use_decimal=True)
    return shown if len(shown) <= MAX_ROW_SHOWN else simplejson.dumps(shown[:MAX_SHOWN])


def _as_json(value: Any) -> Any:
    """Return a value of Parquet as JSON has it; NaN, which stands for nothing in pandas, as None."""
    match value:
        case float() if value != value:
            return None
        case float() if value in (float("inf"), float("-inf")):
            raise InvalidRow("Infinity is not JSON")
        case dict():
            return {name: _as_json(each) for name, each in value.items()}
        case list():
            return [_as_json(each) for each in value]
        case bytes():
            try:
                return value.decode()
            except UnicodeDecodeError:
                raise InvalidRow("A column has bytes that are no text") from None
        case datetime.date() | datetime.time():
            return value.isoformat()
        case None | bool() | int() | float() | str() | Decimal():
            return value
    return str(value)
