"""Generates and scores answers to chats of data.eval during training, by all processes of the run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from erniekit.config import Config
from erniekit.config.choices import ANSWER_METRICS
from erniekit.data.chat.conversation import SampleError
from erniekit.data.encode.encoder import Encoder
from erniekit.data.encode.stats import ErrorBudget
from erniekit.data.media.access import MediaAccess
from erniekit.data.media.item import decode
from erniekit.display.progress import OnProgress, log_progress
from erniekit.display.text import counted, listed
from erniekit.distributed.context import DistributedContext
from erniekit.errors import ConfigError, ErnieKitError
from erniekit.evaluation.dataset import EvalDataset, EvalSample, find_files, make_plan
from erniekit.evaluation.distributed_generator import DistributedGenerator
from erniekit.evaluation.evaluate import Evaluation, OnPrediction, Prediction, evaluate_generation
from erniekit.evaluation.metrics.choose import Pair, score
from erniekit.evaluation.report import writing_predictions
from erniekit.generation.answer import parse_answer
from erniekit.generation.detokenizer import Detokenizer
from erniekit.generation.sampling import Sampling
from erniekit.models.ernie import ErnieModel
from erniekit.parallel.unsharded import unsharded_rows

ANSWERS_DIR = "eval"
_PROGRESS_SECONDS = 10.0
_NAMED = 3
Log = Callable[[str], None]
# Called by the main process after `step` steps with all chats and their answers.
OnAnswers = Callable[[int, Sequence[tuple[EvalSample, Prediction]]], None]


class AnswerEvaluator:
    """Scores generated answers to the same chats of data.eval in every evaluation.

    The answers are written to eval/step-000120.jsonl in the run's directory, if its disk takes them, and passed to
    `on_answers`. Raises ConfigError if data.eval has no chat, or eval.best_metric does not apply to any of its chats.
    """

    def __init__(
        self,
        config: Config,
        model: ErnieModel,
        encoder: Encoder,
        dist: DistributedContext,
        log: Log,
        on_answers: OnAnswers | None = None,
    ) -> None:
        settings = config.eval
        self._run_dir = Path(config.train.output_dir)
        self._model, self._encoder, self._dist, self._log = model, encoder, dist, log
        self._on_answers = on_answers
        self._text = Detokenizer.from_checkpoint(config.model.directory)
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
        best_metrics = [] if best is None else [best.removeprefix("eval/")]
        self._plan = make_plan(self.samples, encoder.template, [*settings.metrics, *best_metrics])
        for metric in best_metrics:
            self._check_applies(metric)
        metrics = ", ".join(self._plan.metrics)
        log(f"eval answers: {counted(len(self.samples), 'chat')} in each evaluation, scored by {metrics}")

    def __call__(self, step: int, stop: Callable[[], None] = lambda: None) -> dict[str, float]:
        """Metrics such as "eval/exact_match", the same in all processes, which call this together.

        stop: called between the answers; what it raises ends the evaluation.
        """
        if not self._dist.is_main:
            return self._evaluate(None, stop).scalars()
        answered: list[tuple[EvalSample, Prediction]] = []
        metrics = self._evaluate(lambda *answer: answered.append(answer), stop).scalars()
        try:
            with writing_predictions(answers_file(self._run_dir, step)) as write:
                for _, prediction in answered:
                    write(prediction)
        except ErnieKitError as error:
            self._log(f"note: {error}. The run goes on without them")
        if self._on_answers is not None:
            self._on_answers(step, answered)
        return metrics

    def _evaluate(self, on_prediction: OnPrediction | None, stop: Callable[[], None]) -> Evaluation:
        report = eval_progress(self._log, "chats")

        def on_progress(phase: str, done: int, total: int) -> None:
            stop()
            report(phase, done, total)

        # Each process computes whole prompts, even if processes share rows in training.
        with unsharded_rows(self._model):
            return evaluate_generation(
                self._generator,
                self._encoder,
                self._text,
                self.samples,
                self._plan,
                self._sampling,
                on_prediction=on_prediction,
                on_progress=on_progress,
            )

    def _check_applies(self, metric: str) -> None:
        for sample in self.samples:
            reference = parse_answer(self._text.round_trip(sample.expected), self._encoder.template)
            if score(Pair(reference, reference, True, sample.tools), [metric]):
                return
        raise ConfigError(
            f"eval.best_metric: {metric} does not apply to any of the {counted(len(self.samples), 'chat')} of "
            f"data.eval that are answered; these metrics do: {', '.join(self._plan.metrics)}"
        )


def eval_progress(log: Log, unit: str) -> OnProgress:
    """Logs lines such as "  eval loss: 4 of 8 rows, about 6 s left" during a long evaluation. unit: in the plural."""
    return log_progress(lambda line: log(f"  eval {line}"), unit, _PROGRESS_SECONDS)


def answers_file(run_dir: Path, step: int) -> Path:
    """The file of the answers after `step` steps."""
    return run_dir / ANSWERS_DIR / f"step-{step:06d}.jsonl"


def draw_samples(config: Config, encoder: Encoder, dist: DistributedContext, log: Log) -> list[EvalSample]:
    """Draw eval.samples chats of data.eval to answer, only chats with images that can be read.

    Raises ConfigError if there are none, SampleError for a chat that cannot be used if data.on_error is raise, and
    ErnieKitError if the processes have drawn different chats.
    """
    data = config.data
    budget = ErrorBudget(data.on_error, data.max_errors, data.on_long)
    budget.on_skip = lambda error: log(f"skipped: {error}")
    dataset = EvalDataset(find_files([], data), encoder, budget=budget, access=MediaAccess.of(data))
    samples = []
    for sample in dataset.draw_chats(config.eval.samples):
        if len(sample.whole) > data.max_length:
            continue
        # Unreadable images are found now, not hours into the run.
        try:
            decode(sample.prompt.media, sample.prompt.sample_id, encoder.media_spec)
        except SampleError as error:
            budget.spend(error)
            continue
        samples.append(sample)
    _check_same(samples, budget, dist)
    if not samples:
        raise ConfigError(
            "eval.samples: data.eval has no chat that can be answered, which is a chat of at most data.max_length "
            "tokens that ends with the assistant's answer; set eval.samples to 0 to compute the loss only"
        )
    return samples


def _check_same(samples: Sequence[EvalSample], budget: ErrorBudget, dist: DistributedContext) -> None:
    """Raises ErnieKitError if the processes have drawn different chats: answers would be assigned to wrong chats."""
    drawn = dist.all_gather_object([[sample.sample_id, len(sample.prompt)] for sample in samples])
    skipped = dist.all_gather_object([str(error) for error in budget.left_out()])
    for rank, theirs in enumerate(drawn):
        if theirs == drawn[0]:
            continue
        number, (here, there) = next(
            (number, pair)
            for number, pair in enumerate(zip_longest(drawn[0], theirs), 1)
            if pair[0] != pair[1]
        )
        differing = [
            error
            for error in dict.fromkeys([*skipped[0], *skipped[rank]])
            if (error in skipped[0]) != (error in skipped[rank])
        ]
        one = f" One of them has skipped {listed(differing, _NAMED)}." if differing else ""
        raise ErnieKitError(
            f"eval.samples: the processes have drawn different chats of data.eval: chat {number} is {_describe(here)} "
            f"on rank 0, but {_describe(there)} on rank {rank}. Is there an image or video that only some processes "
            f"can read, or do they read different files?{one} Give all processes the same readable files, or leave "
            "those samples out of data.eval"
        )


def _describe(chat: Sequence[Any] | None) -> str:
    return "none" if chat is None else f"{chat[0]} of {counted(chat[1], 'token')}"
