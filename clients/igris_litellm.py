"""Send the calls of LiteLLM, of the SDK or the proxy, as events: `litellm.callbacks = [IgrisLogger(igris)]`."""

from datetime import UTC, datetime
from typing import Any

from igris import Igris
from litellm.integrations.custom_logger import CustomLogger

KEPT = ("id", "call_type", "status", "error_str", "prompt_tokens", "completion_tokens", "response_cost", "end_user")
"""What of LiteLLM's record becomes metadata: no prompts and no responses."""


class IgrisLogger(CustomLogger):
    def __init__(self, igris: Igris) -> None:
        super().__init__()
        self._igris = igris

    def log_success_event(self, kwargs: dict[str, Any], response_obj: Any, start_time: Any, end_time: Any) -> None:
        call = kwargs["standard_logging_object"]
        self._igris.send(
            "embedding" if "embedding" in call["call_type"] else "completion",
            call["model"] or "unknown model",
            action="log" if call["status"] == "success" else "alert",
            timestamp=datetime.fromtimestamp(call["startTime"], UTC),
            metadata={name: call.get(name) for name in KEPT},
        )

    log_failure_event = log_success_event

    async def async_log_success_event(
        self, kwargs: dict[str, Any], response_obj: Any, start_time: Any, end_time: Any
    ) -> None:
        self.log_success_event(kwargs, response_obj, start_time, end_time)

    async_log_failure_event = async_log_success_event
