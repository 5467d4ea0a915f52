"""`imports`: keep a record of every import, list them, and undo one."""

import hashlib
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from commands.base import (
    NotFound,
    check_organization,
    exclusive,
    fetch_dicts,
    reports_errors,
    session,
    translate_errors,
)
from commands.evidence.amendments import amend, count_by_period, full_reason, reason_option
from commands.output import counted, show, sum_shown
from commands.parameters import json_option, org_option
from commands.prune import delete_batches
from database import Connection

INSERT_IMPORT = """
    INSERT INTO imports (org_id, file, options, sha256)
    VALUES (%(org_id)s, %(file)s, %(options)s, %(sha256)s)
    RETURNING id
"""

# After each chunk, so that a process that is killed leaves true counts.
UPDATE_COUNTS = """
    UPDATE imports
    SET read = %(read)s, stored = %(stored)s, skipped = %(skipped)s, rejected = %(rejected)s
    WHERE org_id = %(org_id)s AND id = %(id)s
"""

MARK_ENDED = """
    UPDATE imports
    SET ended_at = now(), sha256 = CASE WHEN %(is_same)s THEN sha256 END
    WHERE org_id = %(org_id)s AND id = %(id)s
"""

# An import that stored every row of the same file in the same way, and of which nothing has been pruned.
SELECT_SAME = """
    SELECT stored
    FROM imports i
    WHERE org_id = %(org_id)s
      AND sha256 = %(sha256)s
      AND options = %(options)s
      AND read = stored
      AND ended_at IS NOT NULL
      AND undone_at IS NULL
      AND stored = (
          SELECT sum(k.ingested)
          FROM idempotency_keys k
          WHERE k.org_id = %(org_id)s AND k.expires_at IS NULL AND k.stored_at BETWEEN i.began_at AND i.ended_at
      )
    LIMIT 1
"""

# How many events of a file its imports have stored, from the beginning on. What was undone since is a gap in them.
SELECT_EARLIER = """
    SELECT coalesce(max(stored + skipped), 0)
    FROM imports i
    WHERE org_id = %(org_id)s AND file = %(file)s AND file <> '-' AND undone_at IS NULL
      AND NOT EXISTS (
          SELECT
          FROM imports u
          WHERE u.org_id = %(org_id)s AND u.file = %(file)s AND u.undone_at >= i.began_at
      )
      AND EXISTS (  -- else they have been pruned
          SELECT
          FROM idempotency_keys k
          WHERE k.org_id = %(org_id)s
            AND k.expires_at IS NULL
            AND k.stored_at BETWEEN i.began_at AND coalesce(i.ended_at, now())
      )
"""

SELECT_IMPORTS = """
    SELECT
        id, org_id AS organization, file, began_at AS began, ended_at AS ended, read, stored, skipped, rejected,
        undone_at AS undone, options
    FROM imports
    WHERE %(org_id)s::text IS NULL OR org_id = %(org_id)s
    ORDER BY id
"""

SELECT_IMPORT = """
    SELECT id, org_id, file, stored, began_at, ended_at, undone_at
    FROM imports
    WHERE id = %(id)s
"""

# The end of an import whose process was killed is before the beginning of the next one.
SELECT_END = """
    SELECT coalesce(min(began_at), now())
    FROM imports
    WHERE org_id = %(org_id)s AND id > %(id)s
"""

# Imports whose undoing was interrupted: the keys of their chunks are deleted in the end.
SELECT_UNDONE_IN_PART = """
    SELECT min(i.id)
    FROM imports i
    WHERE i.org_id = %(org_id)s
      AND i.undone_at IS NOT NULL
      AND (
          EXISTS (
              SELECT
              FROM idempotency_keys k
              WHERE k.org_id = %(org_id)s
                AND k.expires_at IS NULL
                AND k.stored_at BETWEEN i.began_at AND i.ended_at
          ) OR EXISTS (
              SELECT
              FROM imported_rows r
              WHERE r.org_id = %(org_id)s AND r.stored_at BETWEEN i.began_at AND i.ended_at
          )
      )
"""

CONDITION_OF_EVENTS = "source = 'import' AND received_at BETWEEN %(began_at)s AND %(ended_at)s"

# A client's key expires; the keys of chunks do not.
DELETE_CHUNK_KEYS = """
    DELETE FROM idempotency_keys
    WHERE org_id = %(org_id)s AND expires_at IS NULL AND stored_at BETWEEN %(began_at)s AND %(ended_at)s
"""

DELETE_ROW_IDS = """
    DELETE FROM imported_rows
    WHERE org_id = %(org_id)s AND stored_at BETWEEN %(began_at)s AND %(ended_at)s
"""

# An import that was killed has no end yet.
MARK_UNDONE = """
    UPDATE imports
    SET undone_at = now(), ended_at = %(ended_at)s
    WHERE org_id = %(org_id)s AND id = %(id)s
"""


class Record:
    """The row of an import in the table of imports."""

    def __init__(self, connection: Connection, org_id: str, file: str, options: str) -> None:
        """Begin the record of an import.

        `earlier` is how many events earlier imports of the same file stored. `already_stored` is how many one of them
        stored, if that was all of an equal file; else None. Raises ClickException if an undo was interrupted.
        """
        self._path = Path(file).resolve()
        self._version = self._version_of_file()
        sha256 = None
        if self._version:
            with self._path.open("rb") as opened:
                sha256 = hashlib.file_digest(opened, "sha256").digest()
        self._connection = connection
        self._key: dict[str, Any] = {
            "org_id": org_id,
            "file": os.fsencode(self._path).decode("utf-8", "replace") if self._version else "-",
            "options": options,
            "sha256": sha256,
        }
        [(undone,)] = connection.execute(SELECT_UNDONE_IN_PART, self._key).fetchall()
        if undone:
            raise click.ClickException(
                f"import {undone} was undone only in part: first run `imports undo {undone}` again"
            )
        [(self.earlier,)] = connection.execute(SELECT_EARLIER, self._key).fetchall()
        same = connection.execute(SELECT_SAME, self._key).fetchone()
        self.already_stored: int | None = same and same[0]
        [(self.id,)] = connection.execute(INSERT_IMPORT, self._key).fetchall()

    def update(self, counts: dict[str, int]) -> None:
        """Record how far the import is. Raises Unavailable."""
        with translate_errors():
            self._connection.execute(UPDATE_COUNTS, {**self._key, **counts, "id": self.id})

    def end(self, counts: dict[str, int]) -> None:
        """Record that the import has ended. A file that was changed meanwhile is not known by its content."""
        self.update(counts)
        is_same = self._version == self._version_of_file()
        self._connection.execute(MARK_ENDED, {**self._key, "id": self.id, "is_same": is_same})

    def _version_of_file(self) -> tuple[int, ...] | None:
        """Return what changes with an ordinary file; None for another."""
        try:
            status = self._path.stat()
        except OSError:
            return None
        return (status.st_ino, status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else None


@click.group("imports")
def imports() -> None:
    """List what was imported, and undo an import."""


@imports.command("list")
@org_option
@json_option
@reports_errors
def list_imports(org: str | None, as_json: bool) -> None:
    """Show the imports, the oldest first.

    \b
    Examples:
      igris-ingest imports list --org acme
    """
    with session() as connection:
        check_organization(connection, org)
        rows = fetch_dicts(connection, SELECT_IMPORTS, {"org_id": org})
    if as_json:
        rows = [{**row, "options": json.loads(row["options"])} for row in rows]
    show(rows, list(rows[0]) if rows else ["id", "organization", "file"], as_json)


@imports.command("undo")
@click.argument("import_id", metavar="ID", type=click.IntRange(1, 2**63 - 1))
@click.option("--yes", is_flag=True, help="Don't ask.")
@click.option(
    "--sealed", is_flag=True, help="Delete sealed events, too. An amendment records it, and `verify` reports it."
)
@reason_option
@reports_errors
def undo(import_id: int, yes: bool, sealed: bool, reason: str | None) -> None:
    """Delete the events that an import stored. The quota is not given back: they were received.

    \b
    Examples:
      igris-ingest imports list --org acme
      igris-ingest imports undo 12
      igris-ingest imports undo 12 --sealed --reason "imported into the wrong organization"
    """
    with session() as connection:
        found = fetch_dicts(connection, SELECT_IMPORT, {"id": import_id})
        if not found:
            raise NotFound(f"there is no import {import_id}")
        [values] = found
        if values["undone_at"] and connection.execute(SELECT_UNDONE_IN_PART, values).fetchone() == (None,):
            raise click.ClickException(f"import {import_id} is undone already")
        if values["ended_at"] is None:  # its process was killed
            [(values["ended_at"],)] = connection.execute(SELECT_END, values).fetchall()
        check_unsealed(connection, values, sealed)
        question = f"Delete the events of import {import_id} ({values['file']} into {values['org_id']})?"
        if not yes:
            click.confirm(question, abort=True, err=True)
        org_id = values["org_id"]
        with exclusive(connection, "import", org_id), exclusive(connection, "seal", org_id, wait=True):
            check_unsealed(connection, values, sealed)  # `seal` may have run meanwhile
            words = full_reason(f"imports undo {import_id}", reason)
            deleted = sum_shown(values["stored"], undo_import(connection, values, words))
    click.echo(f"deleted {deleted} events of import {import_id}")


def check_unsealed(connection: Connection, values: dict[str, Any], sealed: bool) -> None:
    """Raise ClickException if events of an import are sealed, unless `sealed` ones may be deleted."""
    matched = count_by_period(connection, values["org_id"], CONDITION_OF_EVENTS, values)
    if matched and not sealed:
        events = counted(sum(each.events for each in matched), "event")
        raise click.ClickException(
            f"{events} of import {values['id']} sealed, the first by entry {matched[0].period.newest.number}: --sealed "
            "deletes them all the same, and amends the chain"
        )


def undo_import(connection: Connection, values: dict[str, Any], reason: str) -> Iterator[int]:
    """Amend the chain, and delete the events of an import in batches; yield how many each had.

    Interrupted, it can be run again, and has to be before the next import: the keys of the chunks go last.
    """
    connection.execute(MARK_UNDONE, values)
    amend(connection, values["org_id"], CONDITION_OF_EVENTS, values, reason)
    yield from delete_batches(connection, CONDITION_OF_EVENTS, values)
    connection.execute(DELETE_CHUNK_KEYS, values)
    connection.execute(DELETE_ROW_IDS, values)
