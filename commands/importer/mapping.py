"""Find the fields of an event in a row: by column, or by a JMESPath expression over the row."""

import difflib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import simplejson
from jmespath.exceptions import JMESPathError, UnknownFunctionError

import schemas
from commands.importer.expressions import Expression
from commands.importer.files import InvalidRow, Unreadable

FIELDS = tuple(schemas.Event().fields)


class Options(NamedTuple):
    """What the user says of all rows."""

    sources: Mapping[str, str] = {}  # by field: the column it is in, or a JMESPath expression
    constants: Mapping[str, str] = {}  # by field: the same value for all rows
    translations: Mapping[str, Mapping[str, str]] = {}  # by field: what its values become; `*` stands for all others
    dropped: frozenset[str] = frozenset()  # the columns to leave out
    is_dated_now: bool = False  # rows without a timestamp get the time of the import
    row_id: str = ""  # the column that the id of a row is in, or a JMESPath expression


class _Place(NamedTuple):
    """Where a field is: in the first of the columns that a row has, or where the expression finds it."""

    field: str
    columns: list[str]
    expression: Expression | None = None


class FieldFinder:
    """Finds the fields in rows with certain columns. Raises Unreadable if the options don't fit the columns."""

    def __init__(
        self,
        options: Options,
        names: list[str],
        *,
        is_complete: bool = False,
        may_lack_columns: bool = False,
        where: Expression | None = None,
    ) -> None:
        """`names` are the columns: all that a row can have (`is_complete`), or those of the first rows.

        Rejects `may_lack_columns` that the options name: those of CSV have no empty cells.
        """
        self._options = options
        self._names = names
        self._may_lack_columns = may_lack_columns
        self.notes: list[str] = []  # possible mistakes
        self.translated: set[tuple[str, str]] = set()  # the fields and values of --map-value that a row had
        taken = {source for source in options.sources.values() if source in names}
        self._places = [self._map(field, taken) for field in FIELDS if field not in options.constants]
        self._row_id = self._place("--id ", options.row_id, []) if options.row_id else None
        if where and names and not may_lack_columns:
            for column in sorted(where.columns(optional=False) - set(names)):
                raise self._no_column("--where ", where.text, column, is_alone=False)
        for column in sorted(options.dropped - set(names)) if names and not may_lack_columns else ():
            raise Unreadable(f"no column is called {column!r}, as --drop has it{self._nearest(column)}")
        if is_complete:
            self._check_required()
        if not may_lack_columns:
            self._check_timestamp()

    def find(self, row: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the values of the fields, without nulls, and the columns that are none. Raises InvalidRow."""
        fields: dict[str, Any] = {}
        others = {name: value for name, value in row.items() if name and name not in self._options.dropped}
        view = None
        columns_of: dict[str, str] = {}
        for field, columns, expression in self._places:
            if expression is not None:
                view = entered(row) if view is None else view
                try:
                    found = expression.search(view)
                except (JMESPathError, TypeError, ValueError) as error:
                    raise InvalidRow(f"{field}: The expression of --map fails: {error}") from None
                if found is not None:
                    fields[field] = found
                continue
            for column in columns:
                if column in others:
                    del others[column]
                    columns_of[field] = column
                    if row[column] is not None:
                        fields[field] = row[column]
                    break
        for field, translation in self._options.translations.items():
            if field not in fields:
                continue
            value = fields[field] if isinstance(fields[field], str) else simplejson.dumps(fields[field])
            known = value if value in translation else "*"
            if (translated := translation.get(known)) is not None:
                self.translated.add((field, known))
                if field in columns_of and translated != value:  # the original is kept
                    others[columns_of[field]] = fields[field]
                fields[field] = translated
        return fields, others

    def row_id(self, row: dict[str, Any]) -> Any:
        """Return the id of a row, by --id. Raises InvalidRow."""
        if self._row_id is None:
            return None
        _, columns, expression = self._row_id
        if expression is None:
            return row.get(columns[0])
        try:
            return expression.search(entered(row))
        except (JMESPathError, TypeError, ValueError) as error:
            raise InvalidRow(f"The expression of --id fails: {error}") from None

    def _map(self, field: str, taken: set[str]) -> _Place:
        own = [name for name in dict.fromkeys((field, snake_case(field))) if name not in taken]
        source = self._options.sources.get(field)
        return _Place(field, own) if source is None else self._place(f"--map {field}=", source, own)

    def _place(self, option: str, source: str, own: list[str]) -> _Place:
        """Return where an option says that a value is. Raises Unreadable if the rows have no such column."""
        field = option.removeprefix("--map ").removesuffix("=")
        if source in self._names or not self._names:
            return _Place(field, [source, *own])
        try:
            expression = Expression(source)
        except ValueError as error:
            if isinstance(error, UnknownFunctionError):
                raise Unreadable(f"{option}{source}: {error}") from None
            raise self._no_column(option, source, source) from None
        if self._may_lack_columns:
            return _Place(field, [source, *own]) if expression.is_column else _Place(field, own, expression)
        for column in sorted(expression.columns(optional=False) - set(self._names)):
            raise self._no_column(option, source, column, is_alone=expression.is_column)
        for column in sorted(expression.columns() - set(self._names)):
            self.notes.append(f"no row at the beginning has {column!r}, as {option}{source} has it")
        return _Place(field, own, expression)

    def _no_column(self, option: str, source: str, column: str, *, is_alone: bool = True) -> Unreadable:
        maybe = "" if is_alone else f". If rows may lack it, write maybe({column}); a text has single quotes"
        return Unreadable(
            f"no column is called {column!r}, as {option}{source} has it{self._nearest(column)} "
            f"(there are {_listed(self._names)}){maybe}"
        )

    def _nearest(self, column: str) -> str:
        nearest = [name for name in self._names if name.lower() == column.lower()]
        nearest = nearest or difflib.get_close_matches(column, self._names, 1)
        nearest = nearest or [name for name in self._names if column in name]  # model in provided_model_name
        return f"; did you mean {nearest[0]!r}?" if nearest else ""

    def _check_required(self) -> None:
        for field, columns, expression in self._places:
            if field in ("type", "toolName") and expression is None and not set(columns) & set(self._names):
                raise Unreadable(
                    f"no column is called {field!r} (there are {_listed(self._names)}): name one with "
                    f"--map {field}=COLUMN, or the same value for all rows with --set {field}=VALUE"
                )

    def _check_timestamp(self) -> None:
        for field, columns, expression in self._places:
            is_found = expression is not None or set(columns) & set(self._names)
            if field == "timestamp" and self._names and not is_found and not self._options.is_dated_now:
                raise Unreadable(
                    f"no row has a timestamp (there are {_listed(self._names)}): name its column with --map "
                    "timestamp=COLUMN, or date all rows at the time of the import with --timestamp-now"
                )


def snake_case(name: str) -> str:
    return re.sub("[A-Z]", lambda letter: f"_{letter[0].lower()}", name)


def _listed(names: list[str]) -> str:
    return ", ".join(repr(name[:100]) for name in names[:40]) + (
        f" and {len(names) - 40} more" if len(names) > 40 else ""
    )


def entered(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row in which the cells that hold a JSON array or object are that."""
    return {
        name: _parsed(value) if type(value) is str and value[:1] in ("{", "[") else value for name, value in row.items()
    }


def _parsed(cell: str) -> Any:
    try:
        return simplejson.loads(cell, use_decimal=True)
    except (ValueError, RecursionError):
        return cell
