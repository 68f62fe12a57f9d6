"""The report on data files as text and as JSON values."""

import json
from pathlib import Path
from typing import Any

import pytest

from erniekit.data.chat.conversation import SampleError
from erniekit.data.encode.encoder import Encoder
from erniekit.inspection.check import CheckedFile, CheckOptions, check_files
from erniekit.inspection.check_report import CheckReport, ErrorList, FileReport
from erniekit.inspection.format_report import bar, format_report, report_values
from tests.unit.data.helpers import data_uri, noise, qa, write_lines
from tests.unit.inspection.samples import TOOL_CHAT


def report_on(path: Path, encoder: Encoder | None = None, **settings: Any) -> CheckReport:
    options = CheckOptions(encoder, **({"max_length": 100} | settings))
    return check_files([CheckedFile(path, "auto")], options)


def test_the_whole_report(tmp_path: Path) -> None:
    image = [{"type": "image", "image": data_uri(noise(60, 60))}, {"type": "text", "text": "what?"}]
    path = write_lines(tmp_path / "a.jsonl", [qa("hello"), qa("hello"), qa(image), {"strange": 1}])
    report = report_on(path)
    (error,) = report.errors.first
    assert format_report(report) == [
        f"{path}: 4 samples (messages), 1 with errors",
        "",
        f"{path}:4: unknown format: {error.detail}",
        "",
        "errors by reason: unknown format 1",
        "",
        "  role       messages  trained  characters",
        "  user              3        0          15",
        "  assistant         3        3          15",
        "",
        "  content      samples",
        "  text only          2",
        "  with images        1",
        "1 image, 0 videos",
        f"1 duplicate of earlier samples: {path}:2",
        "",
        "lengths of 3 documents",
        "         characters              vision tokens",
        "  <= 16  3 ████████████████████  1 ██████▋",
        "",
        "                 p50  p90  p99  max  documents",
        "  characters      10   10   10   10          3",
        "  vision tokens    4    4    4    4          1",
        "",
        "characters: 30",
        "vision tokens: 4, with ERNIE 4.5's default limits for images and videos",
        "for lengths in tokens and encoding errors, name a model with --model",
        "",
        "1 of 4 samples have errors",
    ]


def test_tokens_and_rows_are_counted(tmp_path: Path, vl_encoder: Encoder) -> None:
    path = write_lines(tmp_path / "a.jsonl", [qa("hello"), qa("seven " * 200)])
    report = report_on(path, vl_encoder, on_long="drop")
    packing = report.packing
    assert packing is not None
    lines = format_report(report)
    assert lines[-1] == "0 of 2 samples have errors"
    assert lines[-6:-2] == [
        "1 document longer than 100 tokens (max_length)",
        "1 sample would be skipped for length (on_long: drop)",
        f"tokens: {packing.tokens}, trained {report.loss_tokens} "
        f"({report.loss_tokens / packing.tokens:.1%}), vision 0",
        f"packing: 1 document in 1 row of 100 tokens per epoch, {1 - packing.tokens / 100:.1%} unused "
        f"({1 - packing.tokens / 100:.1%} if each document were padded)",
    ]


def test_calls_that_would_be_trained_as_history_are_counted(tmp_path: Path, vl_encoder: Encoder) -> None:
    messages = [
        {name: value for name, value in message.items() if name != "reasoning_content"}
        for message in TOOL_CHAT["messages"]
    ]
    answer = {"role": "assistant", "content": "nine"}
    whole = TOOL_CHAT | {"messages": messages}
    pair = TOOL_CHAT | {"messages": messages[:2], "chosen": messages[2:], "rejected": [answer]}
    path = write_lines(tmp_path / "a.jsonl", [whole, whole | {"messages": messages[:3]}, pair])
    report = report_on(path, vl_encoder, max_length=500)
    assert report.is_clean and report_values(report)["calls_as_history"] == 2
    assert any(
        line.startswith("2 tool calls would be trained in the form of hist") for line in format_report(report)
    )
    pairs = report_on(write_lines(tmp_path / "b.jsonl", [pair]), vl_encoder, max_length=500, pairs="shared")
    assert pairs.is_clean and "of history" not in "\n".join(format_report(pairs))


def test_files_that_cannot_be_read_are_errors_too(tmp_path: Path) -> None:
    lines = format_report(report_on(tmp_path / "gone.jsonl"))
    assert lines[0] == f"{tmp_path / 'gone.jsonl'}: 0 samples, cannot be read"
    assert lines[2].startswith(f"error: {tmp_path / 'gone.jsonl'}: cannot read the data file")
    assert lines[-1] == "0 of 0 samples have errors; 1 of 1 file cannot be read"


def test_of_many_files_those_with_errors_are_named() -> None:
    report = CheckReport("characters", 10, ErrorList(20))
    report.files = [FileReport(Path(f"{number}.jsonl"), samples=1) for number in range(100)]
    report.files[77].failed = 1
    lines = format_report(report)
    assert "77.jsonl: 1 sample, 1 with errors" in lines
    assert "29.jsonl: 1 sample" in lines
    assert "30.jsonl: 1 sample" not in lines
    assert "and 69 more files without errors" in lines


def test_errors_beyond_the_first_are_counted() -> None:
    report = CheckReport("characters", 10, ErrorList(2))
    for number in range(5):
        report.errors.add(SampleError(f"a:{number}", "bad record", "\x1b[31m"))
    lines = format_report(report)
    assert lines[:3] == [
        "a:0: bad record: ␛[31m",
        "a:1: bad record: ␛[31m",
        "and 3 more; --all-errors lists them all",
    ]
    assert "errors by reason: bad record 5" in lines


def test_json_values_are_the_numbers(tmp_path: Path, vl_encoder: Encoder) -> None:
    image = [{"type": "image", "image": data_uri(noise(60, 60))}]
    path = write_lines(tmp_path / "a.jsonl", [qa("hello"), qa(image), qa("seven " * 200), {"text": "one"}])
    report = report_on(path, vl_encoder)
    values = json.loads(json.dumps(report_values(report)))
    lengths = sorted(report.total.values)
    assert values["files"] == [
        {
            "path": str(path),
            "held_out": False,
            "samples": 4,
            "samples_with_errors": 1,
            "formats": {"messages": 3, "text": 1},
            "unreadable": None,
        }
    ]
    assert (values["samples"], values["samples_with_errors"], values["over_max_length"]) == (4, 1, 1)
    assert values["errors_by_reason"] == {"too long": 1}
    assert values["errors"][0]["sample"] == f"{path}:3"
    assert values["roles"]["text"] == {"messages": 1, "with_loss": 1, "characters": 3}
    assert (values["content"]["with pictures"], values["content"]["plain text"]) == (1, 1)
    assert (values["unit"], values["max_length"], values["pictures"], values["videos"]) == (
        "tokens",
        100,
        1,
        0,
    )
    everything = values["lengths"]["all"]
    assert (everything["documents"], everything["p50"], everything["max"]) == (4, lengths[1], lengths[-1])
    assert sum(bucket["documents"] for bucket in everything["buckets"]) == 4
    assert values["lengths"]["vision"]["buckets"] == [{"up_to": 16, "documents": 1}]
    assert values["tokens"] == {"all": sum(lengths[:3]), "with_loss": report.loss_tokens}
    assert (values["vision_tokens"], values["packing"]["rows"], values["packing"]["documents"]) == (4, 1, 3)


def test_json_values_without_a_model(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [qa("hello")])
    values = report_values(report_on(path))
    assert (values["unit"], values["tokens"], values["packing"]) == ("characters", None, None)
    assert values["over_max_length"] is None


@pytest.mark.parametrize(
    ("count", "expected"), [(0, ""), (1, "▏"), (500, "█" * 10), (1000, "█" * 20), (525, "█" * 10 + "▌")]
)
def test_bars_are_in_proportion(count: int, expected: str) -> None:
    assert bar(count, 1000) == expected


def test_keys_that_nothing_reads_are_counted_with_the_first_place(tmp_path: Path) -> None:
    records = [qa("q"), qa("q", mood="blue"), qa("q", mood="red", id=3)]
    path = write_lines(tmp_path / "a.jsonl", records)
    report = report_on(path)
    line = f"note: key 'mood' of a record is not read: 2 samples, the first {path}:2"
    assert report.is_clean and line in format_report(report)
    assert report_values(report)["notices"] == [
        {"notice": "key 'mood' of a record is not read", "samples": 2, "first": f"{path}:2"}
    ]
