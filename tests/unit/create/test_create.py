from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from erniekit.checkpoint.element_types import bfloat16_to_float32
from erniekit.checkpoint.hub import read_array, read_index
from erniekit.create import create as module
from erniekit.create.create import create_model, initial_value
from erniekit.data.media.patches import ImageSpec, patchify
from erniekit.errors import CheckpointError, ConfigError, DataError
from erniekit.models.config import ErnieConfig
from erniekit.models.specs import TensorSpec, is_router_tensor, parameter_specs
from tests.closeness import BFLOAT16, assert_close

SHAPES = ("tiny-dense", "tiny-moe", "tiny-vl")
FILES = {
    *("config.json", "generation_config.json", "chat_template.jinja", "special_tokens_map.json"),
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json"),
    *("model-00001-of-00001.safetensors", "model.safetensors.index.json"),
}


def digests(directory: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in directory.iterdir()}


@pytest.mark.parametrize("shape", SHAPES)
def test_directory_is_complete_and_its_weights_fit_its_config(
    shape: str, tiny: Callable[[str], Path]
) -> None:
    directory = tiny(shape)
    vision = shape == "tiny-vl"
    assert {file.name for file in directory.iterdir()} == FILES | (
        {"preprocessor_config.json"} if vision else set()
    )
    found = read_index(directory)
    specs = parameter_specs(ErnieConfig.from_dir(directory))
    assert {name: (info.dtype, info.shape) for name, info in found.items()} == {
        spec.name: (spec.dtype, spec.shape) for spec in specs
    }
    std = 256**-0.5
    for name, info in found.items():
        values = read_array(info)
        if name.endswith("bias"):
            assert not values.any(), name
        elif len(info.shape) == 1:
            assert (values == 1).all(), name
        else:
            # Six standard errors of mean and standard deviation.
            assert abs(values.mean()) < 6 * std / values.size**0.5, name
            assert abs(values.std() - std) < 6 * std / (2 * values.size) ** 0.5, name


def test_media_ids_are_the_tokenizers(tiny: Callable[[str], Path]) -> None:
    config = json.loads((tiny("tiny-vl") / "config.json").read_text())
    vocabulary = json.loads((tiny("tiny-vl") / "tokenizer.json").read_text())["model"]["vocab"]
    assert config["im_patch_id"] == config["max_text_id"] == vocabulary["<|IMAGE_PLACEHOLDER|>"]
    assert config["image_start_token_id"] == vocabulary["<|IMAGE_START|>"]
    assert config["video_end_token_id"] == vocabulary["<|VIDEO_END|>"]
    assert max(vocabulary.values()) < config["vocab_size"] == 512


def test_same_arguments_same_bytes_and_another_seed_other_weights(tmp_path: Path, text_file: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        create_model("tiny-vl", tmp_path / name, [text_file], seed=seed)
    a, b, c = (digests(tmp_path / name) for name in "abc")
    assert a == b
    assert {name for name in a if a[name] != c[name]} == {"model-00001-of-00001.safetensors"}


def test_a_tensor_depends_on_nothing_but_its_name_and_the_seed(tmp_path: Path, text_file: Path) -> None:
    create_model("tiny-moe", tmp_path / "deep", [text_file], overrides=["num_hidden_layers=4"])
    create_model("tiny-moe", tmp_path / "flat", [text_file])
    deep, flat = read_index(tmp_path / "deep"), read_index(tmp_path / "flat")
    assert set(flat) < set(deep)
    for name in flat:
        np.testing.assert_array_equal(read_array(flat[name]), read_array(deep[name]))


def test_large_tensors_are_drawn_in_blocks_with_the_same_values(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = TensorSpec("model.embed_tokens.weight", "F32", (100, 33))
    whole = initial_value(spec, seed=1, std=0.5)
    monkeypatch.setattr(module, "_BLOCK", 64)
    np.testing.assert_array_equal(initial_value(spec, seed=1, std=0.5), whole)


def test_bfloat16_is_the_rounded_float32_and_routers_stay_float32(tmp_path: Path, text_file: Path) -> None:
    create_model("tiny-moe", tmp_path / "full", [text_file], std=0.05)
    create_model("tiny-moe", tmp_path / "half", [text_file], std=0.05, overrides=["torch_dtype=bfloat16"])
    full, half = read_index(tmp_path / "full"), read_index(tmp_path / "half")
    for name, info in half.items():
        wanted = read_array(full[name])
        if is_router_tensor(name):
            assert info.dtype == "F32"
            np.testing.assert_array_equal(read_array(info), wanted)
        else:
            assert info.dtype == "BF16"
            assert_close(bfloat16_to_float32(read_array(info)), wanted, BFLOAT16, what=name)


def test_vocabulary_size_and_no_weights(tmp_path: Path, text_file: Path) -> None:
    made = create_model("21b-a3b", tmp_path / "big", [text_file], vocab_size=1024, weights=False)
    assert made.config.vocab_size == 1024
    assert made.num_tokens <= 1024
    assert made.num_parameters > 21e9
    assert {file.name for file in (tmp_path / "big").iterdir()} == {
        name for name in FILES if not name.startswith("model")
    }


def test_an_existing_directory_is_left_alone(tmp_path: Path, text_file: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("keep")
    with pytest.raises(CheckpointError, match="not an empty directory"):
        create_model("tiny-dense", full, [text_file])
    with pytest.raises(CheckpointError, match="not an empty directory"):
        create_model("tiny-dense", full / "mine.txt", [text_file])
    assert [file.name for file in full.iterdir()] == ["mine.txt"]
    (tmp_path / "empty").mkdir()
    create_model("tiny-dense", tmp_path / "empty", [text_file])
    assert {file.name for file in (tmp_path / "empty").iterdir()} == FILES


def test_nothing_is_left_of_a_failure(
    tmp_path: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "models" / "new"
    with pytest.raises(ConfigError, match="float32 or bfloat16"):
        create_model("tiny-dense", output, [text_file], overrides=["torch_dtype=int8"])
    with pytest.raises(ConfigError, match="above 0"):
        create_model("tiny-dense", output, [text_file], std=0.0)
    with pytest.raises(CheckpointError, match="mrope_section"):
        create_model("tiny-vl", output, [text_file], overrides=["num_attention_heads=4"])
    with pytest.raises(DataError, match=r"nothing\.txt"):
        create_model("tiny-dense", output, [tmp_path / "nothing.txt"])
    assert not output.parent.exists()
    monkeypatch.setattr(module, "write_shards", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        create_model("tiny-dense", output, [text_file])
    assert list(output.parent.iterdir()) == []


def test_a_full_disk_is_noticed_before_it_is_full(
    tmp_path: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1 << 20}))
    with pytest.raises(CheckpointError, match=r"the weights take .* GiB"):
        create_model("tiny-dense", tmp_path / "new", [text_file])


@pytest.mark.slow
def test_images_are_read_as_transformers_reads_them(tiny: Callable[[str], Path]) -> None:
    module = pytest.importorskip(
        "transformers.models.ernie4_5_vl_moe.image_processing_pil_ernie4_5_vl_moe",
        reason="needs transformers",
    )
    processor = module.Ernie4_5_VLMoeImageProcessorPil.from_pretrained(tiny("tiny-vl"))
    assert (processor.size["shortest_edge"], processor.size["longest_edge"]) == (3136, 28 * 28 * 6177)
    image = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 4).convert("RGB")
    theirs = processor([image])
    patches, grid = patchify(image, ImageSpec.from_checkpoint(tiny("tiny-vl")))
    assert tuple(theirs["image_grid_thw"][0]) == grid == (1, 4, 4)
    assert theirs["pixel_values"].shape == patches.shape


@pytest.mark.parametrize("size", [0, 10**9])
def test_absurd_vocabularies(tmp_path: Path, text_file: Path, size: int) -> None:
    with pytest.raises(ConfigError, match="vocab_size must be a whole number from 1 to 16,777,216"):
        create_model("tiny-dense", tmp_path / "model", [text_file], vocab_size=size)
    assert not (tmp_path / "model").exists()
