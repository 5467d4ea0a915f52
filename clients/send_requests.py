"""Send a batch with requests. All attempts have one Idempotency-Key, so the batch is stored once."""

import uuid
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

_ATTEMPTS = Retry(
    total=8,
    backoff_factor=0.5,
    backoff_max=10,
    status_forcelist=(408, 500, 502, 503, 504),  # and a 429 with Retry-After, nginx's; the quota's has none
    allowed_methods=None,  # POST, too
)


def send(url: str, key: str, events: list[dict[str, Any]]) -> int:
    """Store events; return how many. Raises requests.RequestException if they are rejected or no response comes."""
    with requests.Session() as session:
        session.mount(url, HTTPAdapter(max_retries=_ATTEMPTS))
        headers = {"Authorization": f"Bearer {key}", "Idempotency-Key": str(uuid.uuid4())}
        response = session.post(url, json=events, headers=headers, timeout=35)
    if not response.ok:
        raise requests.HTTPError(f"{response.status_code}: {response.text}", response=response)
    return int(response.json()["data"]["ingested"])
