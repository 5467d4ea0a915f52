"""The program igris-ingest. A new command is a file in this folder and a line below."""

import click

from commands import check, config_command, events, init_db, keys, organizations, prune, quota
from commands.evidence import erase, export, pack, seals, verify
from commands.importer import command as importer
from commands.importer import records
from config import VERSION


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, message="%(version)s")
def main() -> None:
    """Manage igris-ingest. The environment variable DATABASE_URL names its PostgreSQL."""


for each in (
    init_db.init_db,
    organizations.organizations,
    keys.keys,
    quota.quota,
    quota.usage,
    events.events,
    importer.import_,
    records.imports,
    export.export,
    seals.seal,
    seals.list_seals,
    verify.verify,
    pack.evidence,
    erase.erase,
    prune.prune,
    check.check,
    config_command.config,
):
    main.add_command(each)

if __name__ == "__main__":
    main(prog_name="igris-ingest")
