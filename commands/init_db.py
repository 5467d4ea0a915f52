"""`init-db`: create the schema, or upgrade it."""

import re
from pathlib import Path

import click

from commands.base import connect, reports_errors
from config import load_settings
from database import Connection
from database_errors import Unavailable
from storage import SCHEMA_VERSION, check_schema_version

ROOT = Path(__file__).parent.parent

LOCK_TIMEOUT = 3  # seconds that an upgrade waits for a lock. Requests queue up behind it meanwhile.


# Before 1.0.0 the storing function had other names.
SELECT_STATE = """
    SELECT
        current_setting('server_encoding'),
        to_regclass('schema_version') IS NOT NULL,
        EXISTS (SELECT FROM pg_proc WHERE proname LIKE 'store\\_events\\_v%')
"""


@click.command("init-db")
@reports_errors
def init_db() -> None:
    """Create or upgrade the schema. It is idempotent, and safe to run concurrently and while the service runs.

    \b
    Examples:
      igris-ingest init-db
      DATABASE_URL=postgresql://igris@db.example.com/igris igris-ingest init-db
    """
    with connect(load_settings()["DATABASE_URL"]) as connection, connection.transaction():
        create_or_upgrade(connection)
    click.echo("the schema is ready", err=True)


def create_or_upgrade(connection: Connection) -> None:
    """Bring the schema to this program's version, in the connection's transaction.

    Raises Unavailable if the database is not in UTF-8, or if its schema is newer than the program or older than 1.0.0.
    """
    connection.execute("SELECT pg_advisory_xact_lock(hashtext('igris-ingest init-db'))")
    connection.execute(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}s'".encode())
    # for Citus, where a function can't be created in parallel; elsewhere it means nothing
    connection.execute("SET LOCAL citus.multi_shard_modify_mode = 'sequential'")
    [(encoding, exists, is_released)] = connection.execute(SELECT_STATE).fetchall()
    if encoding != "UTF8":
        raise Unavailable(f"the database has the encoding {encoding}; create it with ENCODING 'UTF8'")
    if not exists:
        _execute_file(connection, ROOT / "schema.sql")
        connection.execute("INSERT INTO schema_version VALUES (%s)", [SCHEMA_VERSION])
    elif not is_released:
        raise Unavailable("the schema is older than 1.0.0: use an empty database (for `make run`, delete var/)")
    [(version,)] = connection.execute("SELECT version FROM schema_version").fetchall()
    if version > SCHEMA_VERSION:
        check_schema_version(version)
    for step in range(version + 1, SCHEMA_VERSION + 1):
        [file] = (ROOT / "migrations").glob(f"{step:03}_*.sql")
        _execute_file(connection, file)
        connection.execute("UPDATE schema_version SET version = %s", [step])
    connection.execute("REVOKE EXECUTE ON FUNCTION store_events_v1 FROM PUBLIC")  # a restored dump has no privileges


_STATEMENT = re.compile(r"(?:--[^\n]*|\$\$.*?\$\$|'[^']*'|[^;])+;", re.DOTALL)


def _execute_file(connection: Connection, file: Path) -> None:
    """Execute the statements of a file one by one: Citus takes no more at once."""
    for statement in _STATEMENT.findall(file.read_text()):
        connection.execute(statement.encode())
