"""Answers of the model that is trained to held-out chats, by all processes of the run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from erniekit.config import Config
from erniekit.config.choices import ANSWER_METRICS
from erniekit.data.chat.conversation import SampleError
from erniekit.data.encode.account import ErrorBudget
from erniekit.data.encode.document import Document
from erniekit.data.encode.encoder import Encoder
from erniekit.data.media.decode import decode
from erniekit.distributed.context import DistributedContext
from erniekit.errors import ConfigError, ErnieKitError
from erniekit.evaluation.dataset import EvalDataset, EvalSample, find_files, make_plan
from erniekit.evaluation.evaluate import Evaluation, OnPrediction, evaluate_generation
from erniekit.evaluation.metrics.choose import Pair, score
from erniekit.evaluation.report import writing_predictions
from erniekit.generation.answer import parse_answer
from erniekit.generation.generate import Generated, Generator, OnProgress
from erniekit.generation.sampling import Sampling
from erniekit.generation.text import AnswerText
from erniekit.models.ernie import ErnieModel
from erniekit.train.evaluating import spaced_progress
from erniekit.train.reference_model import alone

ANSWERS_DIR = "eval"
Log = Callable[[str], None]


class EvalAnswers:
    """The same chats of data.eval, answered in every evaluation.

    The answers are written to eval/step-000120.jsonl in the directory of the run. Raises ConfigError where data.eval
    has no chat, or eval.best_metric says nothing about those that it has.
    """

    def __init__(
        self, config: Config, model: ErnieModel, encoder: Encoder, dist: DistributedContext, log: Log
    ) -> None:
        settings = config.eval
        self._run = Path(config.train.output_dir)
        self._model, self._encoder, self._dist, self._log = model, encoder, dist, log
        self._text = AnswerText.from_checkpoint(config.model.path)
        self._sampling = Sampling(settings.max_new_tokens, settings.temperature)
        self._generator = DistributedGenerator(
            dist,
            model,
            self._text.eos_token_ids,
            encoder,
            batch_size=settings.batch,
            in_step=config.parallel.expert > 1 or config.parallel.shard == "parameters",
        )
        self.samples = draw_samples(config, encoder, dist, log)
        best = settings.best_metric if settings.best_metric in ANSWER_METRICS else None
        deciding = [] if best is None else [best.removeprefix("eval/")]
        self._plan = make_plan(self.samples, encoder.template, [*settings.metrics, *deciding])
        for metric in deciding:
            self._check_applies(metric)
        metrics = ", ".join(self._plan.metrics)
        log(f"held-out answers: {len(self.samples):,} chats in each evaluation, scored by {metrics}")

    def __call__(self, step: int) -> dict[str, float]:
        """Figures such as "eval/exact_match", the same in all processes. All of them call this together."""
        if not self._dist.is_main:
            return self._evaluate(None).scalars()
        with writing_predictions(self._run / ANSWERS_DIR / f"step-{step:06d}.jsonl") as write:
            return self._evaluate(lambda sample, prediction: write(prediction)).scalars()

    def _evaluate(self, on_prediction: OnPrediction | None) -> Evaluation:
        # Where processes share the rows of training, each computes whole prompts here.
        with alone(self._model):
            return evaluate_generation(
                self._generator,
                self._encoder,
                self._text,
                self.samples,
                self._plan,
                self._sampling,
                on_prediction=on_prediction,
                on_progress=spaced_progress(self._log),
            )

    def _check_applies(self, metric: str) -> None:
        for sample in self.samples:
            reference = parse_answer(self._text.round_trip(sample.expected), self._encoder.template)
            if score(Pair(reference, reference, True, sample.tools), [metric]):
                return
        raise ConfigError(
            f"eval.best_metric: {metric} says nothing about any of the {len(self.samples):,} held-out chats that are "
            f"answered; those fitting them are {', '.join(self._plan.metrics)}"
        )


class DistributedGenerator(Generator):
    """Generates with all processes of a run, each of which gets all the answers.

    Each answers a share of the prompts. in_step: a forward pass takes several processes; all of them answer every
    prompt then, and go on with the tokens of the first.
    """

    def __init__(
        self,
        dist: DistributedContext,
        model: ErnieModel,
        eos_token_ids: Sequence[int],
        encoder: Encoder,
        *,
        batch_size: int,
        in_step: bool,
    ) -> None:
        agree = dist.from_main if in_step else None
        super().__init__(model, eos_token_ids, encoder.media_spec, batch_size=batch_size, agree=agree)
        self._dist, self._in_step = dist, in_step

    def generate(
        self,
        documents: Sequence[Document],
        sampling: Sampling,
        on_progress: OnProgress | None = None,
        *,
        indices: Sequence[int] | None = None,
    ) -> list[Generated]:
        """As `Generator.generate`; all processes call it with the same arguments."""
        world = self._dist.mesh.world
        if world.size == 1 or self._in_step:
            return super().generate(documents, sampling, on_progress, indices=indices)
        own = range(world.rank, len(documents), world.size)
        places = range(len(documents)) if indices is None else indices

        def progress(finished: int) -> None:
            if on_progress is not None:
                on_progress(min(finished * world.size, len(documents)))

        # A share may take longer than parallel.timeout, and answers are of any length.
        with self._dist.mesh.busy("answering held-out chats"):
            answers = super().generate(
                [documents[index] for index in own],
                sampling,
                progress,
                indices=[places[index] for index in own],
            )
        # Of process r, every `size`th from r.
        gathered = self._dist.gather([[answer.ids, answer.finish] for answer in answers])
        return [
            Generated(*gathered[index % world.size][index // world.size]) for index in range(len(documents))
        ]


def draw_samples(config: Config, encoder: Encoder, dist: DistributedContext, log: Log) -> list[EvalSample]:
    """The chats of data.eval that are answered: eval.samples of them, whose pictures can be read.

    Raises ConfigError where there is none; SampleError for one that cannot be used, where data.on_error says so;
    ErnieKitError where not all processes have drawn the same.
    """
    data = config.data
    budget = ErrorBudget(data.on_error, data.max_errors, data.on_long)
    budget.on_skip = lambda error: log(f"skipped: {error}")
    heldout = EvalDataset(find_files([], data), encoder, budget=budget, allow_urls=data.allow_urls)
    samples = []
    for sample in heldout.draw_chats(config.eval.samples):
        if len(sample.whole) > data.max_length:
            continue
        # Now, and not hours into the run.
        try:
            decode(sample.prompt.media, sample.prompt.sample_id, encoder.media_spec)
        except SampleError as error:
            budget.spend(error)
            continue
        samples.append(sample)
    _check_same(samples, dist)
    if not samples:
        raise ConfigError(
            "eval.samples: data.eval has no chat that can be answered: chats of at most data.max_length tokens, that "
            "end with the assistant's answer; set it to 0 to compute the loss only"
        )
    return samples


def _check_same(samples: Sequence[EvalSample], dist: DistributedContext) -> None:
    """Without this, processes would answer different chats in step, or give each other's answers to wrong ones."""
    drawn = dist.gather([[sample.sample_id, len(sample.prompt)] for sample in samples])
    for rank, theirs in enumerate(drawn):
        if theirs == drawn[0]:
            continue
        number, (here, there) = next(
            (number, pair)
            for number, pair in enumerate(zip_longest(drawn[0], theirs), 1)
            if pair[0] != pair[1]
        )
        raise ErnieKitError(
            f"eval.samples: the processes have drawn different held-out chats: the {number}. is {_named(here)} on "
            f"rank 0, but {_named(there)} on rank {rank}. Is there a picture or video that only some of them can "
            "read, or do they read different files? Samples that were skipped are named above, or in logs/rank-*.log. "
            "Give all processes the same readable files, or leave those samples out of data.eval"
        )


def _named(chat: Sequence[Any] | None) -> str:
    return "none" if chat is None else f"{chat[0]} of {chat[1]:,} tokens"
