"""The formats of files: a new one is a name here, a reader in a separate file, and a line in `read_rows`."""

from collections.abc import Callable, Sequence

from commands.importer.csv_rows import read_csv
from commands.importer.expressions import Expression
from commands.importer.files import Rows, Source
from commands.importer.json_rows import read_each, read_each_line, read_json, read_ndjson, read_rejects, read_split
from commands.importer.parquet_rows import read_parquet

FORMATS = {
    ".rejects.ndjson": "rejects",
    ".csv": "csv",
    ".tsv": "csv",
    ".ndjson": "ndjson",
    ".jsonl": "ndjson",
    ".json": "json",
    ".parquet": "parquet",
}
"""The formats by the end of a file's name. What begins with a reject is a file of rejects under any name."""

SPREADSHEETS = (".xlsx", ".xls", ".ods")


def format_of(name: str) -> str | None:
    """Return what a file's name says of its format, with or without .gz; None if it says nothing."""
    name = name.lower().removesuffix(".gz")
    return next((found for suffix, found in FORMATS.items() if name.endswith(suffix)), None)


def read_rows(
    source: Source,
    file_format: str,
    max_bytes: int,
    check_header: Callable[[list[str]], None],
    *,
    delimiter: str | None = None,
    each: Sequence[Expression] = (),
) -> Rows:
    """Yield the rows of a file in their order, or a Reject for what is not a row.

    `file_format` is one of FORMATS. A row has at most `max_bytes`. `check_header` gets the names of the columns, where
    the file says them at its beginning, and may raise Unreadable. `delimiter` is CSV's; None finds it. `each` are
    compiled JMESPath expressions: the list of rows in a JSON document, then lists in the rows of the one before. Raises
    Unreadable if the file is invalid, or no further row can be found.
    """
    if source.is_rejects or file_format == "rejects":
        return read_rejects(source, max_bytes)
    if source.is_parquet or file_format == "parquet":
        return read_parquet(source, max_bytes, check_header)
    if file_format == "csv":
        return read_csv(source, max_bytes, check_header, delimiter)
    if file_format == "split":
        return read_split(source, max_bytes)
    if each:
        return (read_each_line if file_format == "ndjson" else read_each)(source, max_bytes, each)
    return {"ndjson": read_ndjson, "json": read_json}[file_format](source, max_bytes)
