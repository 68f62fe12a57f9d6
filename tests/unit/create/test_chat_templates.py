from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from erniekit.data.chat.conversation import Conversation, VideoPart
from erniekit.data.chat.families import resolve_template
from erniekit.data.chat.template import MediaSpan
from erniekit.data.encode.encoder import Encoder, make_encoder
from tests.unit.data.helpers import openai
from tests.unit.data.tool_loops import LOOPS, MEDIA_LOOP, TOOLS

PLAIN: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": " Which\ndigit? "},
    {"role": "assistant", "content": "7\n"},
    {"role": "user", "content": [{"type": "text", "text": "And "}, {"type": "text", "text": "now?"}]},
]
BEGIN, END, NO_THOUGHT = "<|begin_of_sentence|>", "<|end_of_sentence|>", "<think>\n\n</think>\n\n"
IMAGE = "<|IMAGE_START|><|image@placeholder|><|IMAGE_END|>"
VIDEO = "<|VIDEO_START|><|video@placeholder|><|VIDEO_END|>"
Render = Callable[..., str]


def load_tokenizer(directory: Path) -> Any:
    """As transformers loads it. To find the class takes an import of torch, which other processes are spared."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(directory)


@pytest.fixture(params=["tiny-moe", "tiny-vl"])
def shape(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def renderer(directory: Path) -> Render:
    tokenizer = load_tokenizer(directory)

    def render(messages: list[dict[str, Any]], **options: Any) -> str:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, **options))

    return render


def test_text(tiny: Callable[[str], Path]) -> None:
    render = renderer(tiny("tiny-moe"))
    whole = f"{BEGIN}Be brief.\nUser:  Which\ndigit? \nAssistant: 7\n{END}User: And now?\n"
    assert render(PLAIN, add_generation_prompt=False) == whole
    assert render(PLAIN, add_generation_prompt=True) == whole + "Assistant: "


def test_vl_without_images(tiny: Callable[[str], Path]) -> None:
    render = renderer(tiny("tiny-vl"))
    whole = f"{BEGIN}Be brief.\nUser:  Which\ndigit? \nAssistant: 7\n{END}User: And now?"
    assert render(PLAIN, add_generation_prompt=False) == whole
    assert render(PLAIN, add_generation_prompt=True) == f"{whole}\nAssistant: {NO_THOUGHT}"
    assert render(PLAIN, add_generation_prompt=True, enable_thinking=True) == f"{whole}\nAssistant: "


def test_vl_counts_images_and_videos_over_the_whole_chat(tiny: Callable[[str], Path]) -> None:
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "A?"}, {"type": "video"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "B."}]},
        {
            "role": "user",
            "content": [{"type": "image_url"}, {"type": "image"}, {"type": "text", "text": "C?"}],
        },
    ]
    assert renderer(tiny("tiny-vl"))(messages, add_generation_prompt=False) == (
        f"{BEGIN}User: Picture 1:{IMAGE}A?Video 1:{VIDEO}\nAssistant: B.{END}"
        f"User: Picture 2:{IMAGE}Picture 3:{IMAGE}C?"
    )


def test_tools_by_hand(shape: str, tiny: Callable[[str], Path]) -> None:
    tools = [{"type": "function", "function": {"name": "f", "description": "数"}}]
    call = {"type": "function", "function": {"name": "f", "arguments": '{"a": "数"}'}}
    messages = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": None, "tool_calls": [call, call]},
        {"role": "tool", "content": "1"},
        {"role": "tool", "content": "2"},
    ]
    call_text = '<tool_call>\n{"name": "f", "arguments": {"a": "数"}}\n</tool_call>\n'
    results = "User: <tool_output>\n1\n</tool_output>\n<tool_output>\n2\n</tool_output>\n\nAssistant: "
    vision = shape == "tiny-vl"
    assert renderer(tiny(shape))(messages, tools=tools, add_generation_prompt=True) == (
        f"{BEGIN}\n<tool_list>\n"
        '[{"type": "function", "function": {"name": "f", "description": "数"}}]\n</tool_list>\n'
        f"User: q\nAssistant: {call_text}{call_text}{END}{results}{NO_THOUGHT if vision else ''}"
    )


def text_of(encoder: Encoder, conversation: Conversation) -> str:
    """The text for training, media as the engines' marks."""
    pieces = []
    for span in encoder.template.render(conversation):
        if isinstance(span, MediaSpan):
            pieces.append(VIDEO if isinstance(span.part, VideoPart) else IMAGE)
        else:
            pieces.append(span.text)
    return "".join(pieces)


def conversations(shape: str) -> list[Conversation]:
    return [*LOOPS, MEDIA_LOOP] if shape == "tiny-vl" else LOOPS


def test_the_text_of_a_chat_with_tools_is_that_of_training(shape: str, tiny: Callable[[str], Path]) -> None:
    encoder, render = make_encoder(tiny(shape)), renderer(tiny(shape))
    for conversation in conversations(shape):
        tools = list(conversation.tools) or None
        expected = render(openai(conversation), tools=tools, add_generation_prompt=False)
        found = text_of(encoder, conversation)
        if shape == "tiny-vl":
            # Before the last answer training has the empty block, which the prompt of that answer ends with.
            assert found.count(NO_THOUGHT) == 1
            found = found.replace(NO_THOUGHT, "")
        assert found == expected


def test_the_ids_of_prompts_with_tools_are_those_of_training(shape: str, tiny: Callable[[str], Path]) -> None:
    encoder, render = make_encoder(tiny(shape)), renderer(tiny(shape))
    tokenizer = load_tokenizer(tiny(shape))
    for conversation in conversations(shape):
        for end, message in enumerate(conversation.messages):
            if message.role != "assistant":
                continue
            question = Conversation(conversation.messages[:end], "f:1", conversation.tools)
            tools = list(question.tools) or None
            text = render(openai(question), tools=tools, add_generation_prompt=True)
            document = encoder.encode_prompt(question)
            for item in document.media:
                wide = "<|IMAGE_PLACEHOLDER|>" * item.tokens
                text = re.sub(r"<\|(image|video)@placeholder\|>", wide, text, count=1)
            assert document.input_ids.tolist() == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_arguments_may_be_an_object(shape: str, tiny: Callable[[str], Path]) -> None:
    render = renderer(tiny(shape))
    for conversation in conversations(shape):
        as_text = openai(conversation)
        as_object = json.loads(json.dumps(as_text))
        for message in as_object:
            for call in message.get("tool_calls", []):
                call["function"]["arguments"] = json.loads(call["function"]["arguments"])
        assert render(as_object, tools=TOOLS) == render(as_text, tools=TOOLS)


def test_calls_may_be_bare_functions(shape: str, tiny: Callable[[str], Path]) -> None:
    render = renderer(tiny(shape))
    function = {"name": "f", "arguments": "{}"}
    whole, bare = (
        render([{"role": "user", "content": "q"}, {"role": "assistant", "content": "", "tool_calls": [call]}])
        for call in ({"type": "function", "function": function}, function)
    )
    assert whole == bare
    assert '{"name": "f", "arguments": {}}' in whole


def test_unknown_roles_are_refused(shape: str, tiny: Callable[[str], Path]) -> None:
    with pytest.raises(Exception, match="system, user, assistant and tool, not critic"):
        renderer(tiny(shape))([{"role": "critic", "content": "x"}])


def test_training_finds_its_template_by_them(shape: str, tiny: Callable[[str], Path]) -> None:
    tokenizer = load_tokenizer(tiny(shape))
    vision = shape == "tiny-vl"
    template = resolve_template("auto", tokenizer, is_vl=vision)
    assert (template.name, template.default_system) == ("ernie_vl" if vision else "ernie", "")


def test_engines_see_that_the_vl_template_takes_parts(tiny: Callable[[str], Path]) -> None:
    # vLLM and SGLang look for a loop over message['content'] in the body; without it they flatten the parts.
    source = (tiny("tiny-vl") / "chat_template.jinja").read_text(encoding="utf-8")
    assert "{%- for part in message['content'] -%}" in source
