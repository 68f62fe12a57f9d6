"""Fields of a request about thinking, under the names of several servers.

The chat template decides whether a model thinks, and nothing ends its reasoning early: a switch is accepted if it
agrees with the template, a limit if the answer ends before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from erniekit.data.chat.template import Template
from erniekit.serving.fields import RequestError, refusal, unknown_field, without_neutral

_FieldType = Literal["switch", "effort", "reasoning limit", "answer limit", "object"]
# Path of an object -> its fields. Sources: FastDeploy (chat_template_kwargs, its options, *_max_tokens), vLLM
# (thinking_token_budget), Ollama (think), DeepSeek and Anthropic (thinking.type), OpenRouter (reasoning).
_FIELDS: dict[str, dict[str, _FieldType]] = {
    "": {
        "enable_thinking": "switch",
        "think": "switch",
        "thinking": "switch",
        "thinking_mode": "switch",
        "reasoning_effort": "effort",
        "reasoning_max_tokens": "reasoning limit",
        "thinking_budget": "reasoning limit",
        "thinking_token_budget": "reasoning limit",
        "response_max_tokens": "answer limit",
        "reasoning": "object",
        "chat_template_kwargs": "object",
    },
    "chat_template_kwargs": {
        "enable_thinking": "switch",
        "thinking": "switch",
        "thinking_mode": "switch",
        "reasoning_effort": "effort",
        "thinking_budget": "reasoning limit",
        "options": "object",
    },
    "chat_template_kwargs.options": {"thinking_mode": "switch"},
    "thinking": {"type": "switch", "budget_tokens": "reasoning limit"},
    "reasoning": {"enabled": "switch", "effort": "effort", "max_tokens": "reasoning limit"},
}
THINKING_FIELDS = frozenset(_FIELDS[""])
_SWITCHES = {
    **dict.fromkeys(("open", "on", "true", "enabled"), True),
    **dict.fromkeys(("close", "off", "false", "disabled"), False),
    **dict.fromkeys(("auto", "default", "adaptive", ""), None),
}
# "medium" is the default of OpenAI's API.
_EFFORTS = {"none": False, "medium": True, "auto": None, "default": None}


@dataclass(frozen=True, slots=True)
class Thinking:
    """Values with the names of their fields. switches: whether to think; limits: in tokens."""

    switches: tuple[tuple[str, bool], ...] = ()
    reasoning_limits: tuple[tuple[str, int], ...] = ()
    answer_limits: tuple[tuple[str, int], ...] = ()

    def check(self, template: Template) -> None:
        """Raises RequestError if a switch disagrees with the template."""
        thinks = template.thinking == "on"
        for name, wanted in self.switches:
            if wanted != thinks:
                always = "always" if thinks else "never"
                detail = f"with template {template.name} the model {always} thinks (see serve --template)"
                raise RequestError(f"{name}: {detail}", param=_field(name))

    def check_limits(self, template: Template, max_new_tokens: int) -> None:
        """Raises RequestError for a limit below `max_new_tokens`, which an answer could reach."""
        limits = self.answer_limits
        if template.thinking == "on":
            limits += self.reasoning_limits
        for name, limit in limits:
            if limit < max_new_tokens:
                detail = (
                    f"reasoning and answer have one limit, of {max_new_tokens:,} tokens here, and {limit:,} was "
                    "sent for a part of them: leave it out, or set max_tokens"
                )
                raise RequestError(f"{name}: {detail}", param=_field(name))


def take_thinking(fields: dict[str, Any]) -> tuple[Thinking, dict[str, Any]]:
    """Splits the fields of a request into those about thinking and the others. Raises RequestError."""
    found: dict[_FieldType, list[tuple[str, Any]]] = {}
    others = {name: value for name, value in fields.items() if name not in THINKING_FIELDS}
    _take("", {name: value for name, value in fields.items() if name in THINKING_FIELDS}, found)
    thinking = Thinking(
        tuple((*found.get("switch", ()), *found.get("effort", ()))),
        tuple(found.get("reasoning limit", ())),
        tuple(found.get("answer limit", ())),
    )
    return thinking, others


def _take(path: str, fields: Any, found: dict[_FieldType, list[tuple[str, Any]]]) -> None:
    if not isinstance(fields, dict):
        raise RequestError(f"{path}: must be an object", param=_field(path))
    known = _FIELDS[path]
    prefix = f"{path}." if path else ""
    for key, value in without_neutral(fields, prefix).items():
        name = prefix + key
        if key not in known:
            raise unknown_field(name, [prefix + other for other in known])
        if known[key] == "object" or (name in _FIELDS and isinstance(value, dict)):
            _take(name, value, found)
            continue
        read = _READERS[known[key]](name, value)
        if read is not None:
            found.setdefault(known[key], []).append((name, read))


def _switch(name: str, value: Any) -> bool | None:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in _SWITCHES:
        return _SWITCHES[value.lower()]
    raise refusal(name, 'must be true or false, or "open" or "close"', value)


def _effort(name: str, value: Any) -> bool | None:
    if isinstance(value, str) and value.lower() in _EFFORTS:
        return _EFFORTS[value.lower()]
    raise refusal(name, "is not supported: the chat template decides whether the model thinks", value)


def _limit(name: str, value: Any) -> int | None:
    """A number of tokens; -1 means no limit."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and value >= -1:
        return None if value == -1 else value
    raise refusal(name, "must be a number of tokens", value)


_READERS = {"switch": _switch, "effort": _effort, "reasoning limit": _limit, "answer limit": _limit}


def _field(name: str) -> str:
    return name.partition(".")[0]
