"""ERNIEKit's text samples: chats, preference pairs, and text for continued pre-training.

Chat: {"src": [question, ...], "tgt": [answer, ...], "label": [0 | 1, ...], "system", "is_system", "tools"}, the last
four optional. Pair: {"src": n questions, "tgt": n - 1 answers, "response": two candidates, "sort": two ranks}, each
candidate a string or a list (answer, question, ..., answer). Text: {"tgt": [text]}.
"""

from __future__ import annotations

from typing import Any

from erniekit.data.chat.conversation import Conversation, Message, Role, TextPart
from erniekit.data.formats.fields import preference
from erniekit.data.formats.fields.context import SampleContext, describe_value, quoted
from erniekit.data.formats.fields.tools import read_tools
from erniekit.data.formats.plain_text import plain_text

_MEDIA = ("images", "videos", "image_info", "video_info")
_CHAT_KEYS = frozenset(("src", "tgt", "system", "is_system", "tools", *_MEDIA))


def parse_text_chat(record: dict[str, Any], sample: SampleContext) -> Conversation:
    """A chat as a Conversation.

    An answer whose `label` is 0 carries no loss. With `is_system`, the first text of `src` is the system message, and
    the first text of `tgt`, a placeholder, is dropped. Raises SampleError.
    """
    sample.check_keys("the record", "record", record, _CHAT_KEYS | {"label"})
    questions, answers = _texts(record, "src", sample), _texts(record, "tgt", sample)
    if len(questions) != len(answers):
        raise sample.bad(
            f'"src" has {len(questions)} texts and "tgt" {len(answers)}: the numbers must be equal'
        )
    labels = record.get("label")
    if labels is None:
        labels = [1] * len(answers)
    if not isinstance(labels, list) or len(labels) != len(answers):
        found = f"a list of {len(labels)}" if isinstance(labels, list) else describe_value(labels)
        raise sample.bad(
            f'"label" must be a list of {len(answers)} numbers, one for each text of "tgt", not {found}'
        )
    messages = _turns(record, questions, answers, labels, sample)
    return Conversation(tuple(messages), sample.sample_id, read_tools(record.get("tools"), sample))


def parse_preference(record: dict[str, Any], sample: SampleContext) -> Conversation:
    """A preference pair as a Conversation: the candidate with the larger rank in `sort` is the chosen one.

    Raises SampleError.
    """
    sample.check_keys("the record", "record", record, _CHAT_KEYS | {"response", "sort"})
    questions = _texts(record, "src", sample)
    answers = [] if record.get("tgt") is None else _texts(record, "tgt", sample)
    if len(answers) != len(questions) - 1:
        detail = (
            f'with "response", "tgt" has one text less than "src"; here {len(answers)} and {len(questions)}'
        )
        raise sample.bad(detail)
    candidates, ranks = record.get("response"), record.get("sort")
    if not isinstance(candidates, list) or len(candidates) != 2:
        found = len(candidates) if isinstance(candidates, list) else describe_value(candidates)
        raise sample.bad(f'"response" must be a list of two candidates, here is {found}')
    if (
        not isinstance(ranks, list)
        or len(ranks) != 2
        or not all(isinstance(rank, int | float) for rank in ranks)
    ):
        raise sample.bad(f'"sort" must be two numbers, one for each candidate, not {quoted(ranks)}')
    if not ranks[0] < ranks[1] and not ranks[1] < ranks[0]:
        raise sample.bad(
            f'the numbers of "sort" must differ (the chosen one has the larger), they are {quoted(ranks)}'
        )
    first, second = (_candidate(number, value, sample) for number, value in enumerate(candidates))
    chosen, rejected = (first, second) if ranks[0] > ranks[1] else (second, first)
    prompt = _turns(record, questions, answers, [0] * len(answers), sample)
    pair = preference.pair(prompt, chosen, prompt, rejected, sample)
    return preference.of_pair(pair, read_tools(record.get("tools"), sample), sample)


def parse_pretraining(record: dict[str, Any], sample: SampleContext) -> Conversation:
    """Text for continued pre-training, under "tgt" (several texts are concatenated) or "text". Raises SampleError."""
    sample.check_keys("the record", "record", record, ("text" if record.get("tgt") is None else "tgt",))
    if record.get("tgt") is None:
        return plain_text(sample.text(record, "text"), sample)
    return plain_text("".join(_texts(record, "tgt", sample)), sample)


def _texts(record: dict[str, Any], key: str, sample: SampleContext) -> list[str]:
    value = record.get(key)
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        found = "an array with other values" if isinstance(texts, list) else describe_value(texts)
        raise sample.bad(f'"{key}" must be a string or a list of strings, not {found}')
    return texts


def _turns(
    record: dict[str, Any], questions: list[str], answers: list[str], labels: list[Any], sample: SampleContext
) -> list[Message]:
    """Questions and answers in turn, after the system message; the last question may have no answer."""
    for key in _MEDIA:
        if record.get(key):
            detail = 'ERNIEKit has media only in samples with "text_info"'
            raise sample.bad(f'"{key}" together with "src": {detail}')
    is_system = sample.switch('"is_system"', record.get("is_system"), default=False)
    messages = []
    for number, question in enumerate(questions):
        if not question:
            raise sample.bad(f"src[{number}] is empty")
        if is_system and number == 0:
            messages.append(Message("system", (TextPart(question),), trained=False))
            continue
        messages.append(Message("user", (TextPart(question),), trained=False))
        if number < len(answers):
            if not answers[number]:
                raise sample.bad(f"tgt[{number}] is empty")
            trained = sample.switch(f"label[{number}]", labels[number], default=True)
            messages.append(Message("assistant", (TextPart(answers[number]),), trained))
    return sample.with_system(record, messages)


def _candidate(number: int, value: Any, sample: SampleContext) -> list[Message]:
    """One of the two answers of a pair."""
    where = f"response[{number}]"
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or len(texts) % 2 == 0:
        found = f"{len(texts)} of them" if isinstance(texts, list) else describe_value(texts)
        raise sample.bad(
            f"{where} must be a string or an odd number of strings (answer, question, ...), not {found}"
        )
    messages = []
    for index, text in enumerate(texts):
        if not isinstance(text, str) or not text:
            raise sample.bad(
                f"{where}[{index}] must be a string that is not empty, not {describe_value(text)}"
            )
        role: Role = "user" if index % 2 else "assistant"
        messages.append(Message(role, (TextPart(text),), trained=role == "assistant"))
    return messages
