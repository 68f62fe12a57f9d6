"""Compare a mixture-of-experts layer with dense products of the same work, and time its dispatch over processes.

    python tools/bench/moe.py [--sizes HIDDENxWIDTHxTOKENS ...] [--repeats 7] [--threads N] [--processes 2 4]

64 experts with top-6 routing, forward and backward of the first packed sequence of a step, without gradient
accumulation. The sizes are a small layer and the experts of ERNIE 4.5: 512 wide for images in VL-28B-A3B, 1,536 wide
for text there and in 21B-A3B, with 8,192 tokens (about 12 GiB of memory and 7 minutes on two cores for all sizes).
Without a correction bias, the load is even: 144 to 239 of 2,048 tokens per expert. An uneven load would be faster.
The dense side is one MLP of 6 times the width on the same tokens, with the same number of multiplications as the
chosen experts. With several CPU processes, the experts of the first size are divided among them; dispatch time is the
time of the two all-to-alls, forward and backward, and of the exchange of counts. The two forms take turns, and the
rate is the median ratio over turns, which is less noisy than the times.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from erniekit import runtime

runtime.prepare_environment()

import numpy as np
import paddle
from paddle import nn

from erniekit.distributed import collectives, differentiable
from erniekit.distributed.mesh import connect
from erniekit.distributed.parallel_dims import ParallelDims
from erniekit.distributed.worker import LOCALHOST, Worker, worker_environment, worker_from
from erniekit.layers import Mlp
from erniekit.moe.config import MoeConfig
from erniekit.moe.layer import MoeLayer
from erniekit.moe.router import ModalityIndex
from erniekit.parallel.expert_parallel import ExpertParallelDispatcher

EXPERTS, TOP_K = 64, 6
_WARM_UP = 2  # turns until no memory is asked of the system


class Size(NamedTuple):
    """Of a layer, and of the row that goes through it."""

    hidden: int
    width: int
    tokens: int


SIZES = [Size(512, 512, 2048), Size(2560, 512, 8192), Size(2560, 1536, 8192)]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=_size, nargs="+", default=SIZES, help="hidden size, width, tokens")
    parser.add_argument("--repeats", type=int, default=7, help="timed runs")
    parser.add_argument("--threads", type=int, help="CPU threads of a single process; default: one per core")
    parser.add_argument("--processes", type=int, nargs="*", default=[2, 4], help="expert parallel degrees")
    arguments = parser.parse_args()
    worker = worker_from(os.environ)
    if worker is not None:
        _in_group(arguments, worker)
        return
    runtime.configure("cpu", arguments.threads, seed=0)
    for size in arguments.sizes:
        _compare(size, arguments.repeats)
    for processes in arguments.processes:
        _start_group(processes)


def _size(text: str) -> Size:
    return Size(*map(int, text.split("x")))


def _compare(size: Size, repeats: int) -> None:
    """The layer and dense products of the same work, by turns."""
    layer, dense = _layer(size, _moe(size)), Mlp(size.hidden, TOP_K * size.width, "float32")
    x, index = _inputs(size)
    forms = {layer: lambda t: layer(t, index)[0], dense: dense}
    times: dict[nn.Layer, list[float]] = {layer: [], dense: []}
    for turn in range(_WARM_UP + repeats):
        for module, form in forms.items():
            seconds = _timed(module, form, x)
            if turn >= _WARM_UP:
                times[module].append(seconds * 1e3)
    rate = statistics.median(d / s for d, s in zip(times[dense], times[layer], strict=True))
    print(
        f"hidden {size.hidden:,}, {EXPERTS} experts {size.width:,} wide, {TOP_K} a token, {size.tokens:,} tokens: "
        f"{statistics.median(times[layer]):.0f} ms; dense products of the same work: "
        f"{statistics.median(times[dense]):.0f} ms ({rate:.0%} of the dense rate)",
        flush=True,
    )


def _moe(size: Size) -> MoeConfig:
    return MoeConfig(EXPERTS, TOP_K, (size.width,), 0, 1e-12, (0,))


def _layer(size: Size, moe: MoeConfig) -> MoeLayer:
    layer, generator = MoeLayer(size.hidden, moe, "float32"), np.random.default_rng(0)
    for name, parameter in layer.named_parameters():
        if not name.startswith("moe_statics"):
            parameter.set_value(generator.standard_normal(parameter.shape, np.float32) * np.float32(0.02))
    return layer


def _inputs(size: Size) -> tuple[paddle.Tensor, ModalityIndex]:
    x = paddle.randn([size.tokens, size.hidden])
    x.stop_gradient = False
    return x, ModalityIndex(np.zeros(size.tokens, np.int8))


def _timed(module: nn.Layer, form: Callable[[paddle.Tensor], paddle.Tensor], x: paddle.Tensor) -> float:
    began = time.perf_counter()
    form(x).sum().backward()
    seconds = time.perf_counter() - began
    for tensor in (x, *module.parameters()):
        tensor.clear_gradient(False)
    return seconds


def _start_group(size: int) -> None:
    """This script in `size` processes; the first one prints."""
    with socket.socket() as probe:
        probe.bind((LOCALHOST, 0))
        master = (LOCALHOST, probe.getsockname()[1])
    processes = [
        subprocess.Popen(
            [sys.executable, *sys.argv],
            cwd=Path.cwd(),
            env=os.environ | worker_environment(Worker(rank, size, rank, size, master), None),
            stderr=subprocess.DEVNULL,
        )
        for rank in range(size)
    ]
    if any([process.wait() for process in processes]):
        raise SystemExit(f"the group of {size} processes failed")


def _in_group(arguments: argparse.Namespace, worker: Worker) -> None:
    """One process of a group that shares the experts."""
    runtime.configure("cpu", worker.threads, seed=worker.rank)
    mesh = connect(ParallelDims(worker.world, expert=worker.world))
    size = arguments.sizes[0]
    moe = replace(_moe(size), expert_rank=worker.rank, expert_ranks=worker.world)
    layer = _layer(size, moe)
    layer.dispatcher = ExpertParallelDispatcher(mesh.expert, moe)
    spent = _count_seconds()
    x, index = _inputs(size)
    for _ in range(_WARM_UP):
        _timed(layer, lambda t: layer(t, index)[0], x)
    spent.clear()
    total = sum(_timed(layer, lambda t: layer(t, index)[0], x) for _ in range(arguments.repeats))
    if mesh.is_main:
        print(
            f"experts over {worker.world} processes: {total / arguments.repeats * 1e3:.0f} ms, "
            f"{sum(spent) / total:.0%} of it in dispatch, waiting for the others included"
        )
    mesh.close()


def _count_seconds() -> list[float]:
    """Seconds of every collective of the dispatch from now on, forward and backward."""
    spent: list[float] = []

    def counted(function: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object) -> object:
            began = time.perf_counter()
            try:
                return function(*arguments)
            finally:
                spent.append(time.perf_counter() - began)

        return call

    # These are all that moves: counts go by the first, tokens by the third, and back by the second.
    plain = collectives.all_to_all
    collectives.all_to_all = counted(plain)
    differentiable.all_to_all = counted(plain)
    differentiable.start_all_to_all = counted(differentiable.start_all_to_all)
    collectives.AsyncWork.wait = counted(collectives.AsyncWork.wait)
    return spent


if __name__ == "__main__":
    main()
