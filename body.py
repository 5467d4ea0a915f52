"""Read the body of a request within limits, and decompress it. Flask's request would parse headers more slowly."""

import re
import zlib
from wsgiref.types import WSGIEnvironment

from gunicorn.http.errors import ParseException

from json_text import InvalidJSON, TooLarge

MEDIA_TYPE = re.compile(r"application/(?:json|[^;\s]+\+json|(?P<ndjson>x-ndjson|jsonl))\s*(?:;.*)?", re.IGNORECASE)


class UnsupportedMediaType(Exception):
    """A header has an unsupported value. The arguments are its name and the supported values."""


def is_ndjson(environ: WSGIEnvironment) -> bool:
    """Return whether the body is NDJSON, and not JSON. Raises UnsupportedMediaType if it is neither."""
    if match := MEDIA_TYPE.fullmatch(environ.get("CONTENT_TYPE") or ""):
        return match["ndjson"] is not None
    raise UnsupportedMediaType("Content-Type", "application/json, application/x-ndjson, application/jsonl")


def is_gzip(environ: WSGIEnvironment) -> bool:
    """Return whether the body is compressed. Raises UnsupportedMediaType if its encoding is not supported."""
    encoding = environ.get("HTTP_CONTENT_ENCODING", "").strip().lower()
    if encoding not in ("", "identity", "gzip", "x-gzip"):
        raise UnsupportedMediaType("Content-Encoding", "gzip, identity")
    return "gzip" in encoding


def read(environ: WSGIEnvironment, max_bytes: int, *, gzip: bool) -> bytes:
    """Return the complete body, decompressed if it is gzip. Raises TooLarge, and InvalidJSON if it is incomplete.

    Werkzeug's get_data() is not used: it cuts a chunked body at the limit, and returns the rest as if it were complete.
    """
    too_large = TooLarge(f"The body must be at most {max_bytes} bytes")
    length = int(environ.get("CONTENT_LENGTH") or 0)  # a chunked body has no length
    if length > max_bytes:
        raise too_large
    try:
        body: bytes = environ["wsgi.input"].read(length or max_bytes + 1)
    except (OSError, ParseException) as error:
        raise InvalidJSON("The body could not be read to its end") from error
    if len(body) > max_bytes:
        raise too_large
    if len(body) < length:
        raise InvalidJSON("The body is incomplete")
    return decompress(body, max_bytes) if gzip else body


def decompress(body: bytes, max_bytes: int) -> bytes:
    """Decompress gzip (RFC 1952) of one or more members. Raises InvalidJSON, and TooLarge beyond `max_bytes`."""
    decompressed = bytearray()
    member = zlib.decompressobj(wbits=31)
    for start in range(0, len(body), 4096):  # in small pieces: what follows a member is copied at each member's end
        piece = body[start : start + 4096]
        while piece:
            if member.eof:
                member = zlib.decompressobj(wbits=31)
            try:
                decompressed += member.decompress(piece, max_bytes - len(decompressed) + 1)
            except zlib.error:
                raise InvalidJSON("The body is not gzip") from None
            if len(decompressed) > max_bytes:
                raise TooLarge(f"The body must be at most {max_bytes} bytes")
            piece = member.unused_data
    if not member.eof:
        raise InvalidJSON("The gzip body is incomplete")
    return bytes(decompressed)
