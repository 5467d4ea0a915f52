"""The program igris-ingest: the commands alone, from any folder."""

import click
from flask.cli import ScriptInfo

import commands
from app import create_app
from config import VERSION


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, message="%(version)s")
def main() -> None:
    """Manage igris-ingest. DATABASE_URL names its PostgreSQL; README.md has a line for each command."""


commands.add_to(main)

if __name__ == "__main__":
    main(prog_name="igris-ingest", obj=ScriptInfo(create_app=create_app))
