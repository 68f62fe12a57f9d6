"""Preference pairs as documents: the tokens that both answers share, then the chosen and the rejected answer.

A pair is one document of shared tokens, then the chosen branch, then the rejected one. Each branch begins with the
token that predicts the first trained token of its answer, so that no position has two labels: the prompt's last token
stands in both. So [shared, chosen] and [shared, rejected] are, token for token and label for label, the documents that
`Encoder.encode` gives for each answer. Which position sees which: `erniekit.models.branches`.
"""

from __future__ import annotations

import dataclasses
from itertools import zip_longest

import numpy as np

from erniekit.data.chat.conversation import Conversation
from erniekit.data.encode.document import IGNORE, Document
from erniekit.data.encode.encoder import Encoder


def prompt_messages(conversation: Conversation) -> int:
    """How many messages of a pair are its prompt: those before the first that carries loss."""
    return next(index for index, message in enumerate(conversation.messages) if message.trained)


def with_rejected(conversation: Conversation) -> Conversation:
    """A pair's conversation with its rejected answer, and the prompt of that, in the place of the chosen one."""
    prompt = conversation.rejected_prompt or conversation.messages[: prompt_messages(conversation)]
    messages = (*prompt, *conversation.rejected)
    return dataclasses.replace(conversation, messages=messages, rejected=(), rejected_prompt=())


def encode_pair(encoder: Encoder, conversation: Conversation, *, share: bool = True) -> Document:
    """A conversation with `rejected` as one document.

    share: what both answers begin with stands there once, its images too; else each answer has a whole document
    and nothing is shared (branches begin at 0). Raises SampleError, also when an answer carries no loss.
    """
    chosen = encoder.encode(conversation)
    rejected = encoder.encode(with_rejected(conversation))
    start = _shared(chosen, rejected) if share else 0
    moved = len(chosen) - start
    media = [
        dataclasses.replace(item, start=item.start + moved) for item in rejected.media if item.start >= start
    ]
    return Document(
        np.concatenate([chosen.input_ids, rejected.input_ids[start:]]),
        np.concatenate([chosen.labels, rejected.labels[start:]]),
        (*chosen.media, *media),
        conversation.sample_id,
        branches=(start, len(chosen)),
    )


def _shared(chosen: Document, rejected: Document) -> int:
    """Tokens that both begin with and that predict nothing trained; never a part of an image or video."""
    end = min(int(np.argmax(document.labels != IGNORE)) for document in (chosen, rejected))
    differing = np.flatnonzero(chosen.input_ids[:end] != rejected.input_ids[:end])
    if len(differing):
        end = int(differing[0])
    for one, other in zip_longest(chosen.media, rejected.media):
        items = [item for item in (one, other) if item is not None]
        # The marks before and after the placeholders belong to it.
        if one != other or any(item.start + item.tokens >= end for item in items):
            return min(end, *(item.start - 1 for item in items))
    return end
