"""Exports in 8 and 4 bits: codes and words as compressed-tensors has them, and what is left as it is."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from erniekit.checkpoint.element_types import as_dtype
from erniekit.checkpoint.hub import read_array, read_index
from erniekit.checkpoint.weights import load_model
from erniekit.cli.export import export
from erniekit.cli.verify import verify
from erniekit.errors import CheckpointError, ConfigError
from erniekit.export.checks import check_directory
from erniekit.export.export import export_model
from erniekit.export.quantized import (
    Quantization,
    check_quantized,
    chosen_quantization,
    read_quantization,
    read_quantized_model,
)
from erniekit.models.specs import is_quantized_tensor
from tests.unit.export.conftest import Copy, change_json
from tests.unit.export.weights import change, logits, train_adapter


def test_words_have_the_first_column_in_their_lowest_bits() -> None:
    """The examples are of compressed-tensors' pack_to_int32."""
    codes = np.array([[-8, -7, 0, 1, 2, 3, 6, 7]], np.int8)
    words = Quantization(4).pack(codes)
    assert words.dtype == np.int32 and words.view(np.uint32).tolist() == [[0xFEBA9810]]
    assert np.array_equal(Quantization(4).unpack(words), codes)
    codes = np.array([[-128, 1, 2, 127]], np.int8)
    assert Quantization(8).pack(codes).view(np.uint32).tolist() == [[0xFF828100]]
    assert np.array_equal(Quantization(8).unpack(Quantization(8).pack(codes)), codes)


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
@pytest.mark.parametrize(
    "quantization", [Quantization(4, 8), Quantization(4), Quantization(8, 8), Quantization(8)]
)
def test_codes_are_nearest_and_scales_positive(quantization: Quantization, dtype: str) -> None:
    weight = np.random.default_rng(0).normal(0, 1, (6, 32)).astype(np.float32)
    weight[0, :8] = 0
    codes, scale = quantization.quantize(weight, dtype)
    groups = 4 if quantization.group else 1
    wide = as_dtype(scale, dtype, "F32")
    assert scale.shape == (6, groups) and (wide > 0).all()
    back = quantization.dequantize(codes, scale, dtype)
    step = np.repeat(wide, 32 // groups, axis=1)
    # Half a step. A scale that bfloat16 rounds down leaves the largest magnitude half a step beyond the last code.
    most = 0.52 if dtype == "F32" else 1.1
    assert (np.abs(back - weight) <= most * step).all() and not back[0, :8].any()
    largest = np.abs(weight.reshape(6, groups, -1)).max(-1)
    nonzero = largest > 0
    expected = largest[nonzero] / ((2**quantization.bits - 1) / 2)
    assert np.allclose(wide[nonzero], expected, rtol=1e-2 if dtype == "BF16" else 1e-6)


@pytest.mark.parametrize("family", ["moe", "vl"])
def test_exports_hold_the_values_that_engines_compute_with(
    models: dict[str, Path], tmp_path: Path, family: str
) -> None:
    train_adapter(models[family], tmp_path / "adapter", ["q_proj", "down_proj"])
    plain = export_model(tmp_path / "adapter", tmp_path / "plain").directory
    report = export_model(tmp_path / "adapter", tmp_path / "out", quantization=Quantization(4, 32))
    stored, before = read_index(report.directory), read_index(plain)
    layers = [name for name in before if is_quantized_tensor(name)]
    assert any(".mlp.experts.7." in name for name in layers) and not any(
        "vision_model" in name for name in layers
    )
    kept = {name: info for name, info in stored.items() if name in before}
    assert set(kept) == set(before) - set(layers)
    assert all(np.array_equal(read_array(info), read_array(before[name])) for name, info in kept.items())
    for name in layers:
        assert read_array(stored[f"{name}_shape"]).tolist() == list(before[name].shape)
    assert read_quantization(report.directory) == Quantization(4, 32)
    # Near the plain export: no expert has another expert's values.
    model = load_model(plain)
    model.eval()
    wanted, found = logits(model), logits(read_quantized_model(report.directory))
    assert 0 < np.linalg.norm(found - wanted) / np.linalg.norm(wanted) < 0.5
    table = [list(row) for row in report.error]
    assert table[0] == ["relative error", "attention", "mlp", "experts"] and table[-1][0] == "all layers"
    assert table[1][3] == "-" and 5 < float(table[2][3].rstrip("%")) < 15
    checks = list(check_directory(report.directory))
    assert all(check.status != "FAIL" for check in checks), checks


def test_engines_find_the_format_and_what_is_left_out(models: dict[str, Path], tmp_path: Path) -> None:
    export_model(models["moe"], tmp_path / "out", quantization=Quantization(8))
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert (config["quant_method"], config["format"]) == ("compressed-tensors", "pack-quantized")
    weights = config["config_groups"]["group_0"]["weights"]
    assert weights["num_bits"] == 8 and weights["strategy"] == "channel" and weights["symmetric"] is True
    patterns = [name.removeprefix("re:") for name in config["ignore"]]

    def is_left_out(module: str) -> bool:
        return any(re.match(pattern, module) for pattern in patterns)

    # As transformers and vLLM call them.
    gates = ("mlp.gate", "mlp.text_experts_gate", "mlp.vision_experts_gate")
    left_out = [
        "lm_head",
        "resampler_model.mlp",
        "model.resampler_model.mlp",
        "vision_model.blocks.0.attn.qkv",
    ]
    for module in [*left_out, *(f"language_model.model.layers.1.{gate}" for gate in gates)]:
        assert is_left_out(module), module
    for leaf in (
        "self_attn.qkv_proj",
        "mlp.gate_up_proj",
        "mlp.experts.3.gate_proj",
        "mlp.text_experts.0.down_proj",
    ):
        assert not is_left_out(f"model.layers.1.{leaf}"), leaf


def test_faults_of_quantized_exports(models: dict[str, Path], tmp_path: Path) -> None:
    directory = export_model(models["dense"], tmp_path / "out", quantization=Quantization(4, 32)).directory
    assert check_quantized(directory, Quantization(4, 32))
    with pytest.raises(CheckpointError, match=r"weight_packed is I32 .*, not I32"):
        check_quantized(directory, Quantization(8, 32))
    with pytest.raises(CheckpointError, match="weight_scale"):
        check_quantized(directory, Quantization(4, 64))
    change_json(directory / "config.json", quantization_config={"quant_method": "awq"})
    failed = [check.text for check in check_directory(directory) if check.status == "FAIL"]
    assert len(failed) == 1 and "not one that `erniekit export --quantize` writes" in failed[0]


def test_what_cannot_be_quantized(models: dict[str, Path], copy: Copy, tmp_path: Path) -> None:
    def refused(source: Path, **options: Any) -> str:
        with pytest.raises(ConfigError) as error:
            export(source, tmp_path / "out", **options)
        assert not (tmp_path / "out").exists()
        return str(error.value)

    assert "groups of 48 do not divide" in refused(models["dense"], quantize="int4", quantize_group=48)
    assert "--layout hub or transformers" in refused(models["dense"], quantize="int8", layout="paddle")
    assert "transformers 5.24 does not load" in refused(models["vl"], quantize="int8", layout="transformers")
    assert "--gguf-type q8_0" in refused(models["dense"], quantize="int8", layout="gguf")
    assert "need --quantize" in refused(models["dense"], eval_files=["x"])
    narrow = copy("dense", "narrow", intermediate_size=42)

    def cut(arrays: dict[str, np.ndarray]) -> None:
        for name, array in arrays.items():
            if ".mlp." in name:
                arrays[name] = array[:, :42] if "down_proj" in name else array[:42]

    change(narrow, cut)
    assert "42 columns" in refused(narrow, quantize="int4", quantize_group=0)
    assert chosen_quantization("int4", None) == Quantization(4, 128)
    assert (
        chosen_quantization("int8", None) == Quantization(8, 0) and chosen_quantization("none", None) is None
    )


@pytest.mark.slow
def test_the_loss_before_and_after(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "chats.jsonl"
    messages = [{"role": "user", "content": "a cat?"}, {"role": "assistant", "content": "on the red mat"}]
    data.write_text(json.dumps({"messages": messages}) + "\n")
    losses = {}
    for bits in ("int8", "int4"):
        export(models["moe"], tmp_path / bits, quantize=bits, quantize_group=0, eval_files=[str(data)])
        printed = [line.split() for line in capsys.readouterr().out.splitlines()]
        losses[bits] = [
            float(line[1]) for line in printed if line[:1] in (["before"], ["after"], ["difference"])
        ]
    for before, after, difference in losses.values():
        assert after - before == pytest.approx(difference, abs=2e-4)
    assert losses["int8"][0] == losses["int4"][0]
    assert abs(losses["int8"][2]) < abs(losses["int4"][2])
    verify(tmp_path / "int4")
    assert "nothing was computed: compare quantized weights in an engine" in capsys.readouterr().out
