"""What the service is measured against: the framework's floor, and what one writes first.

Both run under the same gunicorn settings as the service.
"""

import os
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

from flask import Flask, request
from marshmallow import EXCLUDE, Schema, ValidationError, fields, validate
from psycopg.types.json import Jsonb
from psycopg_pool import ConnectionPool

from dev.service import PATH
from storage import AUTHENTICATE


def floor() -> Flask:
    """A Flask that parses the body and responds: no key, no rules, no database."""
    app = Flask(__name__)

    @app.get("/healthz")
    def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.post(PATH)
    def post() -> dict[str, Any]:
        body = request.get_json()
        size = len(body) if isinstance(body, list) else 1
        return {"data": {"ingested": size, "rejected": 0}, "meta": {"remainingQuota": None}}

    return app


class Event(Schema):
    class Meta:
        unknown = EXCLUDE

    type = fields.String(required=True, validate=validate.OneOf(["tool_call", "completion", "embedding", "custom"]))
    toolName = fields.String(required=True, validate=validate.Length(1, 255))
    action = fields.String(load_default="log", validate=validate.OneOf(["allow", "deny", "alert", "log"]))
    timestamp = fields.AwareDateTime(load_default=lambda: datetime.now(UTC))
    metadata = fields.Dict(load_default=dict)


def idiomatic() -> Flask:
    """The documented way of each library: a schema that loads, a transaction, a statement a step, executemany."""
    app = floor()
    pool = ConnectionPool(os.environ["DATABASE_URL"], min_size=4, max_size=4, open=False)
    schema = Event(many=True)

    def post() -> Any:
        pool.open()
        key = request.headers.get("Authorization", "").removeprefix("Bearer ")
        body = request.get_json()
        try:
            events = schema.load(body if isinstance(body, list) else [body])
        except ValidationError as error:
            return {"error": "Validation failed", "details": error.messages_dict}, 400
        with pool.connection() as connection, connection.transaction():
            row = connection.execute(AUTHENTICATE, {"key_hash": sha256(key.encode()).digest()}).fetchone()
            if row is None:
                return {"error": "Unauthorized"}, 401
            key_id, org_id = row
            used = connection.execute(
                """
                INSERT INTO monthly_usage AS u (org_id, month, slot, used)
                VALUES (%s, date_trunc('month', now() AT TIME ZONE 'UTC')::date, 0, %s)
                ON CONFLICT (org_id, month, slot) DO UPDATE SET used = u.used + excluded.used
                WHERE u.used + excluded.used <= 1000000000000
                RETURNING used
                """,
                [org_id, len(events)],
            ).fetchone()
            if used is None:
                return {"error": "Quota exceeded"}, 429
            connection.cursor().executemany(
                """
                INSERT INTO audit_events
                    (org_id, api_key_id, type, tool_name, action, "timestamp", metadata, received_at)
                VALUES (%s, %s, %s, %s, %s, %s, %s, now())
                """,
                [
                    (
                        org_id,
                        key_id,
                        event["type"],
                        event["toolName"],
                        event["action"],
                        event["timestamp"],
                        Jsonb(event["metadata"]),
                    )
                    for event in events
                ],
            )
        return {"data": {"ingested": len(events), "rejected": 0}, "meta": {"remainingQuota": 10**12 - used[0]}}

    app.view_functions["post"] = post
    return app
