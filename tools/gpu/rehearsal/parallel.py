"""What two GPUs of one host spend in communication, through erniekit's own collectives on torch's NCCL.

    python -m tools.gpu.rehearsal.parallel --layouts expert gradients parameters
    python -m tools.gpu.rehearsal.parallel --device cpu --tiny        a trial of the script

expert: experts are divided over both (parallel.expert: 2), and tokens are exchanged; gradients, parameters:
parallel.shard, over both. Each process has a row of its own. The table gives the time of a step, that of NCCL's
kernels, and how much of that the device computed beside. With --saves, parameters is measured with a copy of the state
for a checkpoint beside the step, too: see parallel_saves.py.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from .adapter import install
from .cases import Case, Sizes

LAYOUTS = ("expert", "gradients", "parameters")
_WORLD = 2


def main() -> None:
    """Both processes; the first prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=LAYOUTS)
    parser.add_argument("--case", default="vl/text/full", help="model/row/method[/direct]")
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=8192, help="of a row")
    parser.add_argument("--steps", type=int, default=4, help="timed steps, after two")
    parser.add_argument("--saves", action="store_true", help="also copies for checkpoints, of parameters")
    parser.add_argument("--device", choices=("gpu", "cpu"), default="gpu")
    parser.add_argument("--tiny", action="store_true", help="small widths and rows of 64 tokens")
    parser.add_argument("--out", type=Path, help="a file for lines of JSON")
    options = parser.parse_args()
    if "RANK" in os.environ:
        _worker(options)
        return
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    environment = os.environ | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(_WORLD),
    }
    command = [sys.executable, "-m", "tools.gpu.rehearsal.parallel", *sys.argv[1:]]
    processes = [
        subprocess.Popen(command, env=environment | {"RANK": str(rank), "CUDA_VISIBLE_DEVICES": str(rank)})
        for rank in range(_WORLD)
    ]
    sys.exit(max(abs(process.wait()) for process in processes))


def _worker(options: argparse.Namespace) -> None:
    rank, on_gpu = int(os.environ["RANK"]), options.device == "gpu"
    install(pretend_gpu=not on_gpu)
    from erniekit.runtime import configure

    from .adapter.attention import use_documents
    from .parallel_run import ParallelStep
    from .parallel_saves import measure_saves

    use_documents("cudnn")
    if on_gpu:
        configure("gpu", 1, 0, kernels="auto", attention="flashmask")
    else:
        configure("gpu", 1, 0, kernels="plain", attention="flashmask")
    dist.init_process_group("nccl" if on_gpu else "gloo")
    sizes = Sizes(64 if options.tiny else options.tokens, options.tiny)
    for layout in options.layouts:
        step = ParallelStep(layout, Case.of(options.case), options.layers, sizes, rank, _WORLD)
        figures = _measure(step, options.steps, on_gpu)
        if options.saves and layout == "parameters":
            figures["saves"] = measure_saves(step, options.steps)
        del step
        if on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        if rank == 0:
            record = {"layout": layout, "case": options.case, "layers": options.layers, **figures}
            print(json.dumps(record), flush=True)
            if options.out is not None:
                with options.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(record) + "\n")
    dist.destroy_process_group()


def _measure(step: Callable[[], float], steps: int, on_gpu: bool) -> dict[str, Any]:
    """ms of a step; of one step under the profiler, ms of NCCL's kernels and of those beside which others ran."""
    losses = [step(), step()]
    times = []
    for _ in range(steps):
        if on_gpu:
            torch.cuda.synchronize()
        dist.barrier()
        begin = time.perf_counter()
        step()
        if on_gpu:
            torch.cuda.synchronize()
        times.append((time.perf_counter() - begin) * 1e3)
    figures: dict[str, Any] = {"loss": losses[0], "step": sorted(times)[len(times) // 2]}
    if not on_gpu:
        return figures
    # Without events of the host, which would make it slower than the device.
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        step()
        torch.cuda.synchronize()
    spans: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    names: dict[str, float] = {}
    for event in profile.events():
        if event.device_type == torch.autograd.DeviceType.CUDA and not event.is_user_annotation:
            is_nccl = event.name.startswith("nccl")
            spans[is_nccl].append((event.time_range.start, event.time_range.end))
            if is_nccl:
                names[event.name[:60]] = (
                    names.get(event.name[:60], 0.0) + event.time_range.elapsed_us() * 1e-3
                )
    communication, computation = _union(spans[True]), _union(spans[False])
    beside = sum(
        max(0.0, min(end, other_end) - max(start, other_start))
        for start, end in communication
        for other_start, other_end in computation
    )
    whole = [edge for span in spans.values() for times_of in span for edge in times_of]
    figures["profiled"] = (max(whole) - min(whole)) * 1e-3
    figures["communication"] = sum(end - start for start, end in communication) * 1e-3
    figures["overlapped"] = beside * 1e-3
    figures["peak"] = torch.cuda.max_memory_allocated() / 2**30
    return figures | {"kernels": names}


def _union(spans: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Spans that do not overlap, in order."""
    found: list[tuple[float, float]] = []
    for start, end in sorted(spans):
        if found and start <= found[-1][1]:
            found[-1] = found[-1][0], max(found[-1][1], end)
        else:
            found.append((start, end))
    return found


if __name__ == "__main__":
    main()
