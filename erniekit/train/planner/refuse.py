"""Rejects a run that cannot fit into memory, before its weights are loaded."""

from __future__ import annotations

from dataclasses import replace

from erniekit.errors import ConfigError
from erniekit.train.describe import format_bytes
from erniekit.train.planner.gpus import Gpu
from erniekit.train.planner.job import Job
from erniekit.train.planner.remedies import find_remedies
from erniekit.train.planner.report import memory_parts, remedy_lines


def refuse_what_cannot_fit(job: Job, gpu: Gpu | None = None) -> None:
    """Raise ConfigError if a lower bound of a run's memory exceeds the memory of its device.

    The bound has weights, the reference model, gradients, the optimizer's state, and the activations of the largest
    sequence of the data, as if it were text (0 if the data is not known). It does not have buffers of collectives and
    the reserve of the memory plan: a run that is only expected not to fit may try.
    gpu: as in `find_remedies`.
    """
    memory = job.plan.memory
    activations = 0
    if job.row is not None:
        text = replace(job, row=replace(job.row, media=0, frame=0))
        activations = text.plan.memory.activation_bytes
    state = memory.weight_bytes + memory.reference_bytes + memory.gradient_bytes + memory.optimizer_bytes
    certain = state + activations
    if certain <= job.device_bytes:
        return
    parts = ", ".join(f"{name} {format_bytes(size)}" for name, size in memory_parts(memory).items())
    lines = [
        f"the run does not fit: a process takes about {format_bytes(memory.total_bytes)} of memory ({parts}), at least "
        f"{format_bytes(certain)}, and has {format_bytes(job.device_bytes)}. Nothing was loaded; --force starts it "
        "anyway",
        *remedy_lines(find_remedies(job, gpu=gpu), gpu),
    ]
    raise ConfigError("\n".join(lines))
