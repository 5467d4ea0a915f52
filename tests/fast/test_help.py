"""`--help` of each command."""

import click
import pytest
from click.testing import CliRunner

from commands.__main__ import main


def names(group: click.Group) -> list[list[str]]:
    """The words of each command."""
    found = []
    for name, command in group.commands.items():
        found += [[name, *rest] for rest in names(command)] if isinstance(command, click.Group) else [[name]]
    return found


@pytest.mark.parametrize("words", names(main), ids=" ".join)
def test_it_needs_no_database_and_has_an_example(words: list[str]) -> None:
    result = CliRunner().invoke(main, [*words, "--help"], env={"DATABASE_URL": ""})
    assert result.exit_code == 0
    assert f"igris-ingest {' '.join(words)}" in result.stdout.partition("Examples:\n")[2]
