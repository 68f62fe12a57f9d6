"""Reports on an evaluation: tables for the terminal, a JSON file, and a file of answers as JSON lines."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from erniekit.data.encode.stats import ErrorBudget
from erniekit.display.text import counted, format_table
from erniekit.errors import ErnieKitError, VerifyError
from erniekit.evaluation.evaluate import Evaluation, Prediction
from erniekit.evaluation.scores import GroupScores, Mean
from erniekit.generation.answer import ToolCall
from erniekit.generation.sampling import Sampling
from erniekit.local_files import replacing

# Incremented when a key of the JSON report changes its meaning.
REPORT_VERSION = 2


@dataclass(frozen=True)
class EvalSettings:
    """The settings of an evaluation.

    model: the directory of the weights; sampling: None without answers; pairs: how preference pairs are scored, empty
    without pairs.
    """

    model: str
    template: str
    sampling: Sampling | None
    pairs: str = ""


def format_tables(evaluation: Evaluation) -> list[str]:
    """Tables of losses, of preference pairs, and of metrics if there are several, for all samples and each group."""
    groups = _groups(evaluation)
    tables = []
    if evaluation.scores.overall.loss is not None:
        header = ("loss", "samples", "tokens", "loss", "perplexity")
        tables.append(format_table([header, *(_loss_row(name, group) for name, group in groups)]))
    paired = [(name, group) for name, group in groups if group.pairs]
    if paired:
        columns = ("preference", "pairs", "accuracy", "margin", "logp chosen", "logp rejected")
        tables.append(format_table([columns, *(_pairs_row(name, group) for name, group in paired)]))
    metrics = list(evaluation.scores.overall.metrics)
    answered = [(name, group) for name, group in groups if group.answers]
    if len(metrics) > 1 or len(answered) > 1:
        rows = [
            (name, f"{group.answers:,}", *(_share_of(group, metric) for metric in metrics))
            for name, group in answered
        ]
        tables.append(format_table([("metrics", "answers", *metrics), *rows]))
    return [line for table in tables for line in ("", *table)]


def format_summary(evaluation: Evaluation, sampling: Sampling | None) -> list[str]:
    """The main results in a few lines. sampling: None without answers."""
    overall = evaluation.scores.overall
    lines = []
    cut = overall.answers - overall.ended
    if sampling is not None and cut:
        answers = counted(overall.answers, "answer")
        lines.append(f"{cut:,} of {answers} cut off at {counted(sampling.max_new_tokens, 'token')}")
    if overall.loss is not None:
        lines.append(f"loss {overall.loss:.4f} over {counted(overall.loss_tokens, 'token')}")
    if overall.pairs:
        accuracy, margin = (overall.preference[f"rewards/{name}"] for name in ("accuracy", "margin"))
        lines.append(
            f"preference accuracy {accuracy:.1%} over {counted(overall.pairs, 'pair')}, margin {margin:.4g}"
        )
    exact = overall.metrics.get("exact_match")
    if exact is not None:
        lines.append(f"exact match {exact.total:.0f} of {exact.samples} ({exact.value:.1%})")
    return lines


def format_mistakes(evaluation: Evaluation) -> list[str]:
    """A line for each of the first answers that are wrong or differ from the reference."""
    lines = []
    for item in evaluation.mistakes:
        cut = "" if item.ended else " (cut off)"
        lines.append(f"  {item.id}: expected {_short(item.expected)}, answered {_short(item.answer)}{cut}")
    more = evaluation.wrong + evaluation.differing - len(evaluation.mistakes)
    return [*lines, f"  ... and {counted(more, 'more answer')} unlike the reference"] if more else lines


def format_skipped(budget: ErrorBudget) -> list[str]:
    """The number of skipped samples by reason, and the first of them."""
    errors = budget.left_out()
    if not errors:
        return []
    lines = [f"{counted(len(errors), 'sample')} skipped ({budget.by_reason()})"]
    lines += [f"  {error}" for error in errors[:3]]
    return [*lines, f"  ... and {len(errors) - 3:,} more"] if len(errors) > 3 else lines


def check_result(evaluation: Evaluation, minimums: Mapping[str, float]) -> None:
    """Raises VerifyError if the loss is NaN or infinite, or a metric is below its minimum or applies to no answer."""
    loss, metrics = evaluation.scores.overall.loss, evaluation.scores.overall.metrics
    failures = []
    if loss is not None and not math.isfinite(loss):
        failures.append(
            f"the loss is {loss}: the model's weights or its adapter are too large for its numbers"
        )
    for name, minimum in minimums.items():
        label = "exact match" if name == "exact_match" else name
        if name not in metrics:
            failures.append(f"{label} applies to none of the references")
        elif metrics[name].value < minimum:
            failures.append(f"{label} {metrics[name].value:.2%} is below the minimum {minimum:.2%}")
    if failures:
        raise VerifyError("; ".join(failures))


def report_values(evaluation: Evaluation, settings: EvalSettings, budget: ErrorBudget) -> dict[str, Any]:
    """The report as JSON values. Numbers that are not finite are null."""
    scores = evaluation.scores
    skipped: dict[str, int] = {}
    for error in budget.left_out():
        skipped[error.reason] = skipped.get(error.reason, 0) + 1
    return {
        "version": REPORT_VERSION,
        "model": settings.model,
        "template": settings.template,
        "sampling": None if settings.sampling is None else asdict(settings.sampling),
        "pairs": settings.pairs,
        "skipped": skipped,
        "wrong": evaluation.wrong,
        "differing": evaluation.differing,
        "all": _group_values(scores.overall),
        "sources": {name: _group_values(group) for name, group in scores.sources.items()},
        "modalities": {name: _group_values(group) for name, group in scores.modalities.items()},
    }


def write_report(values: Mapping[str, Any], path: Path) -> None:
    """Writes `report_values` to a JSON file. Raises ErnieKitError if it cannot be written."""
    write_text(json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n", path)


def write_text(text: str, path: Path) -> None:
    """Writes a text file atomically, and creates its directory. Raises ErnieKitError if it cannot be written."""
    try:
        with replacing(path) as stream:
            stream.write(text)
    except OSError as error:
        raise ErnieKitError(f"{path}: cannot be written: {error.strerror or error}") from error


@contextmanager
def writing_predictions(path: Path) -> Iterator[Callable[[Prediction], None]]:
    """A function that writes an answer as a line of JSON. The file appears when the block ends without an error.

    Raises ErnieKitError if it cannot be written.
    """
    try:
        with replacing(path) as stream:
            yield lambda prediction: print(_line(prediction), file=stream)
    except OSError as error:
        raise ErnieKitError(f"{path}: the answers cannot be written: {error.strerror or error}") from error


def prediction_record(prediction: Prediction) -> dict[str, Any]:
    """An answer and its reference as JSON values, as text and parsed into reasoning, text and tool calls."""
    return {
        "id": prediction.id,
        "source": prediction.source,
        "prompt": prediction.prompt,
        "expected": prediction.expected,
        "answer": prediction.answer,
        "ended": prediction.ended,
        "match": prediction.match,
        "right": prediction.verdict == "right",
        "verdict": prediction.verdict,
        "reasoning": prediction.parsed.reasoning,
        "text": prediction.parsed.text,
        "tool_calls": [_call(call) for call in prediction.parsed.tool_calls],
        "expected_tool_calls": [_call(call) for call in prediction.reference.tool_calls],
        "metrics": prediction.scores,
    }


def _line(prediction: Prediction) -> str:
    return json.dumps(prediction_record(prediction), ensure_ascii=False)


def _call(call: ToolCall) -> dict[str, Any]:
    if call.error is None:
        return {"name": call.name, "arguments": call.arguments}
    return {"name": call.name, "arguments": None, "raw": call.raw, "error": call.error}


def _groups(evaluation: Evaluation) -> list[tuple[str, GroupScores]]:
    """All samples, then the sources and modalities if there are several."""
    scores = evaluation.scores
    groups = [("all", scores.overall)]
    for parts in (scores.sources, scores.modalities):
        if len(parts) > 1:
            groups += parts.items()
    return groups


def _loss_row(name: str, group: GroupScores) -> tuple[str, ...]:
    loss = "-" if group.loss is None else f"{group.loss:.4f}"
    perplexity = "-" if group.perplexity is None else f"{group.perplexity:,.4g}"
    return name, f"{group.samples:,}", f"{group.loss_tokens:,}", loss, perplexity


def _pairs_row(name: str, group: GroupScores) -> tuple[str, ...]:
    accuracy, *others = group.preference.values()
    return name, f"{group.pairs:,}", f"{accuracy:.1%}", *(f"{value:,.4g}" for value in others)


def _share_of(group: GroupScores, metric: str) -> str:
    mean = group.metrics.get(metric)
    if mean is None:
        return "-"
    return f"{mean.value:.1%}" if mean.samples == group.answers else f"{mean.value:.1%} of {mean.samples:,}"


def _group_values(group: GroupScores) -> dict[str, Any]:
    return {
        "samples": group.samples,
        "loss": _finite(group.loss),
        "loss_tokens": group.loss_tokens,
        "perplexity": _finite(group.perplexity),
        "answers": group.answers,
        "cut_off": group.answers - group.ended,
        "metrics": {name: _mean(mean) for name, mean in group.metrics.items()},
        "pairs": group.pairs,
        "preference": {name: _finite(value) for name, value in group.preference.items()},
    }


def _mean(mean: Mean) -> dict[str, Any]:
    return {"value": mean.value, "samples": mean.samples}


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
