"""Previews and checks of preference pairs: both answers, their shared prefix, trained tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from erniekit.data.encode.document import IGNORE
from erniekit.data.encode.encoder import Encoder
from erniekit.data.encode.pairs import encode_pair, with_rejected
from erniekit.data.encode.samples import Pairs, pair_mode
from erniekit.data.formats import parse_record
from erniekit.inspection.check import CheckedFile, CheckOptions, check_files
from erniekit.inspection.preview_page import render_preview
from erniekit.inspection.preview_text import preview_lines
from tests.unit.data.helpers import data_uri, noise, qa, write_lines
from tests.unit.inspection.samples import preview_of

PAIR: dict[str, Any] = {
    "messages": [
        {"role": "user", "content": "one?"},
        {"role": "assistant", "content": "two"},
        {
            "role": "user",
            "content": [
                {"type": "image", "image": data_uri(noise(60, 60))},
                {"type": "text", "text": "six?"},
            ],
        },
    ],
    "chosen": "seven",
    "rejected": "eight nine",
}


def conversation(record: dict[str, Any], path: Path) -> Any:
    return parse_record(record, format="auto", base_dir=path, sample_id="a")


def test_both_answers_are_shown_and_what_they_share_once(tmp_path: Path, vl_encoder: Encoder) -> None:
    preview = preview_of(tmp_path / "a.jsonl", [PAIR], vl_encoder, pairs="shared")
    (document,) = preview.samples[0].documents
    encoded = encode_pair(vl_encoder, conversation(PAIR, tmp_path))
    assert encoded.branches is not None
    start, second = encoded.branches
    branches = [(part.branch, part.tokens, part.loss_tokens) for part in document.stretches]
    trained = [int((labels != IGNORE).sum()) for labels in (encoded.labels[:second], encoded.labels[second:])]
    assert branches == [
        ("shared", start, 0),
        ("chosen", second - start, trained[0]),
        ("rejected", len(encoded) - second, trained[1]),
    ]
    assert sum(count.tokens for count in document.counts) == document.tokens == len(encoded)
    assert sum(count.trained for count in document.counts) == document.loss_tokens == sum(trained)
    lines = list(preview_lines(preview))
    heads = [index for index, line in enumerate(lines) if line.startswith("-- ")]
    assert [lines[index] for index in heads] == [
        f"-- shared by both answers: {start:,} tokens, 0 trained",
        f"-- chosen answer: {second - start:,} tokens, {trained[0]} trained",
        f"-- rejected answer: {len(encoded) - second:,} tokens, {trained[1]} trained",
    ]
    shared, chosen, rejected = (lines[index + 1] for index in heads)
    assert "one?" in shared and "two" in shared and "[image 1: " in shared and "⟦" not in shared
    # The last token of the prompt predicts the first of the answer, and is in both branches.
    assert chosen.endswith("⟦seven<|end_of_sentence|>⟧") and rejected.endswith(
        "⟦eight nine<|end_of_sentence|>⟧"
    )
    assert chosen.partition("⟦")[0] == rejected.partition("⟦")[0] != ""
    assert lines[-1] == ("note: each branch begins with the token that predicts its first trained token")
    page = render_preview(preview)
    # Both answers as bubbles, and all three branches in the raw text.
    assert page.count("<h3>") == 5 and page.count(f"<h3>chosen answer: {second - start:,} tokens") == 2
    assert "<ins>seven</ins>" in page and "<del>eight nine</del>" in page


def test_without_sharing_each_answer_has_its_prompt(tmp_path: Path, vl_encoder: Encoder) -> None:
    preview = preview_of(tmp_path / "a.jsonl", [PAIR], vl_encoder, pairs="separate")
    (document,) = preview.samples[0].documents
    assert [part.branch for part in document.stretches] == ["chosen", "rejected"]
    assert document.tokens == sum(
        len(vl_encoder.encode(answer))
        for answer in (conversation(PAIR, tmp_path), with_rejected(conversation(PAIR, tmp_path)))
    )
    for part in document.stretches:
        text = "".join(piece.text for piece in part.pieces)
        assert "one?" in text and "[image 1: " in text


def test_a_stretch_is_divided_at_any_token(tmp_path: Path, vl_encoder: Encoder) -> None:
    """Texts and tokens stay the same; the cut falls between two stretches, but inside an image."""
    answer = conversation(PAIR, tmp_path)
    whole = vl_encoder.segments(answer)
    tokens = sum(segment.tokens for segment in whole)
    divided = 0
    for cut in range(tokens + 1):
        segments = vl_encoder.segments(answer, cut)
        assert "".join(segment.text for segment in segments) == "".join(segment.text for segment in whole)
        assert sum(segment.tokens for segment in segments) == tokens
        ends = [sum(segment.tokens for segment in segments[: n + 1]) for n in range(len(segments))]
        media = next(n for n, segment in enumerate(segments) if segment.part is not None)
        assert cut in (0, *ends) or ends[media - 1] < cut < ends[media]
        divided += len(segments) > len(whole)
    assert divided > 10


@pytest.mark.parametrize("pairs", ["shared", "separate"])
def test_a_sample_that_is_no_pair_is_an_error(tmp_path: Path, vl_encoder: Encoder, pairs: Pairs) -> None:
    preview = preview_of(tmp_path / "a.jsonl", [qa("one", "two"), PAIR], vl_encoder, pairs=pairs)
    assert preview.samples[0].error is not None and preview.samples[0].error.reason == "not a pair"
    assert preview.samples[1].error is None
    path = write_lines(tmp_path / "b.jsonl", [PAIR, qa("one", "two")])
    report = check_files(
        [CheckedFile(path, "auto")], CheckOptions(encoder=vl_encoder, max_length=500, pairs=pairs)
    )
    assert dict(report.errors.by_reason) == {"not a pair": 1}
    assert str(report.errors.first[0]).startswith(f"{path}:2: ")


def test_check_counts_both_answers(tmp_path: Path, vl_encoder: Encoder) -> None:
    """Their length is that of training; a pair that is too long is measured whole."""
    path = write_lines(tmp_path / "a.jsonl", [PAIR])
    expected = len(encode_pair(vl_encoder, conversation(PAIR, tmp_path)))
    for length, failed in ((500, 0), (expected - 1, 1)):
        options = CheckOptions(encoder=vl_encoder, max_length=length, pairs="shared")
        report = check_files([CheckedFile(path, "auto")], options)
        assert list(report.total.values) == [expected]
        assert report.files[0].failed == failed


def test_a_run_says_how_pairs_are_read() -> None:
    assert pair_mode("sft", True) == pair_mode("sft", False) == "chosen"
    assert (pair_mode("dpo", True), pair_mode("dpo", False)) == ("shared", "separate")
