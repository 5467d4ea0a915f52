"""Serve the HTTP interface. The life of a request has four steps: authenticate, parse, store, respond."""

import hashlib
import json
import logging
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from wsgiref.types import WSGIEnvironment

from flask import Blueprint, Flask, Request, Response, current_app, g, request
from werkzeug.exceptions import MethodNotAllowed, NotFound
from werkzeug.http import parse_list_header
from werkzeug.routing import MapAdapter

import body
import config
import database_errors
import json_text
import logs
import schemas
import storage

log = logging.getLogger("igris")

API_KEY = re.compile(r"ig_[A-Za-z0-9]{40}")
IDEMPOTENCY_KEY = re.compile(r'"(?P<quoted>[ -~]{1,255})"|(?P<bare>[!#-~][ -~]{0,254})')

ingest = Blueprint("ingest", __name__)


@ingest.post("/api/v1/ingest/raw")
def ingest_raw() -> Response:
    """Store the events of the body, all or none, and respond after the commit.

    With `Prefer: handling=lenient` the valid events are stored, and the response lists the invalid ones.
    """
    environ, settings = request.environ, current_app.config  # read once: each use of Flask's proxies takes time
    api_key = authenticate(environ)
    is_ndjson, is_gzip = body.is_ndjson(environ), body.is_gzip(environ)
    key, is_lenient = idempotency_key(environ), lenient(environ)
    data = body.read(environ, settings["MAX_BODY_BYTES"], gzip=is_gzip)
    batch = schemas.parse_batch(data, settings["MAX_BATCH_EVENTS"], settings["MAX_BODY_VALUES"], ndjson=is_ndjson)
    g.access_line["rejected"] = len(batch.events)  # until they are stored
    if batch.error_counts and not is_lenient:
        raise schemas.ValidationFailed(batch.details(), len(batch.events))
    # the same bytes can be other events
    fingerprint = hashlib.sha256((b"ndjson" if is_ndjson else b"") + data).digest() if key else None
    text = json_text.storable_text(batch.text)
    events = storage.EventBatch(text, batch.valid, len(batch.events), key, fingerprint)
    return success_response(batch, current_storage().store(api_key, events), is_lenient)


def authenticate(environ: WSGIEnvironment) -> storage.ApiKey:
    """Return the request's API key, before any of its body is read. Raises Unauthorized and Unavailable."""
    scheme, _, key = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
    g.key = key = key.strip(" \t") if scheme.lower() == "bearer" else ""
    if not API_KEY.fullmatch(key):
        raise storage.Unauthorized
    api_key = current_storage().identify(key)
    g.access_line.update(apiKeyId=api_key.id, organization=api_key.org_id)
    return api_key


def idempotency_key(environ: WSGIEnvironment) -> str | None:
    """Return the Idempotency-Key, if the request has one. Raises ValidationFailed."""
    if (sent := environ.get("HTTP_IDEMPOTENCY_KEY")) is None:
        return None
    if match := IDEMPOTENCY_KEY.fullmatch(sent):
        return match["quoted"] or match["bare"]
    message = "Must be 1 to 255 printable ASCII characters, quoted or bare"
    raise schemas.ValidationFailed([{"field": "Idempotency-Key", "message": message}], 0)


def lenient(environ: WSGIEnvironment) -> bool:
    """Return whether the first preference for `handling` (RFC 7240, section 4.4) is the lenient one."""
    sent = environ.get("HTTP_PREFER")
    for preference in parse_list_header(sent.lower()) if sent else ():
        name, _, value = preference.partition(";")[0].partition("=")
        if name.strip() == "handling":
            return value.strip().strip('"') == "lenient"
    return False


def success_response(batch: schemas.Batch, result: storage.StoreResult, is_lenient: bool) -> Response:
    rejected = len(batch.events) - result.ingested
    g.access_line.update(ingested=0 if result.replayed else result.ingested, rejected=rejected)
    content: dict[str, Any] = {
        "data": {"ingested": result.ingested, "rejected": rejected},
        "meta": {"remainingQuota": result.remaining},
    }
    if rejected:
        content["details"] = batch.details()
    response = json_response(content)
    if is_lenient:
        response.headers.add("Preference-Applied", "handling=lenient")
    if result.replayed:
        response.headers.add("Idempotency-Replayed", "true")
    return response


def current_storage() -> storage.Storage:
    return current_app.extensions["storage"]  # type: ignore[no-any-return]


def healthz() -> Response:
    return json_response({"status": "ok", "version": config.VERSION})


def readyz() -> Response:
    try:
        current_storage().check_ready()
    except database_errors.Unavailable as error:
        return json_response({"status": "unavailable", "reason": error.args[0]}, 503)
    return json_response({"status": "ok"})


def openapi() -> Response:
    text = Path(__file__).with_name("openapi.yaml").read_text()
    return Response(text, headers=[("Content-Type", "application/yaml"), ("Cache-Control", "no-store")])


class FinalResponse(Response):
    def get_wsgi_headers(self, environ: WSGIEnvironment) -> Any:
        return self.headers  # Werkzeug's own copies them, and looks for headers that responses here don't have


def json_response(content: dict[str, Any], status: int = 200) -> Response:
    headers = [("Content-Type", "application/json"), ("Cache-Control", "no-store")]
    return FinalResponse(json.dumps(content) + "\n", status, headers)


# The status, the error and the detail of each exception; {} is its argument. A new status is a row here.
ERRORS: dict[type[Exception], tuple[int, str, str]] = {
    NotFound: (404, "Not found", ""),
    MethodNotAllowed: (405, "Method not allowed", ""),
    storage.Unauthorized: (401, "Unauthorized", "Send `Authorization: Bearer ig_...`: a key not revoked or expired"),
    body.UnsupportedMediaType: (415, "Unsupported media type", "{} must be one of {}"),
    json_text.TooLarge: (413, "Payload too large", "{}: split the batch"),
    json_text.InvalidJSON: (400, "Invalid JSON", "{}"),
    schemas.ValidationFailed: (400, "Validation failed", ""),
    storage.KeyReused: (422, "Idempotency-Key reused", "The key had another body: send this one under a new key"),
    storage.QuotaExceeded: (429, "Quota exceeded", "The month's quota has room for {} more event(s)"),
    database_errors.Unavailable: (503, "Service unavailable", ""),
    Exception: (500, "Internal server error", ""),
}


def error_response(error: Exception) -> Response:
    """Make the response of an exception, in the one shape that all errors have."""
    status, name, detail = next(ERRORS[kind] for kind in type(error).__mro__ if kind in ERRORS)
    if 400 <= status < 500 and status != 401 and g.access_line["apiKeyId"]:
        # the key may come from memory: look whether it is still valid before any other error is reported
        try:
            current_storage().authenticate(g.key)
        except (storage.Unauthorized, database_errors.Unavailable) as newer:
            return error_response(newer)
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
        case schemas.ValidationFailed():
            details, g.access_line["rejected"] = error.args
        case storage.QuotaExceeded():
            # not in Retry-After, which clients obey: they would sleep for days
            meta = dict(zip(("remainingQuota", "quotaResetsAt"), error.args, strict=True))
        case database_errors.Unavailable():
            log.warning(": ".join(error.args))
            # at random, so that the clients don't all come back in the same second
            headers["Retry-After"] = str(random.randint(1, 5))  # noqa: S311
        case _ if status == 500:
            log.error("this is a defect", exc_info=error)
    g.access_line["error"] = name
    content = {"error": name} | ({"details": details} if details else {}) | ({"meta": meta} if meta else {})
    response = json_response(content, status)
    response.headers.update(headers)
    return response


class Service(Flask):
    """Flask without sessions, hooks, signals, asynchronous views and routes by host, which take 24 us of a request."""

    def full_dispatch_request(self) -> Response:
        try:
            logs.begin_line()
            response: Any = self.dispatch_request()
        except Exception as error:  # noqa: BLE001 - error_response responds to each
            response = self.handle_user_exception(error)
        return logs.end_line(response, self.extensions["access_log"])

    def do_teardown_request(self, *_: Any) -> None:
        """Do nothing: no function is registered for it."""

    def ensure_sync(self, func: Callable[..., Any]) -> Callable[..., Any]:
        return func

    def create_url_adapter(self, request: Request | None) -> MapAdapter | None:
        if request is None:
            return None
        path, method = request.environ["PATH_INFO"], request.environ["REQUEST_METHOD"]
        # Werkzeug takes // at the beginning for /
        return self.url_map.bind("", path_info="" if path.startswith("//") else path, default_method=method)


def create_app() -> Flask:
    """Return the WSGI application, configured from the environment. Raises SystemExit if a setting is invalid."""
    settings = config.load_settings()
    logs.set_up(settings["LOG_LEVEL"])
    app = Service(__name__, static_folder=None)
    app.config.update(settings, PROVIDE_AUTOMATIC_OPTIONS=False)
    app.url_map.merge_slashes = False  # else // would be a redirect
    app.extensions["access_log"] = logs.LossyOutput(1)
    prepare = settings["PREPARED_STATEMENTS"] == "on"
    app.extensions["storage"] = storage.Storage(
        settings["DATABASE_URL"], settings["THREADS"], settings["IDEMPOTENCY_DAYS"], prepare=prepare
    )
    app.register_error_handler(Exception, error_response)
    app.register_blueprint(ingest)
    for path, view in {"/healthz": healthz, "/readyz": readyz, "/openapi.yaml": openapi}.items():
        app.add_url_rule(path, view_func=view)
    return app
