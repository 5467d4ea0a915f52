"""The commands: `flask --app app ...`. They parse, call admin, print."""

import functools
import json
import shutil
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import click
from flask import Flask, current_app
from flask.cli import AppGroup, with_appcontext

import config
from admin import Admin, Busy
from storage import Unavailable, Unknown


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Runs in the application's context; what goes wrong becomes one line and exit status 1."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
        except (Unavailable, Unknown, Busy) as error:
            raise click.ClickException(_reason(error)) from None

    return with_appcontext(wrapper)


def _reason(error: Exception) -> str:
    return f"{error} ({str(error.__cause__).splitlines()[0]})" if error.__cause__ else str(error)


def admin() -> Admin:
    return Admin(current_app.config["DATABASE_URL"])


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


as_json_option = click.option("--json", "as_json", is_flag=True, help="For scripts.")


@click.command("init-db")
@command
def init_db() -> None:
    """Create or upgrade the schema. Safe to run again."""
    admin().init_db()
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
    admin().create_organization(org, current_app.config["DEFAULT_MONTHLY_QUOTA"])
    if monthly_quota:
        admin().set_quota(org, *monthly_quota)
    click.echo(admin().create_key(org, label, expires_in_days))


@keys.command("list", with_appcontext=False)
@click.argument("org", type=Name(), required=False)
@as_json_option
@command
def list_keys(org: str | None, as_json: bool) -> None:
    """List all keys, or those of ORG. A key itself is never shown."""
    show(admin().keys(org), ["id", "prefix", "label", "organization", "created", "expires", "revoked"], as_json)


@keys.command("revoke", with_appcontext=False)
@click.argument("key_id", metavar="ID", type=click.IntRange(1, 2**63 - 1))
@command
def revoke_key(key_id: int) -> None:
    """End a key, from the next request on."""
    admin().revoke_key(key_id)
    click.echo(f"key {key_id} is revoked", err=True)


@click.command("quota")
@click.argument("org", type=Name())
@click.argument("monthly_quota", metavar="[N|unlimited]", type=Quota(), required=False)
@command
def quota(org: str, monthly_quota: tuple[int | None] | None) -> None:
    """Show ORG's use of this month's quota, or set the quota."""
    if monthly_quota:
        admin().set_quota(org, *monthly_quota)
    now = admin().quota(org)
    if now.quota is None:
        click.echo(f"{org}: {now.used} events stored in {now.month}, unlimited")
    else:
        click.echo(f"{org}: {now.used} of {now.quota} events stored in {now.month}, {now.remaining} remaining")


def show(rows: list[dict[str, Any]], columns: list[str], as_json: bool = False) -> None:
    if as_json:
        click.echo(json.dumps([{column: row[column] for column in columns} for row in rows], default=_iso))
    else:
        print_table(rows, columns, [])


def print_table(rows: list[dict[str, Any]], columns: list[str], widths: list[int]) -> None:
    """A table; with the widths of an earlier part it goes on. On a terminal, lines end where it does."""
    lines = [[_cell(row[column]) for column in columns] for row in rows]
    if not widths:
        lines.insert(0, columns)
        widths += [0] * len(columns)
    for line in lines:
        widths[:] = [max(width, len(cell)) for width, cell in zip(widths, line, strict=True)]
    end = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for line in lines:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()[:end])


def _cell(value: object) -> str:
    if isinstance(value, datetime):
        return f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%SZ}"
    text = "-" if value is None else str(value)
    return text if text.isprintable() else "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def _iso(value: datetime) -> str:
    return value.astimezone(UTC).isoformat().replace("+00:00", "Z")


def init_app(app: Flask) -> None:
    for each in (init_db, keys, quota):
        app.cli.add_command(each)
