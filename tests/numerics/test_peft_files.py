"""Adapter files of PEFT: names, what they may hold, and errors that name a tensor."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from erniekit.checkpoint.hub import TensorSpec, read_array, write_safetensors
from erniekit.checkpoint.weights import load_model
from erniekit.errors import CheckpointError
from erniekit.export.adapter import export_adapter
from erniekit.export.export import export_model
from erniekit.generation.load import find_model
from erniekit.lora.adapters import PREFIX, add_adapter, read_adapter_index
from erniekit.lora.peft import linear_modules, read_adapter_config, targets_of
from erniekit.models.config import ErnieConfig
from tests.model_configs import FLAT
from tests.numerics.peft_adapters import PROJECTIONS, write


def matched(names: list[str], targets: list[str]) -> set[str]:
    """The names that PEFT takes for targets."""
    return {name for name in names if any(name == t or name.endswith(f".{t}") for t in targets)}


@pytest.mark.parametrize("targets", [["q_proj", "down_proj"], ["model.layers.1.*"], PROJECTIONS, ["lm_head"]])
def test_targets_name_the_adapted_modules(
    tmp_path: Path, models: dict[str, Path], targets: list[str]
) -> None:
    if targets == ["lm_head"]:
        raw = json.loads((models["dense"] / "config.json").read_text()) | {"tie_word_embeddings": False}
        assert targets_of({"lm_head"}, ErnieConfig.from_json(raw)) == (["lm_head"], [])
        return
    config = write(models["dense"], tmp_path / "adapter", targets)
    adapted = {name.partition(".lora_")[0] for name in read_adapter_index(tmp_path / "adapter")}
    linears = linear_modules(ErnieConfig.from_dir(models["dense"]))
    assert matched(linears, config["target_modules"]) == adapted
    assert len(config["target_modules"]) <= len(adapted)
    assert all("*" not in name for name in config["target_modules"])
    assert config["target_parameters"] is None


def test_one_name_stands_for_all_layers_only_where_it_does() -> None:
    base = ErnieConfig.from_json(FLAT)
    linears = linear_modules(base)
    attention = {name for name in linears if name.endswith("q_proj")}
    assert targets_of(attention, base) == (["q_proj"], [])
    names, parameters = targets_of(attention - {"model.layers.0.self_attn.q_proj"}, base)
    assert matched(linears, names) == attention - {"model.layers.0.self_attn.q_proj"}
    assert parameters == []
    # As transformers' classes have it, too.
    theirs = [name.replace("model.layers.", "model.language_model.layers.") for name in linears]
    assert len(matched(theirs, names)) == len(attention) - 1
    resampler, _ = targets_of({"model.resampler_model.spatial_linear.0"}, base)
    assert matched(["model.resampler_model.spatial_linear.fc1"], resampler)


def test_dropout_is_not_stated_where_peft_refuses_it(tmp_path: Path, models: dict[str, Path]) -> None:
    assert write(models["dense"], tmp_path / "a", ["up_proj"], 0.2)["lora_dropout"] == 0.2
    assert write(models["moe"], tmp_path / "b", ["q_proj"], 0.2)["lora_dropout"] == 0.2
    assert write(models["moe"], tmp_path / "c", ["up_proj"], 0.2)["lora_dropout"] == 0.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_dora": True}, "use_dora is True"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is 'pissa_niter_4'"),
        ({"init_lora_weights": "lora_ga"}, "init_lora_weights is 'lora_ga'"),
        ({"use_qalora": True}, "use_qalora is True"),
        ({"kasa_config": {"beta": 0.1}}, "kasa_config"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
    ],
)
def test_what_cannot_be_computed_is_refused(
    tmp_path: Path, models: dict[str, Path], change: dict[str, Any], message: str
) -> None:
    config = write(models["dense"], tmp_path / "adapter", ["q_proj"])
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config | change))
    with pytest.raises(CheckpointError, match=message):
        find_model(tmp_path / "adapter").load()
    with pytest.raises(CheckpointError, match=message):
        export_model(tmp_path / "adapter", tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.layers.1.mlp.experts.lora_A.weight", "is not an adapter of rank 4 on down_proj of experts"),
        ("model.embed_tokens.lora_embedding_A", "is not lora_A or lora_B of a linear module"),
        ("model.layers.0.self_attn.q_proj.lora_B.bias", "is not lora_A or lora_B of a linear module"),
        ("lm_head.base_layer.weight", "is not lora_A or lora_B of a linear module"),
    ],
)
def test_tensors_that_are_no_adapter_of_a_linear_module(
    tmp_path: Path, models: dict[str, Path], name: str, message: str
) -> None:
    write(models["dense"], tmp_path / "adapter", ["q_proj"])
    array = np.zeros((2, 2), np.float32)
    write_safetensors(
        tmp_path / "adapter" / "adapter_model.safetensors",
        [TensorSpec(PREFIX + name, "F32", (2, 2))],
        lambda _: array,
    )
    with pytest.raises(CheckpointError, match=message):
        find_model(tmp_path / "adapter").load()


@pytest.mark.parametrize("name", ["embed_tokens", "lm_head"])
def test_an_embedding_that_was_trained_without_its_tied_head(
    tmp_path: Path, models: dict[str, Path], name: str
) -> None:
    """PEFT copies what modules_to_save names, so that the other one keeps its values."""
    peft = pytest.importorskip("peft")
    import torch
    import transformers

    load = transformers.AutoModelForCausalLM.from_pretrained
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=[name], task_type="CAUSAL_LM")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(load(str(models["dense"]), dtype=torch.float32), config)
        model.save_pretrained(str(tmp_path / "adapter"))
    message = rf"{name}\.weight was trained as a matrix of its own, but the base model ties"
    for read in (
        lambda: find_model(tmp_path / "adapter").load(),
        lambda: export_model(tmp_path / "adapter", tmp_path / "out"),
        lambda: export_adapter(tmp_path / "adapter", tmp_path / "out"),
    ):
        with pytest.raises(CheckpointError, match=message):
            read()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("shape", "problem"),
    [((1 << 20, 0), "is empty: its shape is"), ((6, 2), "which is not an adapter of rank 4")],
)
def test_stacked_experts_of_impossible_shapes(
    tmp_path: Path, models: dict[str, Path], shape: tuple[int, int], problem: str
) -> None:
    write(models["moe"], tmp_path / "adapter", ["q_proj"])
    name = f"{PREFIX}model.layers.1.mlp.experts.lora_A.weight"
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    write_safetensors(file, [TensorSpec(name, "F32", shape)], lambda _: np.zeros(shape, np.float32))
    with pytest.raises(CheckpointError, match=problem):
        read_adapter_index(tmp_path / "adapter")


def test_names_of_transformers_classes_are_read(tmp_path: Path, models: dict[str, Path]) -> None:
    directory = tmp_path / "adapter"
    write(
        models["vl"], directory, ["q_proj", "vision_model.blocks.*", "model.resampler_model.spatial_linear.2"]
    )
    found = read_adapter_index(directory)
    arrays = {name: read_array(info) for name, info in found.items()}

    def theirs(name: str) -> str:
        name = name.replace("model.layers.", "model.language_model.layers.")
        name = name.replace("spatial_linear.2", "spatial_linear.fc2")
        return PREFIX + name.replace("vision_model.", "model.vision_tower.")

    names = {theirs(name): name for name in arrays}
    specs = [TensorSpec(stored, "F32", arrays[name].shape) for stored, name in names.items()]
    write_safetensors(directory / "adapter_model.safetensors", specs, lambda stored: arrays[names[stored]])
    assert read_adapter_index(directory).keys() == found.keys()
    model = load_model(models["vl"])
    add_adapter(model, directory)


def test_a_module_that_the_model_lacks(tmp_path: Path, models: dict[str, Path]) -> None:
    write(models["moe"], tmp_path / "adapter", ["model.layers.1.mlp.experts.*"])
    with pytest.raises(CheckpointError, match=r"no linear module model\.layers\.1\.mlp\.experts"):
        add_adapter(load_model(models["dense"]), tmp_path / "adapter")


def test_the_configuration_reads_back(tmp_path: Path, models: dict[str, Path]) -> None:
    write(models["dense"], tmp_path / "adapter", ["q_proj"], 0.1)
    adapter = read_adapter_config(tmp_path / "adapter")
    assert (adapter.rank, adapter.alpha, adapter.dropout) == (4, 12.0, 0.1)
    assert adapter.scaling("model.layers.0.self_attn.q_proj", 4) == 3.0
