"""JMESPath expressions (https://jmespath.org): compile them, and say which columns they read."""

from collections.abc import Iterable, Iterator
from typing import Any

import jmespath
from jmespath.exceptions import JMESPathError, UnknownFunctionError


def compile_expression(text: str) -> Any:
    """Return the compiled expression. Raises ValueError if it is none."""
    try:
        return jmespath.compile(text)
    except RecursionError:
        raise ValueError("nested too deep") from None


def has_default(expression: Any) -> bool:
    """Return whether the expression has a value also in an empty row. Raises ValueError for an unknown function."""
    try:
        return expression.search({}) is not None
    except UnknownFunctionError:
        raise
    except JMESPathError:  # a function that wants a value
        return False


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


def roots(expression: Any) -> set[str]:
    """Return the columns that a compiled expression reads."""
    return set(_roots(expression.parsed))


def _roots(node: Any) -> Iterator[str]:
    if node["type"] == "field":
        yield node["value"]
    children: Iterable[Any] = node.get("children", ())
    for child in list(children)[: 1 if node["type"] in _CHAINS else None]:
        if isinstance(child, dict):
            yield from _roots(child)
