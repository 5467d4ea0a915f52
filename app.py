"""Audit events over HTTP. The life of a request: authenticate, load, store, answer."""

import hashlib
import json
import logging
import math
import re
import secrets
import zlib
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from flask import Blueprint, Flask, Response, current_app, g, request
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound, RequestEntityTooLarge
from werkzeug.http import parse_list_header

import cli
import config
import logs
import schemas
import storage

log = logging.getLogger("igris")

API_KEY = re.compile(r"ig_[A-Za-z0-9]{40}")
MEDIA_TYPE = re.compile(r"application/(?:json|[^;\s]+\+json)\s*(?:;.*)?", re.IGNORECASE)
IDEMPOTENCY_KEY = re.compile(r'"(?P<quoted>[ -~]{1,255})"|(?P<bare>[!#-~][ -~]{0,254})')

OPENAPI = Path(__file__).with_name("openapi.yaml").read_text()

ingest = Blueprint("ingest", __name__)


@ingest.before_request
def authenticate() -> None:
    """Before the body is read: a stranger's is not worth it."""
    scheme, _, sent = request.headers.get("Authorization", "").partition(" ")
    key = sent.strip()
    g.key_sent = scheme.lower() == "bearer" and key != ""
    if not g.key_sent or not API_KEY.fullmatch(key):
        raise storage.Unauthorized
    g.api_key = api_key = store().identify(key)
    g.key = key
    g.line.update(organization=api_key.org_id, apiKeyId=api_key.id)


@ingest.after_request
def authenticate_again(response: Response) -> Response:
    """A key known from memory may have been revoked. Storing asks for that, so only a refusal is left to check."""
    if response.status_code < 400 or response.status_code == 503 or "key" not in g:
        return response
    try:
        store().authenticate(g.key)
    except (storage.Unauthorized, storage.Unavailable) as error:
        return REFUSALS[type(error)](error)
    return response


@ingest.post("/api/v1/ingest/raw")
def ingest_raw() -> Response:
    """Stores the events of the body, all or none, and answers after the commit.

    With `Prefer: handling=lenient` it stores those that are valid, as far as the quota reaches.
    """
    body, text, batch = load()
    lenient = prefers_lenient()
    valid = batch.valid
    if batch.faulty and not (lenient and valid):
        raise schemas.InvalidEvents(batch.details())
    idempotency_key = read_idempotency_key()
    receipt = store().store(
        g.api_key,
        storage.Request(
            f"[{text}]" if batch.single else text,
            valid,
            len(batch.events),
            lenient,
            idempotency_key,
            hashlib.sha256(body).digest() if idempotency_key else None,
        ),
    )
    rejected = len(batch.events) - receipt.ingested
    g.line.update(ingested=0 if receipt.replayed else receipt.ingested, rejected=rejected)
    answered: dict[str, Any] = {
        "data": {"ingested": receipt.ingested, "rejected": rejected},
        "meta": {"remainingQuota": receipt.remaining},
    }
    if rejected:
        answered["details"] = batch.details(past_quota=valid[receipt.ingested :])
    headers = []
    if lenient:
        headers.append(("Preference-Applied", "handling=lenient"))
    if receipt.replayed:
        headers.append(("Idempotency-Replayed", "true"))
    return answer(answered, headers=headers)


def load() -> tuple[bytes, str, schemas.Batch]:
    """The body, its text, and the events in it. Raises what the table of refusals names."""
    if not MEDIA_TYPE.fullmatch(request.content_type or ""):
        raise UnsupportedMediaType("Content-Type", "Accept", "application/json")
    encoding = request.headers.get("Content-Encoding", "").strip().lower()
    if encoding not in ("", "identity", "gzip"):
        raise UnsupportedMediaType("Content-Encoding", "Accept-Encoding", "gzip, identity")
    body = read_body(gzip=encoding == "gzip")
    text, data = schemas.parse_json(body)
    return body, text, schemas.load(data, current_app.config["MAX_BATCH_EVENTS"])


def read_body(*, gzip: bool) -> bytes:
    """The whole body, inflated. Raises RequestEntityTooLarge; InvalidJSON if it breaks off or is badly framed."""
    limit = current_app.config["MAX_BODY_BYTES"]
    length = request.content_length  # None: it comes in chunks
    if length is not None and length > limit:
        raise RequestEntityTooLarge
    try:
        body: bytes = request.environ["wsgi.input"].read(limit + 1 if length is None else length)
    except Exception as error:  # the server's parser has its own types for what a client can do wrong
        raise schemas.InvalidJSON("The body could not be read to its end") from error
    if len(body) > limit:
        raise RequestEntityTooLarge
    if length is not None and len(body) < length:
        raise schemas.InvalidJSON("The body breaks off")
    return inflate(body, limit) if gzip else body


def inflate(body: bytes, limit: int) -> bytes:
    """Inflates gzip (RFC 1952), whose members may be many. Stops as soon as there are more than `limit` bytes."""
    inflated = bytearray()
    member = zlib.decompressobj(wbits=31)
    for start in range(0, len(body), 4096):  # in small pieces: what follows a member is copied at each member's end
        piece = body[start : start + 4096]
        while piece:
            if member.eof:
                member = zlib.decompressobj(wbits=31)
            try:
                inflated += member.decompress(piece, limit - len(inflated) + 1)
            except zlib.error:
                raise schemas.InvalidJSON("The body is not gzip") from None
            if len(inflated) > limit:
                raise RequestEntityTooLarge
            piece = member.unused_data
    if not member.eof:
        raise schemas.InvalidJSON("The gzip body breaks off")
    return bytes(inflated)


def prefers_lenient() -> bool:
    """Whether the first preference for `handling` (RFC 7240, section 4.4) is the lenient one."""
    sent = request.headers.get("Prefer")
    for preference in parse_list_header(sent.lower()) if sent else ():
        name, _, value = preference.partition(";")[0].partition("=")
        if name.strip() == "handling":
            return value.strip().strip('"') == "lenient"
    return False


def read_idempotency_key() -> str | None:
    """The Idempotency-Key without its quotes, if one was sent. Raises InvalidIdempotencyKey."""
    sent = request.headers.get("Idempotency-Key")
    if sent is None:
        return None
    if not (match := IDEMPOTENCY_KEY.fullmatch(sent)):
        raise InvalidIdempotencyKey
    return match["quoted"] or match["bare"]


class UnsupportedMediaType(Exception):
    """A header has a value that is not understood. Arguments: its name, the header that says what is, and that."""


class InvalidIdempotencyKey(Exception):
    """The header is there, and is no key."""


def store() -> storage.Storage:
    return current_app.extensions["storage"]  # type: ignore[no-any-return]


public = Blueprint("public", __name__)  # no key needed


@public.get("/healthz")
def healthz() -> Response:
    """The process answers, whatever the database does."""
    return answer({"status": "ok"})


@public.get("/readyz")
def readyz() -> Response:
    """Requests can be served: PostgreSQL answers and the schema is there."""
    try:
        store().check_ready()
    except storage.Unavailable as error:
        return answer({"status": "unavailable", "reason": str(error)}, 503)
    return answer({"status": "ok"})


@public.get("/openapi.yaml")
def openapi() -> Response:
    """What clients may rely on, for programs."""
    return Response(OPENAPI, headers=[("Content-Type", "application/yaml"), ("Cache-Control", "no-store")])


def refuse(
    status: int,
    error: str,
    details: schemas.Details | str = "",
    meta: dict[str, Any] | None = None,
    headers: Iterable[tuple[str, str]] = (),
) -> Response:
    """The one maker of error answers; a `details` string is about the body as a whole."""
    body: dict[str, Any] = {"error": error}
    if details:
        body["details"] = [{"field": "", "message": details}] if isinstance(details, str) else details
    if meta:
        body["meta"] = meta
    return answer(body, status, headers)


def answer(body: dict[str, Any], status: int = 200, headers: Iterable[tuple[str, str]] = ()) -> Response:
    headers = [*headers, ("Content-Type", "application/json"), ("Cache-Control", "no-store")]
    return Response(json.dumps(body) + "\n", status, headers)


def unavailable(error: storage.Unavailable) -> Response:
    log.warning("%s: %s", error, error.__cause__)
    # spread, so that all those who were refused don't come back in the same second
    return refuse(503, "Service unavailable", headers=[("Retry-After", str(secrets.randbelow(5) + 1))])


def defect(error: Exception) -> Response:
    log.error("a defect", exc_info=error)
    return refuse(500, "Internal server error")


def seconds_to_next_month(now: datetime) -> int:
    """Whole seconds, at least 1, until the calendar month of `now` (UTC) is over."""
    first = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    following = (first + timedelta(days=32)).replace(day=1)
    return math.ceil((following - now).total_seconds())


# From an exception to its answer.
REFUSALS: dict[type[Exception], Callable[[Any], Response]] = {
    NotFound: lambda _: refuse(404, "Not found"),
    MethodNotAllowed: lambda error: refuse(
        405, "Method not allowed", headers=[("Allow", ", ".join(sorted(error.valid_methods)))]
    ),
    storage.Unauthorized: lambda _: refuse(
        401,
        "Unauthorized",
        headers=[("WWW-Authenticate", 'Bearer realm="igris"' + ', error="invalid_token"' * g.key_sent)],
    ),
    UnsupportedMediaType: lambda error: refuse(
        415,
        "Unsupported media type",
        f"{error.args[0]} must be {error.args[2]}",
        headers=[(error.args[1], error.args[2])],
    ),
    RequestEntityTooLarge: lambda _: refuse(
        413,
        "Payload too large",
        f"The body must be at most {current_app.config['MAX_BODY_BYTES']} bytes: split the batch",
    ),
    schemas.InvalidJSON: lambda error: refuse(400, "Invalid JSON", str(error)),
    storage.Unstorable: lambda error: refuse(400, "Invalid JSON", str(error)),
    schemas.InvalidEvents: lambda error: refuse(400, "Validation failed", error.args[0]),
    InvalidIdempotencyKey: lambda _: refuse(
        400,
        "Validation failed",
        [{"field": "Idempotency-Key", "message": "Must be 1 to 255 printable ASCII characters, quoted or bare"}],
    ),
    storage.KeyReused: lambda _: refuse(
        422, "Idempotency-Key reused", "The key was used with another body: send this one under a key of its own"
    ),
    storage.QuotaExceeded: lambda error: refuse(
        429,
        "Quota exceeded",
        f"The month's quota has room for {error.remaining} more event(s)",
        meta={"remainingQuota": error.remaining},
        headers=[("Retry-After", str(seconds_to_next_month(datetime.now(UTC))))],
    ),
    storage.Unavailable: unavailable,
    HTTPException: lambda error: refuse(error.code, error.name),
    Exception: defect,
}


def create_app() -> Flask:
    """The WSGI application, configured from the environment. Raises SystemExit if a setting makes no sense."""
    settings = config.load()
    app = Flask(__name__, static_folder=None)
    app.config.update(settings, PROVIDE_AUTOMATIC_OPTIONS=False)
    app.url_map.merge_slashes = False  # else // is answered with a redirect
    app.extensions["storage"] = storage.Storage(
        settings["DATABASE_URL"],
        settings["THREADS"],
        settings["IDEMPOTENCY_DAYS"],
        prepare=settings["PREPARED_STATEMENTS"],
    )
    logs.init_app(app, settings["LOG_LEVEL"])
    for exception, refusal in REFUSALS.items():
        app.register_error_handler(exception, refusal)
    app.register_blueprint(ingest)
    app.register_blueprint(public)
    cli.init_app(app)
    return app
