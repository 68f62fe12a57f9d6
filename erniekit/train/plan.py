"""What a run is going to do, worked out before it does it, and said in words."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from erniekit.config import Config
from erniekit.data.chat.conversation import SampleError
from erniekit.data.encode.account import DataStats
from erniekit.data.load.loader import EPOCH_TOLERANCE
from erniekit.data.load.rows import StoredRows
from erniekit.data.load.stream import StreamedRows
from erniekit.distributed.parallel_dims import ParallelDims
from erniekit.errors import ConfigError
from erniekit.lora.targets import LoraMatch, group_matches
from erniekit.optim.schedule import Schedule, warmup_steps

_NAMED_SAMPLES = 5


@dataclass(frozen=True)
class RunPlan:
    """Length and learning rate of a run.

    `rows` are those of the first epoch, which hold `documents` documents of `tokens` tokens; None where a stream
    does not tell.
    """

    total_steps: int
    epochs: float | None
    rows: int | None
    documents: int
    tokens: int
    schedule: Schedule


def plan_run(config: Config, rows: StoredRows | StreamedRows) -> RunPlan:
    """Count the steps: train.max_steps, else the rows of all epochs over train.rows_per_step, rounded up.

    Raises ConfigError where the schedule does not fit into them.
    """
    train, settings = config.train, config.schedule
    count, documents, tokens = None, 0, 0
    if isinstance(rows, StoredRows):
        plan = rows.plan(0)
        count, documents = len(plan), sum(len(row) for row in plan)
        tokens = sum(int(rows.dataset.lengths[list(row)].sum()) for row in plan)
    if train.max_steps is not None:
        total = train.max_steps
    else:
        assert isinstance(rows, StoredRows), "a stream has max_steps: the schema asks for it"
        total = math.ceil(rows_in_epochs(rows, train.epochs) / train.rows_per_step)
    schedule = Schedule(
        type=settings.type,
        peak=config.optimizer.learning_rate,
        minimum=settings.min_learning_rate,
        total_steps=total,
        warmup_steps=warmup_steps(total, settings.warmup_steps, settings.warmup_ratio),
        decay_ratio=settings.decay_ratio,
    )
    _check_schedule(schedule)
    return RunPlan(
        total_steps=total,
        epochs=train.epochs if train.max_steps is None else None,
        rows=count,
        documents=documents,
        tokens=tokens,
        schedule=schedule,
    )


def _check_schedule(schedule: Schedule) -> None:
    total, warmup = schedule.total_steps, schedule.warmup_steps
    if warmup > total:
        raise ConfigError(
            f"schedule.warmup_steps is {warmup:,}, but the data and train.epochs give a run of {total:,} steps, which "
            "would end before the learning rate has risen. Lower it, or set schedule.warmup_steps: 0 and "
            "schedule.warmup_ratio, such as 0.1"
        )
    if schedule.type == "wsd" and warmup + schedule.decay_steps > total:
        raise ConfigError(
            f"schedule.decay_ratio is {schedule.decay_ratio:g}, which makes {schedule.decay_steps:,} steps of decay; "
            f"with {warmup:,} steps of warm-up these are more than the {total:,} steps of the run. Lower one of them"
        )


def rows_in_epochs(rows: StoredRows, epochs: float) -> int:
    """Rows of so many epochs; of a fraction of one its first rows, their number rounded up."""
    whole = math.floor(epochs)
    drawn = sum(rows.rows_per_epoch(epoch) for epoch in range(whole))
    if epochs > whole:
        drawn += math.ceil((epochs - whole - EPOCH_TOLERANCE) * rows.rows_per_epoch(whole))
    return drawn


def describe_data(name: str, stats: DataStats, task: str = "sft") -> list[str]:
    """Statistics of a dataset in words."""
    share = stats.loss_tokens / stats.tokens
    lines = [
        f"{name}: {stats.samples:,} samples, {stats.tokens:,} tokens, {stats.loss_tokens:,} with loss "
        f"({share:.1%}); longest {stats.longest:,} tokens"
    ]
    if stats.images or stats.videos:
        videos = f" and {stats.videos:,} videos" if stats.videos else ""
        lines.append(f"  {stats.images:,} pictures{videos}, {stats.vision_tokens:,} vision tokens")
    if stats.tool_calls:
        lines.append(f"  {stats.tool_calls:,} tool calls")
    if stats.documents != stats.samples:
        lines.append(
            f"  {stats.documents:,} documents (a sample can be several: long texts, answers one by one)"
        )
    if stats.pairs and task == "dpo":
        lines.append(f"  {stats.pairs:,} preference pairs")
    elif stats.pairs:
        lines.append(f"  {stats.pairs:,} preference pairs, of which the chosen answers are learnt")
    if stats.trimmed:
        lines.append(f"  {stats.trimmed:,} documents without their oldest turns (data.on_long: trim_history)")
    if stats.untrained_reasoning:
        lines.append(
            f"  the reasoning of {stats.untrained_reasoning:,} earlier answers is not learnt, since later turns "
            "do not see it (data.loss_on: each_turn learns it)"
        )
    if stats.calls_as_history and task == "sft":
        lines.append(
            f"  {stats.calls_as_history:,} tool calls are learnt as they stand in history, not as the model is asked "
            "for them (data.loss_on: each_turn learns them as answers)"
        )
    return lines + [f"  {line}" for line in stats.notices.lines()]


def describe_left_out(errors: Sequence[SampleError]) -> list[str]:
    """Samples that are not used, by reason, and the first few by name."""
    if not errors:
        return []
    counts = Counter(error.reason for error in errors)
    reasons = ", ".join(f"{reason}: {count:,}" for reason, count in counts.most_common())
    lines = [f"  {len(errors):,} samples skipped ({reasons})"]
    lines += [f"    {error}" for error in errors[:_NAMED_SAMPLES]]
    if len(errors) > _NAMED_SAMPLES:
        lines.append(f"    and {len(errors) - _NAMED_SAMPLES:,} more; `erniekit data check` names them all")
    return lines


def describe_run(plan: RunPlan, config: Config, template: str) -> list[str]:
    """Rows, steps and learning rate in words."""
    per_step, schedule, length = config.train.rows_per_step, plan.schedule, config.data.max_length
    until = f"{plan.epochs:g} epoch(s)" if plan.epochs is not None else "train.max_steps"
    floor = "" if schedule.type == "constant" else f" towards {schedule.minimum:g}"
    rows = f"rows: template {template}; of at most {length:,} tokens, as many as the stream gives"
    steps = f"steps: {plan.total_steps:,} ({until}), {per_step} row(s) each"
    if plan.rows is not None:
        unused, padded = waste(plan.tokens, plan.rows, length), waste(plan.tokens, plan.documents, length)
        rows = (
            f"rows: template {template}; {plan.rows:,} rows an epoch, of at most {length:,} tokens, "
            f"{unused:.1%} unused (padding each sample would leave {padded:.1%} unused)"
        )
        steps += (
            f", about {plan.tokens / plan.rows * per_step:,.0f} tokens; "
            f"an epoch is {plan.rows / per_step:,.1f} steps"
        )
    rate = (
        f"learning rate: {schedule.peak:g}, {schedule.warmup_steps:,} steps of warm-up, then {schedule.type}"
    )
    return [rows, steps, rate + floor, *_describe_intervals(plan.total_steps, config)]


def _describe_intervals(total: int, config: Config) -> list[str]:
    """Intervals that are longer than the run, which may not be meant."""
    evaluated, patience = config.train.eval_every, config.eval.patience
    lines = [
        f"note: {key} is {every:,}, more than the run's {total:,} steps: it is {done} at its end only"
        for key, every, done in (
            ("train.eval_every", evaluated, "evaluated"),
            ("checkpoint.save_every", config.checkpoint.save_every, "saved"),
            ("log.every", config.log.every, "logged"),
        )
        if every is not None and every > total
    ]
    if evaluated is not None and patience is not None and evaluated * (patience + 1) > total:
        lines.append(
            f"note: eval.patience is {patience:,}, more evaluations than follow the first of the run's "
            f"{total // evaluated:,}: it cannot end the run"
        )
    return lines


def waste(tokens: int, rows: int, max_length: int) -> float:
    """Share of the positions of rows that hold no token."""
    return 1 - tokens / (rows * max_length)


def describe_parallel_dims(dims: ParallelDims) -> list[str]:
    """What several processes share, in words."""
    if dims.world == 1:
        return []
    words = [f"processes: {dims.world}"]
    if dims.expert > 1:
        words.append(f"{dims.expert} share the experts")
    if dims.context > 1:
        words.append(f"{dims.context} share each row")
    return ["; ".join(words)]


def describe_vocab(before: int, rows: int, *, adapters: bool) -> str:
    """What model.resize_vocab does, in words."""
    if rows == before:
        return f"vocabulary: every token has a row in the embedding, which keeps its {rows:,} rows"
    trained = "; embedding and head are trained and saved whole" if adapters else ""
    return f"vocabulary: {before:,} rows -> {rows:,}, the new ones start as the mean of the others{trained}"


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
