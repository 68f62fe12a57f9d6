"""A report on an evaluation as an HTML page: the metrics, and answers next to their references."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from erniekit.data.chat.template import MediaSpan, Span, Template
from erniekit.data.media.images import source_name
from erniekit.data.media.item import Media
from erniekit.display.difference import DiffPiece, difference
from erniekit.display.page import render_page
from erniekit.display.text import visible
from erniekit.evaluation.dataset import EvalSample
from erniekit.evaluation.evaluate import Evaluation, Prediction
from erniekit.evaluation.metrics.choose import Verdict
from erniekit.evaluation.report import EvalSettings, format_tables
from erniekit.generation.answer import Answer, ToolCall
from erniekit.inspection.bubbles import Bubble, make_bubbles
from erniekit.inspection.preview import Piece, ShownMedia

_TEMPLATE = Path(__file__).with_name("report.html")
# Limits on the number of answers, to bound the size of the page.
MOST_SHOWN: dict[Verdict, int] = {"wrong": 300, "differs": 300, "right": 100}
_MOST_MEDIA = 6  # per sample
_OPEN_CHARACTERS = 1500  # longer prompts are folded


@dataclass(frozen=True, slots=True)
class _Card:
    """An answer on the page. prompt: the raw text; bubbles: the same as a chat."""

    name: str
    verdict: Verdict
    scores: list[tuple[str, str]]
    prompt: str
    bubbles: list[Bubble]
    expected: list[DiffPiece]
    answer: list[DiffPiece]
    reasoning: str
    notes: list[str]

    @property
    def prompt_is_open(self) -> bool:
        return len(self.prompt) <= _OPEN_CHARACTERS


class ReportPage:
    """Collects the first answers of each verdict, and renders them as an HTML page. template: of the prompts."""

    def __init__(self, template: Template) -> None:
        self._template = template
        self._cards: list[_Card] = []
        self._shown: dict[Verdict, int] = dict.fromkeys(MOST_SHOWN, 0)

    def add(self, sample: EvalSample, prediction: Prediction) -> None:
        """Adds an answer with thumbnails of the sample's images, unless the page has enough of its kind."""
        if self._shown[prediction.verdict] < MOST_SHOWN[prediction.verdict]:
            self._shown[prediction.verdict] += 1
            self._cards.append(_card(sample, prediction, self._template))

    def render(self, evaluation: Evaluation, settings: EvalSettings) -> str:
        """The HTML page. Text from data and model is escaped, and control characters are replaced by symbols."""
        total = evaluation.scores.overall.answers
        wrong, differing = evaluation.wrong, evaluation.differing
        counts: dict[Verdict, int] = {
            "wrong": wrong,
            "differs": differing,
            "right": total - wrong - differing,
        }
        metrics = evaluation.scores.overall.metrics
        values = {
            "title": f"Evaluation of {visible(settings.model)}",
            "settings": list(_settings(settings)),
            "table": visible("\n".join(format_tables(evaluation)).strip("\n")),
            "total": total,
            "counts": counts,
            "shown": self._shown,
            "complete": counts == self._shown,
            "metrics": [(name, f"{mean.value:.1%}") for name, mean in metrics.items()],
            "cards": self._cards,
        }
        return render_page(_TEMPLATE, values)


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


def _card(sample: EvalSample, prediction: Prediction, template: Template) -> _Card:
    expected, answer = difference(visible(_words(prediction.reference)), visible(_words(prediction.parsed)))
    return _Card(
        name=visible(prediction.id),
        verdict=prediction.verdict,
        scores=[(name, _score(value)) for name, value in prediction.scores.items()],
        prompt=visible(prediction.prompt),
        bubbles=make_bubbles(_pieces(sample), template, sample.sample_id),
        expected=expected,
        answer=answer,
        reasoning=visible(prediction.parsed.reasoning),
        notes=[visible(note) for note in _notes(sample, prediction)],
    )


def _pieces(sample: EvalSample) -> Iterator[Piece]:
    """The prompt in pieces, with the first images and videos."""
    media = iter(sample.prompt.media[:_MOST_MEDIA])
    for span in sample.prompt_spans:
        piece = _piece(span, media)
        if piece is not None:
            yield piece


def _piece(span: Span, media: Iterator[Media]) -> Piece | None:
    """The piece of a span, without its number of tokens; None for an image beyond the first ones."""
    if not isinstance(span, MediaSpan):
        return Piece(span.kind, span.text, 0, False)
    item = next(media, None)
    if item is None:
        return None
    name = source_name(span.part.source)
    return Piece("media", name, 0, False, ShownMedia(name, span.part, item, (0, 0)))


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


def _notes(sample: EvalSample, prediction: Prediction) -> Iterator[str]:
    more = len(sample.prompt.media) - _MOST_MEDIA
    if more > 0:
        yield f"{more:,} of the {len(sample.prompt.media):,} images and videos are not shown"
    if not prediction.ended:
        yield "cut off at the limit of new tokens"
    for number, call in enumerate(prediction.parsed.tool_calls, 1):
        if call.error is not None:
            yield f"call {number} cannot be read: {call.error}"
