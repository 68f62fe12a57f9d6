"""What an export writes: values, element types, merged adapters; and that it writes nothing where it must not."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from erniekit.checkpoint.element_types import as_dtype, float32_to_bfloat16
from erniekit.checkpoint.header import read_header
from erniekit.checkpoint.hub import INDEX_FILE, read_array, read_index, write_safetensors, write_shards
from erniekit.checkpoint.weights import load_model
from erniekit.config.choices import CheckpointLayout
from erniekit.data.media.patches import ImageSpec
from erniekit.errors import CheckpointError, ConfigError
from erniekit.export.adapter import export_adapter
from erniekit.export.checks import check_directory
from erniekit.export.export import describe_export, export_model, parse_size
from erniekit.export.paddle_adapter import export_paddle_adapter
from erniekit.export.source import resolve_source
from erniekit.models.config import ErnieConfig
from erniekit.models.specs import TensorSpec, is_router_tensor, parameter_specs
from tests.closeness import MODEL, assert_close
from tests.unit.export.conftest import FAMILIES, Copy, change_json, write_state
from tests.unit.export.weights import logits, rewrite, to_bfloat16, train_adapter


def arrays(directory: Path) -> dict[str, np.ndarray]:
    """All tensors, as float32."""
    return {
        name: as_dtype(read_array(info), info.dtype, "F32") for name, info in read_index(directory).items()
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_comes_out_as_it_went_in(models: dict[str, Path], tmp_path: Path, family: str) -> None:
    report = export_model(models[family], tmp_path / "out", max_shard_bytes=1 << 20)
    before, after = read_index(models[family]), read_index(tmp_path / "out")
    assert list(after) == [spec.name for spec in parameter_specs(ErnieConfig.from_dir(tmp_path / "out"))]
    for name, info in before.items():
        assert after[name].dtype == info.dtype
        np.testing.assert_array_equal(read_array(after[name]), read_array(info))
    assert report.shards == len({info.file for info in after.values()}) > 1
    assert report.tensors == len(before)
    assert report.nbytes == sum(info.nbytes for info in before.values())
    assert (report.merged, report.replaced) == (0, 0)
    assert json.loads((tmp_path / "out" / INDEX_FILE).read_text())["metadata"]["total_size"] == report.nbytes
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("family", FAMILIES)
def test_merged_adapters_give_the_adapted_models_logits(
    models: dict[str, Path], tmp_path: Path, family: str
) -> None:
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    if family == "vl":
        targets.append("vision_model.blocks.*.attn.qkv")
    wanted = train_adapter(models[family], tmp_path / "adapter", targets, router=family != "dense")
    report = export_model(tmp_path / "adapter", tmp_path / "out")
    assert_close(logits(load_model(tmp_path / "out")), wanted, MODEL)
    base = arrays(models[family])
    changed = [name for name, array in arrays(tmp_path / "out").items() if (array != base[name]).any()]
    assert len(changed) == report.merged + report.replaced
    assert report.replaced == {"dense": 0, "moe": 1, "vl": 1}[family]
    assert f"{report.merged} adapters merged" in "\n".join(describe_export(report))


def test_adapters_of_another_base(models: dict[str, Path], copy: Copy, tmp_path: Path) -> None:
    train_adapter(models["dense"], tmp_path / "adapter", ["o_proj", "up_proj"])
    narrow = copy("dense", "narrow", num_hidden_layers=1)
    rewrite(narrow, lambda name, info, array: None if ".layers.1." in name else (info.dtype, array))
    with pytest.raises(CheckpointError, match="2 of 4 adapters have no weight"):
        export_model(tmp_path / "adapter", tmp_path / "out", base=narrow)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "narrow"]
    change_json(tmp_path / "adapter" / "adapter_config.json", base_model_name_or_path=str(tmp_path / "gone"))
    with pytest.raises(CheckpointError, match="--base"):
        export_model(tmp_path / "adapter", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert export_model(tmp_path / "adapter", tmp_path / "out", base=models["dense"]).merged == 4


def test_an_adapter_of_other_sizes_is_refused_by_every_layout(
    models: dict[str, Path], tmp_path: Path
) -> None:
    train_adapter(models["dense"], tmp_path / "adapter", ["q_proj"])
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    whole = {name: read_array(info) for name, info in read_header(file).items()}
    (half,) = [name for name in whole if "layers.0" in name and ".lora_B." in name]

    def wrong(**changes: Any) -> str:
        arrays = {name: array for name, array in (whole | changes).items() if array is not None}
        specs = [TensorSpec(name, "F32", array.shape) for name, array in arrays.items()]
        write_safetensors(file, specs, arrays.__getitem__)
        found = set()
        for write in (export_model, export_adapter, export_paddle_adapter):
            with pytest.raises(CheckpointError) as error:
                write(tmp_path / "adapter", tmp_path / "out")
            found.add(str(error.value))
        (message,) = found
        return message

    assert "q_proj has only one of lora_A and lora_B" in wrong(**{half: None})
    assert "is this the base model it was trained on?" in wrong(**{half: whole[half][:-1].copy()})
    assert "is this the base model it was trained on?" in wrong(**{half: whole[half][:, :-1].copy()})
    other = half.replace("layers.0", "layers.7")
    pair = {name.replace("layers.0", "layers.7"): whole[name] for name in whole if "layers.0" in name}
    assert "1 of 3 adapters have no weight in the base model" in wrong(**pair), other
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter"]


def test_an_adapter_names_the_base_that_it_is_exported_for(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The revision is one of the base model that the run had."""
    train_adapter(models["dense"], tmp_path / "adapter", ["q_proj"])
    change_json(tmp_path / "adapter" / "adapter_config.json", revision="abc")
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path / "folder")
    for options, base, revision in (
        ({}, models["dense"], "abc"),
        ({"base": Path("../copy")}, tmp_path / "folder" / "../copy", None),
    ):
        shutil.copytree(models["dense"], tmp_path / "copy", dirs_exist_ok=True)
        export_adapter(tmp_path / "adapter", tmp_path / f"out {revision}", **options)
        config = json.loads((tmp_path / f"out {revision}" / "adapter_config.json").read_text())
        assert (config["base_model_name_or_path"], config["revision"]) == (str(base), revision)


@pytest.mark.parametrize("merged", [False, True])
def test_values_that_float16_cannot_hold(copy: Copy, tmp_path: Path, merged: bool) -> None:
    """The element type of the base is kept, and training moved a weight beyond it."""
    base = copy("dense", "base", torch_dtype="float16")
    rewrite(base, lambda name, info, array: ("F16", array.astype(np.float16)))
    name = "model.layers.1.self_attn.q_proj.weight"
    if merged:
        train_adapter(base, tmp_path / "trained", ["q_proj"])
        config = tmp_path / "trained" / "adapter_config.json"
        change_json(config, lora_alpha=1e7)
    else:
        trained = copy("dense", "trained", torch_dtype="float16")
        rewrite(trained, lambda n, i, a: (i.dtype, a * 1e7 if n == name else a))
        write_state(trained, str(base))
    with pytest.raises(CheckpointError, match="has values that float16 cannot hold; choose another --dtype"):
        export_model(tmp_path / "trained", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    export_model(tmp_path / "trained", tmp_path / "out", dtype="bfloat16")


def test_the_element_type_of_most_values_is_stated(copy: Copy, tmp_path: Path) -> None:
    """A few matrices in float32 have more bytes than the others."""
    base = copy("dense", torch_dtype="bfloat16")
    wide = ("embed_tokens", "self_attn", "norm")
    rewrite(
        base,
        lambda n, i, a: ("F32", a) if any(part in n for part in wide) else to_bfloat16(n, i, a),
    )
    elements = {"F32": 0, "BF16": 0}
    for info in read_index(base).values():
        elements[info.dtype] += int(np.prod(info.shape))
    assert elements["F32"] < elements["BF16"] < 2 * elements["F32"]
    export_model(base, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert [check.text for check in check_directory(tmp_path / "out") if check.status == "FAIL"] == []


def test_element_types_follow_the_base(models: dict[str, Path], copy: Copy, tmp_path: Path) -> None:
    base = copy("moe", "base", torch_dtype="bfloat16")
    rewrite(base, lambda n, i, a: ("F32", a) if n == "model.norm.weight" else to_bfloat16(n, i, a))
    trained = copy("moe", "trained", torch_dtype="bfloat16")
    write_state(trained, str(base))
    export_model(trained, tmp_path / "auto")
    source, written = arrays(trained), read_index(tmp_path / "auto")
    for name, info in read_index(base).items():
        assert written[name].dtype == info.dtype
        rounded = as_dtype(source[name], "F32", info.dtype)
        np.testing.assert_array_equal(read_array(written[name]), rounded)
    assert json.loads((tmp_path / "auto" / "config.json").read_text())["torch_dtype"] == "bfloat16"

    export_model(trained, tmp_path / "wide", dtype="float32")
    assert {info.dtype for info in read_index(tmp_path / "wide").values()} == {"F32"}
    assert json.loads((tmp_path / "wide" / "config.json").read_text())["torch_dtype"] == "float32"
    export_model(models["moe"], tmp_path / "narrow", dtype="bfloat16")
    dtypes = {name: info.dtype for name, info in read_index(tmp_path / "narrow").items()}
    assert all(dtype == ("F32" if is_router_tensor(name) else "BF16") for name, dtype in dtypes.items())


def test_a_base_that_is_gone(copy: Copy, tmp_path: Path) -> None:
    trained = copy("moe", "trained", torch_dtype="bfloat16")
    write_state(trained, str(tmp_path / "gone"))
    report = export_model(trained, tmp_path / "out")
    assert any("base model is missing" in warning for warning in report.warnings)
    assert set(report.dtypes) == {"BF16", "F32"}


def test_routers_are_wide_even_where_the_base_has_them_narrow(copy: Copy, tmp_path: Path) -> None:
    base = copy("vl", "base", torch_dtype="bfloat16")
    rewrite(base, lambda name, info, array: ("BF16", float32_to_bfloat16(array)))
    export_model(base, tmp_path / "out")
    for name, info in read_index(tmp_path / "out").items():
        assert info.dtype == ("F32" if is_router_tensor(name) else "BF16")


def test_unused_tensors_are_left_out(copy: Copy, tmp_path: Path) -> None:
    base = copy("moe", num_nextn_predict_layers=1)
    tensors = {name: (info.dtype, read_array(info)) for name, info in read_index(base).items()}
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    tensors["model.mtp_block.0.norm.weight"] = ("F32", np.ones(4, np.float32))
    specs = [TensorSpec(name, dtype, array.shape) for name, (dtype, array) in tensors.items()]
    write_shards(base, specs, lambda name: tensors[name][1])
    report = export_model(base, tmp_path / "out")
    assert set(read_index(tmp_path / "out")) == set(tensors) - {
        "lm_head.weight",
        "model.mtp_block.0.norm.weight",
    }
    assert any(warning.startswith("2 unused tensors") for warning in report.warnings)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_nextn_predict_layers"] == 0


@pytest.mark.parametrize("fault", ["missing", "transposed", "extra"])
def test_wrong_weights_are_named(copy: Copy, tmp_path: Path, fault: str) -> None:
    base = copy("dense")
    name = "model.layers.1.mlp.up_proj.weight"
    if fault == "extra":
        change_json(base / "config.json", num_hidden_layers=1)
    else:
        rewrite(
            base,
            lambda n, i, a: (i.dtype, a) if n != name else None if fault == "missing" else (i.dtype, a.T),
        )
    with pytest.raises(CheckpointError, match=name) as error:
        export_model(base, tmp_path / "out")
    assert {"missing": "missing", "transposed": "[256, 512]", "extra": "do not belong"}[fault] in str(
        error.value
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_nan_is_not_exported(copy: Copy, tmp_path: Path) -> None:
    base, name = copy("dense"), "model.layers.1.mlp.up_proj.weight"
    rewrite(base, lambda n, i, a: (i.dtype, np.full_like(a, np.nan) if n == name else a))
    with pytest.raises(CheckpointError, match=rf"model-00001-of-00001\.safetensors: {name} holds NaN"):
        export_model(base, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_images_are_resized_as_in_training(copy: Copy, models: dict[str, Path], tmp_path: Path) -> None:
    trained = copy("vl", "trained")
    write_state(trained, str(models["vl"]), min_pixels=784, template="ernie_vl_thinking")
    layouts: tuple[CheckpointLayout, ...] = ("hub", "transformers")
    for layout in layouts:
        report = export_model(trained, tmp_path / layout, layout=layout)
        assert ImageSpec.from_checkpoint(tmp_path / layout).min_pixels == 784
        assert any("min_pixels is 784" in warning for warning in report.warnings)
        assert any("ernie_vl_thinking" in warning for warning in report.warnings)


def test_the_newest_complete_checkpoint_of_a_run(copy: Copy, models: dict[str, Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    for step in (1, 2, 3):
        directory = copy("dense", f"run/checkpoint-{step:06d}")
        write_state(directory, str(models["dense"]))
    (run / "checkpoint-000003" / "tokenizer.json").unlink()
    source = resolve_source(run)
    assert source.checkpoint == source.weights == run / "checkpoint-000002"
    assert source.base == models["dense"]
    for step in (1, 2):
        (run / f"checkpoint-{step:06d}" / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"checkpoint-000003: tokenizer\.json is missing"):
        resolve_source(run)


def test_what_is_no_model_or_no_place(models: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such directory"):
        export_model(tmp_path / "gone", tmp_path / "out")
    with pytest.raises(CheckpointError, match="holds no model"):
        export_model(tmp_path, tmp_path / "out")
    with pytest.raises(CheckpointError, match="--base"):
        export_model(models["dense"], tmp_path / "out", base=tmp_path)
    with pytest.raises(CheckpointError, match="the base of"):
        export_model(models["dense"], tmp_path / "out", base=models["moe"])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="not an empty directory"):
        export_model(models["dense"], tmp_path / "full")
    (tmp_path / "empty").mkdir()
    export_model(models["dense"], tmp_path / "empty")
    assert (tmp_path / "empty" / "config.json").is_file()


def test_sizes() -> None:
    assert parse_size("5GB") == 5 * 10**9
    assert parse_size("512 MiB") == 512 << 20
    assert parse_size("1.5kb") == 1500
    assert parse_size("1000") == 1000
    for wrong in ("", "GB", "5 apples", "-1GB", "0", "5", "999"):
        with pytest.raises(ConfigError, match="not a size"):
            parse_size(wrong)
