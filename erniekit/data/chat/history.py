"""Counts of answers in the chat history that are trained in another form than the model generates them."""

from __future__ import annotations

from erniekit.data.chat.conversation import Conversation, ToolCallPart
from erniekit.data.chat.loss_policy import LossPolicy, current_turn
from erniekit.data.chat.template import Template


def untrained_reasoning(conversation: Conversation, template: Template, policy: LossPolicy) -> int:
    """The number of answers that are trained without their reasoning, because templates omit it in the history."""
    if policy.reasoning != "train" or policy.loss_on != "all":
        return 0
    history = conversation.messages[: current_turn(conversation.messages)]
    answers = (message for message in history if message.role == "assistant" and message.trained)
    return sum(bool(template.split_answer(message, policy, conversation.sample_id)[0]) for message in answers)


def calls_as_history(conversation: Conversation, template: Template, policy: LossPolicy) -> int:
    """The number of trained tool calls in the form of the history instead of the form after a generation prompt.

    A model that is only trained on such calls may not call tools at inference: there, the prompt may end with an empty
    think block, which never preceded a call in training.
    """
    messages = conversation.messages
    trained, prompted = policy.trained(messages), template.stands_as_prompted(messages)
    return sum(
        sum(isinstance(part, ToolCallPart) and part.trained for part in message.parts)
        for index, message in enumerate(messages)
        if trained[index] and not prompted[index]
    )
