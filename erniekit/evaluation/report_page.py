"""A report on an evaluation as an HTML page: the metrics, and answers next to their references."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from erniekit.data.chat.conversation import ImagePart, SampleError, VideoPart
from erniekit.data.media.item import Media
from erniekit.display.page import render_page
from erniekit.display.text import visible
from erniekit.evaluation.dataset import EvalSample
from erniekit.evaluation.evaluate import Evaluation, Prediction
from erniekit.evaluation.report import EvalSettings, format_tables
from erniekit.generation.answer import Answer, ToolCall
from erniekit.inspection.preview import ShownMedia
from erniekit.inspection.thumbnails import Thumbnail, thumbnails

_TEMPLATE = Path(__file__).with_name("report.html")
# Limits on the number of answers, to bound the size of the page.
MOST_WRONG, MOST_RIGHT = 300, 100
_MOST_MEDIA = 6  # per sample
_OPEN_CHARACTERS = 500  # longer prompts are folded
# The units of a difference: a word, one character of Chinese or Japanese, white space, or any other character.
_UNIT = re.compile(
    r"[\u3005-\u3007\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W\u3005-\u9fff]+|\s+|.", re.DOTALL
)
_MOST_UNITS = 2000  # longer texts are not compared: the time is quadratic


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a text. same: the other text has it too."""

    text: str
    same: bool


@dataclass(frozen=True, slots=True)
class _Card:
    """An answer on the page. broken: errors of images that cannot be shown."""

    name: str
    right: bool
    scores: list[tuple[str, str]]
    figures: list[Thumbnail]
    broken: list[str]
    prompt: str
    expected: list[Piece]
    answer: list[Piece]
    reasoning: str
    notes: list[str]

    @property
    def prompt_is_open(self) -> bool:
        return len(self.prompt) <= _OPEN_CHARACTERS


class ReportPage:
    """Collects the first right and the first wrong answers, and renders them as an HTML page."""

    def __init__(self) -> None:
        self._cards: list[_Card] = []
        self._room = {True: MOST_RIGHT, False: MOST_WRONG}

    def add(self, sample: EvalSample, prediction: Prediction) -> None:
        """Adds an answer with thumbnails of the sample's images, unless the page has enough of its kind."""
        if self._room[prediction.right]:
            self._room[prediction.right] -= 1
            self._cards.append(_card(sample, prediction))

    def render(self, evaluation: Evaluation, settings: EvalSettings) -> str:
        """The HTML page. Text from data and model is escaped, and control characters are replaced by symbols."""
        answers = evaluation.scores.overall.answers
        metrics = evaluation.scores.overall.metrics
        values = {
            "title": f"Evaluation of {visible(settings.model)}",
            "settings": list(_settings(settings)),
            "table": visible("\n".join(format_tables(evaluation)).strip("\n")),
            "total": answers,
            "wrong": evaluation.wrong,
            "right": answers - evaluation.wrong,
            "shown_wrong": MOST_WRONG - self._room[False],
            "shown_right": MOST_RIGHT - self._room[True],
            "metrics": [(name, f"{mean.value:.1%}") for name, mean in metrics.items()],
            "cards": self._cards,
        }
        return render_page(_TEMPLATE, values)


def difference(first: str, second: str) -> tuple[list[Piece], list[Piece]]:
    """Both texts in pieces, marked as common or different; texts that are too long to compare are one piece each."""
    if first == second:
        return [Piece(first, True)], [Piece(second, True)]
    ours, theirs = _UNIT.findall(first), _UNIT.findall(second)
    if max(len(ours), len(theirs)) > _MOST_UNITS:
        return [Piece(first, False)], [Piece(second, False)]
    left: list[Piece] = []
    right: list[Piece] = []
    matcher = difflib.SequenceMatcher(None, ours, theirs, autojunk=False)
    for tag, start, end, other_start, other_end in matcher.get_opcodes():
        left.append(Piece("".join(ours[start:end]), tag == "equal"))
        right.append(Piece("".join(theirs[other_start:other_end]), tag == "equal"))
    return [piece for piece in left if piece.text], [piece for piece in right if piece.text]


def _settings(settings: EvalSettings) -> Iterator[tuple[str, str]]:
    yield "template", settings.template
    if settings.sampling is not None:
        sampling = settings.sampling
        yield "max_new_tokens", f"{sampling.max_new_tokens:,}"
        yield "temperature", f"{sampling.temperature:g}{'' if sampling.temperature else ' (greedy)'}"
        if sampling.temperature:
            yield "top_p", f"{sampling.top_p:g}"
            yield "top_k", f"{sampling.top_k}"
            if sampling.min_p:
                yield "min_p", f"{sampling.min_p:g}"
            yield "seed", f"{sampling.seed}"
        if sampling.repetition_penalty != 1:
            yield "repetition_penalty", f"{sampling.repetition_penalty:g}"


def _card(sample: EvalSample, prediction: Prediction) -> _Card:
    figures, broken = _figures(sample)
    expected, answer = difference(visible(_words(prediction.reference)), visible(_words(prediction.parsed)))
    return _Card(
        name=visible(prediction.id),
        right=prediction.right,
        scores=[(name, _score(value)) for name, value in prediction.scores.items()],
        figures=figures,
        broken=broken,
        prompt=visible(prediction.prompt.rstrip()),
        expected=expected,
        answer=answer,
        reasoning=visible(prediction.parsed.reasoning),
        notes=[visible(note) for note in _notes(prediction)],
    )


def _figures(sample: EvalSample) -> tuple[list[Thumbnail], list[str]]:
    figures: list[Thumbnail] = []
    broken: list[str] = []
    media: Sequence[Media] = sample.prompt.media
    for item in media[:_MOST_MEDIA]:
        found = thumbnails(_shown(item), sample.sample_id)
        if isinstance(found, SampleError):
            broken.append(visible(found.detail))
        else:
            figures += found
    if len(media) > _MOST_MEDIA:
        broken.append(f"and {len(media) - _MOST_MEDIA} more")
    return figures, broken


def _shown(item: Media) -> ShownMedia:
    if isinstance(item.source, tuple):
        part: ImagePart | VideoPart = VideoPart(item.source)
    else:
        part = VideoPart(item.source) if item.is_video else ImagePart(item.source)
    return ShownMedia("", part, item, (0, 0))


def _words(answer: Answer) -> str:
    """The text of an answer, followed by its tool calls, one per line."""
    calls = [f"call {_call(call)}" for call in answer.tool_calls]
    return "\n".join([answer.text, *calls] if answer.text or not calls else calls)


def _call(call: ToolCall) -> str:
    if call.error is not None:
        return call.raw
    # Sorted, since the order of arguments makes no difference.
    return f"{call.name} {json.dumps(call.arguments, ensure_ascii=False, sort_keys=True)}"


def _score(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _notes(prediction: Prediction) -> Iterator[str]:
    if not prediction.ended:
        yield "cut off at the limit of new tokens"
    for number, call in enumerate(prediction.parsed.tool_calls, 1):
        if call.error is not None:
            yield f"call {number} cannot be read: {call.error}"
