"""`keys`: create, list, rename and revoke API keys."""

from secrets import choice
from string import ascii_letters, digits
from typing import Any

import click

from commands.base import NotFound, check_organization, fetch_dicts, reports_errors, transaction
from commands.organizations import create_organization, echo_made, given_or_default
from commands.output import show
from commands.parameters import Name, Quota, json_option
from database import Connection
from storage import key_hash

COLUMNS = ["id", "prefix", "label", "organization", "created", "expires", "revoked"]

SELECT_KEYS = """
    SELECT id, prefix, label, org_id AS organization,
           created_at AS created, expires_at AS expires, revoked_at AS revoked
    FROM api_keys
    WHERE %(org_id)s::text IS NULL OR org_id = %(org_id)s
    ORDER BY id
"""


@click.group("keys")
def keys() -> None:
    """API keys: create, list, rename, revoke."""


@keys.command("create")
@click.argument("org", type=Name())
@click.option("--label", type=Name(), help="What the key is for.")
@click.option("--expires-in-days", type=click.IntRange(1, 36500), help="Days until the key expires. Default: never.")
@click.option("--monthly-quota", type=Quota(), help="The new organization's quota: a number of events, or unlimited.")
@reports_errors
def create(org: str, label: str | None, expires_in_days: int | None, monthly_quota: tuple[int | None] | None) -> None:
    """Make a key, and the organization ORG if it is new. Prints the key, this one time.

    \b
    Examples:
      igris-ingest keys create acme
      igris-ingest keys create acme --label "billing agent" --expires-in-days 90
      igris-ingest keys create globex --monthly-quota unlimited
    """
    with transaction() as connection:
        quota = given_or_default(monthly_quota)
        is_new = create_organization(connection, org, quota)
        if monthly_quota and not is_new:
            raise click.UsageError(f"{org!r} is there already: change its quota with `quota`.")
        key_id, key = create_key(connection, org, label, expires_in_days)
    if is_new:
        echo_made(org, quota)
    click.echo(f"made key {key_id} of {org!r}", err=True)
    click.echo(key)


@keys.command("list")
@click.argument("org", type=Name(), required=False)
@json_option
@reports_errors
def list_(org: str | None, as_json: bool) -> None:
    """List all keys, or those of ORG. A key itself is never shown.

    \b
    Examples:
      igris-ingest keys list
      igris-ingest keys list acme --json
    """
    with transaction() as connection:
        rows = list_keys(connection, org)
    show(rows, COLUMNS, as_json)


@keys.command("rename")
@click.argument("key_id", metavar="ID", type=click.IntRange(1, 2**63 - 1))
@click.argument("label", type=Name())
@reports_errors
def rename(key_id: int, label: str) -> None:
    """Give a key another label.

    \b
    Examples:
      igris-ingest keys rename 3 "billing agent"
    """
    with transaction() as connection:
        if not connection.execute("UPDATE api_keys SET label = %s WHERE id = %s", [label, key_id]).rowcount:
            raise NotFound(f"there is no API key {key_id}")
    click.echo(f"renamed key {key_id} to {label!r}", err=True)


@keys.command("revoke")
@click.argument("key_id", metavar="ID", type=click.IntRange(1, 2**63 - 1))
@reports_errors
def revoke(key_id: int) -> None:
    """End a key, from the next request on.

    \b
    Examples:
      igris-ingest keys list acme
      igris-ingest keys revoke 3
    """
    with transaction() as connection:
        revoke_key(connection, key_id)
    click.echo(f"key {key_id} is revoked", err=True)


def create_key(
    connection: Connection, org_id: str, label: str | None = None, expires_in_days: int | None = None
) -> tuple[int, str]:
    """Create an API key of an organization that exists; return its id and the key, which is stored nowhere."""
    key = "ig_" + "".join(choice(ascii_letters + digits) for _ in range(40))
    [(key_id,)] = connection.execute(
        """
        INSERT INTO api_keys (org_id, key_hash, prefix, label, expires_at)
        VALUES (%s, %s, %s, %s, now() + %s::integer * interval '1 day')
        RETURNING id
        """,
        [org_id, key_hash(key), key[:7], label, expires_in_days],
    ).fetchall()
    return key_id, key


def list_keys(connection: Connection, org_id: str | None = None) -> list[dict[str, Any]]:
    """Return what may be shown of every key, or of an organization's. Raises NotFound."""
    check_organization(connection, org_id)
    return fetch_dicts(connection, SELECT_KEYS, {"org_id": org_id})


def revoke_key(connection: Connection, key_id: int) -> None:
    """End a key from the next request on; a revoked one stays as it is. Raises NotFound."""
    if not connection.execute("SELECT FROM api_keys WHERE id = %s", [key_id]).rowcount:
        raise NotFound(f"there is no API key {key_id}")
    connection.execute("UPDATE api_keys SET revoked_at = now() WHERE id = %s AND revoked_at IS NULL", [key_id])
