"""The operator's commands: `flask --app app ...`. Each file has a subject: its commands, and their SQL beside them."""

from flask import Flask


def init_app(app: Flask) -> None:
    """Register the commands. A new one is a file here and a line below."""
    from commands import events, importer, keys, prune, quota, schema
    from commands.importer import records

    app.cli.add_command(schema.init_db)
    app.cli.add_command(keys.keys)
    app.cli.add_command(quota.quota)
    app.cli.add_command(quota.usage)
    app.cli.add_command(events.events)
    app.cli.add_command(importer.import_)
    app.cli.add_command(records.imports)
    app.cli.add_command(prune.prune)
