"""Where a run's figures go: TensorBoard event files and `log.jsonl`, under the same names."""

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
    """Writes the figures of a run below `directory`.

    `start_step` is the number of steps already done: when a run goes on or begins again there, what was logged for
    later steps is dropped from `log.jsonl`, and TensorBoard is told to disregard it, so that no step is logged
    twice.
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

        `scalars` are named as in TensorBoard ("train/loss"). `shares` are drawn as histograms with one bar
        for each entry (an expert); they do not go into `log.jsonl`.
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

    def flush(self) -> None:
        """Bring everything that was written to disk."""
        self._log.flush()
        os.fsync(self._log.fileno())
        if self._events is not None:
            self._events.flush()

    def close(self) -> None:
        """Flush and close both."""
        self._log.close()
        if self._events is not None:
            self._events.close()


def _bars(values: Sequence[float]) -> HistogramProto:
    """A histogram whose bar i, around x = i, is as high as values[i]."""
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
    """Keep the lines of a log up to `last_step`. A line cut off by a crash is dropped with them."""
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
    """Memory of this process in GiB, now (Linux only) and at its peak; on a GPU the device's peak."""
    if paddle.get_device().startswith("gpu"):
        return {"memory/device_peak_gib": paddle.device.cuda.max_memory_allocated() / _GIB}
    # Linux counts the peak in KiB, macOS in bytes.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    figures = {"memory/peak_gib": peak / _GIB}
    statm = Path("/proc/self/statm")
    if statm.exists():
        pages = int(statm.read_text().split()[1])
        figures["memory/resident_gib"] = pages * resource.getpagesize() / _GIB
    return figures
