"""Write docs/commands.md from the commands' own --help.

.venv/bin/python -m dev.commands_document
"""

from collections.abc import Iterator

import click
from click.testing import CliRunner

from commands.__main__ import main
from dev.service import ROOT

DOCUMENT = ROOT / "docs/commands.md"

HEAD = """# Commands

`igris-ingest COMMAND` runs from any folder: link it into a folder of your PATH. The environment variable `DATABASE_URL`
names the database. If it is not set, the program takes the PostgreSQL of `make run`, or `/etc/igris-ingest.env`. The
exit status is 0 if all went well. `eval "$(_IGRIS_INGEST_COMPLETE=bash_source igris-ingest)"` gives bash completion.

This document is what `--help` prints: `python -m dev.commands_document` makes it.
"""


def commands() -> Iterator[tuple[str, click.Command]]:
    """Yield the commands with their names, those of a group one by one."""
    for name, command in sorted(main.commands.items()):
        if isinstance(command, click.Group):
            for sub, each in sorted(command.commands.items()):
                yield f"{name} {sub}", each
        else:
            yield name, command


def document() -> str:
    """Return the document."""
    parts = [HEAD, "| command | what it does |\n|---|---|"]
    sections = []
    for name, command in commands():
        summary = command.get_short_help_str(limit=200)
        parts.append(f"| [`{name}`](#{name.replace(' ', '-')}) | {summary} |")
        shown = CliRunner().invoke(main, [*name.split(), "--help"], prog_name="igris-ingest", terminal_width=100).stdout
        sections.append(f"\n## {name}\n\n```\n{shown}```")
    return "\n".join([*parts, *sections]) + "\n"


if __name__ == "__main__":
    DOCUMENT.write_text(document())
