"""Runs cases at two depths, and scales what it finds to the depth of the released models."""

from __future__ import annotations

import argparse
import json
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .cases import DEFAULT, FULL_DEPTH, Case, Sizes
from .measure import Figures, free

# (case, layers, sizes, steps=) -> figures of a step, and the FLOPs of its forward and backward pass, 0 where unknown
Run = Callable[..., tuple[Figures, float]]


def parser(description: str) -> argparse.ArgumentParser:
    """The options of both sides."""
    found = argparse.ArgumentParser(description=description)
    found.add_argument("--cases", nargs="+", default=DEFAULT, help="model/row/method[/direct]")
    found.add_argument(
        "--layers", nargs=2, type=int, default=[3, 5], help="two depths; the first layer is dense"
    )
    found.add_argument("--tokens", type=int, default=8192, help="of a row")
    found.add_argument("--steps", type=int, default=5, help="timed steps of a case, after two")
    found.add_argument("--budget", type=float, default=540, help="seconds; no case begins after them")
    found.add_argument("--top", type=int, default=10, help="kernels of a layer printed of each case")
    found.add_argument("--device", choices=("gpu", "cpu"), default="gpu", help="cpu: a trial of the scripts")
    found.add_argument("--tiny", action="store_true", help="small widths and rows of 64 tokens, for a trial")
    found.add_argument(
        "--peer-masters", action="store_true", help="the peer's AdamW has float32 masters and moments too"
    )
    found.add_argument("--out", type=Path, help="a file for lines of JSON")
    return found


def run_cases(side: str, run: Run, options: argparse.Namespace) -> None:
    """Print each case as it is done. A case that fails is printed with its error, and the others go on."""
    end = time.monotonic() + options.budget
    sizes = Sizes(64 if options.tiny else options.tokens, options.tiny)
    for name in options.cases:
        case, found = Case.of(name), []
        for layers in options.layers:
            if time.monotonic() > end:
                print(f"{side} | {name} | {layers} layers | left out: no time is left", flush=True)
                continue
            begin = time.monotonic()
            try:
                figures, flops = run(case, layers, sizes, steps=options.steps)
            except Exception as error:
                where = traceback.format_exc().strip().splitlines()[-7:-1]
                print(f"{side} | {name} | {layers} layers | {type(error).__name__}: {str(error)[:400]}")
                print("\n".join(where), flush=True)
                _forget(error)
            else:
                found.append((layers, figures, flops))
                print(
                    f"{side} | {name} | {_line(layers, figures)} | {time.monotonic() - begin:.0f} s",
                    flush=True,
                )
            free()
        record: dict[str, Any] = {"side": side, "case": name, "tokens": sizes.tokens}
        record["depths"] = [figures.as_dict() | {"layers": layers} for layers, figures, _ in found]
        if len(found) == 2:
            record["full"] = scaled(found, sizes.tokens)
            print(f"{side} | {name} | {text(record['full'])}", flush=True)
            for kernel, spent, count in by_layer(found)[: options.top]:
                print(f"    {spent:7.3f} ms a layer, {count:5.1f} x {kernel}", flush=True)
        if options.out is not None:
            with options.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")


def by_layer(found: list[tuple[int, Figures, float]]) -> list[tuple[str, float, float]]:
    """Milliseconds and number of launches of each kernel in a layer, the longest first."""
    (low, small, _), (high, large, _) = found
    before = {name: (spent, count) for name, spent, count in small.top}
    kernels = []
    for name, spent, count in large.top:
        without, fewer = before.get(name, (0.0, 0))
        kernels.append((name, (spent - without) / (high - low), (count - fewer) / (high - low)))
    return sorted(kernels, key=lambda kernel: -kernel[1])


def scaled(found: list[tuple[int, Figures, float]], tokens: int) -> dict[str, float]:
    """What a layer costs, from the difference of both depths, and a step of all layers.

    Times in ms, rate in tokens/s with the update, memory in GiB, mfu against the measured rate of a large product of
    bfloat16 matrices, 0 where it is unknown. peak is the largest of three: in forward and backward at few layers, which
    is in the loss; state and all gradients; in the update.
    """
    (low, small, few_flops), (high, large, many_flops) = found

    def whole(one: float, other: float) -> float:
        return one + (other - one) / (high - low) * (FULL_DEPTH - low)

    per_layer = {
        f"layer_{name}": (getattr(large, name) - getattr(small, name)) / (high - low)
        for name in ("compute", "update", "busy", "peak", "launches")
    }
    names = ("compute", "update", "busy", "host", "state", "gradients", "peak", "update_peak")
    full = {
        name: whole(getattr(small, name), getattr(large, name))
        for name in (*names, "launches", "waits", "copies")
    }
    full["peak"] = max(full["peak"], full["state"] + full["gradients"], full["update_peak"])
    full["rate"] = tokens / (full["compute"] + full["update"]) * 1e3
    peak = _measured_peak()
    full["mfu"] = whole(few_flops, many_flops) / (full["compute"] * 1e-3) / peak if peak else 0.0
    return per_layer | full


def text(full: dict[str, float]) -> str:
    """A line about `scaled`."""
    return (
        f"{full['layer_compute']:.2f} ms a layer forward and backward, {full['layer_update']:.2f} update, "
        f"device {full['layer_busy']:.2f}, "
        f"{full['layer_peak']:.2f} GiB; {FULL_DEPTH} layers: {full['rate']:.0f} tokens/s, "
        f"{full['compute']:.0f} + {full['update']:.0f} ms, MFU {full['mfu']:.0%}, "
        f"{full['peak']:.1f} GiB (state {full['state']:.1f}, gradients {full['gradients']:.1f}), "
        f"{full['launches']:.0f} launches, {full['waits']:.0f} waits, {full['copies']:.0f} copies, "
        f"host {full['host']:.0f} ms"
    )


def _line(layers: int, figures: Figures) -> str:
    return (
        f"{layers} layers: loss {figures.loss:.5f}, {figures.compute:.1f} + {figures.update:.1f} ms, host "
        f"{figures.host:.1f} ms, peak {figures.peak:.2f} and {figures.update_peak:.2f} GiB (state {figures.state:.2f}, "
        f"gradients {figures.gradients:.2f}), {figures.launches} launches, {figures.waits} waits, "
        f"{figures.copies} copies"
    )


def _forget(error: BaseException) -> None:
    """The frames of an error hold the tensors of its case."""
    traceback.clear_frames(error.__traceback__)


_peak: list[float] = []


def _measured_peak() -> float:
    """FLOP/s of a large product, measured once; 0 without a GPU."""
    if not torch.cuda.is_available():
        return 0.0
    if not _peak:
        size = 8192
        left, right = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
        for _ in range(3):
            left @ right
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(10):
            left @ right
        end.record()
        torch.cuda.synchronize()
        _peak.append(10 * 2 * size**3 / (begin.elapsed_time(end) * 1e-3))
    return _peak[0]
