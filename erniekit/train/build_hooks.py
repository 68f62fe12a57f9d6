"""Builds the hooks of a run, with what they use: the metrics writer and its trackers, the evaluator, the report."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from erniekit.evaluation.answers import AnswerEvaluator
from erniekit.evaluation.dataset import EvalSample
from erniekit.evaluation.evaluate import Prediction
from erniekit.evaluation.evaluator import Evaluator
from erniekit.kernels.choice import describe_forms
from erniekit.models.ernie import ErnieModel
from erniekit.objectives.dpo import DpoObjective
from erniekit.objectives.sft import SftObjective
from erniekit.train.best import best_data
from erniekit.train.checkpointer import Checkpointer
from erniekit.train.flops import device_peak_flops
from erniekit.train.hooks.checkpoint import CheckpointHook
from erniekit.train.hooks.early_stopping import EarlyStoppingHook
from erniekit.train.hooks.evaluation import EvaluationHook
from erniekit.train.hooks.logging import LoggingHook
from erniekit.train.hooks.loss_spikes import LossSpikeHook
from erniekit.train.hooks.profiler import ProfilerHook
from erniekit.train.hooks.report import ReportHook
from erniekit.train.hooks.routers import RouterHook
from erniekit.train.inputs import Inputs
from erniekit.train.metrics_writer import MetricsWriter
from erniekit.train.plan import RunPlan
from erniekit.train.report import ReportParts, data_lines, environment_lines
from erniekit.train.run_context import RunContext
from erniekit.train.run_directory import writing_to
from erniekit.train.trackers.answers import shown_answers
from erniekit.train.trackers.layout import Category, run_layout
from erniekit.train.trackers.open import open_trackers
from erniekit.train.trackers.texts import config_text, samples_text
from erniekit.train.trainer import Hook


def build_hooks(
    context: RunContext,
    inputs: Inputs,
    plan: RunPlan,
    model: ErnieModel,
    objective: SftObjective | DpoObjective,
    checkpointer: Checkpointer,
    peak_flops: float | None,
    start_step: int,
    stack: ExitStack,
) -> list[Hook]:
    """The hooks of a run, in the order in which the trainer calls them.

    A step is logged, then evaluated, then saved. Early stopping comes before them, so that after an evaluation the
    log knows whether training ends, and checkpoints know whether it is the best evaluation. The profiler comes first:
    it records none of them. The report comes last.

    peak_flops: FLOP/s of all devices, None if it is not known; start_step: steps already done; stack: closes the
    metrics writer.
    """
    config, console = context.config, context.console
    layout = run_layout(config, model.config.moe, has_mfu=peak_flops is not None)
    with writing_to(context.run_dir):
        writer = open_writer(context, inputs, layout, start_step)
    stack.push(lambda kind, *_: writer.close(failed=kind is not None))
    evaluator = build_evaluator(context, inputs, model, objective, writer)
    hooks: list[Hook] = []
    if config.train.profile_steps is not None and context.dist.is_main:
        first, last = config.train.profile_steps
        hooks.append(ProfilerHook(first, last, context.run_dir, console))
    hooks.append(build_router_hook(context, model))
    if config.eval.best_metric is not None:
        data, settings = best_data(config, inputs), config.eval
        hooks.append(EarlyStoppingHook(config.eval.best_metric, settings.patience, settings.min_delta, data))
    hooks.append(
        LoggingHook(
            writer,
            console,
            config.log.every,
            lambda: inputs.train.epochs_done,
            peak_flops,
            router_detail=config.log.router_detail,
        )
    )
    hooks.append(LossSpikeHook(writer, console.log, context.peers))
    if evaluator is not None:
        hooks.append(EvaluationHook(evaluator, config.train.eval_every, writer, console))
    hooks.append(CheckpointHook(checkpointer, config.checkpoint.save_every, writer))
    if config.log.report and context.dist.is_main:
        hooks.append(build_report_hook(context, inputs, plan, layout, evaluator, writer))
    return hooks


def open_writer(
    context: RunContext, inputs: Inputs, layout: Sequence[Category], start_step: int
) -> MetricsWriter:
    """Open the metrics writer: in the run's directory for the main process, below RUN/logs for the others.

    layout: of the charts; start_step: steps already done. Trackers get the configuration and the first samples.
    """
    config, dist, log, run_dir = context.config, context.dist, context.log, context.run_dir
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
    context: RunContext,
    inputs: Inputs,
    model: ErnieModel,
    objective: SftObjective | DpoObjective,
    writer: MetricsWriter,
) -> Evaluator | None:
    """The evaluator of data.eval, with generated answers if eval.samples is not 0; None without data.eval.

    The trackers of `writer` show some of the answers.
    """
    config, dist, log = context.config, context.dist, context.log
    if inputs.eval_rows is None:
        return None

    def show(step: int, answered: Sequence[tuple[EvalSample, Prediction]]) -> None:
        writer.write_answers(step, shown_answers(answered))

    answers = None
    if config.eval.samples:
        shows = show if writer.has_trackers else None
        answers = AnswerEvaluator(config, model, inputs.encoder, dist, log, shows)
    return Evaluator(model, objective, inputs.eval_rows, answers, dist, log)


def build_router_hook(context: RunContext, model: ErnieModel) -> RouterHook:
    """The hook of the routers, with the weights of their losses."""
    loss = context.config.loss
    return RouterHook(
        model,
        orthogonal_weight=loss.orthogonal_weight,
        orthogonal_mode=loss.orthogonal_mode,
        bias_update_rate=loss.bias_update_rate,
    )


def build_report_hook(
    context: RunContext,
    inputs: Inputs,
    plan: RunPlan,
    layout: Sequence[Category],
    evaluator: Evaluator | None,
    writer: MetricsWriter,
) -> ReportHook:
    """The hook of report.html. layout: of the charts."""
    dtype, answers = context.dtype, None if evaluator is None else evaluator.answers
    device_name = device_peak_flops(dtype, None, context.device)[1]
    parts = ReportParts(
        context.config,
        layout,
        data_lines(inputs, plan, context.config),
        environment_lines(device_name, context.dist.mesh.world.size, describe_forms(dtype)),
        [] if answers is None else answers.samples,
    )
    return ReportHook(parts, writer, context.console)
