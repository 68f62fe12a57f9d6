"""Responses in OpenAI's form: completions, chunks of a stream, models and errors."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from erniekit.data.chat.template import Template
from erniekit.generation.answer import CUT_OFF, Delta, ToolCall
from erniekit.serving.fields import RequestError

STREAM_END = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of an answer. tokens: the number of generated tokens, with the end token."""

    finish: Literal["stop", "length"]
    prompt_tokens: int
    tokens: int


@dataclass
class Completion:
    """Formats one answer for a client. may_call: whether tool calls are sent as such.

    Otherwise, or if a call cannot be parsed, it is sent as text, as the model wrote it.
    """

    model: str
    template: Template
    may_call: bool
    completion_id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))
    calls: int = 0

    def pieces(self, deltas: Sequence[Delta]) -> list[dict[str, Any]]:
        """The `delta` objects of a stream's chunks."""
        return [self._piece(delta) for delta in deltas]

    def chunk(self, piece: dict[str, Any], finished: Finished | None = None) -> dict[str, Any]:
        """One chunk of a stream; finished: for the last one of the answer."""
        reason = None if finished is None else self._reason(finished)
        choice = {"index": 0, "delta": piece, "logprobs": None, "finish_reason": reason}
        return {**self._head("chat.completion.chunk"), "choices": [choice]}

    def usage_chunk(self, finished: Finished) -> dict[str, Any]:
        """The chunk with the token counts, after the last one of the answer."""
        return {**self._head("chat.completion.chunk"), "choices": [], "usage": usage(finished)}

    def whole(self, deltas: Sequence[Delta], finished: Finished) -> dict[str, Any]:
        """The complete answer. `content` is null if there are tool calls and no text."""
        pieces = self.pieces(deltas)
        message: dict[str, Any] = {"role": "assistant", "content": _joined(pieces, "content")}
        calls = [call for piece in pieces for call in piece.get("tool_calls", ())]
        if calls:
            message["content"] = message["content"] or None
            message["tool_calls"] = [
                {key: value for key, value in call.items() if key != "index"} for call in calls
            ]
        reasoning = _joined(pieces, "reasoning_content")
        if reasoning:
            message["reasoning_content"] = reasoning
        choice = {
            "index": 0,
            "message": message,
            "logprobs": None,
            "finish_reason": self._reason(finished),
        }
        return {**self._head("chat.completion"), "choices": [choice], "usage": usage(finished)}

    def _head(self, object_type: str) -> dict[str, Any]:
        return {"id": self.completion_id, "object": object_type, "created": self.created, "model": self.model}

    def _reason(self, finished: Finished) -> str:
        return "tool_calls" if self.calls and finished.finish == "stop" else finished.finish

    def _piece(self, delta: Delta) -> dict[str, Any]:
        if delta.call is None:
            return {"reasoning_content" if delta.kind == "reasoning" else "content": delta.text}
        if delta.call.arguments is None or not self.may_call:
            return {"content": self._as_written(delta.call)}
        arguments = json.dumps(delta.call.arguments, ensure_ascii=False)
        call = {
            "index": self.calls,
            "id": f"call_{secrets.token_hex(12)}",
            "type": "function",
            "function": {"name": delta.call.name, "arguments": arguments},
        }
        self.calls += 1
        return {"tool_calls": [call]}

    def _as_written(self, call: ToolCall) -> str:
        before, after = self.template.tool_call
        return before + call.raw + ("" if call.error == CUT_OFF else after)


def usage(finished: Finished) -> dict[str, int]:
    """The token counts; tokens of images and videos count as prompt."""
    return {
        "prompt_tokens": finished.prompt_tokens,
        "completion_tokens": finished.tokens,
        "total_tokens": finished.prompt_tokens + finished.tokens,
    }


def model_card(name: str, created: int) -> dict[str, Any]:
    """The model as GET /v1/models lists it."""
    return {"id": name, "object": "model", "created": created, "owned_by": "erniekit"}


def error_body(error: RequestError) -> dict[str, Any]:
    """An error in OpenAI's form."""
    error_type = "server_error" if error.status >= 500 else "invalid_request_error"
    return {"error": {"message": str(error), "type": error_type, "param": error.param, "code": error.code}}


def event(content: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + to_json(content) + b"\n\n"


def to_json(content: dict[str, Any]) -> bytes:
    """JSON in UTF-8. Unpaired surrogates, which an error may quote from a request, remain escaped."""
    return json.dumps(content, ensure_ascii=False).encode(errors="backslashreplace")


def _joined(pieces: Sequence[dict[str, Any]], key: str) -> str:
    return "".join(piece.get(key, "") for piece in pieces)
