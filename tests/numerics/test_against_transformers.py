"""Logits, losses and every parameter's gradient, compared with transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from erniekit.export.reference import compare_with_reference
from tests.closeness import FLOAT32, MODEL
from tests.numerics import hf

SHARED = Path(__file__).resolve().parents[3] / "shared" / "reference_models"
NEEDS_SHARED = pytest.mark.skipif(
    not SHARED.is_dir(), reason="no ../shared/reference_models beside this clone"
)

CASES: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "dense": ("dense", {}, ["text"]),
    "dense, one kv head, untied": (
        "dense",
        dict(num_attention_heads=3, num_key_value_heads=1, head_dim=16, tie_word_embeddings=False),
        ["text"],
    ),
    "moe": ("moe", {}, ["text"]),
    "moe, top 3 of 5, no shared experts, untied, other layers": (
        "moe",
        dict(moe_num_experts=5, moe_k=3, moe_num_shared_experts=0, tie_word_embeddings=False)
        | dict(moe_layer_start_index=0, moe_layer_end_index=1, num_attention_heads=8, num_key_value_heads=8),
        ["text"],
    ),
    "vl": ("vl", {}, ["text", "image", "video"]),
    "vl, top 3 of 5, no shared experts, other heads": (
        "vl",
        dict(
            moe_num_experts=5, moe_k=3, moe_num_shared_experts=0, num_attention_heads=4, num_key_value_heads=4
        )
        | dict(rope_parameters=dict(rope_type="default", rope_theta=10000.0, mrope_section=[6, 6, 4]))
        | dict(vision=dict(num_heads=4, hidden_size=48, intermediate_size=96, depth=1)),
        ["image", "video"],
    ),
}


def _inputs(kind: str) -> dict[str, Any]:
    if kind == "text":
        return hf.text_inputs()
    return hf.vision_inputs(kind, (1, 4, 6) if kind == "image" else (4, 2, 4))


@pytest.mark.parametrize(("case", "kind"), [(name, kind) for name, case in CASES.items() for kind in case[2]])
def test_model_agrees_with_transformers(case: str, kind: str, tmp_path: Path) -> None:
    family, overrides, _ = CASES[case]
    reference = hf.make_reference(tmp_path, hf.make_model(family, **overrides), _inputs(kind))
    _assert_agrees(reference.directory, reference.npz, reference.gradients)


def test_flat_config_gives_the_same_model(tmp_path: Path) -> None:
    reference = hf.make_reference(tmp_path, hf.make_model("vl"), _inputs("image"))
    flat = hf.flat_config(reference.directory)
    (reference.directory / "config.json").write_text(json.dumps(flat))
    _assert_agrees(reference.directory, reference.npz, reference.gradients)


@NEEDS_SHARED
@pytest.mark.parametrize(
    ("model", "name", "gradients"),
    [
        ("dense", "ref_dense", True),
        ("moe", "ref_moe", True),
        ("vl_hub", "ref_vl", True),
        ("vl_hf", "ref_vl", True),
        ("vl_hub", "ref_vl_video", False),
        ("vl_hf", "ref_vl_video", False),
        ("vl_hub", "ref_vl_text", False),
    ],
)
def test_shared_reference_models(model: str, name: str, gradients: bool) -> None:
    file = SHARED / f"{name}_grads.safetensors" if gradients else None
    _assert_agrees(SHARED / model, SHARED / f"{name}.npz", file)


def _assert_agrees(directory: Path, npz: Path, gradients: Path | None) -> None:
    report = compare_with_reference(directory, npz, gradients)
    assert report.logits_relative <= MODEL
    assert report.loss_relative <= FLOAT32
    name, relative = report.gradient_worst
    assert relative <= MODEL, name
