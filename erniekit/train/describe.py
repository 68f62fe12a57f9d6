"""Data, model and plan of a run in words, for the log and the dry run."""

from __future__ import annotations

from collections.abc import Sequence

from erniekit.checkpoint.hub import spec_bytes
from erniekit.checkpoint.quantizer import stored_bytes
from erniekit.config import Config
from erniekit.config.choices import Quantize, Recompute
from erniekit.data.encode.stats import DataStats, ErrorBudget
from erniekit.display.text import counted
from erniekit.distributed.parallel_dims import ParallelDims
from erniekit.lora.targets import LoraMatch, group_matches
from erniekit.models.specs import TensorSpec, is_expert_tensor, is_quantized_tensor
from erniekit.train.memory import USABLE, MemoryPlan
from erniekit.train.plan import RunPlan
from erniekit.train.recompute import BackwardPlan

_NAMED_SAMPLES = 5
# Of so many steps a note says that nothing is saved before the end.
_MANY_STEPS = 1000


def describe_data(name: str, stats: DataStats, task: str = "sft") -> list[str]:
    """Statistics of a dataset."""
    share = stats.loss_tokens / stats.tokens
    lines = [
        f"{name}: {counted(stats.samples, 'sample')}, {counted(stats.tokens, 'token')}, {stats.loss_tokens:,} trained "
        f"({share:.1%}); longest {counted(stats.longest, 'token')}"
    ]
    if stats.images or stats.videos:
        videos = f" and {counted(stats.videos, 'video')}" if stats.videos else ""
        lines.append(
            f"  {counted(stats.images, 'image')}{videos}, {counted(stats.vision_tokens, 'vision token')}"
        )
    if stats.tool_calls:
        lines.append(f"  {counted(stats.tool_calls, 'tool call')}")
    if stats.documents != stats.samples:
        documents = counted(stats.documents, "document")
        lines.append(f"  {documents} (long texts are split, and data.loss_on may split chats by answer)")
    if stats.pairs:
        trained = "" if task == "dpo" else ", trained on the chosen answers only"
        lines.append(f"  {counted(stats.pairs, 'preference pair')}{trained}")
    if stats.trimmed:
        trimmed = counted(stats.trimmed, "document")
        lines.append(f"  {trimmed} without their oldest turns (data.on_long: trim_history)")
    if stats.untrained_reasoning:
        answers = counted(stats.untrained_reasoning, "earlier answer")
        lines.append(
            f"  the reasoning of {answers} is not trained, since later turns do not see it (data.loss_on: each_turn "
            "trains it)"
        )
    if stats.calls_as_history and task == "sft":
        lines.append(
            f"  {counted(stats.calls_as_history, 'tool call')} trained in the form of the chat history, not in the "
            "form that the model generates (data.loss_on: each_turn trains that form)"
        )
    return lines + [f"  {line}" for line in stats.notices.lines()]


def describe_skipped(budget: ErrorBudget) -> list[str]:
    """The number of skipped samples by reason, and the first few by name."""
    count = budget.num_left_out
    if not count:
        return []
    lines = [f"  {counted(count, 'sample')} skipped ({budget.by_reason()})"]
    lines += [f"    {error}" for error in budget.left_out()[:_NAMED_SAMPLES]]
    if count > _NAMED_SAMPLES:
        lines.append(f"    and {count - _NAMED_SAMPLES:,} more; `erniekit data check` names them all")
    return lines


def describe_run(plan: RunPlan, config: Config, template: str) -> list[str]:
    """Rows, steps and learning rate, and notes on intervals that do not fit."""
    per_step, schedule, length = config.num_rows(), plan.schedule, config.data.max_length
    until = "train.max_steps"
    if plan.epochs is not None:
        until = "1 epoch" if plan.epochs == 1 else f"{plan.epochs:g} epochs"
    rows = f"rows: template {template}; of at most {length:,} tokens, until the stream ends"
    steps = f"steps: {plan.total_steps:,} ({until}), {counted(per_step, 'row')} each"
    if plan.rows is not None:
        unused = unused_share(plan.tokens, plan.rows, length)
        padded = unused_share(plan.tokens, plan.documents, length)
        rows = (
            f"rows: template {template}; {counted(plan.rows, 'row')} per epoch, of at most {length:,} tokens, "
            f"{unused:.1%} unused (padding each sample would leave {padded:.1%} unused)"
        )
        steps += (
            f", about {plan.tokens / plan.rows * per_step:,.0f} tokens; "
            f"an epoch is {plan.rows / per_step:,.1f} steps"
        )
    warmup = counted(schedule.warmup_steps, "step")
    rate = f"learning rate: {schedule.peak:g}, {warmup} of warm-up, then {schedule.type}"
    floor = "" if schedule.type == "constant" else f" towards {schedule.minimum:g}"
    return [rows, steps, rate + floor, *_describe_intervals(plan.total_steps, config)]


def describe_rounding(config: Config, rows: int) -> list[str]:
    """A note if `rows` per step, computed from train.tokens_per_step, have a different number of tokens."""
    train, length = config.train, config.data.max_length
    if train.rows_per_step is not None or train.tokens_per_step in (None, rows * length):
        return []
    return [
        f"note: train.tokens_per_step is {train.tokens_per_step:,}, but a step takes up to {rows * length:,} tokens: "
        f"{counted(rows, 'row')} of {length:,}"
    ]


def _describe_intervals(total: int, config: Config) -> list[str]:
    """Notes on intervals that are longer than the run, which may be a mistake."""
    eval_every, patience = config.train.eval_every, config.eval.patience
    steps = counted(total, "step")
    lines = [
        f"note: {key} is {every:,}, more than the {steps} of the run: it is {done} at the end only"
        for key, every, done in (
            ("train.eval_every", eval_every, "evaluated"),
            ("checkpoint.save_every", config.checkpoint.save_every, "saved"),
            ("log.every", config.log.every, "logged"),
        )
        if every is not None and every > total
    ]
    if config.checkpoint.save_every is None and total >= _MANY_STEPS:
        lines.append(
            f"note: checkpoint.save_every is not set: the {steps} are saved at the end or an interrupt only, and are "
            "lost with the machine or the process"
        )
    profiled = config.train.profile_steps
    if profiled is not None and profiled[1] > total:
        lines.append(
            f"note: train.profile_steps ends with step {profiled[1]:,}, after the {steps} of the run"
        )
    if eval_every is not None and patience is not None and eval_every * (patience + 1) > total:
        lines.append(
            f"note: eval.patience is {patience:,}, but the run has only "
            f"{counted(total // eval_every, 'evaluation')}: it cannot end early"
        )
    return lines


def unused_share(tokens: int, rows: int, max_length: int) -> float:
    """The share of the positions in rows that hold no token."""
    return 1 - tokens / (rows * max_length)


def describe_parallel_dims(dims: ParallelDims) -> list[str]:
    """The parallel degrees of several processes."""
    if dims.world == 1:
        return []
    parts = [f"processes: {dims.world}"]
    if dims.expert > 1:
        parts.append(f"expert parallel degree {dims.expert}")
    if dims.context > 1:
        parts.append(f"context parallel degree {dims.context}")
    return ["; ".join(parts)]


def describe_vocab(before: int, rows: int, *, adapters: bool) -> str:
    """The effect of model.resize_vocab."""
    if rows == before:
        return f"vocabulary: every token has a row in the embedding, which keeps its {rows:,} rows"
    trained = "; embedding and head are trained and saved whole" if adapters else ""
    return f"vocabulary: {before:,} rows -> {rows:,}, the new ones start as the mean of the others{trained}"


def describe_lora(matches: Sequence[LoraMatch]) -> list[str]:
    """A table of the modules with adapters."""
    groups = group_matches(matches)
    width = max(len(group.pattern) for group in groups)
    ranks = {is_expert_tensor(f"{match.module}."): match.rank for match in matches}
    shown = f"rank {ranks.get(False, ranks.get(True))}"
    if len(set(ranks.values())) > 1:
        shown += f", rank {ranks[True]} of experts,"
    lines = [f"LoRA of {shown} on {counted(len(matches), 'module')}:"]
    lines += [
        f"  {group.pattern:<{width}}  {group.modules:>6,} x  {group.params:>12,} parameters"
        for group in groups
    ]
    return lines


def describe_quantized(choice: Quantize, specs: Sequence[TensorSpec], error: float) -> str:
    """The effect of model.quantize on the base model. error: see `relative_error`."""
    base = [spec for spec in specs if ".lora_" not in spec.name]
    count = sum(is_quantized_tensor(spec.name) for spec in base)
    before, after = sum(map(spec_bytes, base)), sum(stored_bytes(spec, choice) for spec in base)
    return (
        f"base quantized to {choice}: {counted(count, 'tensor')}, relative error {error:.2%}, "
        f"{format_bytes(after)} instead of {format_bytes(before)}"
    )


def describe_model(plan: MemoryPlan, processes: int = 1) -> list[str]:
    """Parameters, and memory of each process."""
    where = "memory" if processes == 1 else f"memory of each of {processes} processes"
    parts = [
        ("weights", plan.weight_bytes),
        ("dequantized weights", plan.dequantized_bytes),
        ("reference model", plan.reference_bytes),
        ("gradients", plan.gradient_bytes),
        ("optimizer", plan.optimizer_bytes),
        ("communication", plan.communication_bytes),
        ("activations of full rows", plan.activation_bytes),
    ]
    shown = ", ".join(f"{name} {format_bytes(count)}" for name, count in parts if count)
    lines = [
        f"parameters: {plan.parameters:,}, trained {plan.trained:,} ({plan.trained / plan.parameters:.2%})",
        f"{where}: {shown}; about {format_bytes(plan.total_bytes)} at the peak",
    ]
    if plan.cached_bytes:
        lines.append(
            f"  the main process holds the whole model, {format_bytes(plan.cached_bytes)}, while it computes the "
            "reference"
        )
    return lines


def describe_backward(
    plan: BackwardPlan, setting: Recompute, memory: MemoryPlan, device_bytes: int
) -> list[str]:
    """The layers without a backward pass, and the layers that are recomputed."""
    lines = []
    if plan.layers.start:
        lines.append(
            f"backward pass: {len(plan.layers)} of {plan.layers.stop} layers; nothing is trained below them"
        )
    if setting == "none":
        return lines
    parts = [f"{len(plan.recomputed_layers)} of {counted(len(plan.layers), 'layer')}"]
    if plan.vision_blocks:
        recomputed = min(len(plan.recomputed_vision), len(plan.vision_blocks))
        parts.append(f"{recomputed} of {counted(len(plan.vision_blocks), 'vision block')}")
    reason = ""
    if setting == "auto":
        fits = "fits" if memory.fits(device_bytes) else "does not fit"
        peak, device = format_bytes(memory.total_bytes), format_bytes(device_bytes)
        reason = f" (auto: {peak} at the peak {fits} into {USABLE:.0%} of {device})"
    return [*lines, f"recompute: {', '.join(parts)}{reason}"]


def format_bytes(count: float) -> str:
    """Such as "512 B" and "1.5 KiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
