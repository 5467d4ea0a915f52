"""The service in this process, over a real PostgreSQL: a request is a call, and a failure shows the line."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from app import create_app
from dev.service import PATH, set_up


@pytest.fixture(scope="session")
def client(database_url: str) -> Iterator[FlaskClient]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("DATABASE_URL", database_url)
        for name, value in {"MAX_BODY_BYTES": "10000", "MAX_BATCH_EVENTS": "20", "MAX_BODY_VALUES": "1000"}.items():
            monkeypatch.setenv(name, value)
        app = create_app()
    yield app.test_client()
    app.extensions["storage"].database.close()


@pytest.fixture(scope="session")
def key(database_url: str) -> str:
    return set_up(database_url, "fast", None)


@pytest.fixture
def post(client: FlaskClient, key: str) -> Callable[..., TestResponse]:
    """Posts JSON, or bytes as they are."""

    def post(body: Any, **headers: str) -> TestResponse:
        how = {"data": body} if isinstance(body, bytes) else {"json": body}
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        given = {"Authorization": f"Bearer {key}", "Content-Type": "application/json", **names}
        return client.post(PATH, headers=given, **how)

    return post
