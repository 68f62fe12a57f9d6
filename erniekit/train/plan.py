"""What a run is going to do, worked out before it does it, and said in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from erniekit.checkpoint.hub import spec_bytes
from erniekit.config import Config
from erniekit.data.dataset import DataStats
from erniekit.data.loader import RowLoader
from erniekit.lora.targets import LoraMatch, group_matches
from erniekit.models.specs import TensorSpec
from erniekit.train.schedule import Schedule, warmup_steps

_MOMENT_BYTES = 8
_MASTER_BYTES = 4
_SUM_BYTES = 4


@dataclass(frozen=True)
class RunPlan:
    """Length and learning rate of a run. `rows` are those of the first epoch, which hold `tokens` tokens."""

    total_steps: int
    epochs: int | None
    rows: int
    tokens: int
    schedule: Schedule


def plan_run(config: Config, loader: RowLoader) -> RunPlan:
    """Count the steps: train.max_steps, else the rows of all epochs over train.rows_per_step, rounded up."""
    train, settings = config.train, config.schedule
    if train.max_steps is not None:
        total = train.max_steps
    else:
        rows = sum(loader.rows_per_epoch(epoch) for epoch in range(train.epochs))
        total = math.ceil(rows / train.rows_per_step)
    return RunPlan(
        total_steps=total,
        epochs=train.epochs if train.max_steps is None else None,
        rows=loader.rows_per_epoch(0),
        tokens=sum(loader.dataset.lengths),
        schedule=Schedule(
            type=settings.type,
            peak=config.optimizer.learning_rate,
            minimum=settings.min_learning_rate,
            total_steps=total,
            warmup_steps=warmup_steps(total, settings.warmup_steps, settings.warmup_ratio),
            decay_ratio=settings.decay_ratio,
        ),
    )


@dataclass(frozen=True)
class ModelPlan:
    """Parameters of a model and what training them takes. Sizes in bytes; activations are not among them."""

    parameters: int
    trained: int
    weight_bytes: int
    gradient_bytes: int
    optimizer_bytes: int


def plan_model(specs: Sequence[TensorSpec], trained: Sequence[str], *, rows_per_step: int) -> ModelPlan:
    """Add up `specs`, all parameters as they are in memory, of which those named in `trained` are trained."""
    # Gradients of several rows are summed in float32 (`AdamW.collect_gradients`).
    sum_bytes = _SUM_BYTES if rows_per_step > 1 else 0
    names = set(trained)
    updated = [spec for spec in specs if spec.name in names]
    return ModelPlan(
        parameters=sum(spec.size for spec in specs),
        trained=sum(spec.size for spec in updated),
        weight_bytes=sum(spec_bytes(spec) for spec in specs),
        gradient_bytes=sum(
            spec_bytes(spec) + (0 if spec.dtype == "F32" else spec.size * sum_bytes) for spec in updated
        ),
        optimizer_bytes=sum(
            spec.size * (_MOMENT_BYTES + (0 if spec.dtype == "F32" else _MASTER_BYTES)) for spec in updated
        ),
    )


def describe_data(name: str, stats: DataStats) -> list[str]:
    """Statistics of a dataset in words."""
    share = stats.loss_tokens / stats.tokens
    lines = [
        f"{name}: {stats.samples:,} samples, {stats.tokens:,} tokens, {stats.loss_tokens:,} with loss "
        f"({share:.1%}); longest sample {stats.longest:,} tokens"
    ]
    if stats.images:
        lines.append(f"  {stats.images:,} pictures, {stats.vision_tokens:,} vision tokens")
    if stats.skipped:
        reasons = ", ".join(f"{reason}: {count:,}" for reason, count in stats.skipped.most_common())
        lines.append(f"  {sum(stats.skipped.values()):,} samples skipped ({reasons})")
    return lines


def describe_run(plan: RunPlan, config: Config, template: str) -> list[str]:
    """Rows, steps and learning rate in words."""
    per_step, schedule = config.train.rows_per_step, plan.schedule
    full = plan.tokens / (plan.rows * config.data.max_length)
    length = f"{plan.epochs} epoch(s)" if plan.epochs is not None else "train.max_steps"
    floor = "" if schedule.type == "constant" else f" towards {schedule.minimum:g}"
    return [
        f"rows: template {template}; {plan.rows:,} rows an epoch, of at most {config.data.max_length:,} "
        f"tokens, {full:.1%} full",
        f"steps: {plan.total_steps:,} ({length}), {per_step} row(s) each, about "
        f"{plan.tokens / plan.rows * per_step:,.0f} tokens; an epoch is {plan.rows / per_step:,.1f} steps",
        f"learning rate: {schedule.peak:g}, {schedule.warmup_steps:,} steps of warm-up, "
        f"then {schedule.type}{floor}",
    ]


def describe_model(plan: ModelPlan) -> list[str]:
    """Parameters and memory in words."""
    return [
        f"parameters: {plan.parameters:,}, trained {plan.trained:,} ({plan.trained / plan.parameters:.2%})",
        f"memory: weights {size(plan.weight_bytes)}, gradients {size(plan.gradient_bytes)}, "
        f"optimizer {size(plan.optimizer_bytes)}; activations come on top",
    ]


def describe_lora(matches: Sequence[LoraMatch], rank: int) -> list[str]:
    """The table of what the adapters were put on."""
    groups = group_matches(matches)
    width = max(len(group.pattern) for group in groups)
    lines = [f"LoRA of rank {rank} on {len(matches):,} modules:"]
    lines += [
        f"  {group.pattern:<{width}}  {group.modules:>6,} x  {group.params:>12,} parameters"
        for group in groups
    ]
    return lines


def size(count: float) -> str:
    """Bytes in words."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
