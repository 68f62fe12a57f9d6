"""The Jinja form of every template, beside what the template itself writes."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from typing import Any

import pytest

from erniekit.data.chat.conversation import Conversation, ReasoningPart, VideoPart
from erniekit.data.chat.families import TEMPLATES, resolve_template
from erniekit.data.chat.jinja import chat_template
from erniekit.data.chat.template import MediaSpan, Span, Template
from tests.unit.data.helpers import chat, make_tokenizer, openai
from tests.unit.data.tool_loops import CALL, LOOPS, MEDIA_LOOP, OTHER_CALL, TOOLS

IMAGE = "<|IMAGE_START|><|image@placeholder|><|IMAGE_END|>"
VIDEO = "<|VIDEO_START|><|video@placeholder|><|VIDEO_END|>"
PLAIN = [
    chat(("user", "q"), ("assistant", "a")),
    chat(
        ("system", 'Be "brief".\n'),
        ("user", ["one ", "two"]),
        ("assistant", "a\n"),
        ("user", ""),
        ("assistant", " b"),
    ),
]
REASONED = [
    chat(("user", "q"), ("assistant", [ReasoningPart("\nfirst\n\nthen \n"), "a"])),
    chat(
        ("user", "q"),
        ("assistant", [ReasoningPart("of history"), "a"]),
        ("user", "and?"),
        ("assistant", [ReasoningPart("call it"), CALL]),
        ("tool", "1"),
        ("tool", "2"),
        ("assistant", [ReasoningPart(" \n"), OTHER_CALL, CALL]),
        ("tool", "3"),
        ("assistant", [ReasoningPart("done"), "b"]),
        tools=TOOLS,
    ),
]
# What checkpoints may have of their own, which "auto" takes over.
VARIANTS = [
    *TEMPLATES.values(),
    dataclasses.replace(TEMPLATES["ernie_vl_thinking"], default_system='You are "ERNIE" \\ 文心.\n'),
    dataclasses.replace(
        TEMPLATES["ernie_thinking"],
        settings="<global_setting>\nthink_mode=True\nlevel={{ 3 }}\n</global_setting>",
        before_generation="\n\n",
    ),
]


@pytest.fixture(params=VARIANTS, ids=lambda template: template.name)
def template(request: pytest.FixtureRequest) -> Template:
    return request.param  # type: ignore[no-any-return]


def conversations(template: Template) -> list[Conversation]:
    found = PLAIN + LOOPS
    found = found + REASONED if template.thinking == "on" else found
    return [*found, MEDIA_LOOP] if template.takes_media else found


def written(spans: list[Span]) -> str:
    pieces = []
    for span in spans:
        if isinstance(span, MediaSpan):
            pieces.append(VIDEO if isinstance(span.part, VideoPart) else IMAGE)
        else:
            pieces.append(span.text)
    return "".join(pieces)


def rendered(template: Template, conversation: Conversation, **options: Any) -> str:
    tokenizer = make_tokenizer(chat_template(template, media=template.takes_media))
    tools = list(conversation.tools) or None
    return str(tokenizer.apply_chat_template(openai(conversation), tools=tools, tokenize=False, **options))


def test_whole_chats_are_as_in_training(template: Template) -> None:
    for conversation in conversations(template):
        trained = written(template.render(conversation))
        if template.thinking == "off":
            # Before the last answer training has the empty block, which the prompt of that answer ends with.
            head, block, tail = trained.rpartition(template.generation_start)
            assert block
            trained = head + tail
        assert rendered(template, conversation, add_generation_prompt=False) == trained


def test_prompts_are_as_in_training(template: Template) -> None:
    for conversation in conversations(template):
        for end, message in enumerate(conversation.messages):
            if message.role == "assistant":
                question = Conversation(conversation.messages[:end], "f:1", conversation.tools)
                expected = written(template.render_prompt(question))
                assert rendered(template, question, add_generation_prompt=True) == expected


@pytest.mark.parametrize("arguments", [{}, {"arguments": ""}, {"arguments": None}, {"arguments": {}}])
def test_a_call_without_arguments_is_as_in_training(template: Template, arguments: dict[str, Any]) -> None:
    calls = [{"type": "function", "function": {"name": "f", **arguments}}]
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": None, "tool_calls": calls}]
    tokenizer = make_tokenizer(chat_template(template, media=template.takes_media))
    found = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=False))
    assert '{"name": "f", "arguments": {}}' in found


def test_training_finds_the_template_by_it(template: Template) -> None:
    tokenizer = make_tokenizer(chat_template(template, media=True))
    assert resolve_template("auto", tokenizer, is_vl=True) == template


def test_text_models_have_no_marks_of_images(template: Template) -> None:
    for name in ("image", "IMAGE", "VIDEO", "seen"):
        assert name not in chat_template(template, media=False)
    question = PLAIN[1].messages[:2]
    found = make_tokenizer(chat_template(template, media=False)).apply_chat_template(
        openai(Conversation(question, "f:1", ())), tokenize=False, add_generation_prompt=True
    )
    assert found == written(template.render_prompt(Conversation(question, "f:1", ())))


def test_nothing_empty_is_left_in_it(template: Template) -> None:
    lines = chat_template(template, media=template.takes_media).splitlines()
    assert all(line.strip() != '{{- "" -}}' and '"" +' not in line and '+ ""' not in line for line in lines)
    for line, following in pairwise(lines):
        assert not ("{%- else" in line and "{%- endif" in following)
        assert not ("{%- if" in line and "{%- endif" in following)


def test_later_system_messages_and_unknown_roles_are_refused(template: Template) -> None:
    tokenizer = make_tokenizer(chat_template(template, media=False))
    question = {"role": "user", "content": "q"}
    with pytest.raises(Exception, match="a system message as the first one only"):
        tokenizer.apply_chat_template([question, {"role": "system", "content": "s"}], tokenize=False)
    with pytest.raises(Exception, match="system, user, assistant and tool, not critic"):
        tokenizer.apply_chat_template([{"role": "critic", "content": "x"}], tokenize=False)
