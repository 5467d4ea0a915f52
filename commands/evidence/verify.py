"""`verify`: report whether the trail is intact, or what is not."""

import json
import sys
from datetime import timedelta
from typing import Any, BinaryIO

import click

from commands.base import NotFound, report_error, reports_errors, snapshot
from commands.evidence.chain import Entry, entries_of, periods_of
from commands.evidence.compare_export import compare_file
from commands.evidence.heads import read_heads
from commands.evidence.report import Report, verify_organization
from commands.evidence.trail import Filters, filter_options
from commands.output import counted, printable
from commands.parameters import json_option, org_option
from database import Connection

NOT_INTACT = 3  # the exit status if the trail is not as it was sealed
FILE_NOT_INTACT = 4  # the exit status if only the file of --export is not

# Organizations, also those of which only entries or events are left.
SELECT_ORGANIZATIONS = """
    SELECT id, true FROM organizations
    UNION ALL
    SELECT org_id, false
    FROM (
        SELECT org_id FROM chain_entries UNION SELECT org_id FROM audit_events
    ) AS used
    WHERE NOT EXISTS (SELECT FROM organizations o WHERE o.id = org_id)
    ORDER BY 1
"""


class Days(click.ParamType[timedelta]):
    name = "days"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        if isinstance(value, timedelta):
            return value
        number = value.removesuffix("d")
        if not (number.isascii() and number.isdigit() and len(number) <= 5):
            self.fail(f"{value!r} is not a number of days, such as 400d", param, ctx)
        return timedelta(days=int(number))


@click.command("verify")
@org_option
@filter_options
@click.option("--heads", type=click.File("rb"), help="What `seal --json` or `verify --json` printed, and was kept.")
@click.option("--kept-for", type=Days(), help="Report deletions of events that are younger, such as 400d.")
@click.option(
    "--export", "exported", type=click.File("rb"), help="Compare a file that `export` wrote, too. Needs --org."
)
@json_option
@reports_errors
def verify(
    org: str | None,
    heads: BinaryIO | None,
    kept_for: timedelta | None,
    exported: BinaryIO | None,
    as_json: bool,
    **conditions: Any,
) -> None:
    """Compute all entries of the chain again, and report whether the trail is intact.

    --since and --until choose the sealed periods. With --export they, --type and so on are those of the export. Exit
    status: 0 intact, 1 could not verify, 3 the trail is not intact, 4 only the file is not.

    \b
    Examples:
      igris-ingest verify
      igris-ingest verify --heads heads.ndjson --kept-for 400d
      igris-ingest verify --org acme --export acme-2026-09.ndjson --since 2026-09-01 --until 2026-10-01
    """
    if exported and not org:
        raise click.UsageError("--export needs --org.")
    filters = Filters(org, **conditions)
    if not exported and filters != Filters(org, filters.since, filters.until):
        raise click.UsageError("--type, --tool, --action, --key and --metadata need --export.")
    kept = read_heads(heads) if heads else None
    is_intact, file_is_intact, failed = True, True, False
    with snapshot() as connection:
        for org_id, is_known in _organizations(connection, org, kept or {}).items():
            with report_error(org_id) as errors, connection.transaction():
                entries = entries_of(connection, org_id)
                of_org = None if kept is None else kept.get(org_id, [])
                report = verify_organization(
                    connection, org_id, entries, filters.since, filters.until, of_org, kept_for
                )
                if not is_known:
                    report.problems.insert(0, _gone(report))
                if exported:
                    report.file = compare_file(connection, filters, periods_of(entries), exported)
                    report.problems += report.file.of_trail
                    file_is_intact = not report.file.problems
                is_intact = is_intact and not report.problems
                if as_json:
                    click.echo(json.dumps(report.shown()))
                else:
                    click.echo("\n".join(printable(f"{org_id}: {sentence}") for sentence in report.sentences()))
            failed = failed or bool(errors)
    sys.exit(NOT_INTACT if not is_intact else 1 if failed else 0 if file_is_intact else FILE_NOT_INTACT)


def _organizations(connection: Connection, org_id: str | None, kept: dict[str, list[Entry]]) -> dict[str, bool]:
    """Return the names of organizations, and whether the table of organizations has them. Raises NotFound."""
    found = dict.fromkeys(kept, False) | dict(connection.execute(SELECT_ORGANIZATIONS).fetchall())
    if org_id is None:
        return found
    if org_id not in found:
        raise NotFound(f"there is no organization {org_id!r}")
    return {org_id: found[org_id]}


def _gone(report: Report) -> str:
    if report.head or report.unsealed:
        return (
            f"{counted(report.unsealed + report.events, 'event')} and {counted(report.entries, 'entry', 'entries')} of "
            "an organization that is not in the table of organizations: its row was deleted, or they were added"
        )
    return "the organization is gone, with its events and its chain, of which entries were kept: ask who deleted it"
