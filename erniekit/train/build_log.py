"""Builds the outputs of a run: the metrics writer with its trackers, the evaluator, and the report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from erniekit.config import Config
from erniekit.distributed.context import DistributedContext
from erniekit.evaluation.answers import AnswerEvaluator
from erniekit.evaluation.dataset import EvalSample
from erniekit.evaluation.evaluate import Prediction
from erniekit.evaluation.evaluator import Evaluator
from erniekit.kernels.choice import describe_forms
from erniekit.models.ernie import ErnieModel
from erniekit.objectives.dpo import DpoObjective
from erniekit.objectives.sft import SftObjective
from erniekit.train.console import Console
from erniekit.train.flops import device_peak_flops
from erniekit.train.hooks.report import ReportHook
from erniekit.train.inputs import Inputs
from erniekit.train.metrics_writer import MetricsWriter
from erniekit.train.plan import RunPlan
from erniekit.train.report import ReportParts, data_lines, environment_lines
from erniekit.train.trackers.answers import shown_answers
from erniekit.train.trackers.layout import Category
from erniekit.train.trackers.open import open_trackers
from erniekit.train.trackers.texts import config_text, samples_text

Log = Callable[[str], None]


def open_writer(
    config: Config,
    inputs: Inputs,
    layout: Sequence[Category],
    dist: DistributedContext,
    log: Log,
    start_step: int,
) -> MetricsWriter:
    """Open the metrics writer: in the run's directory for the main process, below RUN/logs for the others.

    layout: of the charts; start_step: steps already done. Trackers get the configuration and the first samples.
    """
    run_dir = Path(config.train.output_dir)
    if not dist.is_main:
        directory = run_dir / "logs" / f"rank-{dist.mesh.rank}"
        directory.mkdir(parents=True, exist_ok=True)
        return MetricsWriter(directory, start_step=start_step, log=log)
    trackers = open_trackers(config, layout, start_step, log)
    writer = MetricsWriter(run_dir, trackers, start_step=start_step, log=log)
    if trackers:
        writer.write_text(start_step, "run/config", config_text(config))
        writer.write_text(start_step, "run/samples", samples_text(config, inputs.encoder))
    return writer


def build_evaluator(
    config: Config,
    inputs: Inputs,
    model: ErnieModel,
    objective: SftObjective | DpoObjective,
    writer: MetricsWriter,
    dist: DistributedContext,
    log: Log,
) -> Evaluator | None:
    """The evaluator of data.eval, with generated answers if eval.samples is not 0; None without data.eval.

    The trackers of `writer` show some of the answers.
    """
    if inputs.eval_rows is None:
        return None

    def show(step: int, answered: Sequence[tuple[EvalSample, Prediction]]) -> None:
        writer.write_answers(step, shown_answers(answered))

    answers = None
    if config.eval.samples:
        shows = show if writer.has_trackers else None
        answers = AnswerEvaluator(config, model, inputs.encoder, dist, log, shows)
    return Evaluator(model, objective, inputs.eval_rows, answers, dist, log)


def build_report_hook(
    config: Config,
    inputs: Inputs,
    plan: RunPlan,
    layout: Sequence[Category],
    evaluator: Evaluator | None,
    writer: MetricsWriter,
    dist: DistributedContext,
    dtype: str,
    device: str,
    console: Console,
) -> ReportHook:
    """The hook of report.html. dtype: of the computation; device: "cpu" or "gpu"."""
    answers = None if evaluator is None else evaluator.answers
    parts = ReportParts(
        config,
        layout,
        data_lines(inputs, plan, config),
        environment_lines(
            device_peak_flops(dtype, None, device)[1], dist.mesh.world.size, describe_forms(dtype)
        ),
        [] if answers is None else answers.samples,
    )
    return ReportHook(parts, writer, console)
