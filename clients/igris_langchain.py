"""Send the model and tool calls of LangChain as events: `chain.invoke(..., {"callbacks": [IgrisCallbacks(igris)]})`."""

from typing import Any
from uuid import UUID

from igris import Igris
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.outputs import ChatGeneration, LLMResult


class IgrisCallbacks(BaseCallbackHandler):
    def __init__(self, igris: Igris) -> None:
        self._igris = igris
        self._tools: dict[UUID, str] = {}

    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **kwargs: Any) -> None:
        model, usage = None, None
        for generation in response.generations[0] if response.generations else []:
            if isinstance(generation, ChatGeneration):
                model = generation.message.response_metadata.get("model_name")
                usage = getattr(generation.message, "usage_metadata", None)
        model = model or (response.llm_output or {}).get("model_name") or "unknown model"
        self._igris.send("completion", model, metadata={"runId": str(run_id), "usage": usage})

    def on_llm_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        metadata = {"runId": str(run_id), "error": repr(error)}
        self._igris.send("completion", "unknown model", action="alert", metadata=metadata)

    def on_tool_start(self, serialized: dict[str, Any] | None, input_str: str, *, run_id: UUID, **kwargs: Any) -> None:
        self._tools[run_id] = (serialized or {}).get("name") or kwargs.get("name") or "unknown tool"

    def on_tool_end(self, output: Any, *, run_id: UUID, **kwargs: Any) -> None:
        tool = self._tools.pop(run_id, "unknown tool")
        self._igris.send("tool_call", tool, metadata={"runId": str(run_id)})

    def on_tool_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        tool = self._tools.pop(run_id, "unknown tool")
        metadata = {"runId": str(run_id), "error": repr(error)}
        self._igris.send("tool_call", tool, action="alert", metadata=metadata)
