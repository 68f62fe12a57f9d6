"""Exports that are wrong in ways that load: each is found by names and shapes, by the base model, or by its source."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from erniekit.config.choices import CheckpointLayout
from erniekit.data.chat.families import TEMPLATES
from erniekit.data.chat.jinja import chat_template
from erniekit.export.checks import check_directory
from erniekit.export.export import export_model
from erniekit.export.files import write_chat_template
from erniekit.export.processors import set_image_bounds
from erniekit.export.source_check import check_source
from tests.unit.export.conftest import Copy, change_json, write_state
from tests.unit.export.weights import Arrays, change, rewrite, train_adapter

LAYER = "model.layers.1.mlp"
BIAS = f"{LAYER}.moe_statics.e_score_correction_bias"


def failures(directory: Path, base: Path | None = None) -> str:
    return "\n".join(check.text for check in check_directory(directory, base) if check.status == "FAIL")


def swap(first: str, second: str) -> Callable[[Arrays], None]:
    """Exchange the tensors that have `first` in their names with those that have `second` there."""

    def edit(arrays: Arrays) -> None:
        for name in [name for name in arrays if first in name]:
            other = name.replace(first, second)
            arrays[name], arrays[other] = arrays[other], arrays[name]

    return edit


def transpose(name: str) -> Callable[[Arrays], None]:
    return lambda arrays: arrays.update({name: arrays[name].T})


def drop(part: str) -> Callable[[Arrays], None]:
    return lambda arrays: [arrays.pop(name) for name in list(arrays) if part in name] and None


def prefix(old: str, new: str) -> Callable[[Arrays], None]:
    def edit(arrays: Arrays) -> None:
        for name in list(arrays):
            if name.startswith(old):
                arrays[new + name.removeprefix(old)] = arrays.pop(name)

    return edit


def lm_head(arrays: Arrays) -> None:
    arrays["lm_head.weight"] = arrays["model.embed_tokens.weight"] + 0.1


BY_NAME = {
    "text gate transposed": ("moe", transpose(f"{LAYER}.gate.weight"), f"{LAYER}.gate.weight is"),
    "vision gate transposed": ("vl", transpose(f"{LAYER}.gate.weight_1"), f"{LAYER}.gate.weight_1 is"),
    "one expert missing": ("moe", drop("experts.3."), f"{LAYER}.experts.3.down_proj.weight"),
    "vision experts missing": ("vl", drop("experts.7."), f"{LAYER}.experts.7.down_proj.weight"),
    "bias missing": ("moe", drop("e_score_correction_bias"), BIAS),
    "wrong prefix": ("dense", prefix("model.", "ernie."), "FastDeploy knows"),
    "no prefix": ("dense", prefix("model.", ""), "layers.0"),
    "nested names": ("vl", prefix("model.layers.", "model.language_model.layers."), "model.language_model."),
    "tied head": ("dense", lm_head, "lm_head.weight"),
    "shared experts missing": ("moe", drop("shared_experts"), "shared_experts"),
}


@pytest.mark.parametrize("fault", BY_NAME)
def test_found_by_names_and_shapes(copy: Copy, fault: str) -> None:
    family, edit, words = BY_NAME[fault]
    directory = copy(family)
    change(directory, edit)
    assert words in failures(directory)


@pytest.fixture(scope="module")
def bases(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The models, with correction biases as training leaves them."""
    import shutil

    parent = tmp_path_factory.mktemp("bases")
    rng = np.random.default_rng(3)

    def with_bias(name: str, info: Any, array: np.ndarray) -> tuple[str, np.ndarray]:
        biased = name.endswith("e_score_correction_bias")
        return info.dtype, rng.normal(0, 0.1, array.shape).astype(np.float32) if biased else array

    for family, model in models.items():
        shutil.copytree(model, parent / family)
        rewrite(parent / family, with_bias)
    return {family: parent / family for family in models}


def reorder_router(arrays: Arrays) -> None:
    arrays[f"{LAYER}.gate.weight"] = np.roll(arrays[f"{LAYER}.gate.weight"], 1, axis=0)


def reorder_vision_router(arrays: Arrays) -> None:
    arrays[f"{LAYER}.gate.weight_1"] = np.roll(arrays[f"{LAYER}.gate.weight_1"], 1, axis=1)


def zero_bias(arrays: Arrays) -> None:
    arrays[BIAS] = np.zeros_like(arrays[BIAS])


def swap_bias(arrays: Arrays) -> None:
    arrays[BIAS] = arrays[BIAS][::-1]


EXPERT = f"{LAYER}.experts."
BY_VALUES = {
    "gate and up exchanged": (
        "dense",
        swap("layers.1.mlp.gate_proj", "layers.1.mlp.up_proj"),
        "model.layers.1.mlp.gate_proj.weight is model.layers.1.mlp.up_proj.weight",
    ),
    "experts in another order": (
        "moe",
        swap(f"{EXPERT}0.", f"{EXPERT}2."),
        f"{EXPERT}0.gate_proj.weight is {EXPERT}2.gate_proj.weight",
    ),
    "text and vision routers exchanged": (
        "vl",
        lambda arrays: swap(f"{LAYER}.gate.weight_1", f"{LAYER}.gate.weight")(arrays),
        f"{LAYER}.gate.weight is {LAYER}.gate.weight_1",
    ),
    "layers exchanged": (
        "dense",
        swap("layers.0.self_attn", "layers.1.self_attn"),
        "layers.0.self_attn.q_proj",
    ),
    "keys and values exchanged": (
        "moe",
        swap("layers.0.self_attn.k_", "layers.0.self_attn.v_"),
        "is model.layers.0",
    ),
    "square matrix transposed": (
        "vl",
        transpose("model.resampler_model.spatial_linear.2.weight"),
        "model.resampler_model.spatial_linear.2.weight transposed",
    ),
    "router in another order": ("moe", reorder_router, f"{LAYER}.gate.weight, expert 0 is expert "),
    "vision router in another order": (
        "vl",
        reorder_vision_router,
        f"{LAYER}.gate.weight_1, expert 0 is expert ",
    ),
    "bias zero": ("moe", zero_bias, f"{BIAS} is all zeros"),
    "bias rows exchanged": ("vl", swap_bias, f"{BIAS}, row 0 is row 1"),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", BY_VALUES)
def test_found_by_the_base_model(bases: dict[str, Path], tmp_path: Path, fault: str) -> None:
    family, edit, words = BY_VALUES[fault]
    directory = export_model(bases[family], tmp_path / "out").directory
    assert failures(directory, bases[family]) == ""
    change(directory, edit)
    assert "checksum" in failures(directory)
    (directory / "checksums.json").unlink()
    assert failures(directory) == ""
    assert words in failures(directory, bases[family])


def test_trained_weights_are_where_they_were(bases: dict[str, Path], tmp_path: Path) -> None:
    """Training moves weights far, but not to other weights of the base model."""
    directory = export_model(bases["moe"], tmp_path / "out").directory
    rng = np.random.default_rng(0)

    def train(arrays: Arrays) -> None:
        for name, array in arrays.items():
            arrays[name] = (array + rng.normal(0, 2 * array.std(), array.shape)).astype(np.float32)

    change(directory, train)
    (directory / "checksums.json").unlink()
    assert failures(directory, bases["moe"]) == ""


def test_a_base_model_with_the_names_of_transformers(bases: dict[str, Path], tmp_path: Path) -> None:
    """As save_pretrained writes it: the layouts of the export and of its base model differ."""
    base = export_model(bases["vl"], tmp_path / "base", layout="transformers").directory
    change(base, prefix("vision_model.", "model.vision_model."))
    directory = export_model(bases["vl"], tmp_path / "out").directory
    assert failures(directory, base) == ""


def source_checks(directory: Path, source: Path) -> list[str]:
    return [check.status for check in check_source(directory, source)]


@pytest.mark.slow
def test_found_by_the_source(bases: dict[str, Path], tmp_path: Path) -> None:
    """Faults that names, shapes and a comparison of two engines on the export cannot show."""
    train_adapter(bases["moe"], tmp_path / "adapter", ["q_proj", "down_proj"])
    directory = export_model(tmp_path / "adapter", tmp_path / "out").directory
    assert source_checks(directory, tmp_path / "adapter") == ["ok", "ok", "ok"]
    # The base model itself is not what was exported.
    assert source_checks(directory, bases["moe"]) == ["ok", "FAIL", "FAIL"]
    export_model(tmp_path / "adapter", tmp_path / "narrow", dtype="bfloat16")
    assert source_checks(tmp_path / "narrow", tmp_path / "adapter") == ["ok", "ok", "ok"]
    change(directory, swap(f"{EXPERT}0.gate_proj", f"{EXPERT}0.up_proj"))
    assert "FAIL" in source_checks(directory, tmp_path / "adapter")


def test_another_rope_theta_is_found_by_the_source(
    copy: Copy, bases: dict[str, Path], tmp_path: Path
) -> None:
    directory = export_model(bases["dense"], tmp_path / "out").directory
    change_json(directory / "config.json", rope_theta=10000.0)
    assert failures(directory, bases["dense"]) == ""
    assert source_checks(directory, bases["dense"]) == ["ok", "FAIL", "FAIL"]


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["hub", "transformers", "paddle"])
def test_settings_that_differ_from_training(
    copy: Copy, bases: dict[str, Path], tmp_path: Path, layout: CheckpointLayout
) -> None:
    """The logits of a prompt are right in all of them."""
    run = copy("vl", "run")
    template = "ernie_vl_thinking"
    write_state(run, str(bases["vl"]), min_pixels=784, template=template)
    directory = export_model(run, tmp_path / "out", layout=layout).directory

    def found() -> list[str]:
        return [check.text for check in check_source(directory, run) if check.status == "FAIL"]

    assert found() == []
    for break_it, words in (
        (
            lambda: change_json(directory / "generation_config.json", eos_token_id=7),
            r"answers stop at the token ids \[7\], in the source \[2\]",
        ),
        (lambda: set_image_bounds(directory, 3136, None), "images are processed with .*min_pixels=3136"),
        (
            lambda: write_chat_template(directory, chat_template(TEMPLATES["ernie_vl"], media=True), layout),
            "a prompt with image has other tokens: its chat template or tokenizer differs",
        ),
    ):
        break_it()
        assert any(re.search(words, text) for text in found()), found()
