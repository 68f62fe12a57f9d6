"""TensorBoard event files: scalars with descriptions, a layout of charts, texts, images with answers, histograms."""

from __future__ import annotations

import io
import os
import re
import socket
import time
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_SCALAR, HistogramProto, Summary
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar import metadata as layout_metadata
from tensorboard.plugins.image import metadata as image_metadata
from tensorboard.plugins.scalar.metadata import create_summary_metadata
from tensorboard.plugins.text import metadata as text_metadata
from tensorboard.summary.writer.record_writer import RecordWriter
from tensorboard.util.tensor_util import make_tensor_proto

from erniekit.train.metric_names import describe_metric
from erniekit.train.trackers.layout import Category
from erniekit.train.trackers.pictures import draw_answer
from erniekit.train.trackers.tracker import ShownAnswer

TENSORBOARD_DIR = "tensorboard"
_NUMBER = re.compile(r"events\.out\.tfevents\.(\d+)")


class TensorBoardTracker:
    """Writes event files to the directory `tensorboard` of a run.

    layout: of the tab "Custom Scalars". start_step: steps already done. When a run resumes or starts again in the
    directory, TensorBoard ignores the events of later steps.
    """

    name = "TensorBoard"

    def __init__(self, run_dir: Path, layout: Sequence[Category] = (), start_step: int = 0) -> None:
        directory = run_dir / TENSORBOARD_DIR
        is_restart = start_step > 0 or directory.exists()
        self._events = RecordWriter(_new_event_file(directory).open("xb"))
        self._described: set[str] = set()
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))
        if is_restart:
            start = SessionLog(status=SessionLog.START)
            self._write(Event(wall_time=time.time(), step=start_step + 1, session_log=start))
        if layout:
            self._add(start_step, [_layout_value(layout)])

    def log_scalars(self, step: int, scalars: Mapping[str, float], epoch: float | None) -> None:
        """Scalars; the first of each name carries the description."""
        self._add(step, [self._scalar(name, value) for name, value in scalars.items()])

    def log_shares(self, step: int, shares: Mapping[str, Sequence[float]]) -> None:
        """Histograms."""
        self._add(step, [Summary.Value(tag=tag, histo=_bars(bars)) for tag, bars in shares.items()])

    def log_text(self, step: int, name: str, html: str) -> None:
        """A text in the tab "Text", which renders a part of HTML."""
        tensor = make_tensor_proto(html.encode())
        metadata = text_metadata.create_summary_metadata(display_name=name, description="")
        self._add(step, [Summary.Value(tag=name, tensor=tensor, metadata=metadata)])

    def log_answers(self, step: int, answers: Sequence[ShownAnswer]) -> None:
        """Each answer with images in the tab "Images", and all of them in the tab "Text"."""
        values = []
        for number, answer in enumerate(answers, 1):
            if answer.images:
                image = draw_answer(answer)
                metadata = image_metadata.create_summary_metadata(
                    display_name=f"answer {number}", description=escape(answer.sample_id)
                )
                parts = [str(image.width).encode(), str(image.height).encode(), _png(image)]
                tag = f"answers/{number:02d}"
                values.append(Summary.Value(tag=tag, tensor=make_tensor_proto(parts), metadata=metadata))
        self._add(step, values)
        self.log_text(step, "answers", answers_table(answers))

    def flush(self) -> None:
        """Flush the event file."""
        self._events.flush()

    def close(self, *, failed: bool) -> None:
        """Flush and close the event file."""
        self._events.close()

    def _scalar(self, name: str, value: float) -> Summary.Value:
        if name in self._described:
            return Summary.Value(tag=name, simple_value=value)
        self._described.add(name)
        metadata = create_summary_metadata(display_name=name, description=describe_metric(name))
        metadata.data_class = DATA_CLASS_SCALAR  # else TensorBoard's fast loader drops the description
        return Summary.Value(tag=name, simple_value=value, metadata=metadata)

    def _add(self, step: int, values: Sequence[Summary.Value]) -> None:
        if values:
            self._write(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))

    def _write(self, event: Event) -> None:
        self._events.write(event.SerializeToString())
        # TensorBoard's own writer flushes by the clock: no more for hours after the clock is set back.
        self._events.flush()


def _new_event_file(directory: Path) -> Path:
    """The path of a new event file, which TensorBoard reads after the others.

    It reads them by name, and its own writer names them by the time, which may be earlier on another machine.
    """
    directory.mkdir(parents=True, exist_ok=True)
    found = [match for name in os.listdir(directory) if (match := _NUMBER.match(name))]
    number = max([int(time.time()), *(int(match[1]) + 1 for match in found)])
    return directory / f"events.out.tfevents.{number:010d}.{socket.gethostname()}.{os.getpid()}.0"


def answers_table(answers: Sequence[ShownAnswer]) -> str:
    """Answers as an HTML table."""
    rows = [("sample", "prompt", "reference", "answer", "scores")]
    for answer in answers:
        rows.append(
            (answer.sample_id, answer.prompt, answer.expected, answer.answer, answer.described_scores)
        )
    head = "".join(f"<th>{cell}</th>" for cell in rows[0])
    body = "".join("<tr>" + "".join(f"<td>{_cell(cell)}</td>" for cell in row) + "</tr>" for row in rows[1:])
    return f"<table><tr>{head}</tr>{body}</table>"


def _cell(text: str) -> str:
    """A text in one line: Markdown would end a table at an empty one."""
    return escape(text).replace("\n", " ⏎ ")


def _png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def _layout_value(layout: Sequence[Category]) -> Summary.Value:
    categories = [
        layout_pb2.Category(
            title=category.title,
            closed=category.closed,
            chart=[
                layout_pb2.Chart(
                    title=chart.title,
                    # TensorBoard takes names that begin with a match.
                    multiline=layout_pb2.MultilineChartContent(tag=[f"^{p}$" for p in chart.patterns]),
                )
                for chart in category.charts
            ],
        )
        for category in layout
    ]
    return Summary.Value(
        tag=layout_metadata.CONFIG_SUMMARY_TAG,
        tensor=make_tensor_proto(layout_pb2.Layout(category=categories).SerializeToString()),
        metadata=layout_metadata.create_summary_metadata(),
    )


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
