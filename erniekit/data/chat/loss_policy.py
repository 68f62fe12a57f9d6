"""Which answers of a conversation are trained, and whether their reasoning is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from erniekit.config.choices import LossOn, Reasoning
from erniekit.data.chat.conversation import Message


@dataclass(frozen=True, slots=True)
class LossPolicy:
    """Which tokens carry loss, within what the data allows: a message that it switches off is never trained.

    reasoning: "train", "mask" (it stands in the text as context) or "drop" (it is left out). loss_on: "all"
    answers, those of the "last_turn" (after the last user message, so the calls of a tool loop too), or
    "each_turn": every answer, each in a separate document that ends with it.
    """

    reasoning: Reasoning = "train"
    loss_on: LossOn = "all"

    def trained(self, messages: Sequence[Message]) -> tuple[bool, ...]:
        """For each message of one document whether its answer carries loss; "each_turn": the last one only."""
        first = {"all": 0, "last_turn": current_turn(messages), "each_turn": len(messages) - 1}[self.loss_on]
        return tuple(
            index >= first and message.role == "assistant" and message.trained
            for index, message in enumerate(messages)
        )


DEFAULT_POLICY = LossPolicy()


def current_turn(messages: Sequence[Message]) -> int:
    """Index after the last user message: the answers from there on keep their reasoning, as in serving.

    A tool's result is no user message. Without a user message every answer belongs to the current turn.
    """
    users = [index for index, message in enumerate(messages) if message.role == "user"]
    return users[-1] + 1 if users else 0
