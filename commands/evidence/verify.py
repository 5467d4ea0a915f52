"""`verify`: show that what was sealed is still whole, or what is not."""

import json
import re
import sys
from collections.abc import Iterator
from datetime import datetime
from typing import Any, BinaryIO

import click

from commands.base import report_error, reports_errors, snapshot
from commands.evidence.compare_export import ExportedFile
from commands.evidence.seals import BEGINNING, Seal, digest_of, exact, organizations, seals_of
from commands.evidence.trail import Filters, count, lines
from commands.output import counted, printable, progress
from commands.parameters import Moment, json_option, org_option
from database import Connection

NOT_WHOLE = 3  # the exit status if anything is not as it was sealed


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
    type=click.File("rb"),
    help="A file that `export` wrote: its lines are compared, too.",
)
@json_option
@reports_errors
def verify(
    org: str | None,
    since: datetime | None,
    until: datetime | None,
    head: str | None,
    exported: BinaryIO | None,
    as_json: bool,
) -> None:
    """Compute all seals again, and say what is not as it was sealed. Exit status 3: something is not.

    \b
    Examples:
      igris-ingest verify
      igris-ingest verify --org acme --export acme-2026-09.ndjson
    """
    if (head or exported) and not org:
        raise click.UsageError("--head and --export need --org.")
    is_whole = True
    with snapshot() as connection:
        failed = False
        for org_id in organizations(connection, org):
            with report_error(org_id) as errors, connection.transaction():
                report = verify_organization(connection, org_id, since, until, head, exported)
                is_whole = is_whole and not report["problems"]
                click.echo(json.dumps(report) if as_json else _as_text(report))
            failed = failed or bool(errors)
    sys.exit(NOT_WHOLE if not is_whole else 1 if failed else 0)


def verify_organization(
    connection: Connection,
    org_id: str,
    since: datetime | None = None,
    until: datetime | None = None,
    head: str | None = None,
    exported: BinaryIO | None = None,
) -> dict[str, Any]:
    """Return what `verify` reports of an organization: its seals, the head of the chain, the problems as sentences.

    Raises ClickException if `exported` is no file that `export` wrote.
    """
    seals = seals_of(connection, org_id)
    problems = [*_broken_links(seals)]
    if head and head not in {seal.seal.hex() for seal in seals}:
        problems.append(f"no seal is {head}: the chain is another one than it was")
    if older := count(connection, Filters(org_id, until=BEGINNING)):
        problems.append(f"{older} events are older than the first seal's beginning")
    chosen = [seal for seal in seals if (not since or seal.until > since) and (not until or seal.since < until)]
    whole = done = 0
    file = ExportedFile(exported) if exported else None
    if file and not since:
        file.compare((), "", exact(BEGINNING))
    with progress(sum(seal.events for seal in chosen), "events") as show_progress:
        for seal in chosen:
            found = _differences(connection, seal, file)
            problems += found
            whole += 0 if found or seal.pruned_at else seal.events
            done += seal.events
            show_progress(done, done)
    last = seals[-1] if seals else None
    of_file: dict[str, int] = {}
    if file:
        if not until:  # what is not sealed yet
            sealed_until = last.until if last else BEGINNING
            with lines(connection, Filters(org_id, sealed_until)) as unsealed:
                file.compare(unsealed, exact(sealed_until))
        file.skip()
        problems += file.differences()
        of_file = {"linesCompared": file.compared, "linesNotCompared": file.skipped}
    return {
        "organization": org_id,
        "seals": len(chosen),
        "pruned": sum(seal.pruned_at is not None for seal in chosen),
        "prunedUntil": max((exact(seal.until) for seal in chosen if seal.pruned_at), default=None),
        "wholeEvents": whole,
        "unsealedEvents": count(connection, Filters(org_id, since=last.until if last else None)),
        "head": last and last.seal.hex(),
        **of_file,
        "problems": problems,
    }


def _as_text(report: dict[str, Any]) -> str:
    state = "NOT WHOLE" if report["problems"] else "whole" if report["seals"] else "nothing to verify"
    pruned = f", {report['pruned']} of them pruned until {report['prunedUntil']}" if report["pruned"] else ""
    compared = (
        f"; {report['linesCompared']} lines of the file compared, {report['linesNotCompared']} not"
        if "linesCompared" in report
        else ""
    )
    summary = (
        f"{state}; {counted(report['seals'], 'seal')}{pruned}; {report['wholeEvents']} events as they were sealed, "
        f"{report['unsealedEvents']} not sealed yet{compared}; head {report['head'] or '-'}"
    )
    return "\n".join(printable(f"{report['organization']}: {text}") for text in (*report["problems"], summary))


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


def _differences(connection: Connection, seal: Seal, file: ExportedFile | None) -> list[str]:
    """Return what is not as it was sealed in the period of a seal. Compares it with an exported file, too."""
    period = Filters(seal.org_id, seal.since, seal.until)
    if seal.pruned_at:
        left = count(connection, period)
        pruned = f"{_named(seal)} was pruned by `{seal.pruned_by}`, and {left} events are there"
        return [f"{pruned}: run that again if it was interrupted"] if left else []
    with lines(connection, period) as found:
        digest, events = digest_of(file.beside(found, exact(seal.since), exact(seal.until)) if file else found)
    is_whole = digest == seal.digest and events == seal.events
    if file:
        file.end_period(is_whole=is_whole)
    if is_whole:
        return []
    if events < seal.events:
        what = f"{seal.events - events} of {seal.events} events are missing"
    elif events > seal.events:
        what = f"{events - seal.events} events were added to {seal.events}"
    else:
        what = f"not all of {seal.events} events are what they were"
    return [f"{_named(seal)}: {what}"]


def _named(seal: Seal) -> str:
    return f"seal {seal.number} ({exact(seal.since)} to {exact(seal.until)})"
