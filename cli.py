"""The commands: `flask --app app ...`. They parse, call storage, print."""

import functools
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import click
from flask import Flask, current_app
from flask.cli import AppGroup, with_appcontext

import config
import storage


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Runs in the application's context; what storage raises becomes one line and exit status 1."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
        except (storage.Unavailable, storage.Unknown) as error:
            cause = f" ({str(error.__cause__).splitlines()[0]})" if error.__cause__ else ""
            raise click.ClickException(f"{error}{cause}") from None

    return with_appcontext(wrapper)


def db() -> storage.Storage:
    return current_app.extensions["storage"]  # type: ignore[no-any-return]


class Name(click.ParamType[str]):
    name = "name"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not (0 < len(value) <= 255 and value.isprintable() and value == value.strip()):
            self.fail("must have 1 to 255 printable characters, and no space at either end", param, ctx)
        return value


class Quota(click.ParamType[tuple[int | None]]):
    """A number, or `unlimited`; the value is a one-tuple, since None means unlimited."""

    name = "quota"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int | None]:
        try:
            return value if isinstance(value, tuple) else (config.quota(value),)
        except ValueError as error:
            self.fail(f"{value!r} {error}, or unlimited", param, ctx)


@click.command("init-db")
@command
def init_db() -> None:
    """Create or upgrade the schema. Safe to run again."""
    db().init_db()
    click.echo("the schema is ready", err=True)


keys = AppGroup("keys", help="API keys: create, list, revoke.")


@keys.command("create", with_appcontext=False)
@click.argument("org", type=Name())
@click.option("--label", type=Name(), help="What the key is for.")
@click.option("--expires-in-days", type=click.IntRange(1, 36500), help="The default is: never.")
@click.option("--monthly-quota", type=Quota(), help="Sets the organization's quota: a number of events, or unlimited.")
@command
def create_key(org: str, label: str | None, expires_in_days: int | None, monthly_quota: tuple[int | None]) -> None:
    """Make a key, and the organization ORG if it is new. Prints the key, this one time."""
    db().create_organization(org, current_app.config["DEFAULT_MONTHLY_QUOTA"])
    if monthly_quota:
        db().set_quota(org, *monthly_quota)
    click.echo(db().create_key(org, label, expires_in_days))


@keys.command("list", with_appcontext=False)
@click.argument("org", type=Name(), required=False)
@command
def list_keys(org: str | None) -> None:
    """List all keys, or those of ORG. A key itself is never shown."""
    print_table(db().keys(org), ["id", "prefix", "label", "organization", "created", "expires", "revoked"])


@keys.command("revoke", with_appcontext=False)
@click.argument("key_id", metavar="ID", type=click.IntRange(1, 2**63 - 1))
@command
def revoke_key(key_id: int) -> None:
    """End a key, from the next request on."""
    db().revoke_key(key_id)
    click.echo(f"key {key_id} is revoked", err=True)


@click.command("quota")
@click.argument("org", type=Name())
@click.argument("monthly_quota", metavar="[N|unlimited]", type=Quota(), required=False)
@command
def quota(org: str, monthly_quota: tuple[int | None] | None) -> None:
    """Show ORG's use of this month's quota, or set the quota."""
    if monthly_quota:
        db().set_quota(org, *monthly_quota)
    now = db().quota(org)
    if now.quota is None:
        click.echo(f"{org}: {now.used} events stored in {now.month}, unlimited")
    else:
        click.echo(f"{org}: {now.used} of {now.quota} events stored in {now.month}, {now.remaining} remaining")


def print_table(rows: list[dict[str, Any]], columns: list[str]) -> None:
    lines = [columns, *([_cell(row[column]) for column in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _cell(value: object) -> str:
    if isinstance(value, datetime):
        return f"{value.astimezone(UTC):%Y-%m-%d %H:%MZ}"
    return "-" if value is None else str(value)


def init_app(app: Flask) -> None:
    for each in (init_db, keys, quota):
        app.cli.add_command(each)
