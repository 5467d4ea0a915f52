"""`seal` and `seals`: digest what was received, so that `verify` can show later that it is whole; list the digests.

docs/evidence.md has the definition of a seal for auditors. It needs nothing of this program.
"""

import hashlib
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, time, timedelta
from typing import Any

import click
from psycopg.rows import class_row

from commands.base import NotFound, exclusive, lock_partitions, report_error, reports_errors, server_time, session
from commands.evidence.trail import MAX_COMMIT_DELAY, Filters, await_storing, lines
from commands.output import printable
from commands.parameters import json_option, org_option
from database import Connection

SEALING_DELAY = 3 * MAX_COMMIT_DELAY
"""What was received a minute ago is committed, or never will be, but for a commit that waits for a standby."""

BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)  # from here on the first seal of an organization covers what was received

SELECT_SEALS = """
    SELECT org_id, number, since, until, events, digest, previous, seal, sealed_at, pruned_at, pruned_by
    FROM seals
    WHERE org_id = %(org_id)s
    ORDER BY number
"""

SELECT_LAST_SEAL = f"{SELECT_SEALS} DESC LIMIT 1"

SELECT_ORGANIZATIONS = "SELECT id FROM organizations UNION SELECT org_id FROM seals ORDER BY id"

# The days, in UTC, on which something was received that is not sealed.
SELECT_DAYS = """
    SELECT DISTINCT (received_at AT TIME ZONE 'UTC')::date AS day
    FROM audit_events
    WHERE org_id = %(org_id)s AND received_at >= %(since)s AND received_at < %(until)s
    ORDER BY day
"""

INSERT_SEAL = """
    INSERT INTO seals (org_id, number, since, until, events, digest, previous, seal)
    VALUES (%(org_id)s, %(number)s, %(since)s, %(until)s, %(events)s, %(digest)s, %(previous)s, %(seal)s)
    RETURNING sealed_at
"""


@dataclass(slots=True)
class Seal:
    """A row of `seals`: the columns are explained in schema.sql."""

    org_id: str
    number: int
    since: datetime
    until: datetime
    events: int
    digest: bytes
    previous: bytes
    seal: bytes = b""
    sealed_at: datetime | None = None
    pruned_at: datetime | None = None
    pruned_by: str | None = None

    def text(self) -> str:
        """Return the line whose SHA-256, with a line break, is the seal's own digest."""
        since, until = exact(self.since), exact(self.until)
        return f"{self.number} {since} {until} {self.events} {self.digest.hex()} {self.previous.hex()} {self.org_id}"

    def own_digest(self) -> bytes:
        return hashlib.sha256(f"{self.text()}\n".encode()).digest()

    def shown(self) -> dict[str, Any]:
        """Return the seal for JSON."""
        return {
            "organization": self.org_id,
            "number": self.number,
            "since": exact(self.since),
            "until": exact(self.until),
            "events": self.events,
            "digest": self.digest.hex(),
            "previous": self.previous.hex(),
            "seal": self.seal.hex(),
            "sealedAt": self.sealed_at and exact(self.sealed_at),
            "prunedAt": self.pruned_at and exact(self.pruned_at),
            "prunedBy": self.pruned_by,
        }


def exact(moment: datetime) -> str:
    """Return a time in UTC, always to the microsecond."""
    return f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%f}Z"


@click.command("seal")
@org_option
@json_option
@reports_errors
def seal(org: str | None, as_json: bool) -> None:
    """Seal what was received since the last seal, up to a minute ago. The events of a seal are of one day in UTC.

    It prints the new seals. Keep the last one elsewhere, too: `verify --head` compares with it.

    \b
    Examples:
      igris-ingest seal
      igris-ingest seal --org acme --json
    """
    with session() as connection:
        names = organizations(connection, org)
        end = server_time(connection) - SEALING_DELAY
        await_storing(connection)
        failed = False
        for org_id in names:
            with report_error(org_id) as errors:
                for made in seal_organization(connection, org_id, end):
                    _echo(made, as_json)
            failed = failed or bool(errors)
    sys.exit(1 if failed else 0)


@click.command("seals")
@org_option
@json_option
@reports_errors
def list_seals(org: str | None, as_json: bool) -> None:
    """Print all seals again, as `seal` did. JSON has the time and the command of a prune, too.

    \b
    Examples:
      igris-ingest seals --org acme
    """
    with session() as connection:
        for org_id in organizations(connection, org):
            for made in seals_of(connection, org_id):
                _echo(made, as_json)


def _echo(made: Seal, as_json: bool) -> None:
    click.echo(json.dumps(made.shown()) if as_json else printable(f"{made.seal.hex()}  {made.text()}"))


def organizations(connection: Connection, org_id: str | None) -> list[str]:
    """Return the names of all organizations, also of those of which only seals are left, or the one that is named.

    Raises NotFound.
    """
    names = [name for (name,) in connection.execute(SELECT_ORGANIZATIONS)]
    if org_id and org_id not in names:
        raise NotFound(f"there is no organization {org_id!r}")
    return [org_id] if org_id else names


def seals_of(connection: Connection, org_id: str) -> list[Seal]:
    """Return the seals of an organization, the oldest first."""
    return connection.cursor(row_factory=class_row(Seal)).execute(SELECT_SEALS, {"org_id": org_id}).fetchall()


def seal_organization(connection: Connection, org_id: str, end: datetime) -> Iterator[Seal]:
    """Seal what an organization received until `end`, day by day; yield each seal. It can be stopped at any time."""
    last = _last_seal(connection, org_id)
    if last.until > server_time(connection):
        ahead = f"the last seal ends at {exact(last.until)}, which PostgreSQL's clock has not reached"
        click.echo(f"{printable(org_id)}: nothing is sealed: {ahead}", err=True)
    with connection.transaction():
        lock_partitions(connection)
        period = {"org_id": org_id, "since": last.until, "until": end}
        days = connection.execute(SELECT_DAYS, period).fetchall()
    for (day,) in days:
        until = min(end, datetime.combine(day, time(), UTC) + timedelta(days=1))
        with exclusive(connection, "seal", org_id, wait=True), connection.transaction():
            lock_partitions(connection)
            made = _seal_until(connection, org_id, until)
        if made:
            yield made


def _seal_until(connection: Connection, org_id: str, until: datetime) -> Seal | None:
    """Seal what was received between the last seal and a time. Return None if that is nothing."""
    last = _last_seal(connection, org_id)
    with lines(connection, Filters(org_id, last.until, until)) as found:
        digest, events = digest_of(found)
    if not events:
        return None
    made = Seal(org_id, last.number + 1, last.until, until, events, digest, last.seal)
    made.seal = made.own_digest()
    [(made.sealed_at,)] = connection.execute(INSERT_SEAL, asdict(made)).fetchall()
    return made


def _last_seal(connection: Connection, org_id: str) -> Seal:
    """Return the last seal, or what stands for one before the first."""
    cursor = connection.cursor(row_factory=class_row(Seal))
    last = cursor.execute(SELECT_LAST_SEAL, {"org_id": org_id}).fetchone()
    return last or Seal(org_id, 0, BEGINNING, BEGINNING, 0, b"", b"", bytes(32))


def digest_of(found: Iterable[bytes]) -> tuple[bytes, int]:
    """Return the SHA-256 of the lines of events, and their number."""
    digest, events = hashlib.sha256(), 0
    for line in found:
        digest.update(line)
        events += 1
    return digest.digest(), events
