"""`quota` and `usage`: what organizations may store in a month, and what they stored."""

from datetime import date
from typing import Any, NamedTuple

import click

from commands.base import check_organization, fetch_dicts, reports_errors, transaction
from commands.output import show
from commands.parameters import Month, Name, Quota, json_option
from database import Connection

# The CTE is there for Citus, which joins a reference table only from that side to distributed rows.
SELECT_USAGE = """
    WITH month AS MATERIALIZED (
        SELECT org_id, sum(used)::bigint AS used
        FROM monthly_usage
        WHERE month = %(month)s
        GROUP BY org_id
    )
    SELECT o.id AS organization, coalesce(m.used, 0) AS stored, o.monthly_quota AS quota
    FROM organizations o
    LEFT JOIN month m ON m.org_id = o.id
    ORDER BY o.id
"""

SELECT_QUOTA = """
    SELECT
        to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM') AS month,
        coalesce((
            SELECT sum(used)
            FROM monthly_usage
            WHERE org_id = %(org_id)s
              AND month = date_trunc('month', now() AT TIME ZONE 'UTC')::date
        ), 0)::bigint AS used,
        monthly_quota AS quota
    FROM organizations
    WHERE id = %(org_id)s
"""


class QuotaUse(NamedTuple):
    """An organization's events in the current calendar month (UTC)."""

    month: str  # YYYY-MM
    used: int
    quota: int | None  # None means unlimited

    @property
    def remaining(self) -> int | None:
        return None if self.quota is None else max(0, self.quota - self.used)


@click.command("quota")
@click.argument("org", type=Name())
@click.argument("monthly_quota", metavar="[N|unlimited]", type=Quota(), required=False)
@reports_errors
def quota(org: str, monthly_quota: tuple[int | None] | None) -> None:
    """Show ORG's use of this month's quota, or set the quota.

    \b
    Examples:
      igris-ingest quota acme
      igris-ingest quota acme 500000
      igris-ingest quota acme unlimited
    """
    with transaction() as connection:
        if monthly_quota:
            set_quota(connection, org, *monthly_quota)
        now = quota_use(connection, org)
    if now.quota is None:
        click.echo(f"{org}: {now.used} events stored in {now.month}, unlimited")
    else:
        click.echo(f"{org}: {now.used} of {now.quota} events stored in {now.month}, {now.remaining} remaining")


@click.command("usage")
@click.option("--month", type=Month(), help="The default is this month, in UTC.")
@json_option
@reports_errors
def usage(month: date | None, as_json: bool) -> None:
    """Show what each organization stored in a month, and how much of its quota that is.

    \b
    Examples:
      igris-ingest usage
      igris-ingest usage --month 2026-10 --json
    """
    with transaction() as connection:
        rows = usage_of_month(connection, month)
    for row in rows:
        row["share"] = row["stored"] / row["quota"] if row["quota"] else None
        if not as_json:
            row["share"] = "-" if row["share"] is None else f"{row['share']:.1%}"
            row["quota"] = show_quota(row["quota"])
    show(rows, ["organization", "stored", "quota", "share"], as_json)


def show_quota(quota: int | None) -> str:
    return "unlimited" if quota is None else str(quota)


def set_quota(connection: Connection, org_id: str, monthly_quota: int | None) -> None:
    """Set a quota (None: unlimited), which requests obey from now on. Raises NotFound."""
    check_organization(connection, org_id)
    connection.execute("UPDATE organizations SET monthly_quota = %s WHERE id = %s", [monthly_quota, org_id])
    # the mark of a request that the quota rejected, which `check` reports
    connection.execute("DELETE FROM monthly_usage WHERE org_id = %s AND slot = -1", [org_id])


def quota_use(connection: Connection, org_id: str) -> QuotaUse:
    """Return this month's quota and use. Raises NotFound."""
    check_organization(connection, org_id)
    [row] = connection.execute(SELECT_QUOTA, {"org_id": org_id}).fetchall()
    return QuotaUse(*row)


def usage_of_month(connection: Connection, month: date | None) -> list[dict[str, Any]]:
    """Return the events that each organization stored in a month (any day of it; None: this one), and its quota now."""
    if month is None:
        [(month,)] = connection.execute("SELECT date_trunc('month', now() AT TIME ZONE 'UTC')::date").fetchall()
    return fetch_dicts(connection, SELECT_USAGE, {"month": month.replace(day=1)})
