"""Send OpenTelemetry's spans of generative AI (semantic conventions, `gen_ai.*`) as events; other spans are left out.

provider.add_span_processor(BatchSpanProcessor(IgrisExporter(igris)))
"""

from collections.abc import Sequence
from datetime import UTC, datetime

from igris import Igris
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import StatusCode

TYPES = {
    "execute_tool": "tool_call",
    "embeddings": "embedding",
    "chat": "completion",
    "generate_content": "completion",
    "text_completion": "completion",
}
"""The type of an event by `gen_ai.operation.name`."""


class IgrisExporter(SpanExporter):
    def __init__(self, igris: Igris) -> None:
        self._igris = igris

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send the spans of AI operations: the tool or the model is the tool name, an error the action `alert`."""
        for span in spans:
            attributes = dict(span.attributes or {})
            event_type = TYPES.get(str(attributes.get("gen_ai.operation.name")))
            if event_type is None or span.start_time is None or span.context is None:
                continue
            name = attributes.get("gen_ai.tool.name" if event_type == "tool_call" else "gen_ai.request.model")
            self._igris.send(
                event_type,
                str(name or span.name),
                action="alert" if span.status.status_code is StatusCode.ERROR else "log",
                timestamp=datetime.fromtimestamp(span.start_time / 1e9, UTC),
                metadata={
                    **attributes,
                    "traceId": f"{span.context.trace_id:032x}",
                    "spanId": f"{span.context.span_id:016x}",
                    "latencyMs": ((span.end_time or span.start_time) - span.start_time) / 1e6,
                },
            )
        return SpanExportResult.SUCCESS
