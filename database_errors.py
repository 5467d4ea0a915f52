"""What PostgreSQL's errors mean: each SQLSTATE's exception. An `Unavailable` is a 503."""

import re
from typing import NoReturn

import psycopg

from json_text import InvalidJSON


class Unavailable(Exception):
    """PostgreSQL can't store now. The arguments are a reason that strangers may read, and PostgreSQL's message."""


class OutOfMemory(Unavailable):
    """PostgreSQL had too little memory for a statement."""


class NoRoom(Unavailable):
    """PostgreSQL's disk is full."""


UNREACHABLE = "PostgreSQL can't be reached"
CANT_STORE = "PostgreSQL can't store this now"
NO_ROOM = "PostgreSQL has no room on its disk"

# The codes, or classes (their first two characters), of PostgreSQL's documentation, appendix A. InvalidJSON is for the
# data: PostgreSQL will reject it again. Without a reason here, PostgreSQL's primary message is the reason.
_MEANINGS: tuple[tuple[str, type[Exception], str | None], ...] = (
    ("22003", InvalidJSON, "A number is too large or has too many digits"),
    ("54001", InvalidJSON, "Nested too deep"),
    ("54000 22P02 22P05 22021 22007 22008", InvalidJSON, None),
    ("53200", OutOfMemory, "PostgreSQL has too little memory"),
    ("53100", NoRoom, NO_ROOM),
    ("55P03 57014", Unavailable, "PostgreSQL took too long"),
    ("25006", Unavailable, "the database is read-only"),
    ("42501", Unavailable, "the database role lacks a privilege"),
    ("42P01 42883 42703 3F000", Unavailable, "the schema is missing or of another version: run init-db"),
    ("26000 42P05", Unavailable, "prepared statements fail: behind this pooler set PREPARED_STATEMENTS=off"),
    ("08 28 3D 53 57", Unavailable, UNREACHABLE),
    ("42", RuntimeError, None),  # one of our statements is wrong
)
_BY_CODE = {code: (kind, reason) for codes, kind, reason in _MEANINGS for code in codes.split()}


def raise_translated(error: psycopg.Error) -> NoReturn:
    """Raise what a driver's error means, with PostgreSQL's primary message alone: its details quote the data."""
    message = error.diag.message_primary or str(error).partition("\n")[0] or type(error).__name__
    if isinstance(error, psycopg.ProgrammingError) and not error.sqlstate:
        raise Unavailable("DATABASE_URL has a wrong parameter") from None
    code = error.sqlstate or "08"
    kind, reason = _BY_CODE.get(code) or _BY_CODE.get(code[:2], (Unavailable, CANT_STORE))
    if issubclass(kind, Unavailable):
        raise kind(reason, message) from None
    # The context names each function that ran, such as "PL/pgSQL function check_tool() line 1 at RAISE".
    if found := re.search(r"^\S+ function (?!store_events_)\S+", error.diag.context or "", re.MULTILINE):
        # an operator's trigger failed, and the body is valid; the message quotes it
        raise Unavailable(CANT_STORE, f"{found[0]} failed") from None
    raise kind(reason or message) from None
