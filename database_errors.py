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

    reason = "PostgreSQL has no room on its disk"


_UNREACHABLE = (Unavailable, "PostgreSQL can't be reached")
_CANT_STORE = (Unavailable, "PostgreSQL can't store this now")
_ITS_MESSAGE = (InvalidJSON, None)  # the reason is PostgreSQL's primary message

# The codes are in PostgreSQL's documentation, appendix A. The code counts before its class, the first two characters.
# InvalidJSON is for the data: PostgreSQL will reject it again.
_BY_SQLSTATE: dict[str, tuple[type[Exception], str | None]] = {
    "22003": (InvalidJSON, "A number is too large or has too many digits"),
    "54001": (InvalidJSON, "Nested too deep"),
    **dict.fromkeys(("54000", "22P02", "22P05", "22021", "22007", "22008"), _ITS_MESSAGE),
    "53200": (OutOfMemory, "PostgreSQL has too little memory"),
    **dict.fromkeys(("55P03", "57014"), (Unavailable, "PostgreSQL took too long")),
    "53100": (NoRoom, NoRoom.reason),
    "25006": (Unavailable, "the database is read-only"),
    "42501": (Unavailable, "the database role lacks a privilege"),
    **dict.fromkeys(
        ("26000", "42P05"), (Unavailable, "prepared statements fail: behind this pooler set PREPARED_STATEMENTS=off")
    ),
    **dict.fromkeys(
        ("42P01", "42883", "42703", "3F000"),
        (Unavailable, "the schema is missing or of another version: run init-db"),
    ),
}
_BY_CLASS: dict[str, tuple[type[Exception], str | None]] = {
    "42": (RuntimeError, None),  # a statement of ours is wrong
    "58": _CANT_STORE,
    **dict.fromkeys(("08", "28", "3D", "53", "57"), _UNREACHABLE),
}


def raise_translated(error: psycopg.Error) -> NoReturn:
    """Raise what a driver's error means, with PostgreSQL's primary message alone: its details quote the data."""
    message = error.diag.message_primary or str(error).partition("\n")[0] or type(error).__name__
    if error.sqlstate:
        kind, reason = _BY_SQLSTATE.get(error.sqlstate) or _BY_CLASS.get(error.sqlstate[:2], _CANT_STORE)
    elif isinstance(error, psycopg.ProgrammingError):
        raise Unavailable("DATABASE_URL has a wrong parameter") from None
    else:
        kind, reason = _UNREACHABLE
    if issubclass(kind, Unavailable):
        raise kind(reason, message) from None
    # The context names each function that ran, such as "PL/pgSQL function check_tool() line 1 at RAISE".
    if re.search(r"^\S+ function (?!store_events_)", error.diag.context or "", re.MULTILINE):
        raise Unavailable(_CANT_STORE[1], message) from None  # an operator's trigger failed, and the body is valid
    raise kind(reason or message) from None
