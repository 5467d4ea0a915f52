"""Send the calls of the SDKs of OpenAI and Anthropic as events, by a hook of the HTTP client that both use.

client = OpenAI(http_client=openai.DefaultHttpxClient(event_hooks={"response": [IgrisHook(igris)]}))
client = Anthropic(http_client=anthropic.DefaultHttpxClient(event_hooks={"response": [IgrisHook(igris)]}))

For their asynchronous clients it is `DefaultAsyncHttpxClient` and `IgrisHook(igris).asynchronous`.
"""

import json
from typing import Any

from igris import Igris

TYPES = {"completions": "completion", "responses": "completion", "messages": "completion", "embeddings": "embedding"}
"""The type of an event by the end of the request's path. Other requests are left out."""


class IgrisHook:
    def __init__(self, igris: Igris) -> None:
        self._igris = igris

    def __call__(self, response: Any) -> None:
        """Send an event for an attempt at a call. Of a streamed response, only the model and the status are known."""
        if (call := _call(response)) is not None and not call.get("stream"):
            response.read()
        self._send(call, response)

    async def asynchronous(self, response: Any) -> None:
        if (call := _call(response)) is not None and not call.get("stream"):
            await response.aread()
        self._send(call, response)

    def _send(self, call: dict[str, Any] | None, response: Any) -> None:
        if call is None:
            return
        content = {} if call.get("stream") else _object(response.content)
        self._igris.send(
            TYPES[_end_of_path(response)],
            str(call.get("model") or "unknown model"),
            action="log" if response.status_code < 400 else "alert",
            metadata={
                "host": response.request.url.host,
                "status": response.status_code,
                "id": content.get("id"),
                "usage": content.get("usage"),
                "error": content.get("error"),
            },
        )


def _call(response: Any) -> dict[str, Any] | None:
    """Return the body of a request that calls a model; None for another request."""
    return _object(response.request.content) if _end_of_path(response) in TYPES else None


def _end_of_path(response: Any) -> str:
    return str(response.request.url.path.rpartition("/")[2])


def _object(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
