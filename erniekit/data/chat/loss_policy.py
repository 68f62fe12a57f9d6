"""Selects the answers of a conversation that are trained, with or without their reasoning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from erniekit.config.choices import LossOn, Reasoning
from erniekit.data.chat.conversation import Message


@dataclass(frozen=True, slots=True)
class LossPolicy:
    """Which tokens carry loss. The data can switch off the loss of single messages, whatever the policy.

    reasoning: "train", "mask" (kept as context) or "drop" (left out). loss_on: "all": all answers; "last_turn": the
    answers after the last user message, including the calls of a tool loop; "each_turn": every answer, each in a
    separate document that ends with it.
    """

    reasoning: Reasoning = "train"
    loss_on: LossOn = "all"

    def trained(self, messages: Sequence[Message]) -> tuple[bool, ...]:
        """Whether each message of a document carries loss; with "each_turn", only the last one may."""
        first = {"all": 0, "last_turn": current_turn(messages), "each_turn": len(messages) - 1}[self.loss_on]
        return tuple(
            index >= first and message.role == "assistant" and message.trained
            for index, message in enumerate(messages)
        )


DEFAULT_POLICY = LossPolicy()


def current_turn(messages: Sequence[Message]) -> int:
    """The index after the last user message; 0 without one. Answers from there on keep their reasoning, as in serving.

    The result of a tool is not a user message.
    """
    users = [index for index, message in enumerate(messages) if message.role == "user"]
    return users[-1] + 1 if users else 0
