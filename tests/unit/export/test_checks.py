"""Checks of a directory: quiet about what is right, and each fault has its own words."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from erniekit.checkpoint.element_types import float32_to_bfloat16
from erniekit.checkpoint.hub import INDEX_FILE, SINGLE_FILE, read_array, read_index
from erniekit.checkpoint.hub import write_safetensors as write_file
from erniekit.export.checks import check_directory
from erniekit.export.export import export_model
from erniekit.export.verify import VerifyOptions, verify_model
from erniekit.models.specs import TensorSpec
from tests.unit.export.conftest import FAMILIES, Copy, change_json
from tests.unit.export.weights import rewrite, to_bfloat16


def failures(directory: Path, base: Path | None = None) -> list[str]:
    return [check.text for check in check_directory(directory, base) if check.status == "FAIL"]


def config(**changes: Any) -> Callable[[Path], None]:
    return lambda directory: change_json(directory / "config.json", **changes)


def remove(*names: str) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        for name in names:
            (directory / name).unlink()

    return change


def write(name: str, text: str) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        (directory / name).write_text(text)

    return change


def tensors(change: Any) -> Callable[[Path], None]:
    return lambda directory: rewrite(directory, change)


def without_metadata(directory: Path) -> None:
    found = {name: (info, read_array(info)) for name, info in read_index(directory).items()}
    specs = [TensorSpec(name, info.dtype, info.shape) for name, (info, _) in found.items()]
    write_file(next(directory.glob("*.safetensors")), specs, lambda name: found[name][1], {"format": "np"})


def wrong_index(directory: Path) -> None:
    index = json.loads((directory / INDEX_FILE).read_text())
    del index["weight_map"]["model.norm.weight"]
    (directory / INDEX_FILE).write_text(json.dumps(index))


def foreign_tower(directory: Path) -> None:
    """What `save_pretrained` of transformers 5 writes for VL models."""
    found = {name: read_array(info) for name, info in read_index(directory).items()}
    renamed = {name.replace("vision_model.", "model.vision_model."): array for name, array in found.items()}
    specs = [TensorSpec(name, "F32", array.shape) for name, array in renamed.items()]
    for file in (next(directory.glob("*.safetensors")), directory / INDEX_FILE):
        file.unlink()
    write_file(directory / SINGLE_FILE, specs, lambda name: renamed[name])


Q = "model.layers.0.self_attn.q_proj.weight"
GATE = "model.layers.1.mlp.gate.weight"
FAULTS: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "no generation config": ("dense", remove("generation_config.json"), "generation_config.json"),
    "no tokenizer": ("moe", remove("tokenizer.json", "tokenizer.model"), "tokenizer.json or"),
    "no processor": ("vl", remove("preprocessor_config.json"), "preprocessor_config.json"),
    "architecture": ("dense", config(architectures=["Ernie4_5_ForCausalLM"]), "architectures"),
    "both dtypes": ("moe", config(dtype="float32"), "both torch_dtype and dtype"),
    "no dtype": ("moe", config(torch_dtype=None), "no torch_dtype"),
    "other dtype": ("dense", config(torch_dtype="bfloat16"), "states bfloat16, the tensors are 20 F32"),
    "dtype of a section": (
        "vl",
        lambda d: change_json(
            d / "config.json",
            vision_config=json.loads((d / "config.json").read_text())["vision_config"] | {"dtype": "float16"},
        ),
        "vision_config states another dtype than the file does",
    ),
    "no head_dim": ("dense", config(head_dim=None), "head_dim"),
    "last layer -1": ("moe", config(moe_layer_end_index=-1), "moe_layer_end_index is -1"),
    "prediction head": ("moe", config(num_nextn_predict_layers=1), "multi-token-prediction"),
    "rope": ("vl", config(rope_scaling={"type": "default"}), "no mrope_section"),
    "key": ("vl", config(use_temporal_conv=None), "use_temporal_conv"),
    "no end token": (
        "dense",
        write("generation_config.json", "{}"),
        "generation_config.json has no eos_token_id: transformers would never stop",
    ),
    "no index": (
        "moe",
        remove("model.safetensors.index.json"),
        "there is no model.safetensors.index.json, without which engines do not find",
    ),
    "a second file": (
        "dense",
        write("model-00002-of-00002.safetensors", "old"),
        "the index does not name model-00002-of-00002.safetensors, which engines may load instead",
    ),
    "a single file and an index": (
        "moe",
        write("model.safetensors", "old"),
        "there are model.safetensors and model.safetensors.index.json, which does not name it",
    ),
    "not JSON": ("vl", write("config.json", "{"), "not valid JSON"),
    "other layers": ("dense", config(num_hidden_layers=3), "tensors are missing"),
    "transposed": (
        "dense",
        tensors(lambda n, i, a: (i.dtype, a.T if "up_proj" in n else a)),
        "up_proj.weight is",
    ),
    "one missing": ("moe", tensors(lambda n, i, a: None if n == Q else (i.dtype, a)), Q),
    "narrow router": (
        "vl",
        tensors(lambda n, i, a: ("BF16", float32_to_bfloat16(a)) if n == GATE else (i.dtype, a)),
        f"{GATE} is BF16: router tensors must be F32",
    ),
    "NaN": (
        "moe",
        tensors(lambda n, i, a: (i.dtype, np.full_like(a, np.nan) if n == Q else a)),
        f"NaN or infinity in {Q}",
    ),
    "infinity": (
        "dense",
        tensors(
            lambda n, i, a: (i.dtype, np.where(a == a.max(), np.inf, a).astype(a.dtype) if n == Q else a)
        ),
        f"NaN or infinity in {Q}",
    ),
    "zeros": (
        "vl",
        tensors(lambda n, i, a: (i.dtype, np.zeros_like(a) if n == Q else a)),
        f"all values are zero in {Q}",
    ),
    "checksums": ("dense", write("checksums.json", '{"files": 3}'), "checksums.json is damaged"),
    "no shard": ("dense", remove("model-00001-of-00001.safetensors"), "shards that are not there"),
    "metadata": ("dense", without_metadata, "format = pt"),
    "index": ("moe", wrong_index, "disagree on model.norm.weight"),
    "foreign names": ("vl", foreign_tower, "model.vision_model.patch_embed.proj.weight: not a tensor name"),
    "adapter": ("dense", write("adapter_config.json", "{}"), "export it first"),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layout", ["hub", "transformers"])
def test_exports_are_right(models: dict[str, Path], tmp_path: Path, family: str, layout: Any) -> None:
    export_model(models[family], tmp_path / "out", layout=layout)
    checks = list(check_directory(tmp_path / "out", models[family]))
    assert all(check.status != "FAIL" for check in checks), checks
    texts = "\n".join(check.text for check in checks)
    assert "element types equal those of the base model" in texts
    assert ("vLLM, SGLang and FastDeploy" in texts) == (family == "vl")
    assert "the checksums of 1 file are those that were written" in texts


def test_a_flipped_bit_in_an_export(models: dict[str, Path], tmp_path: Path) -> None:
    export_model(models["dense"], tmp_path / "out")
    assert failures(tmp_path / "out") == []
    shard = tmp_path / "out" / "model-00001-of-00001.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    assert failures(tmp_path / "out") == [
        f"{shard.name} is damaged: its checksum differs from the one that was written"
    ]


@pytest.mark.parametrize("fault", FAULTS)
def test_faults(copy: Copy, fault: str) -> None:
    family, break_it, words = FAULTS[fault]
    directory = copy(family)
    assert failures(directory) == []
    break_it(directory)
    assert any(words in text for text in failures(directory)), failures(directory)


def test_nested_configs_need_their_tokenizer_attributes(models: dict[str, Path], tmp_path: Path) -> None:
    export_model(models["vl"], tmp_path / "out", layout="transformers")
    change_json(tmp_path / "out" / "tokenizer_config.json", video_token=None)
    assert any("no video_token" in text for text in failures(tmp_path / "out"))


def test_another_element_type_than_the_base(copy: Copy, models: dict[str, Path]) -> None:
    directory = copy("moe", torch_dtype="bfloat16")
    rewrite(directory, to_bfloat16)
    assert failures(directory) == []
    assert any("a different element type" in text for text in failures(directory, models["moe"]))
    # Training on a CPU gives float32, which holds all values of the base.
    assert failures(models["moe"], directory) == []
    assert any("(the base model)" in text for text in failures(directory, models["dense"]))


def test_nothing_is_computed_with_a_wrong_directory(copy: Copy) -> None:
    directory = copy("dense", architectures=["Other"])
    checks = list(verify_model(directory, VerifyOptions()))
    assert checks[-1].text.startswith("nothing was computed")
    assert [check.status for check in checks].count("FAIL") == 1
