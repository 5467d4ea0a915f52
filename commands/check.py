"""`check`: look for what needs attention, for cron, Nagios or a timer."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, NamedTuple

import click

from commands.base import AlreadyRunning, exclusive, fetch_dicts, reports_errors, server_time, session, translate_errors
from commands.evidence.chain import BEGINNING, open_day_end
from commands.evidence.seals import sealed_until
from commands.output import counted, exact, printable
from commands.parameters import json_option
from commands.quota import usage_of_month
from config import load_settings
from database import Connection
from database_errors import NoRoom, Unavailable
from storage import Storage

ATTENTION = 2  # the exit status if there is a finding

PROBE_BYTES = 16 * 2**20  # that PostgreSQL's disk must have room for

# A temporary table always takes new pages.
PROBE = "CREATE TEMPORARY TABLE probe ON COMMIT DROP AS SELECT repeat('x', 1000) FROM generate_series(1, %s)"

SELECT_REJECTED = """
    SELECT DISTINCT org_id
    FROM monthly_usage
    WHERE month = date_trunc('month', now() AT TIME ZONE 'UTC')::date AND slot = -1
"""

SELECT_UNSEALED = """
    SELECT min(received_at)
    FROM audit_events
    WHERE org_id = %(org_id)s AND received_at >= %(since)s AND received_at < now() - %(wait)s
"""

SELECT_KEYS = """
    SELECT id, org_id, label, expires_at, expires_at <= now() + %(notice)s AS expires_soon
    FROM api_keys
    WHERE revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())
    ORDER BY id
"""

# Whether a key sent something in a period that ended some days ago, and began a day before.
SELECT_HAS_SENT = """
    SELECT EXISTS (
        SELECT
        FROM audit_events
        WHERE org_id = %(org_id)s
          AND api_key_id = %(id)s
          AND received_at >= now() - (%(days)s + 1) * interval '1 day'
          AND received_at < now() - %(days)s * interval '1 day'
    )
"""

SELECT_OPEN_IMPORTS = """
    SELECT id, org_id, file, began_at
    FROM imports i
    WHERE ended_at IS NULL
      AND NOT EXISTS (  -- it was run again
          SELECT
          FROM imports later
          WHERE later.org_id = i.org_id AND later.file = i.file AND later.id > i.id
      )
    ORDER BY id
"""


class Finding(NamedTuple):
    """Something that needs attention."""

    check: str  # database, disk, quota, seal, key or import
    organization: str | None
    message: str


def _limit(name: str, minimum: int, maximum: int, default: int, help_text: str) -> Callable[..., Any]:
    """Return an option for a number from which on something is a finding."""
    number = click.IntRange(minimum, maximum)
    return click.option(name, type=number, default=default, show_default=True, help=help_text)


@click.command("check")
@_limit("--quota-percent", 1, 100, 90, "Report an organization that has used so much of its quota.")
@_limit("--seal-hours", 1, 8760, 2, "Report events that have waited so long for a seal.")
@_limit("--key-days", 0, 3650, 14, "Report keys that expire within so many days.")
@_limit(
    "--daily-days", 1, 30, 7, "Report a key that sent events on each of so many days, and none in the last 24 hours."
)
@click.option("--disk", type=click.Path(exists=True), help="A folder on PostgreSQL's disk, if that is on this machine.")
@_limit("--disk-percent", 1, 100, 80, "Report the disk of --disk if so much is in use.")
@json_option
@reports_errors
def check(disk: str | None, disk_percent: int, as_json: bool, **limits: int) -> None:
    """Look for what needs attention, and print a line for each finding.

    \b
    - the database can't store events, or its disk is nearly full
    - an organization is near its quota, or the quota rejected a request in this month
    - an event has waited too long for its seal
    - an API key expires soon, or sent nothing for a day although it did daily
    - an import has no end: its process was killed

    Exit status: 0 nothing found, 1 could not look, 2 something needs attention (or wrong usage). PostgreSQL that can't
    be reached is a finding.

    \b
    Examples:
      igris-ingest check
      igris-ingest check --disk /var/lib/postgresql --json
    """
    status = 0
    for finding in _findings(disk, disk_percent, limits):
        status = ATTENTION
        if as_json:
            click.echo(json.dumps(finding._asdict()))
        else:
            whose = f"{finding.organization}: " if finding.organization else ""
            click.echo(printable(f"{finding.check}: {whose}{finding.message}"))
    sys.exit(status)


def _findings(disk: str | None, disk_percent: int, limits: dict[str, int]) -> Iterator[Finding]:
    yield from _disk(disk, disk_percent)
    try:
        with session() as connection, translate_errors():
            yield from _database(connection)
            yield from _quotas(connection, limits["quota_percent"])
            yield from _seals(connection, timedelta(hours=limits["seal_hours"]))
            yield from _keys(connection, limits["key_days"], limits["daily_days"])
            yield from _imports(connection)
    except Unavailable as error:
        yield Finding("database", None, ": ".join(error.args))


def _disk(folder: str | None, percent: int) -> Iterator[Finding]:
    if folder:
        usage = shutil.disk_usage(folder)
        used = usage.used / (usage.used + usage.free) * 100
        if used >= percent:
            yield Finding("disk", None, f"{used:.0f}% of the disk of {folder} in use")


def _database(connection: Connection) -> Iterator[Finding]:
    storage = Storage(load_settings()["DATABASE_URL"], 1, 1)
    try:
        storage.check_ready()
    except Unavailable as error:
        yield Finding("database", None, ": ".join(error.args))
        return
    finally:
        storage.database.close()
    try:
        with translate_errors(), connection.transaction():
            connection.execute(PROBE, [PROBE_BYTES // 1000])
    except NoRoom:
        yield Finding("disk", None, f"PostgreSQL's disk does not have room for {PROBE_BYTES // 2**20} MiB more")


def _quotas(connection: Connection, percent: int) -> Iterator[Finding]:
    rejected = {org_id for (org_id,) in connection.execute(SELECT_REJECTED)}
    for row in usage_of_month(connection, None):
        org_id, stored, quota = row["organization"], row["stored"], row["quota"]
        if org_id in rejected:
            yield Finding(
                "quota", org_id, f"the quota rejected requests in this month; {stored} events of {quota} stored"
            )
        elif quota is not None and stored * 100 >= quota * percent and stored:
            yield Finding("quota", org_id, f"{stored} of {quota} events of this month stored")


def _seals(connection: Connection, wait: timedelta) -> Iterator[Finding]:
    now = server_time(connection)
    for (org_id,) in connection.execute("SELECT id FROM organizations ORDER BY id").fetchall():
        since = sealed_until(connection, org_id)
        if since and since > now:
            yield Finding("seal", org_id, f"the last seal ends at {exact(since)}, in the future: nothing is sealed")
            continue
        values = {"org_id": org_id, "since": since or BEGINNING, "wait": wait}
        [(oldest,)] = connection.execute(SELECT_UNSEALED, values).fetchall()
        day_end = open_day_end(connection, org_id, since, now)
        if not oldest and day_end and now - day_end > wait:
            yield Finding("seal", org_id, f"the day before {exact(day_end)} has no seal yet: start the timer of `seal`")
        if oldest:
            yield Finding(
                "seal", org_id, f"an event received {exact(oldest)} has no seal yet: start the timer of `seal`"
            )


def _keys(connection: Connection, notice_days: int, daily_days: int) -> Iterator[Finding]:
    for key in fetch_dicts(connection, SELECT_KEYS, {"notice": timedelta(days=notice_days)}):
        label = f" ({key['label']})" if key["label"] else ""
        named = f"key {key['id']}{label}"
        if key["expires_soon"]:
            yield Finding("key", key["org_id"], f"{named} expires {exact(key['expires_at'])}")
        if not _has_sent(connection, key, 0) and all(
            _has_sent(connection, key, day) for day in range(1, daily_days + 1)
        ):
            what = f"sent nothing for a day, after {counted(daily_days, 'day')} with events"
            yield Finding("key", key["org_id"], f"{named} {what}")


def _has_sent(connection: Connection, key: dict[str, Any], days: int) -> bool:
    [(has_sent,)] = connection.execute(SELECT_HAS_SENT, {**key, "days": days}).fetchall()
    return bool(has_sent)


def _imports(connection: Connection) -> Iterator[Finding]:
    for number, org_id, file, began in connection.execute(SELECT_OPEN_IMPORTS).fetchall():
        try:
            with exclusive(connection, "import", org_id):
                yield Finding(
                    "import", org_id, f"import {number} of {file}, begun {exact(began)}, was interrupted: run it again"
                )
        except AlreadyRunning:
            pass
