"""Keep the rows that can't be events, so that they can be fixed and imported."""

import filecmp
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import click

from commands.importer.files import Reject
from commands.output import printable

MAX_REJECTS_FILES = 1000


class RejectsFile:
    """The file that gets the rejected rows, if there are any: a line of JSON each.

    It is made beside the imported file, under a name that is not taken: a person may be fixing an earlier file. For
    standard input, and for a path that is not a regular file, it is made in the current folder.
    """

    def __init__(self, file: str, path: str | None = None) -> None:
        """`path` names it. Raises ClickException if it is there already."""
        name = "stdin" if file == "-" else file
        name = name if Path(name).is_file() else Path(name).name
        self._paths = [path] if path else [f"{name}.rejects.ndjson"]
        if not path:
            self._paths += [f"{name}.rejects-{number}.ndjson" for number in range(2, MAX_REJECTS_FILES + 1)]
        self._path = Path(self._paths[0])
        self._file: IO[str] | None = None
        if path and Path(path).exists():
            raise click.ClickException(f"{printable(path)}: there is a file of that name; move it away")

    @property
    def where(self) -> str:
        """What the summary says of the file, when that is closed."""
        return f": see {printable(str(self._path))}" if self._file else ""

    def write(self, reject: Reject) -> None:
        with self._errors():
            self._file = self._file or self._open()
            line, reason, row = reject
            self._file.write(f'{{"line": {line}, "reason": {json.dumps(reason)}, "row": {row}}}\n')

    def _open(self) -> IO[str]:
        for path in self._paths:
            self._path = Path(path)
            try:
                # never through a link, and never into a file of another user
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
                return os.fdopen(os.open(self._path, flags, 0o666), "w", encoding="utf-8")
            except FileExistsError:
                continue
        raise OSError(0, "there is a file of that name; move it away")

    def __enter__(self) -> "RejectsFile":
        return self

    def __exit__(self, *_: object) -> None:
        with self._errors():
            if self._file:
                self._file.close()
                self._replace_by_equal()

    def discard(self) -> None:
        """Remove the file: no row of the imported file was stored, and the options are at fault."""
        with self._errors():
            if self._file:
                self._file.close()
                self._file = None
                self._path.unlink()

    def _replace_by_equal(self) -> None:
        """Remove the file if an earlier import of the same rows has left an equal one."""
        for path in map(Path, self._paths):
            if path == self._path or not path.is_file():
                break
            if filecmp.cmp(path, self._path, shallow=False):
                self._path.unlink()
                self._path = path
                break

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise click.ClickException(f"{printable(str(self._path))}: {error.strerror}") from None
