"""Read the body of a request, within limits, and inflate it."""

import re
import zlib
from wsgiref.types import WSGIEnvironment

from json_text import InvalidJSON, TooLarge

JSON = re.compile(r"application/(?:json|[^;\s]+\+json)\s*(?:;.*)?", re.IGNORECASE)
NDJSON = re.compile(r"application/(?:x-ndjson|jsonl)\s*(?:;.*)?", re.IGNORECASE)


class UnsupportedMediaType(Exception):
    """A header has a value that is not understood. The arguments are its name and the values that are."""


def is_ndjson(environ: WSGIEnvironment) -> bool:
    """Return whether the body is NDJSON, and not JSON. Raises UnsupportedMediaType if it is neither."""
    content_type = environ.get("CONTENT_TYPE") or ""
    if JSON.fullmatch(content_type):
        return False
    if NDJSON.fullmatch(content_type):
        return True
    raise UnsupportedMediaType("Content-Type", "application/json, application/x-ndjson, application/jsonl")


def read(environ: WSGIEnvironment, max_bytes: int) -> bytes:
    """Return the whole body, inflated.

    Raises UnsupportedMediaType, TooLarge, and InvalidJSON if the body is cut short or badly framed. Werkzeug's
    get_data() is not used: it cuts a chunked body at the limit and returns the rest as if it were whole.
    """
    encoding = environ.get("HTTP_CONTENT_ENCODING", "").strip().lower()
    if encoding not in ("", "identity", "gzip"):
        raise UnsupportedMediaType("Content-Encoding", "gzip, identity")
    too_large = TooLarge(f"The body must be at most {max_bytes} bytes")
    length = int(environ.get("CONTENT_LENGTH") or 0)  # of a chunked body nobody knows it
    if length > max_bytes:
        raise too_large
    try:
        body: bytes = environ["wsgi.input"].read(length or max_bytes + 1)
    except OSError as error:
        raise InvalidJSON("The body took too long to arrive: split the batch") from error
    except Exception as error:  # the server's parser has its own exceptions for what a client can do wrong
        raise InvalidJSON("The body could not be read to its end") from error
    if len(body) > max_bytes:
        raise too_large
    if len(body) < length:
        raise InvalidJSON("The body breaks off")
    return inflate(body, max_bytes) if encoding == "gzip" else body


def inflate(body: bytes, max_bytes: int) -> bytes:
    """Inflate gzip (RFC 1952), which can have several members.

    Raises TooLarge as soon as there are more than `max_bytes`, and InvalidJSON if the body is not gzip.
    """
    inflated = bytearray()
    member = zlib.decompressobj(wbits=31)
    for start in range(0, len(body), 4096):  # in small pieces: what follows a member is copied at each member's end
        piece = body[start : start + 4096]
        while piece:
            if member.eof:
                member = zlib.decompressobj(wbits=31)
            try:
                inflated += member.decompress(piece, max_bytes - len(inflated) + 1)
            except zlib.error:
                raise InvalidJSON("The body is not gzip") from None
            if len(inflated) > max_bytes:
                raise TooLarge(f"The body must be at most {max_bytes} bytes")
            piece = member.unused_data
    if not member.eof:
        raise InvalidJSON("The gzip body breaks off")
    return bytes(inflated)
