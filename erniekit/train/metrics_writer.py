"""Writes the metrics of a run to `log.jsonl`, and passes them to trackers such as TensorBoard."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import paddle

from erniekit.local_files import read_json_lines, replacing
from erniekit.train.trackers.tracker import Guarded, ShownAnswer, Tracker

LOG_FILE = "log.jsonl"
_GIB = float(1 << 30)


class MetricsWriter:
    """Writes the metrics of a run below `directory`, and passes them to its trackers.

    If a file cannot be written, for example because the disk is full, this is logged once with `log`, and the run
    continues. If a tracker fails, this is logged, and the tracker gets no further calls. start_step: number of steps
    already done; lines of later steps are deleted from `log.jsonl`, so that a resumed run does not log a step twice.
    """

    def __init__(
        self,
        directory: Path,
        trackers: Sequence[Tracker] = (),
        *,
        start_step: int = 0,
        log: Callable[[str], None] = print,
    ) -> None:
        file = directory / LOG_FILE
        truncate_log(file, start_step)
        self._log = file.open("a", encoding="utf-8")
        self._say, self._has_failed = log, False
        self._trackers = [Guarded(tracker, log) for tracker in trackers]

    @property
    def has_trackers(self) -> bool:
        """Whether there are trackers, including failed ones."""
        return bool(self._trackers)

    def write(
        self,
        step: int,
        scalars: Mapping[str, float],
        *,
        epoch: float | None = None,
        shares: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        """Write the metrics after `step` steps to `log.jsonl` and the trackers.

        scalars: by name, such as "train/loss" (`erniekit.train.metric_names`). shares: histograms with one bar per
        entry (an expert), for the trackers only.
        """
        line: dict[str, Any] = {"step": step, "time": round(time.time(), 3)}
        if epoch is not None:
            line["epoch"] = round(epoch, 6)
        self._append({**line, **scalars})
        self._call(lambda tracker: tracker.log_scalars(step, scalars, epoch))
        if shares:
            self._call(lambda tracker: tracker.log_shares(step, shares))

    def write_text(self, step: int, name: str, html: str) -> None:
        """Pass a text to the trackers; see `Tracker.log_text`."""
        self._call(lambda tracker: tracker.log_text(step, name, html))

    def write_answers(self, step: int, answers: Sequence[ShownAnswer]) -> None:
        """Pass the answers of an evaluation to the trackers."""
        self._call(lambda tracker: tracker.log_answers(step, answers))

    def event(self, step: int, name: str, **values: Any) -> None:
        """Write an event at a step to `log.jsonl`: {"step", "time", "event": name, ...}."""
        self._append({"step": step, "time": round(time.time(), 3), "event": name, **values})

    def flush(self) -> None:
        """Flush everything to disk."""
        with self._reported():
            self._log.flush()
            os.fsync(self._log.fileno())
        self._call(lambda tracker: tracker.flush())

    def close(self, *, failed: bool = False) -> None:
        """Close the log and the trackers. failed: the run ends with an error."""
        with self._reported():
            self._log.close()
        self._call(lambda tracker: tracker.close(failed=failed))

    def _append(self, line: Mapping[str, Any]) -> None:
        with self._reported():
            self._log.write(json.dumps(line) + "\n")
            self._log.flush()

    @contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not self._has_failed:
                self._say(
                    f"note: {self._log.name} cannot be written: {error.strerror}. The run goes on, and its metrics may "
                    "be missing there"
                )
            self._has_failed = True

    def _call(self, call: Callable[[Tracker], None]) -> None:
        for guarded in self._trackers:
            guarded(call)


def truncate_log(file: Path, last_step: int) -> None:
    """Delete the lines of a log after `last_step`, and a line that was cut off by a crash."""
    if not file.exists():
        return
    with replacing(file) as kept:
        for line in read_json_lines(file):
            step = line.get("step")
            if isinstance(step, int) and step <= last_step:
                kept.write(json.dumps(line) + "\n")


def memory() -> dict[str, float]:
    """Memory in GiB: the peak of this process and what it has now (Linux only), on a GPU also the device's peak."""
    # Linux counts the peak in KiB, macOS in bytes.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    scalars = {"memory/peak_gib": peak / _GIB}
    statm = Path("/proc/self/statm")
    if statm.exists():
        pages = int(statm.read_text().split()[1])
        scalars["memory/resident_gib"] = pages * resource.getpagesize() / _GIB
    if paddle.get_device().startswith("gpu"):
        scalars["memory/device_peak_gib"] = paddle.device.cuda.max_memory_allocated() / _GIB
    return scalars
