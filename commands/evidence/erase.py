"""`erase`: delete the events of a person, and amend the chain."""

import sys
from datetime import datetime

import click

from commands.base import check_organization, exclusive, reports_errors, session
from commands.evidence.amendments import amend, count_by_period, full_reason, reason_option
from commands.evidence.trail import Filters, await_storing, count
from commands.output import counted, sum_shown
from commands.parameters import Moment, Name, metadata_option
from commands.prune import delete_batches

CONDITION = """
    metadata @> ANY (%(contained)s::jsonb[])
    AND (%(erased_since)s::timestamptz IS NULL OR received_at >= %(erased_since)s)
    AND (%(erased_until)s::timestamptz IS NULL OR received_at < %(erased_until)s)
"""


@click.command("erase")
@click.option("--org", type=Name(), required=True, help="The organization whose events they are.")
@metadata_option(required=True)
@click.option("--since", type=Moment(), help="Only events received from this time on.")
@click.option("--until", type=Moment(), help="Only events received before this time.")
@reason_option
@click.option("--dry-run", is_flag=True, help="Only count.")
@click.option("--yes", is_flag=True, help="Don't ask. Without a terminal, no question is asked.")
@reports_errors
def erase(
    org: str,
    metadata: list[str],
    since: datetime | None,
    until: datetime | None,
    reason: str | None,
    dry_run: bool,
    yes: bool,
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
    parameters = {"org_id": org, "contained": metadata, "erased_since": since, "erased_until": until}
    with session() as connection:
        check_organization(connection, org)
        events = count(connection, Filters(org, since, until, metadata=metadata))
        periods = len(count_by_period(connection, org, CONDITION, parameters))
        what = f"{counted(events, 'event')} of {org!r}, and amend {counted(periods, 'sealed period')}"
        if dry_run:
            click.echo(f"would delete {what}")
            return
        if sys.stdin.isatty() and not yes:
            click.confirm(f"Delete {what}?", abort=True, err=True)
        await_storing(connection)
        with exclusive(connection, "seal", org, wait=True):
            made = amend(connection, org, CONDITION, parameters, full_reason("erase", reason))
            deleted = sum_shown(events, delete_batches(connection, CONDITION, parameters))
    click.echo(f"deleted {counted(deleted, 'event')} of {org!r}, and amended {counted(len(made), 'sealed period')}")
