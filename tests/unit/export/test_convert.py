"""Models in every layout: what `convert` and `export` write, and that all commands read it."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from erniekit.checkpoint.header import read_header, read_metadata
from erniekit.checkpoint.hub import TensorInfo, read_array, read_index, write_shards
from erniekit.checkpoint.model_files import open_model
from erniekit.checkpoint.weights import load_model
from erniekit.config.choices import CheckpointLayout
from erniekit.data.media.patches import ImageSpec
from erniekit.errors import CheckpointError
from erniekit.export import output
from erniekit.export.convert import convert_model, describe_conversion
from erniekit.export.export import export_model
from erniekit.models.specs import TensorSpec
from tests.unit.export.conftest import FAMILIES, Copy, write_state
from tests.unit.export.weights import logits, rewrite, to_bfloat16, train_adapter


def contents(directory: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Name -> element type, shape and bytes of every tensor, as the files have them."""
    return {
        name: (info.dtype, info.shape, read_array(info).tobytes())
        for name, info in read_index(directory).items()
    }


def add(directory: Path, arrays: dict[str, np.ndarray]) -> None:
    """Add float32 tensors to the weights of a model."""
    found: dict[str, TensorInfo] = read_index(directory)
    all_arrays = {name: read_array(info) for name, info in found.items()} | arrays
    specs = [
        TensorSpec(name, found[name].dtype if name in found else "F32", array.shape)
        for name, array in all_arrays.items()
    ]
    write_shards(directory, specs, all_arrays.__getitem__)


def variants(copy: Copy, family: str) -> Path:
    """A model with everything that a layout may get wrong: bfloat16, an untied or copied head, an MTP head."""
    directory = copy(family, tie_word_embeddings=family != "dense", num_nextn_predict_layers=1)
    rewrite(directory, to_bfloat16)
    rng = np.random.default_rng(3)
    extra: dict[str, np.ndarray] = {}
    if family == "moe":
        shapes = {
            name.replace("model.layers.0.", "model.mtp_block.0."): info.shape
            for name, info in read_index(directory).items()
            if name.startswith("model.layers.0.")
        }
        shapes |= {"model.mtp_linear_proj.0.weight": (6, 12), "model.mtp_emb_norm.0.weight": (6,)}
        extra = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    embedding = read_array(read_index(directory)["model.embed_tokens.weight"])
    head = (embedding.astype(np.uint32) << 16).view(np.float32).reshape(embedding.shape)
    extra["lm_head.weight"] = head[::-1].copy() if family == "dense" else head
    add(directory, extra)
    return directory


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_is_byte_identical_after_paddle_and_back(copy: Copy, tmp_path: Path, family: str) -> None:
    model = variants(copy, family)
    there = convert_model(model, tmp_path / "paddle", "paddle", max_shard_bytes=1 << 20)
    back = convert_model(tmp_path / "paddle", tmp_path / "back", "hub")
    assert (there.before, there.layout, back.before, back.layout) == ("hub", "paddle", "paddle", "hub")
    assert contents(tmp_path / "back") == contents(model)
    assert there.nbytes == back.nbytes == sum(info.nbytes for info in read_index(model).values())
    names = read_index(tmp_path / "paddle")
    assert not any(name.startswith("model.") for name in names)
    assert not any(part in name for name in names for part in ("q_proj", ".gate_proj", ".up_proj"))
    # The weights of a second conversion from hub are the same files.
    convert_model(model, tmp_path / "hub", "hub")
    for file in ("model-00001-of-00001.safetensors", "config.json"):
        assert (tmp_path / "hub" / file).read_bytes() == (tmp_path / "back" / file).read_bytes()
    assert "paddle layout) to" in "\n".join(describe_conversion(back))
    # The head that predicts several tokens is stated where it is, and only there.
    for name in ("paddle", "hub"):
        raw = json.loads((tmp_path / name / "config.json").read_text())
        assert raw["num_nextn_predict_layers"] == (family == "moe")


def test_names_and_orientation_of_the_paddle_layout(models: dict[str, Path], tmp_path: Path) -> None:
    for family in FAMILIES:
        convert_model(models[family], tmp_path / family, "paddle")
    hub, paddle = (read_index(directory["moe"]) for directory in (models, {"moe": tmp_path / "moe"}))
    arrays = {name: read_array(info) for name, info in hub.items()}
    path = "layers.1.self_attn"
    parts = [arrays[f"model.{path}.{leaf}_proj.weight"].T for leaf in "qkv"]
    np.testing.assert_array_equal(
        read_array(paddle[f"ernie.{path}.qkv_proj.weight"]), np.concatenate(parts, axis=1)
    )
    path = "layers.1.mlp.experts.0"
    parts = [arrays[f"model.{path}.{leaf}_proj.weight"].T for leaf in ("gate", "up")]
    np.testing.assert_array_equal(
        read_array(paddle[f"ernie.{path}.up_gate_proj.weight"]), np.concatenate(parts, axis=1)
    )
    for name in ("layers.1.mlp.gate.weight", "layers.1.mlp.experts.0.down_proj.weight"):
        np.testing.assert_array_equal(read_array(paddle[f"ernie.{name}"]), arrays[f"model.{name}"].T)
    for name in ("embed_tokens.weight", "layers.1.mlp.moe_statics.e_score_correction_bias"):
        np.testing.assert_array_equal(read_array(paddle[f"ernie.{name}"]), arrays[f"model.{name}"])
    hub, paddle = read_index(models["vl"]), read_index(tmp_path / "vl")
    for name in ("mlp.gate.weight", "mlp.gate.weight_1"):
        assert paddle[f"ernie.layers.1.{name}"].shape == hub[f"model.layers.1.{name}"].shape
    for name in ("vision_model.blocks.0.attn.qkv.weight", "vision_model.patch_embed.proj.weight"):
        assert paddle[name].shape == hub[name].shape[::-1]
    assert "ernie.resampler_model.temporal_linear.0.bias" in paddle
    assert {file.name: read_metadata(file) for file in (tmp_path / "vl").glob("*.safetensors")} == {
        "model-00001-of-00001.safetensors": {"format": "np"}
    }


def test_config_json_of_the_paddle_layout(models: dict[str, Path], tmp_path: Path) -> None:
    """FastDeploy takes `dtype` alone for the paddle layout, and knows these names of architectures."""
    expected = {
        "dense": "Ernie4_5_ForCausalLM",
        "moe": "Ernie4_5_MoeForCausalLM",
        "vl": "Ernie4_5_VLMoeForConditionalGeneration",
    }
    for family, architecture in expected.items():
        convert_model(models[family], tmp_path / family, "paddle")
        raw = json.loads((tmp_path / family / "config.json").read_text())
        assert raw["architectures"] == [architecture]
        assert raw["dtype"] == "float32"
        assert not {"torch_dtype", "transformers_version"} & set(raw)
        before, after = (open_model(d)[0] for d in (models[family], tmp_path / family))
        assert before == after
    assert "mrope_section" not in raw["rope_scaling"] and raw["freq_allocation"] > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_models_of_every_layout_compute_the_same(
    models: dict[str, Path], tmp_path: Path, family: str
) -> None:
    wanted = logits(load_model(models[family]))
    layouts: tuple[CheckpointLayout, ...] = ("transformers", "paddle")
    for layout in layouts:
        convert_model(models[family], tmp_path / layout, layout)
        np.testing.assert_array_equal(logits(load_model(tmp_path / layout)), wanted)


@pytest.mark.parametrize("layout", ["hub", "transformers", "paddle"])
def test_a_checkpoint_gets_the_files_of_an_export(
    copy: Copy, models: dict[str, Path], tmp_path: Path, layout: CheckpointLayout
) -> None:
    """Engines build prompts and images as in training, whichever command wrote the model."""
    checkpoint = copy("vl", "checkpoint")
    write_state(checkpoint, str(models["vl"]), min_pixels=784, template="ernie_vl_thinking")
    export_model(checkpoint, tmp_path / "exported", layout=layout)
    convert_model(checkpoint, tmp_path / "converted", layout)
    written = [
        {file.name: file.read_bytes() for file in (tmp_path / name).iterdir()}
        for name in ("exported", "converted")
    ]
    assert written[0] == written[1]
    assert ImageSpec.from_checkpoint(tmp_path / "converted").min_pixels == 784


def test_an_adapter_on_a_base_in_the_paddle_layout(models: dict[str, Path], tmp_path: Path) -> None:
    convert_model(models["moe"], tmp_path / "base", "paddle")
    targets = ["q_proj", "gate_proj"]
    wanted = train_adapter(tmp_path / "base", tmp_path / "adapter", targets, router=True)
    for layout in ("hub", "paddle"):
        export_model(tmp_path / "adapter", tmp_path / layout, layout=layout)
        found = logits(load_model(tmp_path / layout))
        assert np.linalg.norm(found - wanted) <= 1e-5 * np.linalg.norm(wanted)
    assert "torch_dtype" in json.loads((tmp_path / "hub" / "config.json").read_text())


def test_the_paddle_layout_with_names_of_the_hub(copy: Copy, models: dict[str, Path]) -> None:
    """As some tools write it: the linear weights are transposed, and nothing is fused."""
    model = copy("moe")

    def transpose(name: str, info: TensorInfo, array: np.ndarray) -> tuple[str, np.ndarray]:
        linear = "_proj.weight" in name or name.endswith(".gate.weight")
        return info.dtype, array.T.copy() if linear else array

    rewrite(model, transpose)
    np.testing.assert_array_equal(logits(load_model(model)), logits(load_model(models["moe"])))


def test_names_of_transformers_classes(copy: Copy, models: dict[str, Path]) -> None:
    """As `save_pretrained(save_original_format=False)` writes them: experts stacked, a router for each modality."""
    model = copy("vl", "saved")
    experts = open_model(model)[0].moe.num_experts  # type: ignore[union-attr]
    arrays = {name: read_array(info) for name, info in read_index(model).items()}
    saved: dict[str, np.ndarray] = {}
    for name in list(arrays):
        new = name.replace("model.layers.", "model.language_model.layers.")
        new = new.replace("vision_model.", "model.vision_tower.").replace("_linear.3.", "_linear.ln.")
        new = new.replace("_linear.0.", "_linear.fc1.").replace("_linear.2.", "_linear.fc2.")
        path = new.partition(".mlp.")[0] + ".mlp."
        if name.endswith("e_score_correction_bias"):
            for row, kind in enumerate(("text", "vision")):
                key = f"{path}{kind}_moe.gate.moe_statics.e_score_correction_bias"
                saved[key] = arrays[name][row : row + 1]
        elif ".mlp.gate.weight" in name:
            kind = "vision" if name.endswith("_1") else "text"
            saved[f"{path}{kind}_moe.gate.weight"] = arrays[name].T.copy()
        elif ".experts." in name:
            old = name.partition(".experts.")[0] + ".experts."
            for first, kind in ((0, "text"), (experts, "vision")):
                numbers = range(first, first + experts)
                gate, up, down = (
                    np.stack([arrays[f"{old}{number}.{leaf}_proj.weight"] for number in numbers])
                    for leaf in ("gate", "up", "down")
                )
                saved[f"{path}{kind}_moe.experts.gate_up_proj"] = np.concatenate([gate, up], axis=1)
                saved[f"{path}{kind}_moe.experts.down_proj"] = down
        else:
            saved[new] = arrays[name]
    write_shards(model, [TensorSpec(n, "F32", a.shape) for n, a in saved.items()], saved.__getitem__)
    np.testing.assert_array_equal(logits(load_model(model)), logits(load_model(models["vl"])))


@pytest.mark.parametrize(
    ("drop", "words"),
    [
        ("ernie.layers.0.mlp.up_gate_proj.weight", "2 tensors are missing"),
        ("ernie.norm.weight", r"1 tensors are missing:\n  model\.norm\.weight"),
    ],
)
def test_a_paddle_checkpoint_that_lacks_a_tensor(
    models: dict[str, Path], tmp_path: Path, drop: str, words: str
) -> None:
    convert_model(models["dense"], tmp_path / "model", "paddle")
    rewrite(tmp_path / "model", lambda name, info, array: None if name == drop else (info.dtype, array))
    with pytest.raises(CheckpointError, match=words):
        open_model(tmp_path / "model")


def test_a_fused_tensor_of_another_size(models: dict[str, Path], tmp_path: Path) -> None:
    convert_model(models["dense"], tmp_path / "model", "paddle")

    def cut(name: str, info: TensorInfo, array: np.ndarray) -> tuple[str, np.ndarray]:
        return info.dtype, array[:, :-2].copy() if name.endswith("qkv_proj.weight") else array

    rewrite(tmp_path / "model", cut)
    with pytest.raises(CheckpointError, match=r"qkv_proj\.weight is .* for q_proj, k_proj, v_proj"):
        open_model(tmp_path / "model")


def test_parts_that_cannot_be_fused(copy: Copy, tmp_path: Path) -> None:
    model = copy("dense")
    name = "model.layers.0.self_attn.k_proj.weight"
    rewrite(model, lambda n, info, array: to_bfloat16(n, info, array) if n == name else (info.dtype, array))
    with pytest.raises(CheckpointError, match=r"differ in their element type .* --dtype"):
        convert_model(model, tmp_path / "out", "paddle")
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_converted(models: dict[str, Path], tmp_path: Path) -> None:
    train_adapter(models["dense"], tmp_path / "adapter", ["q_proj"])
    with pytest.raises(CheckpointError, match="holds an adapter, not a model; `erniekit export` merges"):
        convert_model(tmp_path / "adapter", tmp_path / "out", "hub")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(CheckpointError, match="not an empty directory"):
        convert_model(models["dense"], tmp_path / "full", "hub")


def test_a_disk_that_is_too_small(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage: Any = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(output.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(CheckpointError, match=r"the disk has 0\.0 GB free and 0\.1 GB are needed"):
        convert_model(models["dense"], tmp_path / "out", "hub")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_conversion_that_is_terminated_leaves_nothing(
    models: dict[str, Path], tmp_path: Path, number: signal.Signals
) -> None:
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as stopped:
        convert_model(
            models["dense"],
            tmp_path / "out",
            "hub",
            progress=lambda *_: os.kill(os.getpid(), number),
        )
    assert stopped.value.code == 128 + number
    assert not list(tmp_path.iterdir())
    assert signal.getsignal(number) == before


def test_an_interrupted_conversion_leaves_nothing(models: dict[str, Path], tmp_path: Path) -> None:
    reports: list[tuple[str, int, int]] = []

    def interrupt(phase: str, done: int, total: int) -> None:
        reports.append((phase, done, total))
        if len(reports) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_model(models["moe"], tmp_path / "out", "paddle", progress=interrupt)
    assert not list(tmp_path.iterdir())
    done = [entry[1] for entry in reports]
    assert done == sorted(done) and reports[-1][1] < reports[-1][2]
    report = convert_model(
        models["moe"], tmp_path / "out", "paddle", progress=lambda *entry: reports.append(entry)
    )
    assert reports[-1] == ("weights", report.nbytes, report.nbytes)
    assert read_header(tmp_path / "out" / "model-00001-of-00001.safetensors")
