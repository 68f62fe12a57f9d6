"""Records steps with Paddle's profiler."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path

from paddle.profiler import Profiler

from erniekit.train.console import Console
from erniekit.train.metrics import StepMetrics
from erniekit.train.trainer import Hook, Trainer

PROFILE_DIR = "profile"
_ROWS = 12
# Categories of events: kernels of a GPU, and calls of kernels, which on a CPU take as long as the kernel. The second
# category is only used if the first has no events.
_KERNELS = ("Kernel", "DygraphKernelLaunch")


class ProfilerHook(Hook):
    """Records the steps `first` to `last`, or up to the end of training.

    Writes a Chrome trace (for chrome://tracing or Perfetto) to RUN/profile/, and logs the heaviest kernels.
    """

    def __init__(self, first: int, last: int, run_dir: Path, console: Console) -> None:
        self._first, self._last = first, last
        self._directory, self._console = run_dir / PROFILE_DIR, console
        self._profiler: Profiler | None = None
        self._steps = 0

    def on_step_start(self, trainer: Trainer) -> None:
        if self._profiler is not None:
            self._profiler.step()
        elif trainer.progress.step + 1 == self._first:
            self._profiler = Profiler(on_trace_ready=self._write)
            self._profiler.start()

    def on_step_end(self, trainer: Trainer, metrics: StepMetrics) -> None:
        if self._profiler is not None:
            self._steps += 1
            if trainer.progress.step == self._last:
                self._stop()

    def close(self) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._profiler is not None:
            self._profiler.stop()
            self._profiler = None

    def _write(self, profiler: Profiler) -> None:
        if not self._steps:
            return
        last = self._first + self._steps - 1
        file = self._directory / f"steps-{self._first}-{last}.json"
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            profiler.export(str(file), format="json")
            lines = describe_trace(file, self._steps)
        except (OSError, ValueError) as error:
            # ValueError: Paddle cuts the file off where a disk is full. A run is worth more than its trace.
            lines = [f"note: {file} cannot be written: {error}. The run goes on"]
        for line in lines:
            self._console.log(line)


def describe_trace(file: Path, steps: int) -> list[str]:
    """The kernels of a Chrome trace of Paddle's profiler with the most time, as a table with a title."""
    seconds: dict[str, dict[str, list[float]]] = {kind: defaultdict(list) for kind in _KERNELS}
    for event in json.loads(file.read_text(encoding="utf-8"))["traceEvents"]:
        if event.get("cat") in seconds:
            # Such as "matmul kernel launch[26.120 ms]".
            name = re.sub(r"( kernel launch)?\[[^\[]*\]$", "", event["name"])
            seconds[event["cat"]][name].append(event["dur"] / 1e6)
    found = seconds["Kernel"] or seconds["DygraphKernelLaunch"]
    total = sum(map(sum, found.values()))
    heaviest = sorted(found, key=lambda name: -sum(found[name]))[:_ROWS]
    width = max((min(len(name), 60) for name in heaviest), default=0)
    lines = [
        f"profile: {file}; {total * 1e3 / steps:,.1f} ms of kernels per step",
        f"  {'kernel':<{width}}  {'ms per step':>11}  {'share':>6}  {'calls per step':>14}",
    ]
    for name in heaviest:
        own = found[name]
        lines.append(
            f"  {name[:60]:<{width}}  {sum(own) * 1e3 / steps:>11,.2f}  {sum(own) / total:>6.1%}  "
            f"{len(own) / steps:>14,.0f}"
        )
    return lines
