from pathlib import Path
from typing import Any

import pytest

from erniekit.data.conversation import Conversation, ReasoningPart, SampleError
from erniekit.data.template import TEMPLATES, MediaSpan, Template, TextSpan, resolve_template
from erniekit.errors import DataError
from tests.unit.data.helpers import TEXT_TEMPLATE, THINKING_TEMPLATE, VL_TEMPLATE, chat, make_tokenizer

BOS, END = "<|begin_of_sentence|>", "<|end_of_sentence|>"
PNG = b"picture"


def shown(template: Template | str, conversation: Conversation, prompt: bool = False) -> str:
    """Spans as text: [trained], (picture)."""
    template = TEMPLATES[template] if isinstance(template, str) else template
    spans = template.render_prompt(conversation) if prompt else template.render(conversation)
    out = []
    for span in spans:
        if isinstance(span, MediaSpan):
            assert span.source == PNG
            out.append("(picture)")
        else:
            assert isinstance(span, TextSpan)
            out.append(f"[{span.text}]" if span.trained else span.text)
    return "".join(out)


TWO_TURNS = chat(
    ("system", "be brief"),
    ("user", [PNG, "q"]),
    ("assistant", "a"),
    ("user", ["r", PNG, PNG]),
    ("assistant", "b"),
)


def test_ernie_text() -> None:
    found = shown(
        "ernie", chat(("system", "s"), ("user", "q"), ("assistant", "a"), ("user", "r"), ("assistant", "b"))
    )
    assert found == f"{BOS}s\nUser: q\nAssistant: [a{END}]User: r\nAssistant: [b{END}]"


def test_ernie_vl_counts_pictures_and_marks_the_last_answer_as_not_thinking() -> None:
    assert shown("ernie_vl", TWO_TURNS) == (
        f"{BOS}be brief\nUser: Picture 1:(picture)q\nAssistant: [a{END}]"
        f"User: rPicture 2:(picture)Picture 3:(picture)\nAssistant: <think>\n\n</think>\n\n[b{END}]"
    )


def test_ernie_vl_thinking_trains_reasoning_and_closes_an_empty_block_untrained() -> None:
    with_reasoning = chat(("user", "q"), ("assistant", [ReasoningPart("\nhm\n"), "a"]))
    assert shown("ernie_vl_thinking", with_reasoning) == (
        f"{BOS}User: q\nAssistant: \n<think>\n[hm\n</think>\n\na{END}]"
    )
    assert shown("ernie_vl_thinking", chat(("user", "q"), ("assistant", "a"))) == (
        f"{BOS}User: q\nAssistant: \n<think>\n\n</think>\n\n[a{END}]"
    )


@pytest.mark.parametrize(
    "answer", ["<think>hm</think>a", "<think>\nhm\n</think>\n\na", "\n<think>\nhm\n</think>\na"]
)
def test_a_think_block_in_the_answer_is_reasoning(answer: str) -> None:
    assert shown("ernie_vl_thinking", chat(("user", "q"), ("assistant", answer))) == (
        f"{BOS}User: q\nAssistant: \n<think>\n[hm\n</think>\n\na{END}]"
    )


def test_history_keeps_no_reasoning() -> None:
    turns = [
        ("user", "q"),
        ("assistant", [ReasoningPart("hm"), "a"]),
        ("user", "r"),
        ("assistant", "<think>x</think>b"),
    ]
    assert shown("ernie_vl_thinking", chat(*turns)) == (
        f"{BOS}User: q\nAssistant: [a{END}]User: r\nAssistant: \n<think>\n[x\n</think>\n\nb{END}]"
    )


def test_an_empty_block_in_the_answer_is_not_doubled() -> None:
    assert shown("ernie_vl", chat(("user", "q"), ("assistant", "<think>\n\n</think>\n\na"))) == (
        f"{BOS}User: q\nAssistant: <think>\n\n</think>\n\n[a{END}]"
    )


def test_text_is_neither_stripped_nor_rewritten() -> None:
    text = "  <think>| a | b |\n|---|---|\n \t"
    for name in ("ernie", "ernie_vl", "ernie_vl_thinking"):
        found = shown(name, chat(("user", text), ("assistant", text)))
        assert f"User: {text}" in found
        assert f"[{text}{END}]" in found


def test_messages_switched_off_are_context() -> None:
    turns = chat(("user", "q"), ("assistant", "a", False), ("user", "r"), ("assistant", "b"))
    assert shown("ernie", turns) == f"{BOS}User: q\nAssistant: a{END}User: r\nAssistant: [b{END}]"


def test_prompts_end_where_the_answer_begins() -> None:
    turns = chat(("user", "q"), ("assistant", "a"), ("user", ["r", PNG]))
    history = f"{BOS}User: q\nAssistant: a{END}User: rPicture 1:(picture)"
    assert (
        shown("ernie", turns, prompt=True)
        == f"{BOS}User: q\nAssistant: a{END}User: rPicture 1:(picture)\nAssistant: "
    )
    assert shown("ernie_vl", turns, prompt=True) == f"{history}\nAssistant: <think>\n\n</think>\n\n"
    assert shown("ernie_vl_thinking", turns, prompt=True) == f"{history}\nAssistant: \n<think>\n"


@pytest.mark.parametrize(
    ("name", "turns", "message"),
    [
        ("ernie", [("user", "q")], "the last must be the assistant's answer"),
        ("ernie_vl", [("assistant", "a"), ("user", "q")], "the chat ends with a user message"),
        ("ernie", [("user", "q"), ("assistant", [ReasoningPart("hm"), "a"])], "template ernie has no place"),
        ("ernie_vl", [("user", "q"), ("assistant", "<think>hm</think>a")], "template ernie_vl has no place"),
        ("ernie_vl", [("user", "q"), ("assistant", "<think>hm")], "has no </think>"),
        (
            "ernie_vl_thinking",
            [("user", "q"), ("assistant", [ReasoningPart("x"), "<think>hm</think>a"])],
            "has reasoning twice",
        ),
    ],
)
def test_what_a_template_cannot_write(name: str, turns: Any, message: str) -> None:
    with pytest.raises(SampleError, match=f"^f:1: .*{message}"):
        shown(name, chat(*turns))


def test_a_prompt_ends_with_a_question() -> None:
    with pytest.raises(SampleError, match="must not end with an assistant message"):
        shown("ernie", chat(("user", "q"), ("assistant", "a")), prompt=True)


@pytest.mark.parametrize(
    ("chat_template", "is_vl", "name"),
    [
        (TEXT_TEMPLATE, False, "ernie"),
        (VL_TEMPLATE, True, "ernie_vl"),
        (THINKING_TEMPLATE, True, "ernie_vl_thinking"),
        (None, False, "ernie"),
        (None, True, "ernie_vl"),
    ],
)
def test_auto_finds_the_template_of_the_tokenizer(chat_template: str | None, is_vl: bool, name: str) -> None:
    assert resolve_template("auto", make_tokenizer(chat_template), is_vl) == TEMPLATES[name]


def test_a_default_system_prompt_of_the_tokenizer_is_kept() -> None:
    default = THINKING_TEMPLATE.replace(
        "{%- for m in messages -%}",
        "{%- if messages[0].role != 'system' -%}{{ 'You are ERNIE.\\n' }}{%- endif -%}"
        "{%- for m in messages -%}",
        1,
    )
    tokenizer = make_tokenizer(default)
    template = resolve_template("auto", tokenizer, True)
    for turns in ([("user", "q")], [("system", "s"), ("user", "q")]):
        expected = tokenizer.apply_chat_template(
            [{"role": role, "content": text} for role, text in turns],
            add_generation_prompt=True,
            tokenize=False,
        )
        assert shown(template, chat(*turns), prompt=True) == expected
    assert template.default_system == "You are ERNIE.\n"


@pytest.mark.parametrize(
    ("chat_template", "message"),
    [
        ("{{ '<|im_start|>' + messages[0].content }}", "none that erniekit knows"),
        ("{{ raise_exception('no') }}", "fails on a plain question: no"),
        (TEXT_TEMPLATE.replace("User: ", "Human: "), "none that erniekit knows"),
    ],
)
def test_an_unknown_chat_template_is_an_error_that_names_the_choices(
    chat_template: str, message: str
) -> None:
    with pytest.raises(
        DataError, match=f"{message}.*set data.template to one of ernie, ernie_vl, ernie_vl_thinking"
    ):
        resolve_template("auto", make_tokenizer(chat_template), True)


def test_an_explicit_template_is_taken_whatever_the_tokenizer_says(tmp_path: Path) -> None:
    assert resolve_template("ernie", make_tokenizer(VL_TEMPLATE), True) is TEMPLATES["ernie"]
    with pytest.raises(DataError, match=r"unknown data\.template 'llama'; there are ernie"):
        resolve_template("llama", make_tokenizer(None), False)
