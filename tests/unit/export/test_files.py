"""What goes beside the weights of an export, and how it changes with the layout."""

import json
from pathlib import Path
from typing import Any

import pytest

from erniekit.config.choices import CheckpointLayout
from erniekit.data.encode.encoder import make_encoder
from erniekit.data.encode.tokenizer import load_tokenizer
from erniekit.data.media.patches import ImageSpec
from erniekit.data.media.video import FONT
from erniekit.errors import CheckpointError
from erniekit.export.export import export_model
from erniekit.export.files import (
    VIDEO_PLACEHOLDER,
    carry_files,
    drop_missing_code,
    side_files,
    token_id,
)
from erniekit.export.layouts import hub_config, transformers_config
from erniekit.local_files import read_json_object
from erniekit.models.config import ErnieConfig
from tests.unit.export.conftest import Copy, change_json


def carry(source: Path, target: Path, layout: Any = "hub") -> list[str]:
    """Carry files and write the config, as an export does."""
    target.mkdir()
    config = ErnieConfig.from_dir(source)
    warnings = carry_files(side_files([source]), target, config, layout)
    nested = layout == "transformers" and config.family == "vl"
    content = (
        transformers_config(config, "F32", token_id(target, VIDEO_PLACEHOLDER))
        if nested
        else hub_config(config, "F32")
    )
    (target / "config.json").write_text(json.dumps(content))
    return warnings


def test_everything_but_weights_and_training_state_is_carried(copy: Copy, tmp_path: Path) -> None:
    source = copy("vl")
    kept = (
        "modeling_x.py",
        "Roboto-Regular.ttf",
        "added_tokens.json",
        "LICENSE",
        "NOTICE.md",
        "vocab.txt",
        "chat_template.json",
    )
    left = (
        "optimizer.safetensors",
        "trainer_state.json",
        "adapter_config.json",
        "README.md",
        ".gitattributes",
        "checksums.json",
        "all_results.json",
        "trainer_log.jsonl",
        "events.out.tfevents.1",
        "chats.parquet",
        "notes.md",
        "key.pem",
    )
    for name in (*kept, *left, "pytorch_model.bin", "pytorch_model.bin.index.json", "training_args.bin"):
        (source / name).write_text("{}")
    (source / "folder").mkdir()
    names = set(side_files([source]))
    assert set(kept) <= names
    assert {
        "tokenizer.json",
        "tokenizer.model",
        "generation_config.json",
        "preprocessor_config.json",
    } <= names
    assert names - {file.name for file in source.iterdir()} == set()
    assert not any(
        n in left or n == "config.json" or n.endswith((".safetensors", ".bin", ".index.json")) for n in names
    )


def test_the_first_directory_that_has_a_file_wins(copy: Copy, tmp_path: Path) -> None:
    first, second = copy("dense", "first"), copy("dense", "second")
    (second / "extra.txt").write_text("x")
    found = side_files([first, second])
    assert found["tokenizer.json"] == first / "tokenizer.json"
    assert found["extra.txt"] == second / "extra.txt"


def test_hub_layout_keeps_files_byte_by_byte(models: dict[str, Path], tmp_path: Path) -> None:
    for family, source in models.items():
        carry(source, tmp_path / family)
        for name in side_files([source]):
            assert (tmp_path / family / name).read_bytes() == (source / name).read_bytes()


def test_transformers_layout_and_back(copy: Copy, tmp_path: Path) -> None:
    source = copy("vl")
    (source / "processing_x.py").write_text("")
    change_json(source / "tokenizer_config.json", auto_map={"AutoTokenizer": ["processing_x.T", None]})
    nested, flat = tmp_path / "nested", tmp_path / "flat"
    warnings = carry(source, tmp_path / "hub")
    assert any("the Python files processing_x.py, of the base model" in warning for warning in warnings)
    warnings = carry(source, nested, "transformers")
    assert any("read the hub layout" in warning for warning in warnings)
    assert not any("Python files" in warning for warning in warnings)
    assert not list(nested.glob("*.py"))
    template = (nested / "chat_template.jinja").read_text()
    assert "<|IMAGE_PLACEHOLDER|>" in template and "@placeholder" not in template
    tokenizer = read_json_object(nested / "tokenizer_config.json")
    assert (
        tokenizer["image_token"] == "<|IMAGE_PLACEHOLDER|>"
        and tokenizer["video_end_token"] == "<|VIDEO_END|>"
    )
    assert "auto_map" not in tokenizer
    processor = read_json_object(nested / "preprocessor_config.json")
    assert processor["image_processor_type"] == "Ernie4_5_VLMoeImageProcessor"
    assert set(processor["size"]) == {"shortest_edge", "longest_edge"}
    video = read_json_object(nested / "video_preprocessor_config.json")
    assert video["draw_on_frames"] is True and (nested / video["font"]).read_bytes() == FONT.read_bytes()
    assert "Apache License" in (nested / "Roboto-LICENSE.txt").read_text()
    assert ImageSpec.from_checkpoint(nested) == ImageSpec.from_checkpoint(source)

    lacking = [warning for warning in carry(nested, flat) if "no *.py files" in warning]
    assert lacking and "erniekit download REPO --to DIR" in lacking[0]
    assert (flat / "chat_template.jinja").read_text() == (source / "chat_template.jinja").read_text()
    assert not (flat / "video_preprocessor_config.json").exists()
    assert ImageSpec.from_checkpoint(flat) == ImageSpec.from_checkpoint(source)
    for directory in (nested, flat):
        assert make_encoder(directory).template.name == "ernie_vl"


def test_chat_template_inside_tokenizer_config(copy: Copy, tmp_path: Path) -> None:
    source = copy("vl")
    template = (source / "chat_template.jinja").read_text()
    (source / "chat_template.jinja").unlink()
    change_json(source / "tokenizer_config.json", chat_template=template)
    carry(source, tmp_path / "out", "transformers")
    written = read_json_object(tmp_path / "out" / "tokenizer_config.json")["chat_template"]
    assert written == template.replace("<|image@placeholder|>", "<|IMAGE_PLACEHOLDER|>").replace(
        "<|video@placeholder|>", "<|VIDEO_PLACEHOLDER|>"
    )


@pytest.mark.parametrize(
    ("family", "missing"),
    [
        ("dense", ["tokenizer_config.json"]),
        ("moe", ["tokenizer.json", "tokenizer.model"]),
        ("vl", ["preprocessor_config.json"]),
    ],
)
def test_files_that_every_engine_needs(copy: Copy, tmp_path: Path, family: str, missing: list[str]) -> None:
    source = copy(family)
    for name in missing:
        (source / name).unlink()
    with pytest.raises(CheckpointError, match=missing[0]):
        carry(source, tmp_path / "out")


def test_files_that_some_engines_need_are_missed_aloud(copy: Copy, tmp_path: Path) -> None:
    source = copy("moe")
    (source / "tokenizer.model").unlink()
    warnings = carry(source, tmp_path / "out")
    assert any("tokenizer.model" in warning for warning in warnings)


def test_missing_generation_config_is_written(copy: Copy, tmp_path: Path) -> None:
    source = copy("dense")
    (source / "generation_config.json").unlink()
    assert any("generation_config.json" in warning for warning in carry(source, tmp_path / "a"))
    assert read_json_object(tmp_path / "a" / "generation_config.json") == {
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    # One without an end token keeps what it states.
    (source / "generation_config.json").write_text('{"top_p": 0.8, "bos_token_id": 7, "eos_token_id": null}')
    assert any("has no end token" in warning for warning in carry(source, tmp_path / "stated"))
    assert read_json_object(tmp_path / "stated" / "generation_config.json") == {
        "top_p": 0.8,
        "bos_token_id": 7,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    (source / "generation_config.json").unlink()
    change_json(source / "config.json", eos_token_id=None)
    carry(source, tmp_path / "b")
    assert (
        read_json_object(tmp_path / "b" / "generation_config.json")["eos_token_id"] == 2
    )  # the tokenizer's </s>
    change_json(source / "tokenizer_config.json", eos_token="<gone>")
    with pytest.raises(CheckpointError, match="end token"):
        carry(source, tmp_path / "c")


def test_references_to_code_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "here.py").write_text("")
    content = {"auto_map": {"A": "here.A", "B": "gone.B", "C": ["here.C", None], "D": "owner/name--gone.D"}}
    assert drop_missing_code(content, tmp_path)
    assert content["auto_map"] == {"A": "here.A", "C": ["here.C", None], "D": "owner/name--gone.D"}
    assert not drop_missing_code(content, tmp_path)
    only: dict[str, Any] = {"auto_map": {"B": "gone.B"}}
    assert drop_missing_code(only, tmp_path) and only == {}


def test_a_tokenizer_class_without_its_code(copy: Copy, tmp_path: Path) -> None:
    """transformers 4 fails: "Tokenizer class Ernie4_5_Tokenizer does not exist"."""
    own, code = "Ernie4_5_Tokenizer", {"AutoTokenizer": ["tokenization_x.Ernie4_5_Tokenizer", None]}
    for number, (auto_map, file, layout, found) in enumerate(
        (
            (None, None, "hub", "PreTrainedTokenizerFast"),
            (code, None, "hub", "PreTrainedTokenizerFast"),
            (code, "tokenization_x.py", "hub", own),
            (None, None, "paddle", own),
        )
    ):
        source = copy("dense", f"base {number}")
        change_json(source / "tokenizer_config.json", tokenizer_class=own, auto_map=auto_map)
        if file is not None:
            (source / file).write_text("class Ernie4_5_Tokenizer: ...")
        target = tmp_path / f"out {number}"
        carry(source, target, layout)
        assert read_json_object(target / "tokenizer_config.json")["tokenizer_class"] == found
        texts = ["A small cat, 2 apples", " x<|end_of_sentence|>"]
        ids = [[load_tokenizer(place).encode(text) for text in texts] for place in (source, target)]
        assert ids[0] == ids[1]


def test_places_on_the_machine_of_the_base_are_left_out(copy: Copy, tmp_path: Path) -> None:
    """Older versions of transformers keep them, with the name of the user."""
    source = copy("vl", _name_or_path="/home/someone/base", _commit_hash="abc")
    change_json(
        source / "tokenizer_config.json", name_or_path="/home/someone/base", vocab_file="tokenizer.model"
    )
    change_json(source / "preprocessor_config.json", _name_or_path="~/base")
    layouts: tuple[CheckpointLayout, ...] = ("hub", "transformers", "paddle")
    for layout in layouts:
        export_model(source, tmp_path / layout, layout=layout)
        for file in (tmp_path / layout).glob("*.json"):
            text = file.read_text()
            assert "someone" not in text and "~/" not in text and "_commit_hash" not in text, file
    assert (
        json.loads((tmp_path / "hub" / "tokenizer_config.json").read_text())["vocab_file"]
        == "tokenizer.model"
    )


def test_token_ids(models: dict[str, Path], tmp_path: Path) -> None:
    ids = json.loads((models["vl"] / "config.json").read_text())
    assert token_id(models["vl"], "<|IMAGE_START|>") == ids["image_start_token_id"]
    assert token_id(models["vl"], "no such token") is None
    assert token_id(tmp_path, "<s>") is None


@pytest.mark.parametrize(
    "content",
    [
        *({"added_tokens": tokens} for tokens in (["x"], 1, {"a": 1}, [{"content": "x"}])),
        {"added_tokens": [{"content": "x", "id": "one"}]},
        {"model": []},
        {"model": {"vocab": {"x": 1e999}}},
    ],
)
def test_tokens_of_wrong_types(tmp_path: Path, content: object) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: its tokens are not valid"):
        token_id(tmp_path, "x")
