"""Read Parquet, with pyarrow."""

import datetime
import json
from collections.abc import Callable
from decimal import Decimal
from typing import Any

from commands.importer.files import MAX_SHOWN, InvalidRow, Reject, Row, Rows, Source, Unreadable


def read_parquet(source: Source, check_header: Callable[[list[str]], None]) -> Rows:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise Unreadable("Parquet needs the package pyarrow: pip install pyarrow, or export the rows as CSV") from None
    try:
        table = parquet.ParquetFile(source.file)
        check_header(table.schema_arrow.names)
        number = 0
        for batch in table.iter_batches(1000):
            for row in batch.to_pylist():
                number += 1
                try:
                    yield Row(number, {name: each for name in row if (each := _as_json(row[name])) is not None}, None)
                except InvalidRow as error:
                    yield Reject(number, str(error), json.dumps(str(row)[:MAX_SHOWN]))
    except (ArrowException, OSError) as error:
        raise Unreadable(f"Not Parquet: {error}") from None


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
