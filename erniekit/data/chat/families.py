"""The chat templates of the ERNIE 4.5 model families, and the detection of a tokenizer's template."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from erniekit.data.chat.jinja import chat_template
from erniekit.data.chat.render import RenderError, render_chat
from erniekit.data.chat.template import Template
from erniekit.display.text import clipped
from erniekit.errors import DataError

BEGIN = "<|begin_of_sentence|>"
TERMINATOR = "<|end_of_sentence|>"
_TURN, _END_TURN = "<|im_start|>", "<|im_end|>"
_SETTING, _END_SETTING = "<global_setting>", "</global_setting>"
_NO_THOUGHT = "<think>\n\n</think>\n\n"


def _framed(
    name: str,
    thinking: Literal["none", "off", "on"],
    user_end: str,
    answer_start: str,
    generation_start: str,
) -> Template:
    """The frame that text and VL models share. Among the released models, only VL-Thinking has a form for tools."""
    return Template(
        name=name,
        thinking=thinking,
        begin=BEGIN,
        system=("", "\n"),
        tools=("\n<tool_list>\n", "\n</tool_list>\n"),
        tools_first=True,
        user=("User: ", user_end),
        tool_result=("<tool_output>\n", "\n</tool_output>\n"),
        answer_start=answer_start,
        generation_start=generation_start,
        terminator=TERMINATOR,
        tokens=(BEGIN, TERMINATOR),
    )


# ERNIE-4.5-21B-A3B-Thinking.
_ERNIE_THINKING = Template(
    name="ernie_thinking",
    thinking="on",
    begin="",
    system=(f"{_TURN}system\n<system_setting>\n", "\n</system_setting>\n\n"),
    default_system=f"{_TURN}system\n",
    settings=f"{_SETTING}\nthink_mode=True\n{_END_SETTING}",
    tools=("\n\n<tool_list>\n", "\n</tool_list>"),
    tools_first=False,
    opening_end=f"{_END_TURN}\n\n",
    user=(f"{_TURN}user\n", f"{_END_TURN}\n\n"),
    tool_result=("<tool_response>\n", "\n</tool_response>"),
    between_results="\n",
    answer_start=f"{_TURN}assistant\n",
    generation_start="<think>\n",
    end_of_reasoning="\n</think>\n",
    answer=("<response>\n", "\n</response>\n"),
    tool_call=("\n<tool_call>\n", "\n</tool_call>\n"),
    terminator=_END_TURN,
    after_answer="\n\n",
    tokens=(_TURN, _END_TURN),
    takes_media=False,
)
TEMPLATES = {
    template.name: template
    for template in (
        _framed("ernie", "none", "\n", "Assistant: ", ""),
        _ERNIE_THINKING,
        _framed("ernie_vl", "off", "", "\nAssistant: ", _NO_THOUGHT),
        _framed("ernie_vl_thinking", "on", "", "\nAssistant: ", "\n<think>\n"),
    )
}
_CHOICES = f"set data.template to one of {', '.join(TEMPLATES)}"


class ChatTemplateTokenizer(Protocol):
    """The attributes of a transformers tokenizer that `resolve_template` reads."""

    chat_template: str | dict[str, str] | None
    special_tokens_map: dict[str, Any]


def resolve_template(name: str, tokenizer: ChatTemplateTokenizer, is_vl: bool) -> Template:
    """Find a template by its name; "auto" detects the one that matches the tokenizer's own chat template.

    Detection renders one question with the tokenizer's template and compares the text; a default system prompt that it
    writes before the question is kept. For a tokenizer without a chat template, it is ernie_vl if is_vl, else ernie.
    Raises DataError for an unknown name or chat template.
    """
    if name != "auto":
        if name not in TEMPLATES:
            raise DataError(
                f"unknown data.template {name!r}; the templates are {', '.join(TEMPLATES)} and auto"
            )
        return TEMPLATES[name]
    if not tokenizer.chat_template:
        return TEMPLATES["ernie_vl" if is_vl else "ernie"]
    for template in TEMPLATES.values():
        if tokenizer.chat_template in [chat_template(template, media=media) for media in (True, False)]:
            return template
    question = "x"
    try:
        rendered = rendered_chat(tokenizer, [{"role": "user", "content": question}])
    except RenderError as error:
        raise DataError(
            f"the tokenizer's chat template fails on a simple question: {clipped(str(error), 300)}; {_CHOICES}"
        ) from error
    # The endings of ernie_vl and ernie_vl_thinking differ from that of ernie, so the order does not matter.
    for template in TEMPLATES.values():
        agrees = _thinking_frame if template.begin == "" else _plain_frame
        found = agrees(template, rendered, question)
        if found is not None:
            return found
    raise DataError(
        f"the tokenizer's chat template is not known to erniekit (it renders {clipped(rendered, 300)!r}); {_CHOICES}"
    )


def rendered_chat(
    tokenizer: ChatTemplateTokenizer,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> str:
    """Render a prompt with the tokenizer's own chat template. Raises RenderError."""
    program = tokenizer.chat_template
    if isinstance(program, dict):
        program = program.get("tool_use" if tools and "tool_use" in program else "default")
    if not isinstance(program, str):
        raise RenderError("there is no default template")
    tokens = {name: token for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    return render_chat(program, messages, tools, tokens)


def _plain_frame(template: Template, rendered: str, question: str) -> Template | None:
    turn = template.user[0] + question + template.user[1]
    ending = turn + template.answer_start + template.generation_start
    if not (rendered.startswith(template.begin) and rendered.endswith(ending)):
        return None
    return dataclasses.replace(template, default_system=rendered[len(template.begin) : -len(ending)])


def _thinking_frame(template: Template, rendered: str, question: str) -> Template | None:
    """The template if it matches the rendered text, except for white space and the content of the system block."""
    opening, turn, prompt = rendered.partition(template.user[0] + question + template.user[1])
    before, _, rest = opening.partition(_SETTING)
    settings, end, opening_end = rest.partition(_END_SETTING)
    prompt_end = template.answer_start + template.generation_start
    blanks = prompt.removesuffix(prompt_end)
    known = settings.startswith("\nthink_mode=True") and prompt.endswith(prompt_end) and not blanks.strip()
    if not (turn and end and known):
        return None
    return dataclasses.replace(
        template,
        default_system=before,
        settings=_SETTING + settings + _END_SETTING,
        opening_end=opening_end,
        before_generation=blanks,
    )
