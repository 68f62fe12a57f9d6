"""Encodes preference pairs as documents.

A pair is one document: the tokens that both answers share, the chosen branch, and the rejected branch. A branch begins
with the token that predicts the first trained token of its answer, so the last token of the prompt is in both branches,
and no position has two labels. [shared, chosen] and [shared, rejected] are equal to the documents that `Encoder.encode`
returns for each answer. `erniekit.models.branches` has the attention mask.
"""

from __future__ import annotations

import dataclasses
from itertools import zip_longest

import numpy as np

from erniekit.data.chat.conversation import Conversation
from erniekit.data.encode.document import IGNORE, Document
from erniekit.data.encode.encoder import Encoder


def prompt_messages(conversation: Conversation) -> int:
    """The number of messages in the prompt of a pair: all before the first one that carries loss."""
    return next(index for index, message in enumerate(conversation.messages) if message.trained)


def with_rejected(conversation: Conversation) -> Conversation:
    """The conversation of a pair's rejected answer, with its prompt."""
    prompt = conversation.rejected_prompt or conversation.messages[: prompt_messages(conversation)]
    messages = (*prompt, *conversation.rejected)
    return dataclasses.replace(conversation, messages=messages, rejected=(), rejected_prompt=())


def encode_pair(encoder: Encoder, conversation: Conversation, *, share: bool = True) -> Document:
    """Encode a conversation with `rejected` as one document.

    share: the document has the common beginning of both answers, with its images, once; otherwise it has the complete
    document of each answer (branches begin at 0). Raises SampleError, also if an answer carries no loss.
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
    """The number of common tokens at the beginning, without those that predict a trained token. An image or video is
    shared completely or not at all."""
    end = min(int(np.argmax(document.labels != IGNORE)) for document in (chosen, rejected))
    differing = np.flatnonzero(chosen.input_ids[:end] != rejected.input_ids[:end])
    if len(differing):
        end = int(differing[0])
    for one, other in zip_longest(chosen.media, rejected.media):
        items = [item for item in (one, other) if item is not None]
        # The markers around the placeholders belong to the image or video.
        if one != other or any(item.start + item.tokens >= end for item in items):
            return min(end, *(item.start - 1 for item in items))
    return end
