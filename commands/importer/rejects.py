"""Keep the rows that can't be events, so that they can be mended and imported."""

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import click

from commands.importer.files import Reject
from commands.output import printable


class RejectsFile:
    """The file beside an imported one that gets its rejected rows, if there are any: a line of JSON each.

    A file of an earlier run becomes a backup (~): somebody may be mending it. For standard input, and what is no
    ordinary file, it is made in the current folder.
    """

    def __init__(self, file: str) -> None:
        name = "stdin" if file == "-" else file
        self._path = Path(f"{name if Path(name).is_file() else Path(name).name}.rejects.ndjson")
        self._file: IO[str] | None = None

    @property
    def where(self) -> str:
        """What the summary says of the file."""
        return f": see {printable(str(self._path))}" if self._file else ""

    def write(self, reject: Reject) -> None:
        with self._errors():
            if not self._file:
                # never through a link, and never into what somebody else has put there
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
                self._file = os.fdopen(os.open(self._path, flags, 0o666), "w")
            line, reason, row = reject
            self._file.write(f'{{"line": {line}, "reason": {json.dumps(reason)}, "row": {row}}}\n')

    def __enter__(self) -> "RejectsFile":
        with self._errors():
            try:
                mode = self._path.lstat().st_mode
            except FileNotFoundError:
                return self
            if not stat.S_ISREG(mode):
                raise OSError(0, "it is not an ordinary file; move it away")
            self._path.replace(f"{self._path}~")
        return self

    def __exit__(self, *_: object) -> None:
        with self._errors():
            if self._file:
                self._file.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise click.ClickException(f"{printable(str(self._path))}: {error.strerror}") from None
