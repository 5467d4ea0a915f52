"""The bodies that cost most, of the largest size that is accepted: for tests and benchmarks."""

import json
from collections.abc import Callable

MAX_BYTES = 10 * 2**20
MAX_VALUES = 500_000


def event(metadata: str) -> str:
    return f'{{"type": "custom", "toolName": "x", "metadata": {{"a": {metadata}}}}}'


def repeated(item: str) -> str:
    """Return an array of as many items as a body may have."""
    values = 1 + item.count(",") + item.count("{") + item.count("[")
    count = min((MAX_VALUES - 10) // values, (MAX_BYTES - 100) // (len(item) + 1))
    return f"[{','.join([item] * count)}]"


def example(number: int, padding: str) -> str:
    metadata = {"model": "gpt-4o", "userId": f"user_{number}", "latencyMs": 340, "text": padding}
    fields = {"type": "tool_call", "toolName": "generate_report", "timestamp": "2026-03-19T10:00:00.000Z"}
    return json.dumps({**fields, "metadata": metadata})


WORST: dict[str, Callable[[], str]] = {
    "one event": lambda: event("1"),
    "10,000 events of the documented size": lambda: f"[{','.join(example(i, '') for i in range(10_000))}]",
    "10,000 events of 1 kB": lambda: f"[{','.join(example(i, 'x' * 850) for i in range(10_000))}]",
    "objects, `{}`": lambda: event(repeated("{}")),
    'objects, `{"a":0}`': lambda: event(repeated('{"a":0}')),
    'objects in objects, `{"":{}}`': lambda: event(repeated('{"":{}}')),
    "arrays, `[0]`": lambda: event(repeated("[0]")),
    "numbers, `1e0`": lambda: event(repeated("1e0")),
    "different numbers": lambda: event(f"[{','.join(f'{i}.{i}e0' for i in range(MAX_VALUES - 10))}]"),
    "numbers of 4,299 digits": lambda: event(repeated("1" * 4299)),
    "900 nested arrays, again and again": lambda: event(repeated("[" * 900 + "]" * 900)),
    "different keys": lambda: event("{" + ",".join(f'"{i}":0' for i in range(MAX_VALUES - 10)) + "}"),
    "different keys beside an invalid event, lenient": lambda: (
        "[{}," + event("{" + ",".join(f'"{i}":0' for i in range(MAX_VALUES - 20)) + "}") + "]"
    ),
    "different keys with line breaks, and an emoji": lambda: event(
        '["\\u0000\U0001f600",{' + ",".join(f'"\\n{i}":{i}e0' for i in range(MAX_VALUES - 20)) + "}]"
    ),
    "10,000 faulty lines of 1 kB, NDJSON": lambda: ('{"type": "custom", "metadata": "' + "x" * 960 + "\n") * 10_000,
    "10,000 faulty lines after empty ones, NDJSON": lambda: "\n" * (MAX_BYTES - 20_010) + "x\n" * 10_000,
    "different keys with U+0000": lambda: event("{" + ",".join(f'"\\u0000{i}":0' for i in range(100_000)) + "}"),
    "one string": lambda: event(f'"{"x" * (MAX_BYTES - 100)}"'),
    "one string of escapes": lambda: event('"' + "\\n" * (MAX_BYTES // 2 - 50) + '"'),
    "empty events": lambda: repeated("{}"),
    "strings of commas": lambda: event("[" + ",".join(['","'] * (MAX_BYTES // 4 - 30)) + "]"),
    "`1e0` beyond the limit": lambda: event(f"[{','.join(['1e0'] * (MAX_BYTES // 4 - 30))}]"),
}
