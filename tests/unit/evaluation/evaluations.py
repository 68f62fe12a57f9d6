"""Evaluations without a model, for tests of reports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from erniekit.data.chat.conversation import ImagePart
from erniekit.data.chat.families import TEMPLATES
from erniekit.data.chat.template import MediaSpan, Span, TextSpan
from erniekit.data.encode.document import Document
from erniekit.data.media.item import Media
from erniekit.evaluation.dataset import EvalSample
from erniekit.evaluation.evaluate import Evaluation, Prediction
from erniekit.evaluation.metrics.choose import judge
from erniekit.evaluation.scores import Scores
from erniekit.generation.answer import Answer, ToolCall

BROKEN = ToolCall("add", None, '{"name": "add"', "cut off")


def image(path: Path | bytes) -> Media:
    """An image in a document, with arbitrary sizes."""
    return Media(path if isinstance(path, bytes) else str(path), (1, 4, 4), 1, 4, 2)


def answered(
    name: str,
    expected: str,
    answer: str,
    *,
    prompt: str = "Which?",
    reasoning: str = "",
    calls: tuple[ToolCall, ...] = (),
    expected_calls: tuple[ToolCall, ...] = (),
    ended: bool = True,
    media: tuple[Media, ...] = (),
    **scores: float,
) -> tuple[EvalSample, Prediction]:
    """A sample and its prediction."""
    document = Document(np.zeros(8, np.int32), np.zeros(8, np.int32), media, name)
    source = name.partition(":")[0]
    template = TEMPLATES["ernie_vl"]
    labels = [
        (TextSpan(f"Picture {n}:", "template"), MediaSpan(ImagePart(item.source)))
        for n, item in enumerate(media, 1)
        if not isinstance(item.source, tuple)
    ]
    spans: list[Span] = [TextSpan(template.user[0], "template"), *(span for pair in labels for span in pair)]
    spans += [TextSpan(prompt, "user"), TextSpan(template.user[1] + template.answer_start, "template")]
    sample = EvalSample(name, source, document, document, tuple(spans), expected)
    scores = {"exact_match": float(ended and answer == expected), **scores}
    reference = Answer("", expected, expected_calls)
    prediction = Prediction(
        name,
        source,
        sample.prompt_text,
        expected,
        answer,
        ended,
        scores["exact_match"] == 1,
        judge(scores, reference),
        reference=reference,
        parsed=Answer(reasoning, answer, calls),
        scores=scores,
    )
    return sample, prediction


def evaluation_of(*answers: tuple[EvalSample, Prediction], **losses: Any) -> Evaluation:
    """The evaluation of these answers; losses: (samples, loss sum, tokens) by source."""
    scores = Scores()
    for sample, prediction in answers:
        for group in scores.groups_of(sample):
            group.add_answer(prediction.ended, prediction.scores)
    for source, (samples, loss_sum, tokens) in losses.items():
        for group in (scores.overall, scores.sources[source]):
            group.samples += samples
            group.loss_sum += loss_sum
            group.loss_tokens += tokens
    unlike = [prediction for _, prediction in answers if prediction.verdict != "right"]
    wrong = sum(prediction.verdict == "wrong" for prediction in unlike)
    return Evaluation(scores, wrong, len(unlike) - wrong, tuple(unlike[:3]))
