"""The report on data files as text, for a terminal, and as JSON values, for other programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from erniekit.data.chat.conversation import CHAT_ROLES
from erniekit.display.text import counted, format_table, visible
from erniekit.inspection.check_report import CheckReport, FileReport, Packing
from erniekit.inspection.contents import CONTENTS
from erniekit.inspection.lengths import PERCENTILES, Lengths, edges_for

_NAMED_FILES = 30
_BAR = 20  # characters of the longest bar
_EIGHTHS = " ▏▎▍▌▋▊▉"
_ROLES = (*CHAT_ROLES, "text")


def format_report(report: CheckReport) -> list[str]:
    """The lines of the report; the last one counts the samples with errors."""
    sections = [
        _files(report.files),
        _errors(report),
        [visible(line) for line in report.notices.lines()],
        _roles(report),
        _contents(report),
        _lengths(report),
        _totals(report),
    ]
    lines: list[str] = []
    for section in sections:
        if section:
            lines += [*section, ""]
    return [*lines, summary(report)]


def summary(report: CheckReport) -> str:
    """The number of samples with errors and of unreadable files."""
    line = f"{report.failed:,} of {counted(report.samples, 'sample')} have errors"
    unreadable = len(report.unreadable)
    if unreadable:
        line += f"; {unreadable:,} of {counted(len(report.files), 'file')} cannot be read"
    return line


def _files(files: Sequence[FileReport]) -> list[str]:
    # Files with errors are always named.
    shown = [
        file
        for place, file in enumerate(files)
        if place < _NAMED_FILES or file.failed or file.unreadable is not None
    ]
    lines = []
    for file in shown:
        formats = ", ".join(
            name if len(file.formats) == 1 else f"{name} {count:,}"
            for name, count in file.formats.most_common()
        )
        line = f"{file.path}: {counted(file.samples, 'sample')}"
        line += f" ({formats})" if formats else ""
        line += ", eval" if file.is_eval else ""
        line += f", {file.failed:,} with errors" if file.failed else ""
        line += ", cannot be read" if file.unreadable is not None else ""
        lines.append(line)
    if len(shown) < len(files):
        lines.append(f"and {counted(len(files) - len(shown), 'more file')} without errors")
    return lines


def _errors(report: CheckReport) -> list[str]:
    errors = report.errors
    lines = [visible(f"error: {file.unreadable}") for file in report.unreadable]
    lines += [visible(f"{error.sample_id}: {error.reason}: {error.detail}") for error in errors.first]
    if errors.total > len(errors.first):
        lines.append(f"and {errors.total - len(errors.first):,} more; --all-errors lists them all")
    if errors.total:
        counts = ", ".join(f"{reason} {count:,}" for reason, count in errors.by_reason.most_common())
        lines += ["", f"errors by reason: {counts}"] if lines else []
    return lines


def _roles(report: CheckReport) -> list[str]:
    if not report.roles:
        return []
    rows = [("role", "messages", "trained", "characters")]
    for role in _ROLES:
        if role in report.roles:
            count = report.roles[role]
            rows.append((role, f"{count.messages:,}", f"{count.with_loss:,}", f"{count.characters:,}"))
    return format_table(rows, indent=2)


def _contents(report: CheckReport) -> list[str]:
    if not report.contents:
        return []
    rows = [("content", "samples")]
    rows += [
        (label, f"{report.contents[name]:,}") for name, label in CONTENTS.items() if report.contents[name]
    ]
    lines = format_table(rows, indent=2)
    if report.images or report.videos:
        lines.append(f"{counted(report.images, 'image')}, {counted(report.videos, 'video')}")
    if report.duplicates.count:
        named = ", ".join(report.duplicates.first)
        more = ", ..." if report.duplicates.count > len(report.duplicates.first) else ""
        lines.append(f"{counted(report.duplicates.count, 'duplicate')} of earlier samples: {named}{more}")
    return lines


def _lengths(report: CheckReport) -> list[str]:
    if not report.total.values:
        return []
    columns = [(f"{report.unit}", report.total)]
    if report.vision.values:
        text = [("text tokens", report.text)] if report.unit == "tokens" else []
        columns = [("all tokens" if text else "characters", report.total), *text]
        columns.append(("vision tokens", report.vision))
    lines = [f"lengths of {counted(len(report.total.values), 'document')}"]
    lines += _histogram(columns)
    rows = [("", *(f"p{percent}" for percent in PERCENTILES), "max", "documents")]
    for name, lengths in columns:
        found = [lengths.percentile(percent) for percent in PERCENTILES]
        numbers = (*found, lengths.longest(), len(lengths.values))
        rows.append((name, *(f"{number:,}" for number in numbers)))
    lines += ["", *format_table(rows, indent=2)]
    return lines


def _histogram(columns: Sequence[tuple[str, Lengths]]) -> list[str]:
    edges = edges_for(max(lengths.longest() for _, lengths in columns))
    counts = [[bucket.documents for bucket in lengths.buckets(edges)] for _, lengths in columns]
    first = next(place for place in range(len(edges)) if any(column[place] for column in counts))
    most = max(max(column) for column in counts)
    width = max(len(f"{most:,}"), 1)
    labels = [f"<= {edge:,}" for edge in edges]
    margin = max(map(len, labels))
    head = "".join(f"  {name:<{width + 1 + _BAR}}" for name, _ in columns)
    lines = [f"  {'':>{margin}}{head}".rstrip()]
    for place in range(first, len(edges)):
        cells = [f"  {column[place]:>{width},} {bar(column[place], most):<{_BAR}}" for column in counts]
        lines.append(f"  {labels[place]:>{margin}}{''.join(cells)}".rstrip())
    return lines


def bar(count: int, most: int) -> str:
    """A bar of up to 20 characters in proportion to count / most; not empty unless count is 0."""
    if not count:
        return ""
    eighths = max(1, round(count / most * _BAR * 8))
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def _totals(report: CheckReport) -> list[str]:
    if report.unit == "characters":
        lines = [f"characters: {report.text.total():,}"] if report.text.values else []
        if report.vision_tokens:
            limits = "with ERNIE 4.5's default limits for images and videos"
            lines.append(f"vision tokens: {report.vision_tokens:,}, {limits}")
        return [*lines, "for lengths in tokens and encoding errors, name a model with --model"]
    lines = []
    over = report.total.over(report.max_length)
    if over:
        lines.append(f"{counted(over, 'document')} longer than {report.max_length:,} tokens (max_length)")
    if report.dropped:
        lines.append(f"{counted(report.dropped, 'sample')} would be skipped for length (on_long: drop)")
    if report.trimmed:
        trimmed = counted(report.trimmed, "document")
        lines.append(f"{trimmed} would lose the oldest turns (on_long: trim_history)")
    if report.untrained_reasoning:
        lines.append(
            f"the reasoning of {counted(report.untrained_reasoning, 'earlier answer')} would not be trained, since "
            "later turns do not see it (data.loss_on: each_turn trains it)"
        )
    if report.calls_as_history:
        lines.append(
            f"{counted(report.calls_as_history, 'tool call')} would be trained in the form of history, not as the "
            "model is prompted for them (data.loss_on: each_turn trains them as answers)"
        )
    packing = report.packing
    if packing is None:
        return lines
    share = report.loss_tokens / packing.tokens
    lines.append(
        f"tokens: {packing.tokens:,}, trained {report.loss_tokens:,} ({share:.1%}), "
        f"vision {report.vision_tokens:,}"
    )
    return [*lines, _packing(packing)]


def _packing(packing: Packing) -> str:
    return (
        f"packing: {counted(packing.documents, 'document')} in {counted(packing.rows, 'row')} of "
        f"{packing.max_length:,} tokens per epoch, {packing.unused:.1%} unused "
        f"({packing.unused_if_padded:.1%} if each document were padded)"
    )


def report_values(report: CheckReport) -> dict[str, Any]:
    """The report as JSON values. `lengths` are of whole documents, `tokens` of those that training would use."""
    packing = report.packing
    values: dict[str, Any] = {
        "samples": report.samples,
        "samples_with_errors": report.failed,
        "files": [
            {
                "path": str(file.path),
                "held_out": file.is_eval,
                "samples": file.samples,
                "samples_with_errors": file.failed,
                "formats": dict(file.formats),
                "unreadable": file.unreadable,
            }
            for file in report.files
        ],
        "errors_by_reason": dict(report.errors.by_reason),
        "errors": [
            {"sample": error.sample_id, "reason": error.reason, "detail": error.detail}
            for error in report.errors.first
        ],
        "notices": [
            {"notice": text, "samples": count, "first": report.notices.first[text]}
            for text, count in report.notices.counts.most_common()
        ],
        "roles": {role: vars(count) for role, count in report.roles.items()},
        "content": {name: report.contents[name] for name in CONTENTS},
        "pictures": report.images,
        "videos": report.videos,
        "duplicates": {"samples": report.duplicates.count, "first": report.duplicates.first},
        "max_length": report.max_length,
        "over_max_length": report.total.over(report.max_length) if report.unit == "tokens" else None,
        "dropped": report.dropped,
        "trimmed": report.trimmed,
        "untrained_reasoning": report.untrained_reasoning,
        "calls_as_history": report.calls_as_history,
        "unit": report.unit,
        "lengths": {
            name: _length_values(lengths)
            for name, lengths in (("all", report.total), ("text", report.text), ("vision", report.vision))
        },
        "tokens": None,
        "vision_tokens": report.vision_tokens,
        "packing": None,
    }
    if packing is not None:
        values["tokens"] = {"all": packing.tokens, "with_loss": report.loss_tokens}
        values["packing"] = {
            "rows": packing.rows,
            "documents": packing.documents,
            "unused": packing.unused,
            "unused_if_padded": packing.unused_if_padded,
        }
    return values


def _length_values(lengths: Lengths) -> dict[str, Any]:
    buckets = lengths.buckets(edges_for(lengths.longest()))
    return {
        "documents": len(lengths.values),
        **{f"p{percent}": lengths.percentile(percent) for percent in PERCENTILES},
        "max": lengths.longest(),
        "buckets": [{"up_to": bucket.up_to, "documents": bucket.documents} for bucket in buckets],
    }
