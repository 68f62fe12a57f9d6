"""An evaluation in words for the terminal, as JSON, and its answers as JSON lines."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from erniekit.data.encode.account import ErrorBudget
from erniekit.display.text import format_table
from erniekit.errors import ErnieKitError, VerifyError
from erniekit.evaluation.evaluate import Evaluation, Prediction
from erniekit.evaluation.scores import Figures, Mean
from erniekit.generation.answer import ToolCall
from erniekit.generation.sampling import Sampling
from erniekit.local_files import replacing

# Raised when a key of the JSON report changes its meaning.
REPORT_VERSION = 1


@dataclass(frozen=True)
class Settings:
    """How an evaluation was done. model: the directory with its weights; sampling: None without answers."""

    model: str
    template: str
    sampling: Sampling | None


def describe(evaluation: Evaluation) -> list[str]:
    """The figures as tables, of all samples and of each part of them: losses, and metrics where there are several."""
    groups = _groups(evaluation)
    tables = []
    if evaluation.tally.overall.loss is not None:
        header = ("loss", "samples", "tokens", "loss", "perplexity")
        tables.append(format_table([header, *(_loss_row(name, figures) for name, figures in groups)]))
    metrics = list(evaluation.tally.overall.metrics)
    answered = [(name, figures) for name, figures in groups if figures.answers]
    if len(metrics) > 1 or len(answered) > 1:
        rows = [
            (name, f"{figures.answers:,}", *(_share_of(figures, metric) for metric in metrics))
            for name, figures in answered
        ]
        tables.append(format_table([("metrics", "answers", *metrics), *rows]))
    return [line for table in tables for line in ("", *table)]


def summary(evaluation: Evaluation, sampling: Sampling | None) -> list[str]:
    """The figures of all samples in a few lines. sampling: None without answers."""
    overall = evaluation.tally.overall
    lines = []
    cut = overall.answers - overall.ended
    if sampling is not None and cut:
        lines.append(f"{cut:,} of {overall.answers:,} answers cut off at {sampling.max_new_tokens:,} tokens")
    if overall.loss is not None:
        lines.append(f"loss {overall.loss:.4f} over {overall.loss_tokens:,} tokens")
    exact = overall.metrics.get("exact_match")
    if exact is not None:
        lines.append(f"exact match {exact.total:.0f} of {exact.samples} ({exact.value:.1%})")
    return lines


def describe_mistakes(evaluation: Evaluation) -> list[str]:
    """A line about each of the first answers that are wrong."""
    lines = []
    for item in evaluation.mistakes:
        cut = "" if item.ended else " (cut off)"
        lines.append(f"  {item.id}: expected {_short(item.expected)}, answered {_short(item.answer)}{cut}")
    more = evaluation.wrong - len(evaluation.mistakes)
    return [*lines, f"  ... and {more:,} more that do not match"] if more else lines


def describe_skipped(budget: ErrorBudget) -> list[str]:
    """How many samples were left out and why, and the first of them."""
    errors = budget.left_out()
    if not errors:
        return []
    lines = [f"{len(errors):,} samples left out ({budget.by_reason()})"]
    lines += [f"  {error}" for error in errors[:3]]
    return [*lines, f"  ... and {len(errors) - 3:,} more"] if len(errors) > 3 else lines


def check_wanted(evaluation: Evaluation, wanted: Mapping[str, float]) -> None:
    """Raises VerifyError where a metric is below the least that is wanted of it, or applied to no answer."""
    metrics = evaluation.tally.overall.metrics
    short = []
    for name, least in wanted.items():
        told = "exact match" if name == "exact_match" else name
        if name not in metrics:
            short.append(f"{told} applies to none of the references")
        elif metrics[name].value < least:
            short.append(f"{told} {metrics[name].value:.2%} is below the wanted {least:.2%}")
    if short:
        raise VerifyError("; ".join(short))


def as_values(evaluation: Evaluation, settings: Settings, budget: ErrorBudget) -> dict[str, Any]:
    """The report as JSON values; what is no finite number is null."""
    tally = evaluation.tally
    skipped: dict[str, int] = {}
    for error in budget.left_out():
        skipped[error.reason] = skipped.get(error.reason, 0) + 1
    return {
        "version": REPORT_VERSION,
        "model": settings.model,
        "template": settings.template,
        "sampling": None if settings.sampling is None else asdict(settings.sampling),
        "skipped": skipped,
        "wrong": evaluation.wrong,
        "all": _figures(tally.overall),
        "sources": {name: _figures(figures) for name, figures in tally.sources.items()},
        "modalities": {name: _figures(figures) for name, figures in tally.modalities.items()},
    }


def write_report(values: Mapping[str, Any], path: Path) -> None:
    """What `as_values` gives, as a JSON file. Raises ErnieKitError where that fails."""
    write_text(json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n", path)


def write_text(text: str, path: Path) -> None:
    """A file, there when it is complete; its directory is made. Raises ErnieKitError where that fails."""
    try:
        with replacing(path) as stream:
            stream.write(text)
    except OSError as error:
        raise ErnieKitError(f"{path}: cannot be written: {error.strerror or error}") from error


@contextmanager
def writing_predictions(path: Path) -> Iterator[Callable[[Prediction], None]]:
    """A function that writes an answer as a line of JSON, see `as_record`; the file is there when the block ends.

    Raises ErnieKitError where it cannot be written.
    """
    try:
        with replacing(path) as stream:
            yield lambda prediction: print(_line(prediction), file=stream)
    except OSError as error:
        raise ErnieKitError(f"{path}: the answers cannot be written: {error.strerror or error}") from error


def as_record(prediction: Prediction) -> dict[str, Any]:
    """An answer as JSON values: whole, and parsed into reasoning, text and calls, beside what is expected."""
    return {
        "id": prediction.id,
        "source": prediction.source,
        "prompt": prediction.prompt,
        "expected": prediction.expected,
        "answer": prediction.answer,
        "ended": prediction.ended,
        "match": prediction.match,
        "right": prediction.right,
        "reasoning": prediction.parsed.reasoning,
        "text": prediction.parsed.text,
        "tool_calls": [_call(call) for call in prediction.parsed.tool_calls],
        "expected_tool_calls": [_call(call) for call in prediction.reference.tool_calls],
        "metrics": prediction.scores,
    }


def _line(prediction: Prediction) -> str:
    return json.dumps(as_record(prediction), ensure_ascii=False)


def _call(call: ToolCall) -> dict[str, Any]:
    if call.error is None:
        return {"name": call.name, "arguments": call.arguments}
    return {"name": call.name, "arguments": None, "raw": call.raw, "error": call.error}


def _groups(evaluation: Evaluation) -> list[tuple[str, Figures]]:
    """All, then the sources and the modalities where there are several."""
    tally = evaluation.tally
    groups = [("all", tally.overall)]
    for parts in (tally.sources, tally.modalities):
        if len(parts) > 1:
            groups += parts.items()
    return groups


def _loss_row(name: str, figures: Figures) -> tuple[str, ...]:
    loss = "-" if figures.loss is None else f"{figures.loss:.4f}"
    perplexity = "-" if figures.perplexity is None else f"{figures.perplexity:,.4g}"
    return name, f"{figures.samples:,}", f"{figures.loss_tokens:,}", loss, perplexity


def _share_of(figures: Figures, metric: str) -> str:
    mean = figures.metrics.get(metric)
    if mean is None:
        return "-"
    return f"{mean.value:.1%}" if mean.samples == figures.answers else f"{mean.value:.1%} of {mean.samples:,}"


def _figures(figures: Figures) -> dict[str, Any]:
    return {
        "samples": figures.samples,
        "loss": _finite(figures.loss),
        "loss_tokens": figures.loss_tokens,
        "perplexity": _finite(figures.perplexity),
        "answers": figures.answers,
        "cut_off": figures.answers - figures.ended,
        "metrics": {name: _mean(mean) for name, mean in figures.metrics.items()},
    }


def _mean(mean: Mean) -> dict[str, Any]:
    return {"value": mean.value, "samples": mean.samples}


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
