"""Time a mixture-of-experts layer beside dense products of the same work, and its dispatch over processes.

    python tools/bench/moe.py [--tokens 2048] [--hidden 512] [--width 512] [--repeats 15] [--threads N]
                               [--processes 2 4]

64 experts, 6 a token, forward and backward, with gradients added to those of the run before. No correction bias
decides the choice, so that experts have 144 to 239 tokens each: few of them with most would be faster. The dense side
is one MLP of 6 times the width over the same tokens: as many multiplications as the experts that are chosen do. With
several CPU processes the experts are spread over all of them; the share of time in dispatch is that of the two
all-to-alls, forward and backward, and of the exchange of counts. Machines are noisy: the two forms take turns, and the
rate is the median over turns of their ratio.
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

from erniekit import runtime

runtime.prepare_environment()

import numpy as np
import paddle

from erniekit.models.config import MoeConfig
from erniekit.models.layers import Mlp
from erniekit.moe.layer import MoeLayer
from erniekit.moe.router import ModalityIndex
from erniekit.parallel import collectives, differentiable
from erniekit.parallel.expert import ExpertParallelDispatcher
from erniekit.parallel.mesh import Layout, connect
from erniekit.parallel.worker import LOCALHOST, Worker, worker_environment, worker_from

EXPERTS, TOP_K = 64, 6


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=2048, help="tokens of each process")
    parser.add_argument("--hidden", type=int, default=512, help="hidden size")
    parser.add_argument("--width", type=int, default=512, help="width of an expert")
    parser.add_argument("--repeats", type=int, default=15, help="timed runs")
    parser.add_argument("--threads", type=int, help="of the one process; default: one a core")
    parser.add_argument("--processes", type=int, nargs="*", default=[2, 4], help="sizes of expert groups")
    arguments = parser.parse_args()
    worker = worker_from(os.environ)
    if worker is not None:
        _in_group(arguments, worker)
        return
    runtime.configure("cpu", arguments.threads, seed=0)
    moe = _moe(arguments.width)
    layer, dense = _seeded(MoeLayer(arguments.hidden, moe, "float32")), _dense(arguments)
    x, index = _inputs(arguments)
    sparse_ms, dense_ms = [], []
    for turn in range(arguments.repeats + 1):
        for times, form in ((sparse_ms, lambda t: layer(t, index)[0]), (dense_ms, dense)):
            seconds = _timed(form, x)
            if turn:
                times.append(seconds * 1e3)
    sparse, plain = statistics.median(sparse_ms), statistics.median(dense_ms)
    rate = statistics.median(d / s for d, s in zip(dense_ms, sparse_ms, strict=True))
    print(
        f"{EXPERTS} experts, {TOP_K} a token, {arguments.tokens:,} tokens: {sparse:.0f} ms; dense products of the same "
        f"work: {plain:.0f} ms ({rate:.0%} of the dense rate)"
    )
    for size in arguments.processes:
        _start_group(size)


def _moe(width: int) -> MoeConfig:
    return MoeConfig(EXPERTS, TOP_K, (width,), 0, 1e-12, (0,))


def _seeded(layer: MoeLayer) -> MoeLayer:
    generator = np.random.default_rng(0)
    for name, parameter in layer.named_parameters():
        if name.startswith("moe_statics"):
            continue
        values = generator.standard_normal(parameter.shape).astype(np.float32) * 0.02
        parameter.set_value(paddle.to_tensor(values))
    return layer


def _dense(arguments: argparse.Namespace) -> Callable[[paddle.Tensor], paddle.Tensor]:
    return Mlp(arguments.hidden, TOP_K * arguments.width, "float32")


def _inputs(arguments: argparse.Namespace) -> tuple[paddle.Tensor, ModalityIndex]:
    x = paddle.randn([arguments.tokens, arguments.hidden])
    x.stop_gradient = False
    return x, ModalityIndex(np.zeros(arguments.tokens, np.int8))


def _timed(form: Callable[[paddle.Tensor], paddle.Tensor], x: paddle.Tensor) -> float:
    began = time.perf_counter()
    form(x).sum().backward()
    seconds = time.perf_counter() - began
    x.clear_gradient(False)
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
    mesh = connect(Layout(worker.world, expert=worker.world))
    moe = replace(_moe(arguments.width), expert_rank=worker.rank, expert_ranks=worker.world)
    layer = _seeded(MoeLayer(arguments.hidden, moe, "float32"))
    layer.dispatcher = ExpertParallelDispatcher(mesh.expert, moe)
    spent = _count_seconds()
    x, index = _inputs(arguments)
    _timed(lambda t: layer(t, index)[0], x)
    spent.clear()
    total = sum(_timed(lambda t: layer(t, index)[0], x) for _ in range(arguments.repeats))
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
    collectives.UnderWay.wait = counted(collectives.UnderWay.wait)
    return spent


if __name__ == "__main__":
    main()
