"""JMESPath expressions (https://jmespath.org): compile them, and say which columns they read."""

from collections.abc import Iterable, Iterator
from typing import Any

import jmespath
from jmespath import functions
from jmespath.exceptions import JMESPathError, UnknownFunctionError


class _Functions(functions.Functions):
    """JMESPath's functions, and `maybe(COLUMN)`: a column that no row need have."""

    @functions.signature({"types": []})
    def _func_maybe(self, value: Any) -> Any:
        return value


class Expression:
    """A compiled expression."""

    def __init__(self, text: str) -> None:
        """Compile an expression. Raises ValueError if it is invalid."""
        self.text = text
        self._options = jmespath.Options(custom_functions=_Functions())
        try:
            self._compiled = jmespath.compile(text)
            self._compiled.search({}, self._options)
        except RecursionError:
            raise ValueError("nested too deep") from None
        except UnknownFunctionError:
            raise
        except JMESPathError:
            if not hasattr(self, "_compiled"):
                raise  # else a function that wants a value

        self._path = _path(self._compiled.parsed)

    def search(self, row: Any) -> Any:
        """Return what the expression finds. Raises JMESPathError, TypeError and ValueError."""
        if not self._path:
            return self._compiled.search(row, self._options)
        for name in self._path:  # as JMESPath does, at a tenth of the time
            if not isinstance(row, dict):
                return None
            row = row.get(name)
        return row

    def matches(self, row: Any) -> bool:
        """Return whether the expression finds what JMESPath takes for true. Raises what `search` does."""
        found = self.search(row)
        return not (found is None or found is False or found in ("", [], {}))

    @property
    def is_column(self) -> bool:
        return bool(self._compiled.parsed["type"] == "field")

    def columns(self, *, optional: bool = True) -> set[str]:
        """Return the columns that the expression reads; without the `optional` ones, which stand in `maybe()`."""
        return set(_columns(self._compiled.parsed, optional))


# The nodes of JMESPath's syntax tree of which only the first child is about the row itself.
_CHAINS = (
    "subexpression",
    "index_expression",
    "projection",
    "filter_projection",
    "value_projection",
    "flatten",
    "pipe",
)


def _path(node: Any) -> list[str]:
    """Return the names of a path such as response.body.model; nothing if the expression is not one."""
    if node["type"] == "field":
        return [node["value"]]
    if node["type"] != "subexpression":
        return []
    paths = [_path(child) for child in node["children"]]
    return [name for path in paths for name in path] if all(paths) else []


def _columns(node: Any, optional: bool) -> Iterator[str]:
    if node["type"] == "field":
        yield node["value"]
    if node["type"] == "function_expression" and node["value"] == "maybe" and not optional:
        return
    children: Iterable[Any] = node.get("children", ())
    for child in list(children)[: 1 if node["type"] in _CHAINS else None]:
        if isinstance(child, dict):
            yield from _columns(child, optional)
