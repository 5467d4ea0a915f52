"""`init-db`: create the schema, or upgrade it."""

import re
from pathlib import Path

import click

from commands.base import command, transaction
from database import Connection, Unavailable
from storage import SCHEMA_VERSION

ROOT = Path(__file__).parent.parent

LOCK_TIMEOUT = 3  # seconds that an upgrade waits for a lock. Requests queue up behind it meanwhile.


@click.command("init-db")
@command
def init_db() -> None:
    """Create or upgrade the schema. It is safe to run again, and while the service runs."""
    with transaction() as connection:
        create_or_upgrade(connection)
    click.echo("the schema is ready", err=True)


def create_or_upgrade(connection: Connection) -> None:
    """Bring the schema to this program's version, in the connection's transaction.

    Raises Unavailable if the database is not in UTF-8, or the schema is newer than the program.
    """
    connection.execute("SELECT pg_advisory_xact_lock(hashtext('igris-ingest init-db'))")
    connection.execute(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}s'".encode())
    # for Citus, where a function can't be created in parallel; elsewhere it means nothing
    connection.execute("SET LOCAL citus.multi_shard_modify_mode = 'sequential'")
    [(encoding, exists)] = connection.execute(
        "SELECT current_setting('server_encoding'), to_regclass('schema_version') IS NOT NULL"
    ).fetchall()
    if encoding != "UTF8":
        raise Unavailable(f"the database has the encoding {encoding}; create it with ENCODING 'UTF8'")
    if not exists:
        _execute_file(connection, "schema.sql")
        connection.execute("INSERT INTO schema_version VALUES (%s)", [SCHEMA_VERSION])
    [(version,)] = connection.execute("SELECT version FROM schema_version").fetchall()
    if version > SCHEMA_VERSION:
        raise Unavailable(f"the schema has version {version}, newer than this program's {SCHEMA_VERSION}")
    for step in range(version + 1, SCHEMA_VERSION + 1):
        _execute_file(connection, f"migrations/{step:03}.sql")
        connection.execute("UPDATE schema_version SET version = %s", [step])


_STATEMENT = re.compile(r"(?:--[^\n]*|\$\$.*?\$\$|'[^']*'|[^;])+;", re.DOTALL)


def _execute_file(connection: Connection, name: str) -> None:
    """Execute the statements of a file one by one: Citus takes no more at once."""
    for statement in _STATEMENT.findall((ROOT / name).read_text()):
        connection.execute(statement.encode())
