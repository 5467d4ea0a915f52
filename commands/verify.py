"""`verify`: show that what was sealed is still whole, or what is not."""

import json
import re
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import click
from psycopg.rows import class_row

from commands.base import command, snapshot
from commands.output import printable, progress
from commands.parameters import Moment, json_option, org_option
from commands.seals import BEGINNING, SELECT_SEALS, Seal, digest_of, exact, organizations
from commands.trail import Filters, count, lines
from database import Connection

NOT_WHOLE = 3
"""The exit status if anything is not as it was sealed."""

MAX_DIFFERENCES = 100
"""How many lines of an exported file are named that differ."""


class Digest(click.ParamType[str]):
    name = "digest"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not re.fullmatch("[0-9a-f]{64}", value):
            self.fail("must be the 64 hexadecimal digits of a seal", param, ctx)
        return value


@click.command("verify")
@org_option
@click.option("--since", type=Moment(), help="Only seals of what was received from then on.")
@click.option("--until", type=Moment(), help="Only seals of what was received before.")
@click.option("--head", type=Digest(), help="A seal that was kept elsewhere: the chain has to contain it.")
@click.option(
    "--export",
    "exported",
    type=click.Path(exists=True, dir_okay=False),
    help="A file that `export` wrote: names lines.",
)
@json_option
@command
def verify(
    org: str | None,
    since: datetime | None,
    until: datetime | None,
    head: str | None,
    exported: str | None,
    as_json: bool,
) -> None:
    """Compute all seals again, and say what is not as it was sealed. Exit status 3: something is not."""
    if (head or exported) and not org:
        raise click.UsageError("--head and --export need --org.")
    is_whole = True
    with snapshot() as connection:
        for org_id in organizations(connection, org):
            report = verify_organization(connection, org_id, since, until, head, exported)
            is_whole = is_whole and not report["problems"]
            click.echo(json.dumps(report) if as_json else _as_text(report))
    sys.exit(0 if is_whole else NOT_WHOLE)


def verify_organization(
    connection: Connection,
    org_id: str,
    since: datetime | None = None,
    until: datetime | None = None,
    head: str | None = None,
    exported: str | None = None,
) -> dict[str, Any]:
    """Return what `verify` reports of an organization: its seals, the head of the chain, the problems as sentences."""
    cursor = connection.cursor(row_factory=class_row(Seal))
    seals = cursor.execute(SELECT_SEALS, {"org_id": org_id}).fetchall()
    problems = [*_broken_links(seals)]
    if head and head not in {seal.seal.hex() for seal in seals}:
        problems.append(f"no seal is {head}: the chain is another one than it was")
    if older := count(connection, Filters(org_id, until=BEGINNING)):
        problems.append(f"{older} events are older than the first seal's beginning")
    chosen = [seal for seal in seals if (not since or seal.until > since) and (not until or seal.since < until)]
    whole = done = 0
    with progress(sum(seal.events for seal in chosen), "events") as show_progress:
        for seal in chosen:
            found = _differences(connection, seal, exported)
            problems += found
            whole += 0 if found or seal.pruned_at else seal.events
            done += seal.events
            show_progress(done, done)
    last = seals[-1] if seals else None
    return {
        "organization": org_id,
        "seals": len(chosen),
        "pruned": sum(seal.pruned_at is not None for seal in chosen),
        "prunedUntil": max((exact(seal.until) for seal in chosen if seal.pruned_at), default=None),
        "wholeEvents": whole,
        "unsealedEvents": count(connection, Filters(org_id, since=last.until if last else None)),
        "head": last and last.seal.hex(),
        "problems": problems,
    }


def _as_text(report: dict[str, Any]) -> str:
    lines = [f"{printable(report['organization'])}: {problem}" for problem in report["problems"]]
    state = "NOT WHOLE" if lines else "whole"
    pruned = f", {report['pruned']} of them pruned until {report['prunedUntil']}" if report["pruned"] else ""
    lines.append(
        f"{printable(report['organization'])}: {state}; {report['seals']} seals{pruned}; {report['wholeEvents']} "
        f"events as they were sealed, {report['unsealedEvents']} not sealed yet; head {report['head'] or '-'}"
    )
    return "\n".join(lines)


def _broken_links(seals: list[Seal]) -> Iterator[str]:
    """Yield where the chain is broken."""
    number, until, previous = 0, BEGINNING, bytes(32)
    was_pruned = True
    for seal in seals:
        if seal.pruned_at and not was_pruned:
            yield f"{_named(seal)} is marked as pruned, and the one before it is not"
        was_pruned = seal.pruned_at is not None
        if seal.number != number + 1:
            yield f"seal {number + 1} is missing"
        elif seal.since != until:
            yield f"{_named(seal)} does not begin where the seal before it ends"
        elif seal.previous != previous:
            yield f"{_named(seal)} does not follow from the seal before it"
        if seal.own_digest() != seal.seal:
            yield f"{_named(seal)} was changed itself"
        number, until, previous = seal.number, seal.until, seal.seal


def _differences(connection: Connection, seal: Seal, exported: str | None) -> list[str]:
    """Return what is not as it was sealed in the period of a seal."""
    if seal.pruned_at:
        left = count(connection, Filters(seal.org_id, seal.since, seal.until))
        return [f"{_named(seal)} was pruned by `{seal.pruned_by}`, and {left} events are there"] if left else []
    digest, events = digest_of(connection, seal.org_id, seal.since, seal.until)
    if digest == seal.digest and events == seal.events:
        return []
    if events < seal.events:
        what = f"{seal.events - events} of {seal.events} events are missing"
    elif events > seal.events:
        what = f"{events - seal.events} events were added to {seal.events}"
    else:
        what = f"{seal.events} events are not what they were"
    found = [f"{_named(seal)}: {what}"]
    if exported:
        differences = list(_compared(connection, seal, exported))  # all of them: COPY has to be read to its end
        found += [f"{_named(seal)}: {difference}" for difference in differences[:MAX_DIFFERENCES]]
        if len(differences) > MAX_DIFFERENCES:
            found.append(f"{_named(seal)}: {len(differences) - MAX_DIFFERENCES} more lines differ")
    return found


def _compared(connection: Connection, seal: Seal, exported: str) -> Iterator[str]:
    """Yield how a period differs from an exported file, by its lines. Raises ClickException if it is no such file."""
    period = Filters(seal.org_id, seal.since, seal.until)
    with lines(connection, period) as found, Path(exported).open("rb") as file:
        here = _with_keys(enumerate(found, 1))
        begin, end = exact(seal.since), exact(seal.until)
        there = (each for each in _with_keys(enumerate(file, 1)) if begin <= each[0][0] < end)
        ours, theirs = next(here, None), next(there, None)
        while ours or theirs:
            if theirs and (not ours or theirs[0] < ours[0]):
                yield f"line {theirs[1]} of the file is missing in the trail"
                theirs = next(there, None)
            elif ours and (not theirs or ours[0] < theirs[0]):
                yield f"event {ours[0][1]} is not in the file"
                ours = next(here, None)
            elif ours and theirs:
                if ours[2] != theirs[2]:
                    yield f"line {theirs[1]} of the file is another one in the trail"
                ours, theirs = next(here, None), next(there, None)


_Key = tuple[str, int]


def _with_keys(numbered: Iterator[tuple[int, bytes]]) -> Iterator[tuple[_Key, int, bytes]]:
    """Yield each line with what it is sorted by, and its number."""
    for number, line in numbered:
        try:
            receipt = json.loads(line)["receipt"]
            yield (receipt["receivedAt"], receipt["id"]), number, line
        except (ValueError, KeyError, TypeError):
            raise click.ClickException(f"line {number} of the file is not what `export` writes") from None


def _named(seal: Seal) -> str:
    return f"seal {seal.number} ({exact(seal.since)} to {exact(seal.until)})"
