"""Send the calls of the OpenAI Agents SDK as events: `agents.add_trace_processor(IgrisProcessor(igris))`."""

from datetime import datetime
from typing import Any

from agents.tracing import Span, Trace, TracingProcessor
from igris import Igris


class IgrisProcessor(TracingProcessor):
    def __init__(self, igris: Igris) -> None:
        self._igris = igris

    def on_span_end(self, span: Span[Any]) -> None:
        data = span.span_data
        match data.type:
            case "function":
                event_type, name = "tool_call", data.name
            case "generation":
                event_type, name = "completion", data.model
            case "response":
                event_type, name = "completion", data.response and data.response.model
            case _:
                return
        self._igris.send(
            event_type,
            name or "unknown model",
            action="alert" if span.error else "log",
            timestamp=datetime.fromisoformat(span.started_at) if span.started_at else None,
            metadata={
                "traceId": span.trace_id,
                "spanId": span.span_id,
                "parentId": span.parent_id,
                "usage": getattr(data, "usage", None),
                "error": span.error,
            },
        )

    def on_span_start(self, span: Span[Any]) -> None:
        """Do nothing: what is of interest is known at the end."""

    def on_trace_start(self, trace: Trace) -> None:
        """Do nothing."""

    def on_trace_end(self, trace: Trace) -> None:
        """Do nothing."""

    def force_flush(self) -> None:
        self._igris.flush()

    def shutdown(self) -> None:
        self._igris.close()
