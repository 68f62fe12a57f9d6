"""Measure converting a checkpoint between layouts: bytes per second beside a plain copy, and memory.

    python tools/bench/convert.py [--gigabytes 8] [--repeats 3]

A checkpoint with the shapes of 21B-A3B, as many layers as give the size, and random bfloat16 values is converted from
each layout to the others, each time by a new process. The rates are medians, beside that of a plain copy of the same
shards to the same disk; both are synced, and read from the disk (the page cache of the source is dropped before).
Memory is the peak of the process above its size after imports.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from erniekit.checkpoint.hub import write_shards
from erniekit.create.create import create_model
from erniekit.models.config import ErnieConfig
from erniekit.models.specs import parameter_specs

ROOT = Path(__file__).resolve().parents[2]
_COPIED = 4 << 20  # bytes at a time
_VOCABULARY = 103424
_SHARD = 1_000_000_000
_PATHS = (("hub", "hub"), ("hub", "paddle"), ("paddle", "hub"))
_CHILD = """
import json, sys, time
from erniekit.export.convert import convert_model

def peak():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

source, target, layout, shard = sys.argv[1:]
before, began, work = peak(), time.perf_counter(), time.process_time()
convert_model(source, target, layout, max_shard_bytes=int(shard))
print(json.dumps([time.perf_counter() - began, time.process_time() - work, peak() - before]))
"""


class Conversion(NamedTuple):
    """Seconds of a conversion, those of a processor in it, and its peak memory above the interpreter, in bytes."""

    seconds: float
    cpu_seconds: float
    memory: int


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gigabytes", type=float, default=8, help="size of the checkpoint")
    parser.add_argument("--repeats", type=int, default=3, help="conversions of each kind")
    parser.add_argument("--directory", type=Path, help="where to write (default: the temporary directory)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.directory) as name:
        directory = Path(name)
        size = _make_checkpoint(directory / "hub", arguments.gigabytes)
        _convert(directory / "hub", directory / "paddle", "paddle")
        copies: list[tuple[float, float]] = []
        found: dict[tuple[str, str], list[Conversion]] = {path: [] for path in _PATHS}
        for _ in range(arguments.repeats):
            copies.append(_copy(directory / "hub", directory / "copy"))
            for path in _PATHS:
                found[path].append(_convert(directory / path[0], directory / "out", path[1]))
                shutil.rmtree(directory / "out")
        copy = statistics.median(seconds for seconds, _ in copies)
        work = statistics.median(cpu for _, cpu in copies)
        print(
            f"{size / 1e9:.2f} GB copied in {copy:.1f} s: {size / copy / 1e6:.0f} MB/s; {work:.1f} s of a processor"
        )
        for path, runs in found.items():
            seconds = statistics.median(run.seconds for run in runs)
            work = statistics.median(run.cpu_seconds for run in runs)
            print(
                f"{path[0]:6} -> {path[1]:6} {seconds:6.1f} s: {size / seconds / 1e6:4.0f} MB/s, {copy / seconds:4.0%} "
                f"of a copy; {work:5.1f} s of a processor; {max(run.memory for run in runs) / 1e6:4.0f} MB above the "
                "interpreter"
            )


def _make_checkpoint(directory: Path, gigabytes: float) -> int:
    """Write a checkpoint of random values; returns its bytes."""
    text = directory.parent / "text.txt"
    text.write_text("A small cat sits on the red mat and looks at two green apples.\n")

    layers = 1
    while True:
        shutil.rmtree(directory, ignore_errors=True)
        overrides = [f"num_hidden_layers={layers}"]
        create_model("21b-a3b", directory, [text], vocab_size=512, overrides=overrides, weights=False)
        settings = json.loads((directory / "config.json").read_text()) | {"vocab_size": _VOCABULARY}
        (directory / "config.json").write_text(json.dumps(settings))
        config = ErnieConfig.from_dir(directory)
        tensors = parameter_specs(config, "BF16")
        size = sum(spec.size * (4 if spec.dtype == "F32" else 2) for spec in tensors)
        if size >= gigabytes * 1e9:
            break
        layers += 1
    shapes = {spec.name: spec for spec in tensors}
    rng = np.random.default_rng(0)

    def random(name: str) -> np.ndarray:
        spec = shapes[name]
        if spec.dtype == "F32":
            return rng.standard_normal(spec.shape, np.float32)
        # Without the highest bit of the exponent every pattern is a finite number.
        return rng.integers(0, 1 << 16, spec.shape, np.uint16) & np.uint16(0xBFFF)

    write_shards(directory, tensors, random, _SHARD)
    return size


def _drop_cache(directory: Path) -> None:
    """Make the next reader of a directory read from the disk."""
    for file in directory.glob("*.safetensors"):
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _copy(source: Path, target: Path) -> tuple[float, float]:
    """Copy the shards of a directory, synced; returns seconds, and those of a processor. The copy is removed."""
    _drop_cache(source)
    target.mkdir()
    began, work = time.perf_counter(), time.process_time()
    for file in sorted(source.glob("*.safetensors")):
        with file.open("rb", buffering=0) as reader, (target / file.name).open("wb", buffering=0) as writer:
            while chunk := reader.read(_COPIED):
                writer.write(chunk)
            os.fsync(writer.fileno())
    found = time.perf_counter() - began, time.process_time() - work
    shutil.rmtree(target)
    return found


def _convert(source: Path, target: Path, layout: str) -> Conversion:
    _drop_cache(source)
    command = [sys.executable, "-c", _CHILD, str(source), str(target), layout, str(_SHARD)]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if finished.returncode:
        raise SystemExit(finished.stderr[-2000:])
    return Conversion(*json.loads(finished.stdout.splitlines()[-1]))


if __name__ == "__main__":
    main()
