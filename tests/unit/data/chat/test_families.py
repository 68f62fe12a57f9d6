"""Which template belongs to the chat template of a tokenizer."""

from pathlib import Path

import pytest

from erniekit.data.chat.families import TEMPLATES, resolve_template
from erniekit.errors import DataError
from tests.unit.data.chat.spans import TOOLS, shown
from tests.unit.data.helpers import (
    TEXT_TEMPLATE,
    TEXT_THINKING_TEMPLATE,
    THINKING_TEMPLATE,
    VL_TEMPLATE,
    chat,
    make_tokenizer,
    openai,
)


@pytest.mark.parametrize(
    ("chat_template", "is_vl", "name"),
    [
        (TEXT_TEMPLATE, False, "ernie"),
        (TEXT_THINKING_TEMPLATE, False, "ernie_thinking"),
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
        "{%- set n = namespace",
        "{%- if messages[0].role != 'system' -%}{{ 'You are ERNIE.\\n' }}{%- endif -%}{%- set n = namespace",
        1,
    )
    tokenizer = make_tokenizer(default)
    template = resolve_template("auto", tokenizer, True)
    for turns in ([("user", "q")], [("system", "s"), ("user", "q")]):
        for tools in ((), TOOLS):
            question = chat(*turns, tools=tools)
            expected = tokenizer.apply_chat_template(
                openai(question), tools=list(tools) or None, add_generation_prompt=True, tokenize=False
            )
            assert shown(template, question, prompt=True) == expected
    assert template.default_system == "You are ERNIE.\n"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("{{ '<|im_start|>assistant\\n<think>\\n' }}", "{{ '\\n <|im_start|>assistant\\n<think>\\n' }}"),
        ("think_mode=True\\n", "think_mode=True\\nlevel=3\\n"),
        ("{{ '<|im_start|>system\\n' }}", "{{ '\\n<|im_start|>system\\nToday is Monday.\\n' }}"),
        ("{{ '<|im_end|>\\n\\n' }}{%- for", "{{ ' <|im_end|>\\n' }}{%- for"),
    ],
)
def test_what_a_thinking_tokenizer_writes_otherwise_is_kept(old: str, new: str) -> None:
    assert TEXT_THINKING_TEMPLATE.count(old) == 1
    tokenizer = make_tokenizer(TEXT_THINKING_TEMPLATE.replace(old, new))
    template = resolve_template("auto", tokenizer, False)
    assert template.name == "ernie_thinking"
    assert template != TEMPLATES["ernie_thinking"]
    turns = [("user", "q"), ("assistant", "a"), ("user", "r")]
    for tools in ((), TOOLS):
        question = chat(*turns, tools=tools)
        expected = tokenizer.apply_chat_template(
            openai(question), tools=list(tools) or None, add_generation_prompt=True, tokenize=False
        )
        assert shown(template, question, prompt=True) == expected
    trained = shown(template, chat(*turns, ("assistant", "b"))).translate(str.maketrans("", "", "[]"))
    assert trained.startswith(shown(template, chat(*turns), prompt=True))


@pytest.mark.parametrize(
    ("chat_template", "message"),
    [
        ("{{ '<|im_start|>' + messages[0].content }}", "is not known to erniekit"),
        ("{{ raise_exception('no') }}", "fails on a simple question: no"),
        (TEXT_TEMPLATE.replace("User: ", "Human: "), "is not known to erniekit"),
        (TEXT_THINKING_TEMPLATE.replace("think_mode=True", "think_mode=False"), "is not known to erniekit"),
        (TEXT_THINKING_TEMPLATE.replace("<|im_start|>user", "<|im_start|>human"), "is not known to erniekit"),
    ],
)
def test_an_unknown_chat_template_is_an_error_that_names_the_choices(
    chat_template: str, message: str
) -> None:
    with pytest.raises(
        DataError,
        match=f"(?s){message}.*set data.template to one of ernie, ernie_thinking, ernie_vl, ernie_vl_thinking",
    ):
        resolve_template("auto", make_tokenizer(chat_template), True)


def test_an_explicit_template_is_taken_whatever_the_tokenizer_says(tmp_path: Path) -> None:
    assert resolve_template("ernie", make_tokenizer(VL_TEMPLATE), True) is TEMPLATES["ernie"]
    with pytest.raises(DataError, match=r"unknown data\.template 'llama'; the templates are ernie"):
        resolve_template("llama", make_tokenizer(None), False)
