"""A plan in words and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from erniekit.display.text import counted
from erniekit.errors import ConfigError
from erniekit.train.describe import format_bytes
from erniekit.train.memory import USABLE, MemoryPlan
from erniekit.train.planner.gpus import Gpu
from erniekit.train.planner.job import Job
from erniekit.train.planner.remedies import Remedy, find_remedies
from erniekit.train.planner.roofline import MEASURED, step_time
from erniekit.train.planner.search import FittingLayout, search_layouts

_HALF = 0.5


def memory_parts(memory: MemoryPlan) -> dict[str, int]:
    """The parts of the memory of a process by name, without empty ones, in bytes."""
    parts = {
        "weights": memory.weight_bytes,
        "dequantized weights": memory.dequantized_bytes,
        "reference model": memory.reference_bytes,
        "gradients": memory.gradient_bytes,
        "optimizer": memory.optimizer_bytes,
        "communication": memory.communication_bytes,
        "activations": memory.activation_bytes,
    }
    return {name: size for name, size in parts.items() if size}


def plan_lines(job: Job, gpu: Gpu, *, search: bool = False) -> list[str]:
    """The plan of a run on GPUs of one kind, with what makes it fit, or with the fastest layouts.

    Raises ConfigError if the layout of the run is not possible on these GPUs, unless another one is searched for.
    """
    try:
        lines = [*_memory_lines(job, gpu), *_time_lines(job, gpu)]
    except ConfigError as error:
        if not search:
            raise
        lines = [f"the layout of the configuration: {error}"]
    if search:
        return [*lines, *_search_lines(search_layouts(job, gpu), job, gpu)]
    if not job.fits:
        lines += remedy_lines(find_remedies(job, gpu=gpu), gpu)
    return lines


def plan_json(job: Job, gpu: Gpu, *, search: bool = False) -> dict[str, Any]:
    """The same as JSON values: bytes, seconds and tokens."""
    memory, time = job.plan.memory, step_time(job, gpu)
    found: dict[str, Any] = {
        "gpu": gpu.name,
        "gpus": job.processes,
        "parameters": memory.parameters,
        "trained": memory.trained,
        "memory": memory_parts(memory),
        "peak": memory.total_bytes,
        "usable": round(USABLE * job.device_bytes),
        "fits": job.fits,
        "recomputed_layers": job.plan.backward.num_recomputed,
        "step_seconds": time.seconds,
        "tokens_per_second": time.tokens_per_second,
        "measured": gpu == MEASURED,
    }
    if search:
        found["layouts"] = [
            {
                "overrides": layout.overrides,
                "peak": layout.job.plan.memory.total_bytes,
                "tokens_per_second": layout.time.tokens_per_second,
            }
            for layout in search_layouts(job, gpu)
        ]
    elif not job.fits:
        found["changes"] = [
            {
                "overrides": remedy.overrides,
                "cost": remedy.cost,
                "peak": remedy.job.plan.memory.total_bytes,
                "tokens_per_second": step_time(remedy.job, gpu).tokens_per_second,
            }
            for remedy in find_remedies(job, gpu=gpu)
        ]
    return found


def remedy_lines(remedies: Sequence[Remedy], gpu: Gpu | None) -> list[str]:
    """The smallest changes that fit, cheapest first. gpu: the kind of the devices, if it is known."""
    if not remedies:
        return [
            "None of the changes that were tried makes it fit. Several together may (LoRA, model.quantize,",
            "lora.expert_rank, data.max_length); otherwise use more or larger GPUs.",
        ]
    lines = ["The smallest changes that fit, cheapest first:"]
    for remedy in remedies:
        peak = format_bytes(remedy.job.plan.memory.total_bytes)
        speed = "" if gpu is None else f"about {step_time(remedy.job, gpu).tokens_per_second:,.0f} tokens/s; "
        lines += [f"  {' '.join(remedy.overrides)}", f"      {peak}; {speed}{remedy.cost}"]
    return lines


def _memory_lines(job: Job, gpu: Gpu) -> list[str]:
    plan = job.plan
    memory, usable = plan.memory, USABLE * job.device_bytes
    rows = job.config.num_rows(job.dims.data)
    lines = [
        f"parameters: {memory.parameters:,}, trained {memory.trained:,} ({memory.trained / memory.parameters:.2%})",
        f"{counted(job.processes, 'GPU')} {gpu.name}: {counted(rows, 'sequence')} of "
        f"{job.config.data.max_length:,} tokens a step",
        "",
        "memory of each GPU at the peak",
    ]
    parts = memory_parts(memory)
    lines += [f"  {name:<20} {format_bytes(size):>10}" for name, size in parts.items()]
    reserve = job.device_bytes - usable
    lines += [
        f"  {'sum':<20} {format_bytes(memory.total_bytes):>10}",
        f"  {'reserve':<20} {format_bytes(reserve):>10}  (assumed {1 - USABLE:.0%}: CUDA context, NCCL, fragmentation)",
        f"  {'memory of the GPU':<20} {format_bytes(job.device_bytes):>10}",
    ]
    if memory.cached_bytes:
        lines.append(
            f"  the first GPU holds the whole reference, {format_bytes(memory.cached_bytes)}, before training"
        )
    margin = usable - memory.total_bytes
    verdict = "fits, with" if margin >= 0 else "does not fit: it lacks"
    end = " to spare" if margin >= 0 else ""
    lines.append(f"  {verdict} {format_bytes(abs(margin))}{end}")
    backward = plan.backward
    if backward.num_recomputed:
        lines.append(f"  recomputed: {backward.num_recomputed} of {backward.size} layers")
    return [*lines, ""]


def _time_lines(job: Job, gpu: Gpu) -> list[str]:
    """Time and throughput, and where the rates are from."""
    found = step_time(job, gpu)
    source = (
        "measured on this GPU" if gpu == MEASURED else f"measured on {MEASURED.name}, scaled by data sheets"
    )
    parts = {"compute": found.compute, "optimizer": found.optimizer, "communication": found.communication}
    shown = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in parts.items() if seconds)
    lines = [
        f"time of a step: about {found.seconds:.2f} s ({shown})",
        f"throughput: about {found.tokens_per_second:,.0f} tokens/s, full sequences of text",
    ]
    if job.architecture.vision is not None:
        images = step_time(job, gpu, _HALF)
        lines.append(
            f"            about {images.tokens_per_second:,.0f} tokens/s, if half of the tokens are of images"
        )
    lines.append(
        f"  a roofline with rates {source}; more than 2 GPUs were not measured"
        if job.processes > 2
        else f"  a roofline with rates {source}"
    )
    return lines


def _search_lines(layouts: Sequence[FittingLayout], job: Job, gpu: Gpu) -> list[str]:
    if not layouts:
        return ["", "No layout of these GPUs fits.", *remedy_lines(find_remedies(job, gpu=gpu), gpu)]
    lines = ["", f"The fastest layouts of {counted(job.processes, 'GPU')} that fit:"]
    for layout in layouts:
        peak = format_bytes(layout.job.plan.memory.total_bytes)
        settings = " ".join(layout.overrides) or "(as configured)"
        lines.append(f"  {layout.time.tokens_per_second:>10,.0f} tokens/s  {peak:>10}  {settings}")
    return lines
