"""Samples as the model sees them, as pieces and as plain text."""

from pathlib import Path
from typing import Any

import pytest

from erniekit.config import DataConfig
from erniekit.data.encode.encoder import Encoder, make_encoder
from erniekit.inspection.preview_text import preview_lines
from tests.unit.data.helpers import encoded, noise, qa, write_lines
from tests.unit.inspection.samples import TOOL_CHAT, preview_of

GOLDEN = """\
run.yaml: model model, template ernie_vl_thinking, max_length 500, loss_on all, reasoning train
legend: ⟦trained⟧, ⏎ a newline; the rest is context

== {path}:1
<|begin_of_sentence|>⏎
<tool_list>⏎
[{{"type": "function", "function": {{"name": "add", "parameters": {{}}}}}}]⏎
</tool_list>⏎
Be brief.⏎
User: one plus two?⏎
Assistant: ⏎
<think>⏎
⟦add⏎
them⏎
</think>⏎
⏎
<tool_call>⏎
{{"name": "add", "arguments": {{"a": 1}}}}⏎
</tool_call>⏎
<|end_of_sentence|>⟧User: <tool_output>⏎
3⏎
</tool_output>⏎
⏎
Assistant: ⏎
<think>⏎
⏎
</think>⏎
⏎
⟦seven<|end_of_sentence|>⟧

{tokens} of at most 500 tokens, {trained} trained"""


def test_a_conversation_with_tools_and_reasoning(tmp_path: Path, thinking_encoder: Encoder) -> None:
    path = tmp_path / "a.jsonl"
    preview = preview_of(path, [TOOL_CHAT], thinking_encoder)
    (document,) = preview.samples[0].documents
    lines = list(preview_lines(preview))
    expected = GOLDEN.format(path=path, tokens=document.tokens, trained=document.loss_tokens)
    assert "\n".join(lines).partition("\n  tokens")[0] == expected


def test_the_counts_add_up(tmp_path: Path, thinking_encoder: Encoder) -> None:
    preview = preview_of(tmp_path / "a.jsonl", [TOOL_CHAT], thinking_encoder)
    (document,) = preview.samples[0].documents
    counts = {count.kind: count for count in document.counts}
    assert set(counts) == {
        "template",
        "system",
        "tools",
        "user",
        "tool_result",
        "reasoning",
        "tool_call",
        "answer",
    }
    assert sum(count.tokens for count in counts.values()) == document.tokens
    assert sum(count.trained for count in counts.values()) == document.loss_tokens
    for kind in ("reasoning", "tool_call", "answer"):
        assert counts[kind].trained == counts[kind].tokens > 0
    for kind in ("system", "tools", "user", "tool_result"):
        assert counts[kind].trained == 0
    last = [line.split() for line in preview_lines(preview)][-1]
    assert last == ["all", str(document.tokens), str(document.loss_tokens)]


def test_images_and_videos_are_numbered_and_measured(tmp_path: Path, vl_encoder: Encoder) -> None:
    (tmp_path / "a.png").write_bytes(encoded(noise(60, 90)))
    for number in range(2):
        (tmp_path / f"{number}.png").write_bytes(encoded(noise(300, 300, number)))
    content = [
        {"type": "image", "image": "a.png"},
        {"type": "video", "video": ["0.png", "1.png"]},
        {"type": "image", "image": "a.png"},
    ]
    preview = preview_of(tmp_path / "a.jsonl", [qa(content)], vl_encoder, max_length=5000)
    (document,) = preview.samples[0].documents
    media = [piece for piece in document.pieces if piece.kind == "media"]
    first, video, second = (piece.text for piece in media)
    assert first == f"[image 1: {tmp_path / 'a.png'} 84x56, 6 tokens]"
    assert second.startswith("[image 2: ")
    assert video.startswith("[video 1: (2 frames, the first ")
    assert video.endswith(" 2 frames of 504x504, 324 tokens]")
    # With the mark at its start and the one at its end.
    assert [piece.tokens for piece in media] == [8, 326, 8]
    assert sum(count.tokens for count in document.counts) == document.tokens


def test_a_sample_that_fails_does_not_hide_the_others(tmp_path: Path, vl_encoder: Encoder) -> None:
    path = tmp_path / "a.jsonl"
    preview = preview_of(path, [{"strange": 1}, qa("fine"), qa("<|end_of_sentence|>")], vl_encoder)
    assert [len(sample.documents) for sample in preview.samples] == [0, 1, 0]
    lines = list(preview_lines(preview))
    assert any(line.startswith("cannot be used: unknown format: ") for line in lines)
    assert any(line.startswith("cannot be used: reserved token: ") for line in lines)
    assert f"== {path}:2" in lines


def test_each_turn_shows_a_document_for_each_answer(tmp_path: Path, vl_checkpoint: Path) -> None:
    encoder = make_encoder(vl_checkpoint, DataConfig.without_sources(loss_on="each_turn"))
    path = tmp_path / "a.jsonl"
    chat = {"messages": qa("one", "two")["messages"] + qa("three", "seven")["messages"]}
    preview = preview_of(path, [chat], encoder)
    lines = list(preview_lines(preview))
    titles = [line for line in lines if line.startswith("==")]
    assert titles == [f"== {path}:1 (message 2)", f"== {path}:1 (message 4)"]
    texts = [line for line in lines if line.startswith("<|begin")]
    assert "⟦two<|end_of_sentence|>⟧" in texts[0]
    assert "⟦two" not in texts[1]
    assert texts[1].endswith("⟦seven<|end_of_sentence|>⟧")


@pytest.mark.parametrize(
    ("record", "on_long", "note"),
    [
        (qa("seven " * 50), "error", "it is an error (data.on_long: error)"),
        (qa("seven " * 50), "drop", "it is skipped (data.on_long: drop)"),
        (qa("seven " * 50), "trim_history", "it loses its oldest turns (data.on_long: trim_history)"),
        ({"text": "seven " * 50}, "error", "it is cut into pieces (data.on_long: error)"),
        ({"prompt": "x", "chosen": "y", "rejected": "z"}, "error", None),
    ],
)
def test_notes(
    tmp_path: Path, vl_encoder: Encoder, record: dict[str, Any], on_long: str, note: str | None
) -> None:
    preview = preview_of(tmp_path / "a.jsonl", [record], vl_encoder, max_length=40, on_long=on_long)
    notes = [line for line in preview_lines(preview) if line.startswith("note: ")]
    if note is None:
        assert notes == [
            "note: preference pair: only the chosen answer is shown and trained (task: dpo trains on both)"
        ]
    else:
        assert notes == [f"note: longer than data.max_length: {note}"]


def test_notices_about_the_record_are_notes(tmp_path: Path, vl_encoder: Encoder) -> None:
    preview = preview_of(tmp_path / "a.jsonl", [qa("one", mood="blue")], vl_encoder)
    notes = [line for line in preview_lines(preview) if line.startswith("note: ")]
    assert notes == ["note: key 'mood' of a record is not read"]


def test_control_characters_do_not_reach_the_terminal(tmp_path: Path, vl_encoder: Encoder) -> None:
    path = write_lines(tmp_path / "esc\x1b.jsonl", [qa("red \x1b[31m \x00"), {"strange": 1}])
    preview = preview_of(path, [qa("red \x1b[31m \x00"), {"strange\x9b": 1}], vl_encoder)
    text = "\n".join(preview_lines(preview))
    assert "red ␛[31m ␀" in text
    assert not {"\x1b", "\x00", "\x9b"} & set(text)


def test_what_each_turn_would_train_is_a_note(tmp_path: Path, thinking_encoder: Encoder) -> None:
    first = {"role": "assistant", "content": "three", "reasoning_content": "add"}
    messages = [{"role": "user", "content": "1 + 2?"}, first, *qa("and 3?")["messages"]]
    preview = preview_of(tmp_path / "a.jsonl", [{"messages": messages}, qa("q")], thinking_encoder)
    seen, alone = preview.samples
    (note,) = preview.notes(seen, seen.documents[0])
    assert note.startswith("the reasoning of 1 earlier answer is not trained") and "each_turn" in note
    assert any(note in line for line in preview_lines(preview))
    assert not preview.notes(alone, alone.documents[0])
