"""The chain: what was sealed of an organization, entry by entry, and what was deleted since.

docs/evidence.md defines an entry for auditors. The definition needs nothing of this program.
"""

import hashlib
import json
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

from psycopg.rows import class_row

from commands.output import exact
from database import Connection

DAY = timedelta(days=1)
BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)  # `since` of an organization's first entry
END = datetime(9999, 1, 1, tzinfo=UTC)  # later than every period: Python has no time a day after 9999-12-31
NO_EVENTS = hashlib.sha256(b"").digest()

CLOCK_WAS_AHEAD = "seal --clock-was-ahead"
"""The command in the reason of an entry that ends the last period earlier than its seal did: a set-back."""

SELECT_ENTRIES = """
    SELECT org_id, number, since, until, events, digest, previous, reason, entry_digest, made_at
    FROM chain_entries
    WHERE org_id = %(org_id)s
    ORDER BY number
"""

SELECT_LAST_ENTRY = f"{SELECT_ENTRIES} DESC LIMIT 1"

SELECT_CREATED = "SELECT created_at FROM organizations WHERE id = %(org_id)s"

SELECT_SEALED_UNTIL = """
    SELECT until
    FROM chain_entries
    WHERE org_id = %(org_id)s AND (reason IS NULL OR reason LIKE 'seal %%')
    ORDER BY number DESC
    LIMIT 1
"""

INSERT_ENTRY = """
    INSERT INTO chain_entries (org_id, number, since, until, events, digest, previous, reason, entry_digest)
    VALUES (
        %(org_id)s, %(number)s, %(since)s, %(until)s, %(events)s, %(digest)s, %(previous)s, %(reason)s, %(entry_digest)s
    )
"""


def midnight(moment: datetime | date) -> datetime:
    """Return the beginning of a day in UTC, or of the day of a time."""
    day = moment.astimezone(UTC) if isinstance(moment, datetime) else moment
    return datetime.combine(day, time(), UTC)


def brief(moment: datetime) -> str:
    """Return a time in UTC as a person reads it: midnight is the day alone."""
    text = exact(moment)
    return text.removesuffix("T00:00:00.000000Z")


@dataclass(slots=True)
class Entry:
    """A row of `chain_entries`: the columns are explained in schema.sql."""

    org_id: str
    number: int
    since: datetime
    until: datetime
    events: int
    digest: bytes
    previous: bytes
    reason: str | None = None
    entry_digest: bytes = b""
    made_at: datetime | None = None

    def __post_init__(self) -> None:
        self.entry_digest = self.entry_digest or self.computed_digest()

    def members(self) -> dict[str, Any]:
        """Return what the entry's own digest covers, by the names of JSON."""
        return {
            "number": self.number,
            "since": exact(self.since),
            "until": exact(self.until),
            "events": self.events,
            "digest": self.digest.hex(),
            "previous": self.previous.hex(),
            "organization": self.org_id,
            "reason": self.reason,
        }

    def line(self) -> str:
        """Return the entry as a line of canonical JSON, without its line feed."""
        return json.dumps(self.members(), ensure_ascii=False)

    def computed_digest(self) -> bytes:
        """Return the SHA-256 of the line with its line feed."""
        return hashlib.sha256(f"{self.line()}\n".encode()).digest()

    def shown(self) -> dict[str, Any]:
        """Return the entry for JSON, as `read_shown` reads it."""
        return {
            **self.members(),
            "entryDigest": self.entry_digest.hex(),
            "madeAt": self.made_at and exact(self.made_at),
        }

    def named(self) -> str:
        return f"entry {self.number} ({brief(self.since)} to {brief(self.until)})"

    @property
    def is_amendment(self) -> bool:
        return self.reason is not None

    @property
    def moves_the_end(self) -> bool:
        """Whether the next seal begins where this entry ends."""
        return self.reason is None or self.reason.startswith("seal ")


def read_shown(members: dict[str, Any]) -> Entry:
    """Return the entry that `shown` made. Raises ValueError if it isn't one, or if its digest is another one."""
    try:
        since, until = (datetime.fromisoformat(members[name]) for name in ("since", "until"))
        digest, previous = (bytes.fromhex(members[name]) for name in ("digest", "previous"))
        organization, number, events = str(members["organization"]), int(members["number"]), int(members["events"])
        entry = Entry(organization, number, since, until, events, digest, previous, members["reason"])
        made_at = members.get("madeAt")
        entry.made_at = datetime.fromisoformat(made_at) if made_at else None
    except (KeyError, TypeError, OverflowError):
        raise ValueError("a member is missing or invalid") from None
    if not (0 < len(organization) <= 255 and organization.isprintable()):
        raise ValueError("organization is not a name")
    if members.get("entryDigest") != entry.entry_digest.hex():
        raise ValueError("entryDigest is not the digest of the other members")
    return entry


@dataclass(slots=True)
class Period:
    """A sealed period, and the entries that cover it, the oldest first. The newest says which events it has to have."""

    since: datetime
    until: datetime
    entries: list[Entry] = field(default_factory=list)
    replaced: list["Period"] = field(default_factory=list)  # by a set-back, which is the first entry

    @property
    def newest(self) -> Entry:
        return self.entries[-1]

    @property
    def day(self) -> date:
        """The day of the period: the last one, since an organization's first period begins in 1970."""
        return midnight(self.until - timedelta(microseconds=1)).date()

    def named(self) -> str:
        """Return the name of the entry that counts, with this period: an amendment may cover more."""
        return f"entry {self.newest.number} ({brief(self.since)} to {brief(self.until)})"


def first_day(connection: Connection, org_id: str, now: datetime) -> datetime | None:
    """Return the beginning of the day on which an organization was created; None if it is in no table."""
    created = connection.execute(SELECT_CREATED, {"org_id": org_id}).fetchone()
    return created and midnight(min(max(created[0], BEGINNING), now))  # the owner can store any time


def open_day_end(connection: Connection, org_id: str, sealed_until: datetime | None, now: datetime) -> datetime | None:
    """Return the end of the first day that is not sealed to its end; None if the organization is in no table."""
    begin = midnight(min(sealed_until, now)) if sealed_until else first_day(connection, org_id, now)
    return begin and begin + DAY


def entries_of(connection: Connection, org_id: str) -> list[Entry]:
    """Return the chain of an organization, the oldest entry first."""
    return connection.cursor(row_factory=class_row(Entry)).execute(SELECT_ENTRIES, {"org_id": org_id}).fetchall()


def periods_of(entries: Iterable[Entry]) -> list[Period]:
    """Return the sealed periods of a chain in their order, without gaps if the chain is not broken.

    1. A seal begins a new period.
    2. An amendment is added to the periods that it covers.
    3. A set-back, the amendment of `seal --clock-was-ahead`, replaces the periods from its `since` on.

    Entries that the owner of the database gave impossible times are left out: `broken_links` names them.
    """
    periods: list[Period] = []
    for entry in entries:
        if not BEGINNING <= entry.since < entry.until < END:
            continue
        if entry.moves_the_end:
            replaced: list[Period] = []
            if entry.is_amendment:
                first = bisect_left(periods, entry.since, key=lambda period: period.since)
                replaced, periods = periods[first:], periods[:first]
            periods.append(Period(entry.since, entry.until, [entry], replaced))
        else:
            for period in covered(periods, entry):
                period.entries.append(entry)
    return periods


def covered(periods: list[Period], entry: Entry) -> list[Period]:
    """Return the periods that lie within that of an entry."""
    first = bisect_left(periods, entry.since, key=lambda period: period.since)
    after = bisect_left(periods, entry.until, first, key=lambda period: period.since)
    return [period for period in periods[first:after] if period.until <= entry.until]


def broken_links(entries: list[Entry]) -> Iterator[str]:
    """Yield where a chain does not follow the rules that docs/evidence.md has for it, as sentences."""
    number, previous = 0, bytes(32)
    bounds = [BEGINNING]  # of the sealed periods
    for entry in entries:
        if entry.number != number + 1:
            yield f"entry {number + 1} is missing from the chain"
        elif entry.previous != previous:
            yield f"{entry.named()} does not follow from the entry before it"
        elif entry.reason is None and entry.since != bounds[-1]:
            yield f"{entry.named()} does not begin where the period before it ends"
        elif entry.reason is not None and not _is_bounded(entry, bounds):
            yield f"{entry.named()} amends no sealed period"
        elif not BEGINNING <= entry.since < entry.until < END:
            yield f"{entry.named()} has a period that no seal has"
        if entry.computed_digest() != entry.entry_digest:
            yield f"{entry.named()} was changed itself"
        if entry.moves_the_end:
            if entry.is_amendment:
                del bounds[bisect_right(bounds, entry.since) :]
            bounds.append(entry.until)
        number, previous = entry.number, entry.entry_digest


def _is_bounded(entry: Entry, bounds: list[datetime]) -> bool:
    """Return whether an amendment covers one sealed period, or several of which nothing is left."""
    first = bisect_left(bounds, entry.since)
    if entry.since not in bounds[first : first + 1]:
        return False
    end = bisect_left(bounds, entry.until)
    if entry.moves_the_end:  # it ends the first of the periods that it replaces earlier
        return end == first + 1 < len(bounds) and entry.until < bounds[end]
    return entry.until in bounds[end : end + 1] and (end == first + 1 or not entry.events)


def append(connection: Connection, made: list[Entry]) -> None:
    """Add entries to their chain, in the transaction of the caller, who holds the lock `seal`."""
    connection.cursor().executemany(INSERT_ENTRY, [asdict(entry) for entry in made])
    [(now,)] = connection.execute("SELECT now()").fetchall()  # the default of made_at
    for entry in made:
        entry.made_at = now


def following(
    connection: Connection,
    org_id: str,
    periods: Iterable[tuple[datetime, datetime, int, bytes]],
    reason: str | None = None,
) -> list[Entry]:
    """Return new entries behind the last one of a chain, for periods with the number and the digest of their events."""
    last = connection.cursor(row_factory=class_row(Entry)).execute(SELECT_LAST_ENTRY, {"org_id": org_id}).fetchone()
    number, previous = (last.number, last.entry_digest) if last else (0, bytes(32))
    made: list[Entry] = []
    for since, until, events, digest in periods:
        number += 1
        made.append(Entry(org_id, number, since, until, events, digest, previous, reason))
        previous = made[-1].entry_digest
    return made


def digest_of(found: Iterable[bytes]) -> tuple[int, bytes]:
    """Return the number of the lines of events, and their SHA-256."""
    digest, events = hashlib.sha256(), 0
    for line in found:
        digest.update(line)
        events += 1
    return events, digest.digest()
