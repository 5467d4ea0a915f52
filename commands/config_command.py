"""`config`: show the settings that are in force, without secrets."""

import json
import os
from typing import Any

import click
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import Conninfo

from commands.base import reports_errors
from commands.output import show
from commands.parameters import json_option
from config import SETTINGS, load_settings

# libpq says which parameters are passwords. It does not count the two keys that a client can have instead of one.
SECRETS = {option.keyword.decode() for option in Conninfo.get_defaults() if option.dispchar == b"*"} | {
    "scram_client_key",
    "scram_server_key",
}


@click.command("config")
@json_option
@reports_errors
def config(as_json: bool) -> None:
    """Show the settings in force: what the environment sets, and the defaults. Passwords are masked.

    \b
    Examples:
      igris-ingest config
      igris-ingest config --json
    """
    rows, settings = [], load_settings()
    for setting in SETTINGS:
        value = settings[setting.name]
        if setting.name == "DATABASE_URL":
            value = masked(value)
        is_set = bool(os.environ.get(setting.name))
        rows.append({"setting": setting.name, "value": value, "set": is_set, "meaning": setting.meaning})
    if as_json:
        click.echo(json.dumps({row["setting"]: row["value"] for row in rows}))
        return
    for row in rows:
        row["set"] = "in the environment" if row["set"] else "by default"
    show(rows, ["setting", "value", "set", "meaning"])


def masked(database_url: str) -> str:
    """Return a connection string, as keywords and values, with *** for each secret."""
    given: dict[str, Any] = conninfo_to_dict(database_url)
    return make_conninfo(**{name: "***" if name in SECRETS else value for name, value in given.items()})
