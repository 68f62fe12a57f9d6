from __future__ import annotations

import json
from typing import Any

import pytest

from erniekit.data.chat.families import TEMPLATES
from erniekit.generation.answer import AnswerParser, Delta
from erniekit.serving.request import RequestError
from erniekit.serving.response import Completion, Finished, error_body, event, to_json

CALL = '<tool_call>\n{"name": "time", "arguments": {"zone": "Ö"}}\n</tool_call>\n'
BROKEN = '<tool_call>\n{"name": "time", "arguments": }\n</tool_call>\n'


def _deltas(text: str, template: str = "ernie_vl") -> list[Delta]:
    stream = AnswerParser(TEMPLATES[template])
    found = [delta for character in text for delta in stream.feed(character)]
    return [*found, *stream.finish()]


def _choice(
    text: str, finish: Any = "stop", template: str = "ernie_vl", *, may_call: bool = True
) -> dict[str, Any]:
    completion = Completion("m", TEMPLATES[template], may_call)
    whole = completion.whole(_deltas(text, template), Finished(finish, 7, 3))
    assert (whole["object"], whole["model"]) == ("chat.completion", "m")
    assert whole["usage"] == {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    (choice,) = whole["choices"]
    return dict(choice)


def test_text_and_reasoning() -> None:
    choice = _choice("seven")
    assert choice["message"] == {"role": "assistant", "content": "seven"}
    assert (choice["index"], choice["finish_reason"], choice["logprobs"]) == (0, "stop", None)
    assert _choice("", "length")["message"]["content"] == ""
    message = _choice("So it is.\n</think>\n\nseven", template="ernie_vl_thinking")["message"]
    assert message == {"role": "assistant", "content": "seven", "reasoning_content": "So it is."}


def test_calls_are_in_openais_form() -> None:
    choice = _choice(CALL + CALL)
    assert (choice["finish_reason"], choice["message"]["content"]) == ("tool_calls", None)
    first, second = choice["message"]["tool_calls"]
    assert first.keys() == {"id", "type", "function"} and first["id"] != second["id"]
    assert first["type"] == "function"
    assert first["function"] == {"name": "time", "arguments": '{"zone": "Ö"}'}
    choice = _choice("Look: " + CALL)
    assert choice["message"]["content"] == "Look: "
    # An answer that was cut off after a call is not whole.
    assert _choice(CALL + "and", "length")["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("text", "may_call"), [(CALL, False), (BROKEN, True), (CALL[:-14], True)], ids=["none", "broken", "cut"]
)
def test_what_is_no_call_for_the_client_is_text_as_written(text: str, may_call: bool) -> None:
    choice = _choice(text, may_call=may_call)
    assert choice["message"] == {"role": "assistant", "content": text}
    assert choice["finish_reason"] == "stop"


def test_a_stream_has_the_same_parts() -> None:
    completion = Completion("m", TEMPLATES["ernie_vl_thinking"], may_call=True)
    pieces = completion.pieces(_deltas(f"Hm</think>Look:{CALL}{CALL}", "ernie_vl_thinking"))
    assert "".join(piece.get("reasoning_content", "") for piece in pieces) == "Hm"
    assert "".join(piece.get("content", "") for piece in pieces) == "Look:"
    calls = [call for piece in pieces for call in piece.get("tool_calls", ())]
    assert [call["index"] for call in calls] == [0, 1]
    chunk = completion.chunk(pieces[0])
    assert (chunk["object"], chunk["choices"][0]["finish_reason"]) == ("chat.completion.chunk", None)
    last = completion.chunk({}, Finished("stop", 7, 3))
    assert last["choices"][0]["finish_reason"] == "tool_calls" and last["id"] == chunk["id"]
    usage = completion.usage_chunk(Finished("stop", 7, 3))
    assert (usage["choices"], usage["usage"]["total_tokens"]) == ([], 10)


def test_errors_and_events() -> None:
    error = error_body(RequestError("No.", status=404, param="model", code="model_not_found"))
    assert error["error"] == {
        "message": "No.",
        "type": "invalid_request_error",
        "param": "model",
        "code": "model_not_found",
    }
    assert error_body(RequestError("No.", status=500))["error"]["type"] == "server_error"
    assert event({"a": "Ö\n"}) == 'data: {"a": "Ö\\n"}\n\n'.encode()
    assert json.loads(to_json({"a": "\ud800Ö"})) == {"a": "\ud800Ö"}
