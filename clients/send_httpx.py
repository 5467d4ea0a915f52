"""Send a batch with httpx and stamina. One Idempotency-Key for all attempts: the batch is stored once."""

import uuid
from typing import Any

import httpx
import stamina

_WORTH_ANOTHER_ATTEMPT = (408, 500, 502, 503, 504)


def send(url: str, key: str, events: list[dict[str, Any]]) -> int:
    """Store events; return how many. Raises httpx.HTTPError if they are rejected or there is no response."""
    headers = {"Authorization": f"Bearer {key.strip()}", "Idempotency-Key": str(uuid.uuid4())}
    for attempt in stamina.retry_context(on=_may_help, attempts=10, timeout=None, wait_initial=0.25, wait_max=10):
        with attempt:
            response = httpx.post(url, json=events, headers=headers, timeout=35)
            if response.is_error:
                message = f"{response.status_code}: {response.text}"
                raise httpx.HTTPStatusError(message, request=response.request, response=response)
    return int(response.json()["data"]["ingested"])


def _may_help(error: Exception) -> bool:
    if isinstance(error, httpx.HTTPStatusError):
        response = error.response
        # nginx's limit of requests has it, the quota's error has none
        is_rate_limit = response.status_code == 429 and "Retry-After" in response.headers
        return response.status_code in _WORTH_ANOTHER_ATTEMPT or is_rate_limit
    if isinstance(error, httpx.UnsupportedProtocol | httpx.LocalProtocolError) or "CERTIFICATE" in str(error):
        return False  # the URL, a header or the certificate is wrong
    return isinstance(error, httpx.TransportError)
