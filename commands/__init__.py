"""The operator's commands: `igris-ingest ...`. Each file has a subject: its commands, and their SQL beside them."""

import click


def add_to(group: click.Group) -> None:
    """Register the commands. A new one is a file here and a line below."""
    from commands import events, export, importer, keys, organizations, prune, quota, schema, seals, settings, verify
    from commands.importer import records

    for each in (
        schema.init_db,
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
        prune.prune,
        settings.config,
    ):
        group.add_command(each)
