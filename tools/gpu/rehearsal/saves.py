"""Measure on a GPU how long training waits for a copy of its state in host memory, before a checkpoint is written.

    python -m tools.gpu.rehearsal.saves
    python -m tools.gpu.rehearsal.saves --device cpu --tiny      a trial of the script

A model with the widths of 21B-A3B and a few layers is trained as in the rehearsal. erniekit's own copy
(`checkpoint/host_copy.py`) takes weights and optimizer state to pinned memory, beside the forward and backward passes.
Beside it stands a copy of one tensor after the other to ordinary memory, for which training waits. Copied values are
compared with those before the update, bit by bit. See README.md for what the adapter is, and is not.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

import torch

from .adapter import install

# Every so many tensors one is compared.
_COMPARED = 61


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=8192, help="tokens of a row")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16], help="rows of a step")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--device", choices=("gpu", "cpu"), default="gpu")
    parser.add_argument("--tiny", action="store_true", help="small layers")
    options = parser.parse_args()
    trial = options.device == "cpu"
    install(pretend_gpu=trial)
    from erniekit.runtime import configure

    if trial:
        configure("gpu", 1, 0, kernels="plain", attention="flashmask")
    else:
        configure("gpu", 1, 0)
        print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}", flush=True)
    _measure(options)


def _measure(options: argparse.Namespace) -> None:
    from erniekit.checkpoint.host_copy import GpuCopy

    from .cases import Case, Sizes
    from .ours import TrainingStep

    sizes = Sizes(tokens=64 if options.tiny else options.tokens, tiny=options.tiny)
    step = TrainingStep(Case.of("text/text/full"), options.layers, sizes)
    local = _local_tensors(step)
    size = sum(tensor.spec.size * tensor.values.element_size() for tensor in local)
    print(f"{size / 1e9:.2f} GB of weights and optimizer state in {len(local)} tensors", flush=True)

    def one_by_one() -> None:
        for tensor in _tensors(local):
            tensor.read().numpy()

    _report("each tensor to ordinary memory", _seconds(one_by_one), size)

    memory = GpuCopy()

    def copied() -> None:
        arrays = memory.start(_tensors(local))
        memory.wait()
        for _ in arrays:
            pass

    _report("pinned memory, the first time", _seconds(copied), size)
    _report("pinned memory, later", min(_seconds(copied) for _ in range(2)), size)
    for rows in options.rows:
        _measure_beside(step, local, rows, options.steps, memory)


def _measure_beside(step: Any, local: list[Any], rows: int, steps: int, memory: Any) -> None:
    """A copy beside each step of so many rows."""

    # Once: the adapter, unlike Paddle, reads the mask of a new row on the host, which waits for all copies in flight.
    row = step.upload()

    def compute() -> None:
        # The trainer reads the losses before the update.
        losses = [step.compute(row)[0].loss_sum for _ in range(rows)]
        for loss in losses:
            loss.item()

    def whole() -> None:
        compute()
        step.update()

    for _ in range(2):
        whole()
    alone = statistics.median(_seconds(whole) for _ in range(steps))
    waits, longer = [], []
    for _ in range(steps):
        before = [tensor.read().clone() for tensor in islice(_tensors(local), 0, None, _COMPARED)]
        _synchronize()
        began = time.perf_counter()
        arrays = memory.start(_tensors(local))
        wait = time.perf_counter() - began
        compute()
        computed = time.perf_counter()
        memory.wait()
        waits.append(wait + time.perf_counter() - computed)
        step.update()
        _synchronize()
        longer.append(time.perf_counter() - began - alone)
        # All are read, as they are written to a checkpoint.
        found = [array.copy() for number, array in enumerate(arrays) if number % _COMPARED == 0]
        if any(one.numpy().tobytes() != other.tobytes() for one, other in zip(before, found, strict=True)):
            raise SystemExit("the copy differs from the state before the update")
    print(
        f"a step of {rows} rows takes {alone:.3f} s; with a copy beside it, training waits "
        f"{statistics.median(waits):.3f} s and the step takes {statistics.median(longer):.3f} s more; the values are "
        "those before the update",
        flush=True,
    )


def _local_tensors(step: Any) -> list[Any]:
    """Weights and optimizer state as a checkpoint has them, under the Hub's names."""
    from erniekit.checkpoint.names import hub_tensors
    from erniekit.checkpoint.weights import local_tensor
    from erniekit.optim.adamw import STATES

    values, states = dict(step.model.named_parameters()), step.optimizer.state_tensors()
    found = []
    for tensor in hub_tensors(step.model):
        found.append(local_tensor(tensor, values[tensor.parameter]))
        names = (f"{tensor.parameter}.{state}" for state in STATES)
        found += [
            local_tensor(replace(tensor, parameter=name), states[name]) for name in names if name in states
        ]
    return found


def _tensors(local: list[Any]) -> Iterator[Any]:
    """All of them, live."""
    from erniekit.parallel.tensor_stream import CompleteTensor

    return (CompleteTensor(tensor.spec, tensor.values, tensor.start) for tensor in local)


def _report(what: str, seconds: float, size: int) -> None:
    print(f"{what}: {seconds:.2f} s, {size / seconds / 1e9:.1f} GB/s", flush=True)


def _seconds(run: Callable[[], None]) -> float:
    _synchronize()
    began = time.perf_counter()
    run()
    _synchronize()
    return time.perf_counter() - began


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
