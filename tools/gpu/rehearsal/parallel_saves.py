"""Copies of sharded weights and optimizer state for a checkpoint, beside a step of several processes.

"gathered first" gathers the weights of all layers when a save begins. "forward" takes them from the forward pass, as
erniekit does (`train/forward_weights.py`). Seconds: how long the start of the save waits, the forward and backward
passes, the update, and how much longer the whole step takes. Copied values are compared with those before the update,
bit by bit. Imported after the adapter is installed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist

from erniekit.checkpoint.host_copy import GpuCopy
from erniekit.checkpoint.names import hub_tensors
from erniekit.checkpoint.weights import local_tensor
from erniekit.models.specs import TensorSpec
from erniekit.parallel.tensor_stream import CompleteTensor, TensorStream
from erniekit.train.forward_weights import ForwardWeights

from .parallel_run import ParallelStep

# Every so many tensors one is compared.
_COMPARED = 61
_KINDS = ("start", "passes", "update", "longer")


def measure_saves(step: ParallelStep, steps: int) -> dict[str, dict[str, float]]:
    """Medians of rank 0's seconds over so many steps, and the GB that it copies. All processes call this."""
    saves = {"gathered first": False, "forward": True}
    return {name: _measure(step, steps, in_forward=in_forward) for name, in_forward in saves.items()}


def _measure(step: ParallelStep, steps: int, *, in_forward: bool) -> dict[str, float]:
    copy = GpuCopy()
    assert step.fully_sharded is not None
    forward = ForwardWeights(step.fully_sharded, hub_tensors(step.model), copy)
    alone = statistics.median(_seconds(step) for _ in range(steps))
    found: dict[str, list[float]] = {kind: [] for kind in _KINDS}
    # The first copy allocates pinned memory.
    for number in range(steps + 1):
        seconds = _step_with_save(step, copy, forward if in_forward else None)
        if number:
            seconds["longer"] -= alone
            for kind in _KINDS:
                found[kind].append(seconds[kind])
    return {kind: statistics.median(values) for kind, values in found.items()} | {
        "step": alone,
        "gigabytes": copy.nbytes / 1e9,
    }


def _step_with_save(step: ParallelStep, copy: GpuCopy, forward: ForwardWeights | None) -> dict[str, float]:
    weights = _weights(step)
    expected = [
        tensor.read().clone()
        for number, tensor in enumerate(chain(weights, _optimizer(step)))
        if number % _COMPARED == 0
    ]
    _synchronize()
    began = time.perf_counter()
    if forward is None:
        arrays = copy.start(chain(weights, _optimizer(step)))
    else:
        arrays = copy.start(chain(weights.without_gathering(), _optimizer(step)))
        forward.begin()
    started = time.perf_counter()
    output = step.compute()
    # The trainer reads the losses before the update.
    output.loss_sum.item()
    passes = 0.0 if forward is None else forward.take_seconds()
    computed = time.perf_counter()
    copy.wait()
    waited = time.perf_counter()
    step.update()
    _synchronize()
    ended = time.perf_counter()
    # All are read, as they are written to a checkpoint.
    copied = [array.copy() for number, array in enumerate(arrays) if number % _COMPARED == 0]
    if any(one.numpy().tobytes() != other.tobytes() for one, other in zip(expected, copied, strict=True)):
        raise SystemExit("the copy differs from the state before the update")
    return {"start": started - began, "passes": passes, "update": waited - computed, "longer": ended - began}


def _weights(step: ParallelStep) -> TensorStream:
    layers: Any = step.fully_sharded
    values = dict(step.model.named_parameters()) | layers.parts
    shards = {name: layers.shard_of(name) for name in layers.names}
    tensors = hub_tensors(step.model)
    local = [
        local_tensor(tensor, values[tensor.parameter], shards.get(tensor.parameter)) for tensor in tensors
    ]
    return TensorStream(step.mesh, local)


def _optimizer(step: ParallelStep) -> Iterator[CompleteTensor]:
    """The part of this process."""
    for name, values in step.optimizer.state_tensors().items():
        yield CompleteTensor(TensorSpec(name, "F32", tuple(values.shape)), values)


def _seconds(step: ParallelStep) -> float:
    _synchronize()
    began = time.perf_counter()
    step()
    _synchronize()
    return time.perf_counter() - began


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    dist.barrier()
