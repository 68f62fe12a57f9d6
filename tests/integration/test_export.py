"""`erniekit export`: from a run or a reference model to a directory that engines' own check accepts."""

import io
import runpy
import shutil
import sys
from contextlib import redirect_stdout
from pathlib import Path
from unittest import mock

import numpy as np
import paddle
import pytest

from erniekit.checkpoint.hub import read_array, read_index, write_shards
from erniekit.checkpoint.weights import load_model
from erniekit.data.encode.encoder import make_encoder
from erniekit.data.load.loader import load_row
from erniekit.evaluation.dataset import load_samples
from erniekit.generation.load import find_model
from erniekit.lora.adapters import read_adapter_index
from erniekit.models.ernie import ErnieModel
from erniekit.models.specs import TensorSpec
from erniekit.objectives.device_batch import row_inputs
from erniekit.train.run import run_training
from tests.adapters import write_adapter
from tests.closeness import MODEL, assert_close, relative_difference
from tests.command import erniekit
from tests.integration.training_setup import chats, make_config, write_chats
from tests.models import apply_lora

SHARED = Path(__file__).resolve().parents[3] / "shared"
REFERENCES = SHARED / "reference_models"
NEEDS_SHARED = pytest.mark.skipif(
    not REFERENCES.is_dir(), reason="no ../shared/reference_models beside this clone"
)
KINDS = {"dense": "dense", "moe": "moe", "vl_hub": "vl"}
EVERY_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def check_export(directory: Path, model: str, npz: bool) -> None:
    """Run the check of a clone's surroundings, which is independent of this project."""
    kind = KINDS[model]
    command = [SHARED / "engines" / "check_export.py", directory, kind]
    command += ["--shapes", REFERENCES / f"{kind}_hub_shapes.json"]
    command += ["--npz", REFERENCES / f"ref_{kind}.npz"] if npz else []
    printed = io.StringIO()
    with (
        mock.patch.object(sys, "argv", list(map(str, command))),
        redirect_stdout(printed),
        pytest.raises(SystemExit) as ended,
    ):
        runpy.run_path(sys.argv[0], run_name="__main__")
    assert not ended.value.code and "RESULT PASS" in printed.getvalue(), printed.getvalue()


def sample_logits(model: ErnieModel, directory: Path, data: Path) -> np.ndarray:
    encoder = make_encoder(directory)
    samples = load_samples([data], encoder)
    row = load_row([sample.whole for sample in samples], encoder.media_spec)
    with paddle.no_grad():
        return model.logits(model(row_inputs(row)).hidden).numpy()


@NEEDS_SHARED
@pytest.mark.parametrize("model", KINDS)
def test_reference_models_pass_the_engines_check(model: str, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    done = erniekit("export", REFERENCES / model, "--output", tmp_path / "out", "--max-shard-size", "2MB")
    assert done.returncode == 0, done.stderr
    notes = [line for line in done.stdout.splitlines() if "note" in line]
    assert len(notes) == (model == "vl_hub") and all("--trust-remote-code" in note for note in notes)
    check_export(tmp_path / "out", model, npz=True)


@NEEDS_SHARED
@pytest.mark.parametrize("model", KINDS)
def test_merged_reference_models_pass_the_engines_check(model: str, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    adapted = load_model(REFERENCES / model)
    apply_lora(adapted, rank=4, alpha=8.0, dropout=0.0, targets=EVERY_LINEAR, seed=0)
    for name, parameter in adapted.named_parameters():
        if ".lora_B." in name:
            values = np.random.default_rng(0).normal(0, 0.1, parameter.shape)
            parameter.set_value(paddle.to_tensor(values.astype(np.float32)))
    (tmp_path / "adapter").mkdir()
    base = str(REFERENCES / model)
    write_adapter(tmp_path / "adapter", adapted, base_path=base, rank=4, alpha=8.0, dropout=0.0)
    done = erniekit("export", tmp_path / "adapter", "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    count = len([name for name in read_adapter_index(tmp_path / "adapter") if ".lora_A." in name])
    assert f"{count} adapters merged" in done.stdout
    check_export(tmp_path / "out", model, npz=False)


@pytest.mark.parametrize("lora", [True, False])
def test_from_training_to_the_same_logits(lora: bool, tmp_path: Path, model: Path) -> None:
    data = write_chats(tmp_path / "train.jsonl", chats(4))
    run = tmp_path / "run"
    settings = {"lora__enabled": lora, "train__max_steps": 3, "optimizer__learning_rate": 0.01}
    assert run_training(make_config(run, model, data, **settings)) == 0
    done = erniekit("export", run, "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert f"exported {run / 'checkpoint-000003'}" in done.stdout
    ours = find_model(run).load()
    wanted = sample_logits(ours, model, data)
    found = sample_logits(load_model(tmp_path / "out"), tmp_path / "out", data)
    if lora:
        assert_close(found, wanted, MODEL)
    else:  # the same weights
        np.testing.assert_array_equal(found, wanted)
    assert relative_difference(wanted, sample_logits(load_model(model), model, data)) > 0.01


@pytest.mark.parametrize("fault", ["missing", "transposed", "extra"])
def test_bad_checkpoints_are_reported_without_a_traceback(
    fault: str, tmp_path: Path, text_models: dict[str, Path]
) -> None:
    model = shutil.copytree(text_models["tiny-dense"], tmp_path / "base")
    name = "model.layers.1.mlp.up_proj.weight"
    tensors = {key: read_array(info) for key, info in read_index(model).items()}
    array = tensors.pop(name)
    if fault != "missing":
        tensors[name] = array.T.copy() if fault == "transposed" else array
    if fault == "extra":
        name = "model.layers.7.mlp.up_proj.weight"
        tensors[name] = array
    specs = [TensorSpec(key, "F32", value.shape) for key, value in tensors.items()]
    write_shards(model, specs, lambda key: tensors[key])
    for command in (["export", model, "--output", tmp_path / "out"], ["verify", model, "--no-transformers"]):
        done = erniekit(*command)
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        assert name in done.stderr + done.stdout
    assert not (tmp_path / "out").exists()


def test_wrong_usage_has_its_own_status(tmp_path: Path) -> None:
    done = erniekit("export", tmp_path)
    assert done.returncode == 2 and "--output" in done.stderr
    done = erniekit("export", tmp_path, "--output", tmp_path / "out", "--max-shard-size", "big")
    assert done.returncode == 1 and "not a size" in done.stderr
