"""Counts of answers in a chat's history that are not trained in the form in which the model is prompted."""

from __future__ import annotations

from erniekit.data.chat.conversation import Conversation, ToolCallPart
from erniekit.data.chat.loss_policy import LossPolicy, current_turn
from erniekit.data.chat.template import Template


def untrained_reasoning(conversation: Conversation, template: Template, policy: LossPolicy) -> int:
    """Answers that are trained without their reasoning, because it stands in history, which has none."""
    if policy.reasoning != "train" or policy.loss_on != "all":
        return 0
    history = conversation.messages[: current_turn(conversation.messages)]
    answers = (message for message in history if message.role == "assistant" and message.trained)
    return sum(bool(template.split_answer(message, policy, conversation.sample_id)[0]) for message in answers)


def calls_as_history(conversation: Conversation, template: Template, policy: LossPolicy) -> int:
    """Tool calls that are trained, but stand as history: not after what a prompt ends with.

    A model trained on such calls alone may not call when it is prompted: there its prompt has, say, an empty think
    block before the answer, after which it never saw a call.
    """
    messages = conversation.messages
    trained, prompted = policy.trained(messages), template.stands_as_prompted(messages)
    return sum(
        sum(isinstance(part, ToolCallPart) and part.trained for part in message.parts)
        for index, message in enumerate(messages)
        if trained[index] and not prompted[index]
    )
