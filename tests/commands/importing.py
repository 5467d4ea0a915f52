"""What the tests of `import` share."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from commands.importer.files import Reject, Source
from commands.importer.formats import FORMATS, read_rows
from commands.importer.mapping import Options
from commands.importer.rows import Event, EventMaker
from tests.support import Account, command, igris

MAX_BYTES = 10_000


def events(count: int, first: int = 0) -> list[dict[str, Any]]:
    return [
        {"type": "tool_call", "toolName": f"tool-{number}", "timestamp": "2026-03-19T10:00:00Z"}
        for number in range(first, first + count)
    ]


def ndjson(rows: list[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def write(folder: Path, name: str, content: str | bytes) -> Path:
    file = folder / name
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


def read_as(source: Source, file_format: str, maker: EventMaker) -> Iterator[Event | Reject]:
    return maker.events(read_rows(source, file_format, MAX_BYTES, maker.check_header))


def read(folder: Path, name: str, content: str | bytes, maker: EventMaker | None = None) -> list[Any]:
    """What a file's rows become, without a database."""
    file = write(folder, name, content)
    with Source(str(file), None) as source:
        return list(read_as(source, FORMATS[file.suffix], maker or EventMaker(Options(is_dated_now=True))))


def texts(items: list[Any]) -> list[Any]:
    return [json.loads(item.text) for item in items]


def run(account: Account, *arguments: str, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    """Runs the command; in a separate process if it gets standard input or a folder."""
    how = igris if kwargs else command
    arguments = ("import", *arguments, "--timestamp-now", "--org", account.org_id)
    return how(*arguments, database_url=account.service.database_url, **kwargs)


def import_(account: Account, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the command as it is, without --timestamp-now."""
    return command("import", *arguments, "--org", account.org_id, database_url=account.service.database_url)
