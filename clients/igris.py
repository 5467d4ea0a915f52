"""Send audit events to igris-ingest from any Python program, in the background. Copy this file; it needs nothing else.

    from igris import Igris

    igris = Igris("https://igris.example.com/api/v1/ingest/raw", "ig_...")
    igris.send("tool_call", "generate_report", action="allow", metadata={"rows": 3})

No event is lost while the process lives, and none is stored twice: a batch is sent again under the same Idempotency-Key
until there is a response. Each new error is printed once. An error that no retry can help, such as a certificate that
doesn't verify, goes to `on_rejected`. At the end of the process `close` sends what is left.
"""

import atexit
import http.client
import json
import queue
import re
import ssl
import sys
import threading
import time
import traceback
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

BATCH_EVENTS = 1000
BATCH_BYTES = 2**20
BATCH_SECONDS = 0.5
"""A batch is sent when it has so many events or bytes, or when its first event is so old."""

RESPONSE_TIMEOUT = 35
"""Seconds to wait for a response: longer than nginx waits for the service."""

LONGEST_PAUSE = 10
"""Seconds between two attempts at most."""

_END = None


def print_rejected(status: int, response: str, events: str) -> None:
    """Say on standard error what the service rejected, and why."""
    print(f"igris-ingest rejected events with {status}: {response.strip()}", file=sys.stderr)


class Igris:
    """Sends events. All methods may be called from any thread."""

    def __init__(
        self,
        url: str,
        key: str,
        *,
        max_waiting: int = 10_000,
        exit_timeout: float = 60,
        on_rejected: Callable[[int, str, str], None] = print_rejected,
    ) -> None:
        """Begin. `send` waits while `max_waiting` events wait to be sent.

        `on_rejected` is called with the status, the response and the batch, as JSON, when a retry would not help:
        the batch has invalid events, the quota is used up (429), or the key is revoked (401). It is called with 0 if
        the request can't be made, and for what was not sent `exit_timeout` seconds after the process was to end. Raises
        ValueError for a URL or a key that can't be one.
        """
        if not re.fullmatch(r"https?://[!-~]+", url):
            raise ValueError("the URL must begin with http:// or https://, and have no spaces")
        if not re.fullmatch(r"ig_[A-Za-z0-9]{40}", key := key.strip()):
            raise ValueError("the key must be ig_ and 40 letters and digits")
        self._url = url
        self._printed: set[str] = set()
        self._headers = {
            "Authorization": f"Bearer {key}",
            "Content-Type": "application/json",
            "Prefer": "handling=lenient",  # one invalid event does not keep the others out
        }
        self._exit_timeout = exit_timeout
        self._on_rejected = on_rejected
        self._room = threading.Semaphore(max_waiting)
        self._waiting: queue.Queue[str | None] = queue.Queue()
        self._sending: list[str] = []
        self._give_up = threading.Event()
        self._thread = threading.Thread(target=self._run, name="igris", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def send(
        self,
        type: str,  # noqa: A002
        tool_name: str,
        *,
        action: str = "log",
        timestamp: datetime | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Put an event in the queue. Its time is now, unless `timestamp` says another; that one needs a time zone.

        What JSON does not know, metadata holds as text. Raises ValueError for NaN and for a time without a zone, and
        RuntimeError after `close` and in a process that was forked: make an Igris in each.
        """
        if not self._thread.is_alive():
            raise RuntimeError("no thread sends the events of this Igris")
        instant = timestamp or datetime.now(UTC)
        if instant.tzinfo is None:
            raise ValueError("timestamp has no time zone")
        event = {
            "type": type,
            "toolName": tool_name[:255],
            "action": action,
            "timestamp": instant.isoformat(),
            "metadata": dict(metadata or {}),
        }
        text = json.dumps(event, allow_nan=False, default=str)
        self._room.acquire()
        self._waiting.put(text)

    def flush(self) -> None:
        """Wait until everything that was sent so far has a response."""
        self._waiting.join()

    def close(self) -> None:
        """Send what waits, and end. Events that can't be sent in time go to `on_rejected`."""
        atexit.unregister(self.close)
        if self._thread.is_alive():
            self._waiting.put(_END)
            self._thread.join(self._exit_timeout)
            self._give_up.set()
            self._thread.join(1)
        if self._thread.is_alive():  # it waits for a response
            unsent = [*self._sending, *(event for event in self._waiting.queue if event is not _END)]
            self._reject(0, "the process ended before there was a response", unsent)

    def _run(self) -> None:
        while True:
            batch, is_last = self._next_batch()
            if batch:
                self._sending = batch
                self._send_batch(batch)
                self._sending = []
                self._room.release(len(batch))
            for _ in range(len(batch) + is_last):
                self._waiting.task_done()
            if is_last:
                return

    def _next_batch(self) -> tuple[list[str], bool]:
        """Return the events of a batch, and whether no other follows."""
        batch: list[str] = []
        size = 0
        deadline = None
        while len(batch) < BATCH_EVENTS and size < BATCH_BYTES:
            try:
                event = self._waiting.get(timeout=None if deadline is None else max(0, deadline - time.monotonic()))
            except queue.Empty:
                break
            if event is _END:
                return batch, True
            batch.append(event)
            size += len(event)
            deadline = deadline or time.monotonic() + BATCH_SECONDS
        return batch, False

    def _send_batch(self, events: list[str]) -> None:
        headers = {**self._headers, "Idempotency-Key": str(uuid.uuid4())}
        request = urllib.request.Request(self._url, _array(events).encode(), headers)  # noqa: S310
        pause = 0.5
        while not self._give_up.is_set():
            try:
                with urllib.request.urlopen(request, timeout=RESPONSE_TIMEOUT) as response:  # noqa: S310
                    text = response.read().decode()
                content = json.loads(text)
                if not isinstance(content, dict):
                    raise ValueError("the response is not the service's")
                if content.get("details"):
                    self._reject(200, text, events)
                return
            except urllib.error.HTTPError as error:
                text = _text(error)
                if error.code == 413 and len(events) > 1:
                    half = len(events) // 2
                    self._send_batch(events[:half])
                    self._send_batch(events[half:])
                    return
                is_rate_limit = error.code == 429 and "Retry-After" in error.headers  # nginx's; the quota's has none
                if error.code not in (408, 500, 502, 503, 504) and not is_rate_limit:
                    self._reject(error.code, text, events)
                    return
            except (OSError, ValueError, http.client.HTTPException) as error:
                # there was no response, or a part of one: the batch may be stored or not
                cause = getattr(error, "reason", error)
                if isinstance(cause, ssl.SSLCertVerificationError | http.client.InvalidURL):
                    self._reject(0, str(cause), events)
                    return
                self._print_once(str(cause))
            self._give_up.wait(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        self._reject(0, "the process ended before there was a response", events)

    def _print_once(self, problem: str) -> None:
        if problem not in self._printed and len(self._printed) < 100:
            self._printed.add(problem)
            print(f"igris-ingest can't be reached, trying again: {problem}", file=sys.stderr)

    def _reject(self, status: int, response: str, events: list[str]) -> None:
        try:
            self._on_rejected(status, response, _array(events))
        except Exception:  # noqa: BLE001  else the thread would end, and with it the sending
            traceback.print_exc()


def _array(events: list[str]) -> str:
    return f"[{','.join(events)}]"


def _text(response: urllib.error.HTTPError) -> str:
    """Return what can be read of the body of a response, and close its connection."""
    try:
        with response:
            return response.read().decode(errors="replace")
    except (OSError, http.client.HTTPException):
        return ""
