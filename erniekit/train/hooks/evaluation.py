"""Evaluates the model during training."""

from __future__ import annotations

import time
from collections.abc import Callable

from erniekit.config.choices import PAIR_METRICS
from erniekit.evaluation.evaluator import EvaluationStopped
from erniekit.objectives.pairs import METRIC_DIVISORS
from erniekit.train.console import Console
from erniekit.train.metrics import StepMetrics
from erniekit.train.metrics_writer import MetricsWriter
from erniekit.train.trainer import Hook, Trainer

# The console only shows accuracy and margin of preference pairs.
_LOGGED_ONLY = {f"eval/{name}" for name in METRIC_DIVISORS} - set(PAIR_METRICS)


class EvaluationHook(Hook):
    """Evaluates every `every` steps (None: never) and at the end, but not after an interrupt.

    An evaluation that is interrupted is left for the resumed run, which begins with it: it may take longer than a
    preempted machine lives on. evaluate: returns metrics such as "eval/loss", given the number of steps done and a
    function that tells whether to stop, and raises EvaluationStopped then.
    """

    def __init__(
        self,
        evaluate: Callable[[int, Callable[[], bool]], dict[str, float]],
        every: int | None,
        writer: MetricsWriter,
        console: Console,
    ) -> None:
        self._evaluate, self._every = evaluate, every
        self._writer, self._console = writer, console
        self._evaluated_at = 0

    def on_train_start(self, trainer: Trainer) -> None:
        self._evaluated_at = trainer.progress.step
        if trainer.progress.pending_evaluation:
            self._run(trainer)

    def on_step_end(self, trainer: Trainer, metrics: StepMetrics) -> None:
        if self._every and trainer.progress.step % self._every == 0:
            self._run(trainer)

    def on_train_end(self, trainer: Trainer) -> None:
        if not trainer.is_interrupted and self._evaluated_at != trainer.progress.step:
            self._run(trainer)

    def _run(self, trainer: Trainer) -> None:
        step = self._evaluated_at = trainer.progress.step
        trainer.progress.pending_evaluation = True
        start = time.perf_counter()
        try:
            metrics = self._evaluate(step, lambda: trainer.is_stopping)
        except EvaluationStopped:
            # On all processes, which end without a further step.
            trainer.is_interrupted = True
            self._console.log(f"step {step}: the evaluation is left for the resumed run")
            return
        trainer.progress.pending_evaluation = False
        seconds = time.perf_counter() - start
        self._writer.write(step, metrics | {"eval/seconds": seconds})
        values = "  ".join(
            f"{name} {value:.4f}" for name, value in metrics.items() if name not in _LOGGED_ONLY
        )
        self._console.log(f"step {step}: {values}  ({seconds:.1f} s)")
        trainer.end_evaluation(metrics)
