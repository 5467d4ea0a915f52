"""Answer HTTP: authenticate a request, load its events, store them, answer."""

import hashlib
import json
import logging
import os
import random
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from flask import Blueprint, Flask, Request, Response, current_app, g, request
from werkzeug.exceptions import MethodNotAllowed, NotFound
from werkzeug.http import parse_list_header
from werkzeug.routing import MapAdapter

import body
import config
import database
import json_text
import logs
import schemas
import storage

log = logging.getLogger("igris")

API_KEY = re.compile(r"ig_[A-Za-z0-9]{40}")
IDEMPOTENCY_KEY = re.compile(r'"(?P<quoted>[ -~]{1,255})"|(?P<bare>[!#-~][ -~]{0,254})')

# PostgreSQL has not checked the API key of the request when one of these is raised.
KEY_NOT_CHECKED = (
    body.UnsupportedMediaType,
    json_text.InvalidJSON,
    json_text.TooLarge,
    database.DataRejected,
    schemas.InvalidEvents,
)

ingest = Blueprint("ingest", __name__)


@ingest.before_request
def authenticate() -> None:
    """Find the request's API key. This runs before the body is read, so a stranger can't make us read one."""
    scheme, _, key = request.environ.get("HTTP_AUTHORIZATION", "").partition(" ")
    g.key = key.strip() if scheme.lower() == "bearer" else ""
    if not API_KEY.fullmatch(g.key):
        raise storage.Unauthorized
    g.api_key = current_storage().identify(g.key)
    g.access_line.apiKeyId, g.access_line.organization = g.api_key


@ingest.post("/api/v1/ingest/raw")
def ingest_raw() -> Response:
    """Store the events of the body, all or none, and answer after the commit.

    With `Prefer: handling=lenient` the valid events are stored, and the others listed.
    """
    try:
        batch, data = load()
        lenient = prefers_lenient()
        if batch.error_counts and not lenient:
            raise schemas.InvalidEvents(batch.details(), len(batch.events))
        return answer(batch, store(batch, data), lenient)
    except KEY_NOT_CHECKED:
        current_storage().authenticate(g.key)  # it may have been revoked since it was remembered
        raise


def load() -> tuple[schemas.Batch, bytes]:
    """Return the events of the body, and the body. Raises what ERRORS names."""
    settings, environ = current_app.config, request.environ
    ndjson = body.is_ndjson(environ)
    data = body.read(environ, settings["MAX_BODY_BYTES"])
    batch = schemas.load(data, settings["MAX_BATCH_EVENTS"], settings["MAX_BODY_VALUES"], ndjson=ndjson)
    g.access_line.rejected = len(batch.events)  # until they are stored
    return batch, data


def store(batch: schemas.Batch, data: bytes) -> storage.StoreResult:
    """Store the valid events of a batch, once for each Idempotency-Key. Raises what ERRORS names."""
    key = fingerprint = None
    if (sent := request.environ.get("HTTP_IDEMPOTENCY_KEY")) is not None:
        if not (match := IDEMPOTENCY_KEY.fullmatch(sent)):
            message = "Must be 1 to 255 printable ASCII characters, quoted or bare"
            raise schemas.InvalidEvents([{"field": "Idempotency-Key", "message": message}], len(batch.events))
        key = match["quoted"] or match["bare"]
        kind = b"ndjson" if body.is_ndjson(request.environ) else b""  # the same bytes can be other events
        fingerprint = hashlib.sha256(kind + data).digest()
    text = json_text.storable_text(batch.text)
    events = storage.EventBatch(text, batch.valid, len(batch.events), key, fingerprint)
    return current_storage().store(g.api_key, events)


def answer(batch: schemas.Batch, result: storage.StoreResult, lenient: bool) -> Response:
    rejected, line = len(batch.events) - result.ingested, g.access_line
    line.ingested, line.rejected = 0 if result.replayed else result.ingested, rejected
    content: dict[str, Any] = {
        "data": {"ingested": result.ingested, "rejected": rejected},
        "meta": {"remainingQuota": result.remaining},
    }
    if rejected:
        content["details"] = batch.details()
    response = json_response(content)
    if lenient:
        response.headers.add("Preference-Applied", "handling=lenient")
    if result.replayed:
        response.headers.add("Idempotency-Replayed", "true")
    return response


def prefers_lenient() -> bool:
    """Return whether the first preference for `handling` (RFC 7240, section 4.4) is the lenient one."""
    sent = request.environ.get("HTTP_PREFER")
    for preference in parse_list_header(sent.lower()) if sent else ():
        name, _, value = preference.partition(";")[0].partition("=")
        if name.strip() == "handling":
            return value.strip().strip('"') == "lenient"
    return False


def current_storage() -> storage.Storage:
    return current_app.extensions["storage"]  # type: ignore[no-any-return]


# Probes and the description of the interface need no key.


def healthz() -> Response:
    """Answer while the process does, whatever the database does."""
    return json_response({"status": "ok", "version": config.VERSION})


def readyz() -> Response:
    """Answer whether requests can be stored: PostgreSQL answers, can be written to, and has the schema."""
    try:
        current_storage().check_ready()
    except database.Unavailable as error:
        return json_response({"status": "unavailable", "reason": error.args[0]}, 503)
    return json_response({"status": "ok"})


def openapi() -> Response:
    text = Path(__file__).with_name("openapi.yaml").read_text()
    return Response(text, headers=[("Content-Type", "application/yaml"), ("Cache-Control", "no-store")])


def json_response(content: dict[str, Any], status: int = 200) -> Response:
    headers = [("Content-Type", "application/json"), ("Cache-Control", "no-store")]
    return Response(json.dumps(content) + "\n", status, headers)


# The status, the error and the detail of each exception; {} is its argument. A new status is a row here.
ERRORS: dict[type[Exception], tuple[int, str, str]] = {
    NotFound: (404, "Not found", ""),
    MethodNotAllowed: (405, "Method not allowed", ""),
    storage.Unauthorized: (
        401,
        "Unauthorized",
        "Send the header `Authorization: Bearer ig_...` with an API key that is neither revoked nor expired",
    ),
    body.UnsupportedMediaType: (415, "Unsupported media type", "{} must be one of {}"),
    json_text.TooLarge: (413, "Payload too large", "{}: split the batch"),
    json_text.InvalidJSON: (400, "Invalid JSON", "{}"),
    database.DataRejected: (400, "Invalid JSON", "{}"),
    schemas.InvalidEvents: (400, "Validation failed", ""),
    storage.KeyReused: (422, "Idempotency-Key reused", "The key had another body: send this one under a new key"),
    storage.QuotaExceeded: (429, "Quota exceeded", "The month's quota has room for {} more event(s)"),
    database.Unavailable: (503, "Service unavailable", ""),
    Exception: (500, "Internal server error", ""),
}


def error_response(error: Exception) -> Response:
    """Make the response of an exception, the one shape that all errors have."""
    status, name, detail = next(ERRORS[kind] for kind in type(error).__mro__ if kind in ERRORS)
    details = [{"field": "", "message": detail.format(*error.args)}] if detail else []
    meta: dict[str, Any] = {}
    headers: dict[str, str] = {}
    match error:
        case MethodNotAllowed():
            headers["Allow"] = ", ".join(sorted(error.valid_methods or ()))
        case storage.Unauthorized():
            sent = ', error="invalid_token"' if g.key else ""
            headers["WWW-Authenticate"] = f'Bearer realm="igris"{sent}'
        case body.UnsupportedMediaType():
            headers["Accept" if error.args[0] == "Content-Type" else "Accept-Encoding"] = error.args[1]
        case schemas.InvalidEvents():
            details, g.access_line.rejected = error.args
        case storage.QuotaExceeded():
            # not in Retry-After, which clients obey: they would sleep for days
            meta = {"remainingQuota": error.args[0], "quotaResetsAt": first_of_next_month(datetime.now(UTC))}
        case database.Unavailable():
            log.warning(": ".join(error.args))
            # spread, so that the clients that were refused don't come back in the same second
            headers["Retry-After"] = str(random.randint(1, 5))  # noqa: S311
        case _ if status == 500:
            log.error("this is a defect", exc_info=error)
    g.access_line.error = name
    content = {"error": name} | ({"details": details} if details else {}) | ({"meta": meta} if meta else {})
    response = json_response(content, status)
    response.headers.update(headers)
    return response


def first_of_next_month(now: datetime) -> str:
    following = (now.replace(day=1) + timedelta(days=32)).replace(day=1)
    return f"{following:%Y-%m-%d}T00:00:00Z"


class Service(Flask):
    """Flask without asynchronous views and routes by host, which would take a tenth of a small request's time."""

    def ensure_sync(self, func: Callable[..., Any]) -> Callable[..., Any]:
        return func

    def create_url_adapter(self, request: Request | None) -> MapAdapter | None:
        if request is None:
            return None
        environ = request.environ
        return self.url_map.bind("", path_info=environ["PATH_INFO"], default_method=environ["REQUEST_METHOD"])


def create_app() -> Flask:
    """Return the WSGI application, configured from the environment. Raises SystemExit if a setting makes no sense."""
    settings = config.load()
    app = Service(__name__, static_folder=None)
    app.config.update(settings, PROVIDE_AUTOMATIC_OPTIONS=False)
    app.url_map.merge_slashes = False  # else // is answered with a redirect
    app.extensions["storage"] = storage.Storage(
        settings["DATABASE_URL"],
        settings["THREADS"],
        settings["IDEMPOTENCY_DAYS"],
        prepare=settings["PREPARED_STATEMENTS"] == "on",
    )
    logs.init_app(app, settings["LOG_LEVEL"])
    app.register_error_handler(Exception, error_response)
    app.register_blueprint(ingest)
    for path, view in {"/healthz": healthz, "/readyz": readyz, "/openapi.yaml": openapi}.items():
        app.add_url_rule(path, view_func=view)
    if os.environ.get("FLASK_RUN_FROM_CLI"):  # Flask sets it for `flask --app app`; web workers need no commands
        import commands

        commands.add_to(app.cli)
    return app
