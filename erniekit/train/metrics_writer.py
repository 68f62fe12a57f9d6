"""Writes the metrics of a run to TensorBoard event files and `log.jsonl`, under the same names."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import paddle
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import HistogramProto, Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

LOG_FILE = "log.jsonl"
TENSORBOARD_DIR = "tensorboard"
_FLUSH_SECONDS = 10
_GIB = float(1 << 30)


class MetricsWriter:
    """Writes the metrics of a run below `directory`.

    start_step: the number of steps already done. When a run resumes or starts again in the directory, lines of later
    steps are dropped from `log.jsonl`, and TensorBoard ignores its events of later steps: no step is logged twice.
    """

    def __init__(self, directory: Path, *, tensorboard: bool, start_step: int = 0) -> None:
        file = directory / LOG_FILE
        truncate_log(file, start_step)
        self._log = file.open("a", encoding="utf-8")
        events = directory / TENSORBOARD_DIR
        is_restart = start_step > 0 or events.exists()
        self._events = EventFileWriter(str(events), flush_secs=_FLUSH_SECONDS) if tensorboard else None
        if self._events is not None and is_restart:
            start = SessionLog(status=SessionLog.START)
            self._events.add_event(Event(wall_time=time.time(), step=start_step + 1, session_log=start))

    def write(
        self,
        step: int,
        scalars: Mapping[str, float],
        *,
        epoch: float | None = None,
        shares: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        """One line of `log.jsonl` and one TensorBoard event, after `step` steps.

        scalars: by TensorBoard name, such as "train/loss". shares: drawn in TensorBoard as histograms with one bar
        per entry (an expert); not written to `log.jsonl`.
        """
        line: dict[str, Any] = {"step": step, "time": round(time.time(), 3)}
        if epoch is not None:
            line["epoch"] = round(epoch, 6)
        self._log.write(json.dumps({**line, **scalars}) + "\n")
        self._log.flush()
        if self._events is None:
            return
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        values += [Summary.Value(tag=tag, histo=_bars(bars)) for tag, bars in (shares or {}).items()]
        self._events.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))

    def event(self, step: int, name: str, **values: Any) -> None:
        """A line of `log.jsonl` about something that happened at a step: {"step", "time", "event": name, ...}."""
        line = {"step": step, "time": round(time.time(), 3), "event": name, **values}
        self._log.write(json.dumps(line) + "\n")
        self._log.flush()

    def flush(self) -> None:
        """Flush everything to disk."""
        self._log.flush()
        os.fsync(self._log.fileno())
        if self._events is not None:
            self._events.flush()

    def close(self) -> None:
        """Flush and close the files."""
        self._log.close()
        if self._events is not None:
            self._events.close()


def _bars(values: Sequence[float]) -> HistogramProto:
    """A histogram with a bar of height values[i] around x = i."""
    total = float(sum(values))
    return HistogramProto(
        min=0.0,
        max=float(len(values) - 1),
        num=total,
        sum=float(sum(i * value for i, value in enumerate(values))),
        sum_squares=float(sum(i * i * value for i, value in enumerate(values))),
        bucket_limit=[i + 0.5 for i in range(len(values))],
        bucket=[float(value) for value in values],
    )


def truncate_log(file: Path, last_step: int) -> None:
    """Drop the lines of a log after `last_step`, and a line cut off by a crash."""
    if not file.exists():
        return
    kept = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= last_step:
                kept.append(line + "\n")
        except ValueError:
            continue
    aside = file.with_name(f".{file.name}.tmp")
    aside.write_text("".join(kept), encoding="utf-8")
    aside.replace(file)


def memory() -> dict[str, float]:
    """Peak memory in GiB: of the device on a GPU, else of this process, also its current memory (Linux only)."""
    if paddle.get_device().startswith("gpu"):
        return {"memory/device_peak_gib": paddle.device.cuda.max_memory_allocated() / _GIB}
    # Linux counts the peak in KiB, macOS in bytes.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    scalars = {"memory/peak_gib": peak / _GIB}
    statm = Path("/proc/self/statm")
    if statm.exists():
        pages = int(statm.read_text().split()[1])
        scalars["memory/resident_gib"] = pages * resource.getpagesize() / _GIB
    return scalars
