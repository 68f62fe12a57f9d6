"""Format "query_response": a question and its answer under one of several pairs of keys.

{"query", "response"}, {"prompt", "completion"}, {"question", "answer"} or {"prompt", "response"}, with "system",
"history": [[question, answer], ...], "tools", "images", "videos" where needed. A preference pair has "chosen" and
"rejected" instead of the answer, or ms-swift's "rejected_response" in addition to it. Prompt and completion may also
be lists of messages, as in TRL.
"""

from __future__ import annotations

from typing import Any

from erniekit.data.chat.conversation import Conversation
from erniekit.data.formats.fields import preference, turns
from erniekit.data.formats.fields.context import SampleContext
from erniekit.data.formats.fields.keys import REASONING
from erniekit.data.formats.fields.markers import MEDIA_KEYS
from erniekit.data.formats.fields.tools import TOOL_KEYS
from erniekit.data.formats.messages import MessageReader

PAIRS = (("query", "response"), ("prompt", "completion"), ("question", "answer"), ("prompt", "response"))

_KEYS = frozenset(("system", "history", *TOOL_KEYS, *REASONING, *MEDIA_KEYS, *preference.KEYS))


def parse_query_response(record: dict[str, Any], sample: SampleContext) -> Conversation:
    """One record as a Conversation. A prompt given as a list of messages is not trained. Raises SampleError."""
    question, answer = _keys(record)
    sample.check_keys("the record", "record", record, _KEYS | {question, answer})
    reader = MessageReader(record, sample)
    messages = turns.history(record, reader.marked, sample)
    if isinstance(record.get(question), list):
        prompt = reader.chat(f'"{question}", message', question, record[question], may_end_with_calls=False)
        messages += [preference.context(message) for message in prompt]
    else:
        messages.append(turns.question(sample.text(record, question), reader.marked))
    reasoning = turns.reasoning(record, sample)
    if isinstance(record.get(answer), list):
        if reasoning:
            raise sample.bad("reasoning next to a list of messages: put it into the assistant message")
        messages += reader.chat(f'"{answer}", message', answer, record[answer])
    elif record.get("chosen") is None and record.get("rejected") is None:
        messages.append(turns.answer(f'"{answer}"', record.get(answer), sample, reasoning))
    messages = sample.with_system(record, messages)
    return preference.conversation(record, messages, reader, sample)


def _keys(record: dict[str, Any]) -> tuple[str, str]:
    """The first pair of keys that are both in the record, or else the first pair with its question in the record."""
    for needed in (2, 1):
        for pair in PAIRS:
            if all(record.get(key) is not None for key in pair[:needed]):
                return pair
    return PAIRS[0]
