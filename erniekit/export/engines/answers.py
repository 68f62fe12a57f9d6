"""Answers of engines to the same prompts, and how far they are from Paddle's."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import paddle

from erniekit.data.encode.document import IGNORE, Document
from erniekit.data.load.loader import load_row
from erniekit.data.media.item import MediaSpec
from erniekit.export.engines.prompts import Prompt
from erniekit.export.engines.router_ties import noting_ties
from erniekit.generation.generate import Generator
from erniekit.generation.sampling import Sampling
from erniekit.models.ernie import ErnieModel
from erniekit.objectives.device_batch import row_inputs

TOLERANCE = 1e-3
"""Largest difference of log-probabilities between two float32 implementations on the same weights."""
ROUNDED_TOLERANCE = 0.3
"""The same if the engine has weights that were rounded to 16 bits, or computes in bfloat16."""


@dataclass(frozen=True)
class Answer:
    """The greedy answer to a prompt of T tokens.

    `input_ids` [T]: the prompt as the engine read it; `prompt_logprobs` [T - 1]: log-probability of each token of the
    prompt but the first; `tokens` [n]: the answer, not ended by end tokens; `logprobs` [n]: of these. `error`: why
    there is no answer; the other fields are empty then.
    """

    input_ids: list[int] = field(default_factory=list)
    prompt_logprobs: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    error: str = ""


@dataclass(frozen=True)
class PaddleAnswer:
    """Paddle's answer, and `steps` float32 [n, vocab]: the log-probabilities of all tokens at each place of it.

    router_tie: the first token of prompt and answer for which two experts are equally probable.
    """

    answer: Answer
    steps: np.ndarray
    router_tie: int | None = None


@dataclass(frozen=True)
class Row:
    """The comparison of one prompt, or of the files alone (`prompt` is empty), as a line of the table."""

    engine: str
    prompt: str
    status: Literal["ok", "note", "FAIL"]
    tokens: str
    difference: float | None
    remark: str = ""


def paddle_answers(
    model: ErnieModel, prompts: Sequence[Prompt], spec: MediaSpec | None, max_new_tokens: int
) -> list[PaddleAnswer]:
    """Paddle's greedy answers of exactly `max_new_tokens` tokens. spec: the encoder's."""
    generator = Generator(model, (), spec)
    found = generator.generate(
        [prompt.document for prompt in prompts], Sampling(max_new_tokens=max_new_tokens)
    )
    return [
        _scored(model, prompt.document, generated.ids, spec)
        for prompt, generated in zip(prompts, found, strict=True)
    ]


def compare(engine: str, prompt: Prompt, expected: PaddleAnswer, found: Answer, tolerance: float) -> Row:
    """Compare token by token, and the log-probabilities up to the first token that differs."""
    wanted = expected.answer
    if found.error:
        return Row(engine, prompt.name, "FAIL", "no answer", None, found.error)
    if found.input_ids != wanted.input_ids:
        remark = f"reads {len(found.input_ids)} tokens, training {len(wanted.input_ids)}"
        if len(found.input_ids) == len(wanted.input_ids):
            remark = "reads other tokens than training"
        return Row(engine, prompt.name, "FAIL", "other prompt", None, f"its processor {remark}")
    total = len(wanted.tokens)
    if len(found.tokens) != total:
        return Row(
            engine,
            prompt.name,
            "FAIL",
            f"{len(found.tokens)} tokens",
            None,
            f"its answer has not {total} tokens",
        )
    pairs = zip(wanted.tokens, found.tokens, strict=True)
    same = next((place for place, (own, theirs) in enumerate(pairs) if own != theirs), total)
    mine = np.array(wanted.prompt_logprobs + wanted.logprobs[:same])
    theirs = np.array(found.prompt_logprobs + found.logprobs[:same])
    difference = float(np.abs(mine - theirs).max())
    remarks = []
    tie = expected.router_tie
    if tie and (difference > tolerance or same < total) and tie <= len(mine):
        # The log-probability at place n is that of token n + 1.
        difference = float(np.abs(mine[:tie] - theirs[:tie]).max())
        remarks.append(
            f"compared up to token {tie} of prompt and answer: then two experts are equally probable"
        )
        tied = True
    elif same < total:
        step = expected.steps[same]
        gap = float(step[wanted.tokens[same]] - step[found.tokens[same]])
        tied = gap <= tolerance
        remarks.append(f"token {same + 1} differs" + (", two are equally probable" if tied else ""))
    else:
        tied = True
    ok = tied and difference <= tolerance
    if not difference <= tolerance:
        remarks.append(f"log-probabilities differ by {difference:.2g}, allowed {tolerance:g}")
    return Row(
        engine, prompt.name, "ok" if ok else "FAIL", f"{same} of {total}", difference, ", ".join(remarks)
    )


def table(rows: Sequence[Row]) -> list[list[str]]:
    """The rows with a heading, for `format_table`."""
    heading = ["engine", "prompt", "greedy tokens", "log-probabilities", "result"]
    lines = [
        [
            row.engine,
            row.prompt or "files",
            row.tokens,
            "-" if row.difference is None else f"{row.difference:.1e}",
            row.status,
        ]
        for row in rows
    ]
    return [heading, *lines]


def _scored(model: ErnieModel, prompt: Document, tokens: list[int], spec: MediaSpec | None) -> PaddleAnswer:
    """Score a prompt with its answer in one pass over both."""
    ids = np.concatenate([prompt.input_ids, np.array(tokens, np.int32)])
    whole = dataclasses.replace(prompt, input_ids=ids, labels=np.full(len(ids), IGNORE, np.int32))
    row = row_inputs(load_row([whole], spec))
    with noting_ties(model) as tie:
        logits = model.logits(model(row).hidden[:-1]).astype("float64")
        logprobs = paddle.nn.functional.log_softmax(logits, axis=-1).numpy()
    chosen = logprobs[np.arange(len(logprobs)), ids[1:]].tolist()
    cut = len(prompt) - 1
    answer = Answer(prompt.input_ids.tolist(), chosen[:cut], tokens, chosen[cut:])
    return PaddleAnswer(answer, logprobs[cut:].astype(np.float32), tie.position)
