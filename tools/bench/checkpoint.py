"""Measure saving a training checkpoint: bytes per second, how long training waits, and memory.

    python tools/bench/checkpoint.py [--gigabytes 8] [--processes 1 4]

A dense model with random weights is trained with full fine-tuning, and saved four times while training waits, and
four times in the background. Several processes share weights and optimizer (parallel.shard: parameters). In the
background, saves are as many steps apart as take twice the time of a save that training waits for: each save has ended
before the next one begins, and overlaps only with steps. The last one is left out, since the run waits for it, and so
is the first one, which allocates the memory of the copy; its time is in parentheses.

The rates are those of all processes together, beside that of a plain copy of the checkpoint to the same disk, which is
synced as well. "Training waited" is what the log states: the start of a save, the waits for copies in the next forward
pass (sharded weights) and before the next update, and the work of the main process at the end. A save in the background
also takes processor time and memory bandwidth from the steps beside it: "slower" is the time of the steps up to the
next save beyond that of steps beside which nothing is written, with the wait before the update. Memory is the peak of
the largest process; all of them need about 2.5 times the size of a checkpoint.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from erniekit.create.create import create_model

ROOT = Path(__file__).resolve().parents[2]
# Weights and two moments in float32.
_BYTES_PER_PARAMETER = 12
_HIDDEN = 1024
# Parameters of a layer, nearly: gate, up and down of four times the width.
_LAYER = 12 * _HIDDEN**2
_SAVED = re.compile(r"saved (\S+): .* in ([\d.]+) s; training waited ([\d.]+) s")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gigabytes", type=float, default=8, help="size of a checkpoint")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 4], help="CPU processes")
    parser.add_argument("--directory", type=Path, help="where to write (default: the temporary directory)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.directory) as name:
        directory = Path(name)
        data = directory / "chats.jsonl"
        data.write_text("".join(json.dumps(_chat(number)) + "\n" for number in range(64)))
        layers = max(1, round(arguments.gigabytes * 1e9 / _BYTES_PER_PARAMETER / _LAYER))
        overrides = [
            f"hidden_size={_HIDDEN}",
            f"intermediate_size={4 * _HIDDEN}",
            f"num_hidden_layers={layers}",
        ]
        create_model("tiny-dense", directory / "model", [data], seed=0, overrides=overrides)
        for processes in arguments.processes:
            waiting = _measure(directory, data, processes, every=1, background=False)
            print(waiting.text(), flush=True)
            every = max(2, math.ceil(2 * waiting.save_seconds / waiting.step_seconds))
            background = _measure(directory, data, processes, every=every, background=True)
            print(f"{background.text()}, {background.waited / waiting.waited:.1%} of the time", flush=True)


@dataclass(frozen=True)
class Saves:
    """The saves of a run: medians in seconds, the size of a checkpoint in bytes, and the memory of a process in GiB."""

    processes: int
    background: bool
    size: int
    save_seconds: float
    waited: float
    first_waited: float
    slower: float
    step_seconds: float
    copy_seconds: float
    peak: float

    def text(self) -> str:
        """The line that is printed."""
        rate, copy_rate = (self.size / seconds / 1e6 for seconds in (self.save_seconds, self.copy_seconds))
        how = "background" if self.background else "waiting"
        return (
            f"{self.processes} processes, {how:10}  {self.size / 1e9:5.2f} GB saved in {self.save_seconds:5.1f} s: "
            f"{rate:5.0f} MB/s, {rate / copy_rate:4.0%} of a copy ({copy_rate:.0f} MB/s); a step takes "
            f"{self.step_seconds:4.1f} s; peak {self.peak:5.2f} GiB; training waited {self.waited:5.2f} s "
            f"({self.first_waited:.2f} s)"
            + (f", steps were {self.slower:.2f} s slower" if self.background else "")
        )


def _chat(number: int) -> dict[str, object]:
    question = {"role": "user", "content": f"What comes after {number}?"}
    return {"messages": [question, {"role": "assistant", "content": f"{number + 1} comes after it."}]}


def _measure(directory: Path, data: Path, processes: int, *, every: int, background: bool) -> Saves:
    run = directory / f"run-{processes}-{background}"
    settings = {
        "model.path": str(directory / "model"),
        "data.train": str(data),
        "data.max_length": 64,
        "data.workers": 0,
        "train.output_dir": str(run),
        "train.max_steps": 4 * every,
        "train.rows_per_step": processes,
        "train.recompute": "layers",
        "checkpoint.save_every": every,
        "log.every": 1,
        "checkpoint.keep": 1,
        "checkpoint.background": background,
        "parallel.shard": "parameters" if processes > 1 else "none",
        "parallel.threads": 1,
    }
    (directory / "run.yaml").write_text("{}\n")
    command = [sys.executable, "-m", "erniekit", "train", str(directory / "run.yaml")]
    command += ["--devices", f"cpu:{processes}", *(f"{key}={json.dumps(v)}" for key, v in settings.items())]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if finished.returncode:
        raise SystemExit(finished.stdout[-2000:] + finished.stderr[-2000:])
    if background and "training waits while this one is written" in finished.stdout:
        raise SystemExit(f"{processes} processes: too little memory for saves in the background")
    saves = _SAVED.findall(finished.stdout)
    counted = saves[1:-1]
    seconds, waited = (statistics.median(float(save[place]) for save in counted) for place in (1, 2))
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    logs = [run / "log.jsonl", *(run / "logs").glob("rank-*/log.jsonl")]
    peak = max(
        json.loads(line).get("memory/peak_gib", 0.0) for log in logs for line in log.read_text().splitlines()
    )
    checkpoint = Path(saves[-1][0])
    size = sum(file.stat().st_size for file in checkpoint.iterdir())
    copy_seconds = statistics.median(_copy(checkpoint, directory / "copy") for _ in range(3))
    shutil.rmtree(run)
    steps = [line["train/step_seconds"] for line in lines if "train/step_seconds" in line]
    # A save overlaps about half of the steps up to the next one.
    step_seconds = statistics.median(steps[every - max(1, every // 4) : every])
    slower = statistics.median(
        sum(steps[first : first + every]) - every * step_seconds for first in (every, 2 * every)
    )
    first_waited = float(saves[0][2])
    return Saves(
        processes, background, size, seconds, waited, first_waited, slower, step_seconds, copy_seconds, peak
    )


def _copy(source: Path, target: Path) -> float:
    """Seconds to copy a directory and sync the copies to disk."""
    started = time.perf_counter()
    target.mkdir()
    for file in source.iterdir():
        with file.open("rb") as reader, (target / file.name).open("wb") as writer:
            shutil.copyfileobj(reader, writer, 4 << 20)
            writer.flush()
            os.fsync(writer.fileno())
    seconds = time.perf_counter() - started
    shutil.rmtree(target)
    return seconds


if __name__ == "__main__":
    main()
