"""Tokens without a row in the embedding, and documents with more positions than the model has."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from erniekit.config import ModelConfig
from erniekit.config.choices import OnLong
from erniekit.data.chat.conversation import SampleError
from erniekit.data.encode.encoder import Encoder, make_encoder
from erniekit.data.encode.limits import ModelLimits, enlarged_limits, resized_vocab_size
from erniekit.data.encode.pairs import encode_pair
from erniekit.data.encode.samples import TOO_LONG, Sample, SampleReader
from erniekit.data.encode.tokenizer import load_tokenizer
from erniekit.data.files.reader import Cursor, Record
from erniekit.errors import CheckpointError, ConfigError
from tests.unit.data.helpers import chat, encoded, make_checkpoint, noise, video, write_json


def change(directory: Path, name: str = "config.json", **keys: Any) -> None:
    file = directory / name
    write_json(file, json.loads(file.read_text()) | keys)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A text model whose embedding ends where the tokenizer did before two tokens were added."""
    directory = make_checkpoint(tmp_path / "model", "text")
    rows = len(load_tokenizer(directory))
    tokenizer = load_tokenizer(directory)
    tokenizer.add_tokens(["<call_x>"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<call_y>"]})
    tokenizer.save_pretrained(directory)
    change(directory, vocab_size=rows, max_position_embeddings=40)
    return directory


def rows_of(directory: Path) -> int:
    return int(json.loads((directory / "config.json").read_text())["vocab_size"])


def read(encoder: Encoder, value: Any, on_long: OnLong = "error", max_length: int = 4096) -> Sample:
    reader = SampleReader(encoder, max_length, on_long)
    return reader.read(Record(value, "f:1", 0, Cursor()), Path(), "auto")


@pytest.mark.parametrize("turns", [("say <call_x>", "a"), ("q", "b <call_y>")])
def test_a_sample_with_a_token_without_a_row(checkpoint: Path, turns: tuple[str, str]) -> None:
    encoder, rows = make_encoder(checkpoint), rows_of(checkpoint)
    token = "<call_x>" if "<call_x>" in turns[0] else "<call_y>"
    id = load_tokenizer(checkpoint).convert_tokens_to_ids(token)
    words = f"f:1: token '{token}' has the id {id}, but the model's embedding has {rows} rows"
    conversation = chat(("user", turns[0]), ("assistant", turns[1]))
    with pytest.raises(SampleError, match=words) as caught:
        encoder.encode(conversation)
    assert "model.resize_vocab: true" in str(caught.value)
    if token in turns[0]:
        with pytest.raises(SampleError, match=words):
            encoder.encode_prompt(chat(("user", turns[0])))
    value = {"messages": [{"role": "user", "content": turns[0]}, {"role": "assistant", "content": turns[1]}]}
    assert [error.reason for error in read(encoder, value).errors] == ["token beyond the vocabulary"]


def test_tokens_that_no_sample_has_are_a_note(checkpoint: Path) -> None:
    encoder = make_encoder(checkpoint)
    assert len(encoder.encode(chat(("user", "q"), ("assistant", "a"))))
    (note,) = encoder.limits.notes()
    assert "2 tokens without a row" in note and f"'<call_x>' ({rows_of(checkpoint)})" in note
    change(checkpoint, vocab_size=rows_of(checkpoint) + 2)
    assert make_encoder(checkpoint).limits.notes() == []


def test_a_resized_vocabulary_has_a_row_for_every_token(checkpoint: Path) -> None:
    rows = rows_of(checkpoint)
    resized = resized_vocab_size(checkpoint)
    assert resized % 64 == 0 and rows + 2 <= resized < rows + 2 + 64
    encoder = make_encoder(checkpoint, vocab_size=resized)
    document = encoder.encode(chat(("user", "say <call_x>"), ("assistant", "<call_y>")))
    assert {rows, rows + 1} <= set(document.input_ids.tolist())
    assert encoder.limits.notes() == []
    # Nothing to do: the rows stay as many as they are, whatever their number.
    change(checkpoint, vocab_size=rows + 3)
    assert resized_vocab_size(checkpoint) == rows + 3


@pytest.mark.parametrize(
    ("file", "key"),
    [
        ("config.json", "pad_token_id"),
        ("config.json", "bos_token_id"),
        ("generation_config.json", "eos_token_id"),
    ],
)
def test_an_id_that_a_config_names(checkpoint: Path, file: str, key: str) -> None:
    rows = rows_of(checkpoint)
    change(checkpoint, file, **{key: [2, rows] if key == "eos_token_id" else rows})
    with pytest.raises(CheckpointError, match=rf"{file}: {key} is {rows}, but .* {rows} rows.*resize_vocab"):
        make_encoder(checkpoint)
    make_encoder(checkpoint, vocab_size=resized_vocab_size(checkpoint))
    change(checkpoint, file, **{key: 99999})
    with pytest.raises(CheckpointError, match=r"99999.*correct it"):
        make_encoder(checkpoint, vocab_size=resized_vocab_size(checkpoint))


@pytest.mark.parametrize("is_nested", [False, True])
def test_ids_of_images(tmp_path: Path, is_nested: bool) -> None:
    directory = make_checkpoint(tmp_path, "vl")
    config = json.loads((directory / "config.json").read_text())
    if is_nested:
        image = config.pop("im_patch_id")
        config |= {"model_type": "ernie4_5_vl_moe", "image_token_id": image, "video_token_id": image}
        config["text_config"] = {"vocab_size": image}
        key = "image_token_id"
    else:
        config["vocab_size"] = config["im_patch_id"]
        key = "im_patch_id"
    write_json(directory / "config.json", config)
    with pytest.raises(CheckpointError, match=rf"{key} is \d+, but the model's embedding has \d+ rows"):
        make_encoder(directory)


def test_a_token_of_the_template(checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match=r"the chat template needs <\|begin_of_sentence\|>"):
        change(checkpoint, vocab_size=3)
        make_encoder(checkpoint)


def test_documents_longer_than_the_model_has_positions(checkpoint: Path) -> None:
    change(checkpoint, vocab_size=9999)
    encoder = make_encoder(checkpoint)
    assert encoder.limits.max_positions == 40
    messages = [
        {"role": ("user", "assistant")[number % 2], "content": "one two three four"} for number in range(8)
    ]
    value = {"messages": messages}
    (error,) = read(encoder, value).errors
    tokens = read(encoder, value).whole[0][0]
    assert error.reason == TOO_LONG
    assert f"{tokens:,} positions, more than the model's max_position_embeddings=40" in error.detail
    assert "model.max_position_embeddings" in error.detail
    trimmed = read(encoder, value, "trim_history")
    assert trimmed.trimmed == 1 and 20 < len(trimmed.documents[0]) <= 40
    # Both limits are named where both are passed: to raise one of them would not help.
    both = read(encoder, value, max_length=30).errors[0].detail
    assert "data.max_length=30; " in both and "max_position_embeddings=40: " in both
    assert "raise data.max_length and set model.max_position_embeddings" in both
    raised = make_encoder(checkpoint, max_positions=4096)
    assert read(raised, value).errors == ()
    assert raised.identity != encoder.identity


def test_long_texts_are_cut_where_the_positions_end(checkpoint: Path) -> None:
    change(checkpoint, vocab_size=9999)
    sample = read(make_encoder(checkpoint), {"text": "one two three four " * 40})
    assert sample.errors == () and len(sample.documents) > 3
    assert max(map(len, sample.documents)) == 40


def test_positions_count_not_tokens(vl_encoder: Encoder) -> None:
    """An image takes as many positions as its longer side has tokens, a video as many as its longest axis."""
    for part, positions in ((encoded(noise(112, 224)), 8), (video(56, 56, 2), 18)):
        document = vl_encoder.encode(chat(("user", [part, "q"]), ("assistant", "a")))
        tokens = document.media[0].tokens
        assert document.num_positions == len(document) - tokens + positions < len(document)
        assert ModelLimits(max_positions=document.num_positions).fits(document)
        tight = ModelLimits(max_positions=document.num_positions - 1)
        assert not tight.fits(document)
        with pytest.raises(SampleError, match=f"{document.num_positions} positions"):
            tight.check_positions(document)


def test_the_answers_of_a_pair_share_positions(text_encoder: Encoder) -> None:
    pair = chat(("user", "q " * 20), ("assistant", "one two three"))
    pair = dataclasses.replace(pair, rejected=chat(("assistant", "four")).messages)
    document = encode_pair(text_encoder, pair, share=True)
    longest = len(text_encoder.encode(pair))
    assert longest == document.num_positions < len(document)
    assert ModelLimits(max_positions=longest).fits(document)


def test_the_override_only_raises_the_limit(checkpoint: Path) -> None:
    model = ModelConfig(path=str(checkpoint), max_position_embeddings=40)
    assert enlarged_limits(model) == (None, 40)
    with pytest.raises(ConfigError, match="30 is below the checkpoint's 40"):
        enlarged_limits(model.model_copy(update={"max_position_embeddings": 30}))


def test_without_limits_nothing_is_checked(tmp_path: Path, text_checkpoint: Path) -> None:
    shutil.copytree(text_checkpoint, tmp_path / "model")
    limits = make_encoder(tmp_path / "model").limits
    assert limits == ModelLimits()
    limits.check_ids(np.asarray([10**6], np.int32), "f:1")
