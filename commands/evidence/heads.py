"""Kept entries: what `seal --json` and `verify --json` printed, kept elsewhere."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import click

from commands.evidence.chain import Entry, read_shown
from commands.output import counted, exact, printable

MAX_LINE = 2**20  # bytes; a line of `verify --json` has its problems and amendments, too


def read_heads(file: BinaryIO) -> dict[str, list[Entry]]:
    """Return the kept entries of a file by organization. Raises ClickException at a line that is no such output."""
    kept: dict[str, list[Entry]] = {}
    for number, line in enumerate(_lines(file), 1):
        if not line.strip():
            continue
        try:
            content = json.loads(line)
            head = content.get("head", content)
            if head is not None:
                entry = read_shown(head)
                kept.setdefault(entry.org_id, []).append(entry)
        except (ValueError, AttributeError, RecursionError) as error:
            words = "" if isinstance(error, (json.JSONDecodeError, AttributeError)) else f" ({error})"
            where = f"{printable(file.name)}, line {number}"
            raise click.ClickException(
                f"{where}: not a line that `seal --json` or `verify --json` printed{words}: remove it"
            ) from None
    return kept


def _lines(file: BinaryIO) -> Iterator[bytes]:
    while line := file.readline(MAX_LINE):
        yield line


@dataclass(slots=True)
class Vouched:
    """What the kept entries say of a chain."""

    newest: Entry | None  # the newest kept entry that is in the chain
    problems: list[str]


def compare_heads(entries: list[Entry], kept: list[Entry]) -> Vouched:
    """Compare kept entries with a chain. Each has to be in it."""
    there = {entry.number: entry for entry in entries}
    newest: Entry | None = None
    differing: list[Entry] = []
    problems = []
    for entry in sorted(kept, key=lambda each: each.number):
        found = there.get(entry.number)
        if found and found.entry_digest == entry.entry_digest:
            newest = entry
            if entry.made_at and entry.made_at != found.made_at:
                in_chain = exact(found.made_at) if found.made_at else "no time"
                problems.append(
                    f"{entry.named()}: kept as made at {exact(entry.made_at)}, and in the chain at {in_chain}"
                )
        else:
            differing.append(entry)
    if differing:
        first = differing[0]
        number = counted(len({entry.entry_digest for entry in differing}), "kept entry", "kept entries")
        what = (
            "differs from the entry of that number in the chain"
            if first.number in there
            else "is missing from the chain"
        )
        problems.append(
            f"{number} not in the chain: {first.named()}, kept as {first.entry_digest.hex()}, {what}. The chain was "
            "rewritten after that, or the database was restored from a backup: ask for the time of a restore"
        )
    return Vouched(newest, problems)
