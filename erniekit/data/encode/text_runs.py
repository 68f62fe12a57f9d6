"""Groups the spans of a rendered conversation into strings for the tokenizer, and maps trained spans to tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

from erniekit.data.chat.template import Span, TextSpan


def text_runs(spans: Iterable[Span]) -> Iterator[tuple[list[Span], bool]]:
    """Groups of spans to tokenize as one string. True: an answer that is at least partly trained; False: context."""
    context: list[Span] = []
    answer: list[Span] = []
    trained = False
    for span in spans:
        if isinstance(span, TextSpan):
            if not span.text:
                continue
            if span.generated:
                answer.append(span)
                trained = trained or span.trained
                continue
        if trained:
            if context:
                yield context, False
            yield answer, True
            context, answer, trained = [], [], False
        elif answer:
            context += answer
            answer = []
        context.append(span)
    if trained and context:
        yield context, False
        context = []
    if context or answer:
        yield context + answer, trained


def trained_tokens(spans: list[Span], offsets: list[tuple[int, int]]) -> npt.NDArray[np.bool_]:
    """Whether each token has a character of a trained span, [T]. offsets: the [start, end) characters of each token."""
    flags = [np.full(len(span.text), span.trained, np.int64) for span in spans if isinstance(span, TextSpan)]
    before = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.concatenate(flags))])
    start, end = np.asarray(offsets, np.int64).reshape(-1, 2).T
    # A token without characters belongs to the next character.
    end = np.minimum(np.maximum(end, start + 1), len(before) - 1)
    found: npt.NDArray[np.bool_] = before[end] > before[start]
    return found
