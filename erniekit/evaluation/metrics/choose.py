"""The metrics by name, and the choice of those that fit the references."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from erniekit.config.choices import METRICS
from erniekit.errors import ConfigError
from erniekit.evaluation.metrics import boxes, calls, numeric, structured, text
from erniekit.evaluation.metrics.words import words
from erniekit.generation.answer import Answer

AUTO = "auto"
# Mean number of words of references from which similarity metrics are meaningful.
LONG_TEXT = 5


@dataclass(frozen=True, slots=True)
class Pair:
    """An answer and its reference.

    exact: the model ended the answer, and it equals the reference exactly; tools: of the chat.
    """

    answer: Answer
    reference: Answer
    exact: bool
    tools: tuple[dict[str, Any], ...] = ()


Metric = Callable[[Pair], float | None]
# "differs": the answer is not the reference, and no metric says that it is wrong.
Verdict = Literal["right", "wrong", "differs"]


def _of_text(metric: Callable[[str, str], float | None]) -> Metric:
    """A metric of the answer's text; None if the reference has only tool calls."""

    def score(pair: Pair) -> float | None:
        if not pair.reference.text and pair.reference.tool_calls:
            return None
        return metric(pair.answer.text, pair.reference.text)

    return score


# Each returns None for a pair that it does not apply to.
FUNCTIONS: dict[str, Metric] = {
    "exact_match": lambda pair: float(pair.exact),
    "normalized_match": _of_text(text.normalized_match),
    "token_f1": _of_text(text.token_f1),
    "rouge_l": _of_text(text.rouge_l),
    "anls": _of_text(text.anls),
    "numeric_match": _of_text(numeric.numeric_match),
    "json_valid": _of_text(lambda answer, reference: structured.json_valid(answer)),
    "json_equal": _of_text(structured.json_equal),
    "box_iou": _of_text(boxes.box_iou),
    "box_iou_50": _of_text(boxes.box_iou_50),
    "call_name": lambda pair: calls.call_name(pair.answer.tool_calls, pair.reference.tool_calls),
    "call_arguments": lambda pair: calls.call_arguments(pair.answer.tool_calls, pair.reference.tool_calls),
    "call_valid": lambda pair: calls.call_valid(
        pair.answer.tool_calls, pair.reference.tool_calls, pair.tools
    ),
    "call_match": lambda pair: calls.call_match(pair.answer.tool_calls, pair.reference.tool_calls),
    "call_none": lambda pair: calls.call_none(pair.answer.tool_calls, pair.reference.tool_calls, pair.tools),
}
# Metrics that judge the whole answer: 1 means that it is right.
_COMPARED = ("exact_match", "normalized_match")
_VERDICTS = (*_COMPARED, "numeric_match", "json_equal", "box_iou_50", "call_match")
# These apply only to references of their kind, so that less than 1 means that the answer is wrong.
_REFUTING = ("numeric_match", "json_equal", "box_iou_50", "call_match", "call_none")


@dataclass(slots=True)
class References:
    """Counts of the kinds of references of one source.

    texts: references with text; numbers, json, boxes: texts of that kind; words: of all texts; offered: references
    without a call in chats with tools.
    """

    answers: int = 0
    calls: int = 0
    offered: int = 0
    texts: int = 0
    numbers: int = 0
    json: int = 0
    boxes: int = 0
    words: int = 0

    def add(self, reference: Answer, has_tools: bool) -> None:
        """Adds a reference."""
        self.answers += 1
        self.calls += bool(reference.tool_calls)
        self.offered += has_tools and not reference.tool_calls
        if not reference.text and reference.tool_calls:
            return
        self.texts += 1
        self.numbers += numeric.parse_number(reference.text) is not None
        self.json += structured.is_json(reference.text)
        self.boxes += bool(boxes.find_boxes(reference.text))
        self.words += len(words(reference.text))

    @property
    def fitting(self) -> set[str]:
        """The metrics that are meaningful for these references."""
        found: set[str] = set()
        if self.calls:
            found |= {"call_name", "call_arguments", "call_valid", "call_match"}
        if self.offered:
            found.add("call_none")
        if not self.texts:
            return found
        if self.boxes == self.texts:
            return found | {"box_iou", "box_iou_50"}
        if self.json == self.texts:
            return found | {"json_valid", "json_equal"}
        if self.numbers == self.texts:
            return found | {"numeric_match"}
        if self.words >= LONG_TEXT * self.texts:
            found |= {"token_f1", "rouge_l"}
        return found


def parse_names(texts: Iterable[str]) -> tuple[str, ...]:
    """Comma-separated names of metrics, or "auto", without duplicates. Raises ConfigError for unknown names."""
    names = [name.strip() for text in texts for name in text.split(",")]
    for name in names:
        if name != AUTO:
            check_name(name)
    return tuple(dict.fromkeys(names))


def check_name(name: str) -> None:
    """Raises ConfigError for an unknown metric."""
    if name in METRICS:
        return
    near = difflib.get_close_matches(name, METRICS, n=1)
    meant = f'; did you mean "{near[0]}"?' if near else ""
    raise ConfigError(f'unknown metric "{name}": choose from {", ".join(METRICS)}{meant}')


def choose(names: Collection[str], references: Iterable[References]) -> tuple[str, ...]:
    """The named metrics and exact_match, in the order of METRICS. "auto": those that fit at least one source."""
    chosen = {"exact_match", *names} - {AUTO}
    if AUTO in names:
        for source in references:
            chosen |= source.fitting
    return tuple(name for name in METRICS if name in chosen)


def score(pair: Pair, names: Sequence[str]) -> dict[str, float]:
    """The values of the named metrics, of those that apply."""
    found = ((name, FUNCTIONS[name](pair)) for name in names)
    return {name: value for name, value in found if value is not None}


def judge(scores: Mapping[str, float], reference: Answer) -> Verdict:
    """The verdict of metrics on an answer.

    Right if at least one metric that judges the whole answer is 1. Otherwise wrong if a metric for references of this
    kind says so, or if the reference is a text of a few words, which leaves no room for other wording.
    """
    if any(scores.get(name) == 1 for name in _VERDICTS):
        return "right"
    short = not reference.tool_calls and len(words(reference.text)) < LONG_TEXT
    refuting = (*_REFUTING, *_COMPARED) if short else _REFUTING
    return "wrong" if any(scores.get(name, 1) < 1 for name in refuting) else "differs"
