"""RUN/report.html: the curves, answers, data, settings and environment of a run on one page, which needs no network."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from erniekit import __version__
from erniekit.config import Config, dump_config
from erniekit.data.load.rows import StoredRows
from erniekit.display.charts import LineChart, Series, line_chart, short
from erniekit.display.page import render_page
from erniekit.display.text import counted, visible
from erniekit.evaluation.answers import ANSWERS_DIR
from erniekit.evaluation.dataset import EvalSample
from erniekit.evaluation.report import write_text
from erniekit.inspection.thumbnails import Thumbnail
from erniekit.local_files import read_json_lines
from erniekit.train.console import clock
from erniekit.train.describe import describe_data, describe_run
from erniekit.train.ending import REPORT_FILE, next_commands, resume_command
from erniekit.train.inputs import Inputs
from erniekit.train.metric_names import find_metric
from erniekit.train.metrics_writer import LOG_FILE
from erniekit.train.plan import RunPlan
from erniekit.train.trackers.answers import sample_images
from erniekit.train.trackers.layout import Category

_TEMPLATE = Path(__file__).with_name("report.html")
_MOST_ANSWERS = 24
_STEP_TIME, _RATE = "train/step_seconds", "train/tokens_per_second"


@dataclass(frozen=True)
class ReportParts:
    """The contents of the report besides log and answers. layout: of the charts; data, environment: lines of text;
    samples: the samples of the answers."""

    config: Config
    layout: Sequence[Category]
    data: Sequence[str]
    environment: Sequence[str]
    samples: Sequence[EvalSample] = ()


@dataclass(frozen=True)
class RunStatus:
    """The progress of a run. state: in words; resumes: it was interrupted."""

    step: int
    total_steps: int
    tokens: int
    state: str
    resumes: bool
    has_best: bool


@dataclass(frozen=True)
class _DrawnCategory:
    title: str
    closed: bool
    charts: list[LineChart]


@dataclass(frozen=True)
class _ShownRecord:
    name: str
    prompt: str
    expected: str
    answer: str
    scores: str
    figures: list[Thumbnail]


def write_report(parts: ReportParts, status: RunStatus) -> Path:
    """Write the page from the log and the newest answers in the run's directory. Raises ErnieKitError."""
    run_dir = Path(parts.config.train.output_dir)
    log = list(read_json_lines(run_dir / LOG_FILE))
    answers_step, answers = _answers(run_dir, status.step, parts.samples)
    commands = next_commands(parts.config, has_best=status.has_best)
    if status.resumes:
        commands.insert(0, resume_command(run_dir))
    values = {
        "title": f"Run {visible(str(run_dir))}",
        "settings": [
            ("task", parts.config.task),
            ("model", visible(parts.config.model.path)),
            ("trained", "LoRA adapters" if parts.config.lora.enabled else "all weights that are not frozen"),
            ("state", status.state),
        ],
        "figures": list(_figures(log, status)),
        "categories": _draw(log, parts.layout),
        "answers_step": f"{answers_step:,}",
        "answers": answers,
        "data": visible("\n".join(parts.data)),
        "settings_text": visible(dump_config(parts.config, defaults=False).rstrip()),
        "environment": visible("\n".join(parts.environment)),
        "commands": visible("\n".join(commands)),
    }
    file = run_dir / REPORT_FILE
    write_text(render_page(_TEMPLATE, values), file)
    return file


def data_lines(inputs: Inputs, plan: RunPlan, config: Config) -> list[str]:
    """Data and plan of a run in words."""
    lines: list[str] = []
    datasets = [
        (name, rows.dataset)
        for name, rows in (
            ("training data", inputs.rows),
            ("eval data", inputs.eval_rows and inputs.eval_rows.rows),
        )
        if isinstance(rows, StoredRows)
    ]
    for name, dataset in datasets:
        lines += describe_data(name, dataset.stats, config.task)
        if len(dataset.sources) > 1:
            lines += [
                f"  {source.name}: {counted(source.stats.samples, 'sample')}, {source.stats.tokens:,} tokens"
                for source in dataset.sources
            ]
    if config.data.streaming:
        lines.append(f"training data: streamed, {', '.join(source.path for source in config.data.train)}")
    return lines + describe_run(plan, config, inputs.encoder.template.name)


def environment_lines(device: str, processes: int, kernels: str) -> list[str]:
    """Versions, machine and devices. device: its name."""
    versions = [f"erniekit {__version__}", f"Python {platform.python_version()}"]
    for package in ("paddlepaddle-gpu", "paddlepaddle", "transformers", "numpy"):
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return [
        ", ".join(versions),
        f"{platform.system()} {platform.release()} on {platform.machine()}",
        f"processes: {processes}, on {device}",
        kernels,
    ]


def _figures(log: Sequence[Mapping[str, Any]], status: RunStatus) -> Iterable[tuple[str, str]]:
    yield "steps", f"{status.step:,} of {status.total_steps:,}"
    yield "tokens", short(status.tokens)
    for name, title in (
        ("train/loss", "loss"),
        ("eval/loss", "eval loss"),
        ("rewards/accuracy", "accuracy"),
        ("eval/rewards/accuracy", "eval accuracy"),
        ("eval/exact_match", "eval exact match"),
    ):
        values = [line[name] for line in log if name in line]
        if values:
            shown = f"{values[-1]:.1%}" if "loss" not in name else f"{values[-1]:.4f}"
            yield title, shown
    timed = [line for line in log if _STEP_TIME in line]
    if timed:
        steps = [line["step"] for line in timed]
        spans = [step - before for step, before in zip(steps, [0, *steps[:-1]], strict=True)]
        seconds = [span * line[_STEP_TIME] for span, line in zip(spans, timed, strict=True)]
        tokens = [line[_RATE] * part for line, part in zip(timed, seconds, strict=True)]
        yield "tokens/s", f"{sum(tokens) / sum(seconds):,.0f}"
        yield "time in steps", clock(sum(seconds))


def _draw(log: Sequence[Mapping[str, Any]], layout: Sequence[Category]) -> list[_DrawnCategory]:
    names = list(dict.fromkeys(name for line in log for name in line if "/" in name))
    found = []
    for category in layout:
        charts = []
        for chart in category.charts:
            series = [
                Series(name, [(line["step"], line[name]) for line in log if name in line])
                for name in chart.lines(names)
            ]
            metric = find_metric(series[0].name) if series else None
            drawn = line_chart(
                chart.title, "" if metric is None else metric.unit, series, may_be_log=chart.may_be_log
            )
            if drawn is not None:
                charts.append(drawn)
        if charts:
            found.append(_DrawnCategory(category.title, category.closed, charts))
    return found


def _answers(run_dir: Path, step: int, samples: Sequence[EvalSample]) -> tuple[int, list[_ShownRecord]]:
    """The newest answers up to a step, and their step."""
    files = {int(file.stem.rpartition("-")[2]): file for file in (run_dir / ANSWERS_DIR).glob("step-*.jsonl")}
    newest = max((number for number in files if number <= step), default=None)
    if newest is None:
        return 0, []
    by_id = {sample.sample_id: sample for sample in samples}
    records = list(islice(read_json_lines(files[newest]), _MOST_ANSWERS))
    return newest, [_shown(record, by_id.get(record["id"])) for record in records]


def _shown(record: Mapping[str, Any], sample: EvalSample | None) -> _ShownRecord:
    images = [] if sample is None else sample_images(sample)
    return _ShownRecord(
        visible(record["id"]),
        visible(record["prompt"].rstrip()),
        visible(record["expected"]),
        visible(record["answer"]) + ("" if record["ended"] else " (cut off)"),
        ", ".join(f"{name} {value:.3g}" for name, value in record["metrics"].items()),
        [Thumbnail(image) for image in images],
    )
