"""Files of a checkpoint that the encoder reads: which are needed, and errors that name them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from erniekit.config import DataConfig
from erniekit.data.encode.encoder import make_encoder
from erniekit.data.encode.tokenizer import stop_token_ids
from erniekit.errors import CheckpointError, DataError
from tests.unit.data.encode.chats import CHATS, IMAGE_CHATS
from tests.unit.data.helpers import SHARED, make_checkpoint, write_json


def test_bad_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json: not found"):
        make_encoder(tmp_path)
    write_json(tmp_path / "config.json", {"model_type": "ernie4_5"})
    with pytest.raises(CheckpointError, match="cannot load the tokenizer"):
        make_encoder(tmp_path)
    directory = make_checkpoint(tmp_path / "vl", "vl")
    write_json(directory / "config.json", {"model_type": "ernie4_5_moe_vl", "im_patch_id": 6})
    with pytest.raises(CheckpointError, match="needs the token ids image_start_token_id, image_end_token_id"):
        make_encoder(directory)
    ids = {key: 3 for key in ("image_start_token_id", "image_end_token_id", "video_start_token_id")}
    write_json(
        directory / "config.json",
        {"model_type": "ernie4_5_moe_vl", "im_patch_id": 99999, "video_end_token_id": 3, **ids},
    )
    with pytest.raises(CheckpointError, match="99999 as the id of a media token"):
        make_encoder(directory)
    plain = Tokenizer(models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="<unk>").save_pretrained(tmp_path / "plain")
    write_json(tmp_path / "plain" / "config.json", {"model_type": "ernie4_5"})
    with pytest.raises(CheckpointError, match=r"the tokenizer has no token <\|begin_of_sentence\|>"):
        make_encoder(tmp_path / "plain")


def test_nested_config_and_missing_generation_config(tmp_path: Path) -> None:
    directory = make_checkpoint(tmp_path, "vl")
    flat = make_encoder(directory)
    assert flat.media_tokens is not None
    tokens = flat.media_tokens
    write_json(
        directory / "config.json",
        {
            "model_type": "ernie4_5_vl_moe",
            "image_token_id": tokens.image_placeholder,
            "image_start_token_id": tokens.image_start,
            "image_end_token_id": tokens.image_end,
            "video_token_id": tokens.image_placeholder,
            "video_start_token_id": tokens.video_start,
            "video_end_token_id": tokens.video_end,
        },
    )
    (directory / "generation_config.json").unlink()
    nested = make_encoder(directory)
    assert nested.media_tokens == tokens
    for conversation in IMAGE_CHATS:
        one, other = flat.encode(conversation), nested.encode(conversation)
        np.testing.assert_array_equal(one.labels, other.labels)
        np.testing.assert_array_equal(one.input_ids, other.input_ids)


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/reference_models")
def test_tokenizer_model_alone_is_enough(tmp_path: Path) -> None:
    source = SHARED / "reference_models" / "vl_hub"
    for name in (
        "config.json",
        "preprocessor_config.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "chat_template.jinja",
    ):
        (tmp_path / name).write_bytes((source / name).read_bytes())
    one, other = make_encoder(source), make_encoder(tmp_path)
    for conversation in (CHATS[0], *IMAGE_CHATS):
        np.testing.assert_array_equal(
            one.encode(conversation).input_ids, other.encode(conversation).input_ids
        )


def test_an_unknown_template_is_an_error(text_checkpoint: Path) -> None:
    with pytest.raises(DataError, match=r"unknown data\.template 'llama'"):
        make_encoder(text_checkpoint, DataConfig.without_sources(template="llama"))


_NESTED = '{"a": ' + "[" * 100_000


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *(("tokenizer.json", content) for content in ("{}", '{"model": 1}', '{"version": []}')),
        *((f"tokenizer{end}.json", content) for end in ("", "_config") for content in ("[]", "1", _NESTED)),
    ],
)
def test_tokenizer_files_of_wrong_types(
    text_checkpoint: Path, tmp_path: Path, name: str, content: str
) -> None:
    directory = tmp_path / "model"
    shutil.copytree(text_checkpoint, directory)
    (directory / name).write_text(content)
    with pytest.raises(CheckpointError, match=rf"^{directory}: cannot load the tokenizer: "):
        make_encoder(directory)


def with_tokenizer(model: Path, directory: Path, **settings: object) -> Path:
    """A copy of a model with other settings in tokenizer.json."""
    shutil.copytree(model, directory)
    found = json.loads((directory / "tokenizer.json").read_text())
    write_json(directory / "tokenizer.json", {**found, **settings})
    return directory


def test_lengths_in_tokenizer_json_do_not_apply(text_checkpoint: Path, tmp_path: Path) -> None:
    """A program that trained with them leaves them there, and texts would be cut or padded without a word."""
    lengths = {
        "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
        "padding": {
            **{"strategy": {"Fixed": 999}, "direction": "Right", "pad_to_multiple_of": None},
            **{"pad_id": 0, "pad_type_id": 0, "pad_token": "<pad>"},
        },
    }
    changed = with_tokenizer(text_checkpoint, tmp_path / "model", **lengths)
    found, usual = (make_encoder(directory).encode(CHATS[0]) for directory in (changed, text_checkpoint))
    np.testing.assert_array_equal(found.input_ids, usual.input_ids)


_DOUBLES = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
            "cannot load the tokenizer: PanicException: Precompiled",
        ),
        (
            {"normalizer": {"type": "Sequence", "normalizers": [_DOUBLES] * 10}},
            "may write 1,024 characters for one",
        ),
        ({"normalizer": {"type": "Prepend", "prepend": "x" * 1000}}, "may write 1,001 characters for one"),
        (
            {"normalizer": {"type": "Replace", "pattern": {"Regex": ""}, "content": "x" * 1000}},
            "may write 1,001 characters for one",
        ),
        ({"decoder": {"type": "Sequence", "decoders": [_DOUBLES] * 10}}, "may write 1,024 characters"),
    ],
)
def test_tokenizers_that_fail_or_write_gigabytes(
    text_checkpoint: Path, tmp_path: Path, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        make_encoder(with_tokenizer(text_checkpoint, tmp_path / "model", **settings))


def test_normalizers_of_common_tokenizers(text_checkpoint: Path, tmp_path: Path) -> None:
    space = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    spaces = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}
    steps = [{"type": "NFKC"}, {"type": "Prepend", "prepend": "\u2581"}, space, spaces]
    normalizer = {"type": "Sequence", "normalizers": steps}
    make_encoder(with_tokenizer(text_checkpoint, tmp_path / "model", normalizer=normalizer))


def test_tokenizer_files_of_gigabytes(text_checkpoint: Path, tmp_path: Path) -> None:
    directory = with_tokenizer(text_checkpoint, tmp_path / "model")
    with (directory / "special_tokens_map.json").open("wb") as file:
        file.truncate((256 << 20) + 1)
    with pytest.raises(CheckpointError, match=r"special_tokens_map\.json: has more than 268,435,456 bytes"):
        make_encoder(directory)


@pytest.mark.parametrize("found", ["2", -1, [2, "3"], {}, True, 10**30])
def test_stop_tokens_of_wrong_types(tmp_path: Path, found: object) -> None:
    write_json(tmp_path / "generation_config.json", {"eos_token_id": found})
    with pytest.raises(CheckpointError, match=r"generation_config\.json: eos_token_id must be a token id"):
        stop_token_ids(tmp_path, None)
