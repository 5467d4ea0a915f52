"""`organizations`: list, create and delete them."""

from collections.abc import Iterator
from typing import Any

import click

from commands.base import check_organization, exclusive, fetch_dicts, reports_errors, session, transaction
from commands.evidence.trail import await_storing
from commands.output import counted, show, sum_shown
from commands.parameters import Name, Quota, json_option
from commands.prune import BATCH, delete_batches
from commands.quota import show_quota
from config import load_settings
from database import Connection

SELECT_ORGANIZATIONS = """
    SELECT
        o.id AS organization,
        o.monthly_quota AS quota,
        o.created_at AS created,
        (SELECT count(*) FROM api_keys k WHERE k.org_id = o.id AND k.revoked_at IS NULL) AS keys
    FROM organizations o
    ORDER BY o.id
"""

COUNTS = """
    SELECT
        (SELECT count(*) FROM audit_events WHERE org_id = %(org_id)s) AS events,
        (SELECT count(*) FROM chain_entries WHERE org_id = %(org_id)s) AS entries,
        (SELECT count(*) FROM api_keys WHERE org_id = %(org_id)s) AS keys
"""

SELECT_USED = """
    SELECT 1 FROM monthly_usage WHERE org_id = %(org_id)s AND slot >= 0  -- -1 marks a request that the quota rejected
    UNION ALL
    SELECT 1 FROM imports WHERE org_id = %(org_id)s
    UNION ALL
    SELECT 1 FROM chain_entries WHERE org_id = %(org_id)s
"""

COPY_ORGANIZATION = """
    INSERT INTO organizations (id, monthly_quota, created_at)
    SELECT %(name)s, monthly_quota, created_at
    FROM organizations
    WHERE id = %(org_id)s
    ON CONFLICT DO NOTHING
"""

DELETE_IDEMPOTENCY_KEYS = """
    DELETE FROM idempotency_keys
    WHERE org_id = %(org_id)s
      AND key = ANY (ARRAY(SELECT key FROM idempotency_keys WHERE org_id = %(org_id)s LIMIT %(batch)s))
"""


@click.group("organizations")
def organizations() -> None:
    """Organizations: list, create, delete."""


@organizations.command("list")
@json_option
@reports_errors
def list_(as_json: bool) -> None:
    """List the organizations, with their quota of events a month and their keys that are not revoked.

    \b
    Examples:
      igris-ingest organizations list
      igris-ingest organizations list --json
    """
    with transaction() as connection:
        rows = fetch_dicts(connection, SELECT_ORGANIZATIONS, {})
    if not as_json:
        rows = [{**row, "quota": show_quota(row["quota"])} for row in rows]
    show(rows, ["organization", "quota", "created", "keys"], as_json)


@organizations.command("create")
@click.argument("org", type=Name())
@click.option("--monthly-quota", type=Quota(), help="A number of events, or unlimited.")
@reports_errors
def create(org: str, monthly_quota: tuple[int | None] | None) -> None:
    """Make an organization. `keys create` makes one, too, if it is new.

    \b
    Examples:
      igris-ingest organizations create acme
      igris-ingest organizations create acme --monthly-quota 500000
    """
    quota = given_or_default(monthly_quota)
    with transaction() as connection:
        if not create_organization(connection, org, quota):
            raise click.ClickException(f"there is an organization {org!r} already")
    echo_made(org, quota)


@organizations.command("delete")
@click.argument("org", type=Name())
@click.option("--yes", is_flag=True, help="Don't ask.")
@reports_errors
def delete(org: str, yes: bool) -> None:
    """Delete an organization with its keys, its events and its chain. Requests get a 401 once it has begun.

    \b
    Examples:
      igris-ingest organizations delete acme
      igris-ingest organizations delete acme --yes
    """
    with session() as connection:
        check_organization(connection, org)
        [there] = fetch_dicts(connection, COUNTS, {"org_id": org})
        if not yes:
            events, keys = counted(there["events"], "event"), counted(there["keys"], "key")
            what = f"{events}, {counted(there['entries'], 'chain entry', 'chain entries')} and {keys}"
            click.confirm(f"Delete the organization {org!r} with {what}?", abort=True, err=True)
        with exclusive(connection, "import", org), exclusive(connection, "seal", org, wait=True):
            deleted = sum_shown(there["events"], delete_organization(connection, org))
    click.echo(f"deleted the organization {org!r} and {counted(deleted, 'event')}")


@organizations.command("rename")
@click.argument("org", type=Name())
@click.argument("name", type=Name())
@reports_errors
def rename(org: str, name: str) -> None:
    """Give an organization another name, before it has stored an event: its name is a part of each event.

    \b
    Examples:
      igris-ingest organizations rename acmee acme
    """
    with transaction() as connection:
        rename_organization(connection, org, name)
    click.echo(f"renamed the organization {org!r} to {name!r}", err=True)


def given_or_default(monthly_quota: tuple[int | None] | None) -> int | None:
    """Return the quota of a new organization: that of --monthly-quota, or DEFAULT_MONTHLY_QUOTA."""
    [quota] = monthly_quota or (load_settings()["DEFAULT_MONTHLY_QUOTA"],)
    return quota


def echo_made(org_id: str, quota: int | None) -> None:
    """Say on standard error that there is a new organization: a typo makes one, too."""
    click.echo(f"made the organization {org_id!r}, with a quota of {show_quota(quota)} events a month", err=True)


def create_organization(connection: Connection, org_id: str, monthly_quota: int | None) -> bool:
    """Create an organization with a quota (None: unlimited). Return False if there is one: it stays as it is."""
    query = "INSERT INTO organizations (id, monthly_quota) VALUES (%s, %s) ON CONFLICT DO NOTHING"
    return connection.execute(query, [org_id, monthly_quota]).rowcount == 1


def await_key_checks(connection: Connection) -> None:
    """Wait for the requests that have found their key, and make others wait until the transaction ends.

    Raises Unavailable after 3 seconds: requests queue up behind it.
    """
    connection.execute("SET LOCAL lock_timeout = '3s'")
    connection.execute("LOCK TABLE api_keys IN ACCESS EXCLUSIVE MODE")


def rename_organization(connection: Connection, org_id: str, name: str) -> None:
    """Rename an organization that has no events, with its keys. Raises NotFound and ClickException."""
    check_organization(connection, org_id)
    await_key_checks(connection)
    if connection.execute(SELECT_USED, {"org_id": org_id}).fetchone():
        raise click.ClickException(
            f"{org_id!r} has stored events or seals, which keep its name: make another organization, and keys for it"
        )
    names = {"org_id": org_id, "name": name}
    if not connection.execute(COPY_ORGANIZATION, names).rowcount:
        raise click.ClickException(f"there is an organization {name!r} already")
    connection.execute(
        "UPDATE api_keys SET org_id = %(name)s WHERE org_id = %(org_id)s", {"org_id": org_id, "name": name}
    )
    connection.execute("DELETE FROM organizations WHERE id = %(org_id)s", {"org_id": org_id})


def delete_organization(connection: Connection, org_id: str) -> Iterator[int]:
    """Delete an organization; yield how many events each batch had. Interrupted, it can be run again.

    Raises Unavailable if a transaction that stores events does not end.
    """
    parameters: dict[str, Any] = {"org_id": org_id, "batch": BATCH}
    with connection.transaction():
        await_key_checks(connection)
        connection.execute("DELETE FROM api_keys WHERE org_id = %(org_id)s", parameters)
    await_storing(connection)  # a commit that waits for a standby
    yield from delete_batches(connection, "true", parameters)
    while connection.execute(DELETE_IDEMPOTENCY_KEYS, parameters).rowcount:
        pass
    connection.execute("DELETE FROM monthly_usage WHERE org_id = %(org_id)s", parameters)
    connection.execute("DELETE FROM imported_rows WHERE org_id = %(org_id)s", parameters)
    connection.execute("DELETE FROM imports WHERE org_id = %(org_id)s", parameters)
    connection.execute("DELETE FROM chain_entries WHERE org_id = %(org_id)s", parameters)
    connection.execute("DELETE FROM organizations WHERE id = %(org_id)s", parameters)
