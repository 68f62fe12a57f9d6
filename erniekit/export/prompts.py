"""The chat template of an export, so that engines build prompts as in training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from erniekit.config.choices import ChatTemplateSource, CheckpointLayout
from erniekit.data.chat.conversation import Conversation, Message, Part, TextPart, ToolCallPart
from erniekit.data.chat.families import rendered_chat, resolve_template
from erniekit.data.chat.jinja import chat_template
from erniekit.data.chat.render import RenderError
from erniekit.data.chat.template import Template, TextSpan
from erniekit.data.encode.tokenizer import load_tokenizer
from erniekit.errors import DataError
from erniekit.export.files import write_chat_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}},
}


def _chat(*turns: tuple[str, Part], tools: Sequence[dict[str, Any]] = ()) -> Conversation:
    messages = tuple(Message(role, (part,), False) for role, part in turns)  # type: ignore[arg-type]
    return Conversation(messages, "a chat to compare templates with", tuple(tools))


_QUESTION = ("user", TextPart("question"))
_PLAIN = (
    _chat(_QUESTION),
    _chat(("system", TextPart("system")), _QUESTION, ("assistant", TextPart("answer")), _QUESTION),
)
_CALL = ToolCallPart("f", '{"a": 1}')
_LIST = _chat(_QUESTION, tools=[_TOOL])
_LOOP = _chat(_QUESTION, ("assistant", _CALL), ("tool", TextPart("result")), tools=[_TOOL])


def settle_chat_template(
    target: Path, name: str, choice: ChatTemplateSource, layout: CheckpointLayout, *, trained: bool, vl: bool
) -> list[str]:
    """Write the chat template of training into `target` where it has to take the place of the base's, which is there.

    name: `data.template` of the run. "auto" replaces what prompts in another way, or leaves a list of tools out; a
    base that writes tools in a form of its own keeps it, since a run may have had none. Returns what to say of it.
    """
    tokenizer = load_tokenizer(target)
    has_one = bool(tokenizer.chat_template)
    if choice == "base" or (choice == "auto" and not trained):
        return [] if has_one else ["no chat template in the base model: chat endpoints of engines need one"]
    try:
        template = resolve_template(name, tokenizer, is_vl=vl)
    except DataError as error:
        return [f"the chat template is that of the base model, whatever training used: {error}"]
    reason = "as requested"
    if choice == "auto" and tokenizer.chat_template == _program(template, vl):
        return []
    if choice == "auto":
        if not has_one:
            reason = "since the base model has none"
        elif any(_is_other(template, tokenizer, chat) for chat in _PLAIN):
            reason = "since that of the base model builds other prompts than training"
        elif _leaves_tools_out(tokenizer):
            reason = "since that of the base model leaves out the list of tools"
        elif any(_is_other(template, tokenizer, chat) for chat in (_LIST, _LOOP)):
            return [
                "the chat template of the base model formats tools differently than training: if the chats had "
                "tools, export with --chat-template trained"
            ]
        else:
            return []
    write_chat_template(target, _program(template, vl), layout)
    return [f"the chat template is that of training ({template.name}), {reason}"]


def _program(template: Template, vl: bool) -> str:
    return chat_template(template, media=vl and template.takes_media)


def _is_other(template: Template, tokenizer: PreTrainedTokenizerFast, chat: Conversation) -> bool:
    expected = "".join(span.text for span in template.render_prompt(chat) if isinstance(span, TextSpan))
    # Engines may give the arguments of calls as they came or as an object.
    return expected not in (_rendered(tokenizer, chat), _rendered(tokenizer, chat, arguments={"a": 1}))


def _leaves_tools_out(tokenizer: PreTrainedTokenizerFast) -> bool:
    return _rendered(tokenizer, _LIST) == _rendered(tokenizer, _PLAIN[0])


def _rendered(
    tokenizer: PreTrainedTokenizerFast, chat: Conversation, arguments: str | dict[str, Any] = _CALL.arguments
) -> str | None:
    """None where the program fails."""
    messages: list[dict[str, Any]] = []
    for message in chat.messages:
        part = message.parts[0]
        messages.append({"role": message.role, "content": part.text if isinstance(part, TextPart) else ""})
        if part is _CALL:
            call = {"type": "function", "function": {"name": _CALL.name, "arguments": arguments}}
            messages[-1]["tool_calls"] = [call]
    try:
        return rendered_chat(tokenizer, messages, list(chat.tools) or None)
    except RenderError:
        return None
