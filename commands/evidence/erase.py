"""`erase`: delete the events of a person, and amend the chain."""

import sys
from typing import Any

import click

from commands.base import check_organization, exclusive, reports_errors, session
from commands.evidence.amendments import amend, count_by_period, full_reason, reason_option
from commands.evidence.trail import await_storing
from commands.output import counted, sum_shown
from commands.parameters import Contained, Moment, Name
from commands.prune import delete_batches

COUNT = "SELECT count(*) FROM audit_events WHERE org_id = %(org_id)s AND {condition}"

RECEIVED = """
    (%(since)s::timestamptz IS NULL OR received_at >= %(since)s)
    AND (%(until)s::timestamptz IS NULL OR received_at < %(until)s)
"""


@click.command("erase")
@click.option("--org", type=Name(), required=True, help="The organization whose events they are.")
@click.option(
    "--metadata",
    "contained",
    type=Contained(),
    multiple=True,
    required=True,
    help='What the events\' metadata contain: userId=user_42, or JSON: \'{"user": {"id": 42}}\'. Again: all of them.',
)
@click.option("--since", type=Moment(), help="Received from then on.")
@click.option("--until", type=Moment(), help="Received before.")
@reason_option
@click.option("--dry-run", is_flag=True, help="Only count.")
@click.option("--yes", is_flag=True, help="Don't ask, also on a terminal.")
@reports_errors
def erase(
    org: str, contained: tuple[list[str], ...], reason: str | None, dry_run: bool, yes: bool, **period: Any
) -> None:
    """Delete the events whose metadata contain something, such as the id of a person.

    For each sealed period that had such events, an entry of the chain says how many are left, and why: `verify` reports
    it. What the command can't reach is in docs/evidence.md: exported files, backups, PostgreSQL's log.

    \b
    Examples:
      igris-ingest erase --org acme --metadata userId=user_42 --dry-run
      igris-ingest erase --org acme --metadata userId=user_42 --reason "request 17 of 2026-11-20"
      igris-ingest erase --org acme --metadata '{"user": {"id": 42}}' --since 2026-03-01 --reason "request 18"
    """
    if not (reason or dry_run):
        raise click.UsageError("--reason is missing: it is kept in the chain. Name no person in it.")
    texts = {f"metadata_{number}": alternatives for number, alternatives in enumerate(contained)}
    condition = " AND ".join([*(f"metadata @> ANY (%({name})s::jsonb[])" for name in texts), RECEIVED])
    parameters = {**texts, **period, "org_id": org}
    with session() as connection:
        check_organization(connection, org)
        [(events,)] = connection.execute(COUNT.format(condition=condition).encode(), parameters).fetchall()
        periods = len(count_by_period(connection, org, condition, parameters))
        what = f"{counted(events, 'event')} of {org!r}, and amend {counted(periods, 'sealed period')}"
        if dry_run:
            click.echo(f"would delete {what}")
            return
        if sys.stdin.isatty() and not yes:
            click.confirm(f"Delete {what}?", abort=True, err=True)
        await_storing(connection)
        with exclusive(connection, "seal", org, wait=True):
            made = amend(connection, org, condition, parameters, full_reason("erase", reason))
            deleted = sum_shown(events, delete_batches(connection, condition, parameters))
    click.echo(f"deleted {counted(deleted, 'event')} of {org!r}, and amended {counted(len(made), 'sealed period')}")
