"""What `push` uploads to a stand-in of the hub: files, the model card, and errors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml

from erniekit.checkpoint.download import download_model
from erniekit.checkpoint.hub import read_array, read_index, write_shards
from erniekit.checkpoint.model_files import open_model
from erniekit.errors import CheckpointError, ConfigError
from erniekit.export.export import export_model
from erniekit.export.push import prepare_upload, upload
from erniekit.export.quantized import Quantization
from erniekit.models.specs import TensorSpec
from tests.command import erniekit
from tests.hub_server import Hub, files_of, serving
from tests.unit.export.conftest import Copy, write_state
from tests.unit.export.test_export import train_adapter

NAME = "me/digits"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """An empty hub that takes uploads with a token."""
    found = Hub()
    monkeypatch.setenv("HF_TOKEN", Hub.token)
    with serving(found, tmp_path / "cache"):
        yield found


@pytest.fixture
def run(copy: Copy, tmp_path: Path) -> Path:
    """A run with one checkpoint of all weights, and a log."""
    checkpoint = copy("dense", "run/checkpoint-000007")
    (checkpoint / "LICENSE").write_text("                 Apache License\n           Version 2.0\n")
    (checkpoint / "optimizer.safetensors").write_bytes(b"moments")
    write_state(
        checkpoint, "baidu/ERNIE-4.5-0.3B-PT", train=["secret/place/chats.jsonl", "hub:open/chats:train"]
    )
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    state |= {"step": 7, "tokens": 12345, "loss_tokens": 678, "erniekit_version": "0.9"}
    state["config"] |= {
        "task": "sft",
        "model": {"path": "baidu/ERNIE-4.5-0.3B-PT", "revision": "abc", "dtype": "auto", "quantize": "none"},
        "lora": {"enabled": False},
        "optimizer": {"learning_rate": 1e-05},
        "train": {"output_dir": "/home/someone/run", "epochs": 1.5},
    }
    (checkpoint / "trainer_state.json").write_text(json.dumps(state))
    lines = [
        {"step": 6, "train/loss": 0.75, "eval/loss": 1.5, "eval/seconds": 3.0},
        {"step": 7, "train/loss": 0.5, "memory/peak_gib": 1.0},
    ]
    log = "".join(json.dumps(line) + "\n" for line in lines) + '{"step": 8, "train'
    (checkpoint.parent / "log.jsonl").write_text(log)
    return checkpoint.parent


def front_matter(card: str) -> dict[str, object]:
    found: dict[str, object] = yaml.safe_load(card.split("---\n")[1])
    return found


def test_a_run_is_exported_and_uploaded_with_its_card(hub: Hub, run: Path, tmp_path: Path) -> None:
    export_model(run, tmp_path / "export")
    finished = erniekit("push", str(run), NAME, "--private", "--message", "First")
    assert finished.returncode == 0, finished.stderr
    assert f"/{NAME}/commit/" in finished.stdout
    assert hub.visibility == {NAME: "private"} and hub.messages == ["First"]
    uploaded = hub.repositories[NAME].files[hub.repositories[NAME].revisions["main"]]
    card = uploaded.pop("README.md").decode()
    assert uploaded == files_of(tmp_path / "export")
    assert len(hub.objects) >= 1, "weights go through LFS"
    assert not list(run.glob(".push.*"))
    assert front_matter(card) == {
        "base_model": "baidu/ERNIE-4.5-0.3B-PT",
        "base_model_relation": "finetune",
        "license": "apache-2.0",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["erniekit", "ernie4_5", "sft"],
        "datasets": ["open/chats"],
    }
    for words in (
        "A fine-tuned model of baidu/ERNIE-4.5-0.3B-PT",
        "| method | all weights |",
        "| steps | 7 |",
        "| tokens | 12,345, 678 of them trained |",
        "| chats.jsonl | 1 |",
        "| hub:open/chats:train | 1 |",
        "| eval/loss | 1.5 | 6 |",
        "| train/loss | 0.5 | 7 |",
        "learning_rate: 1.0e-05",
        "epochs: 1.5",
    ):
        assert words in card, words
    assert not any(words in card for words in ("secret", "someone", "eval/seconds", "peak_gib"))
    # What was uploaded is a model again.
    open_model(download_model(NAME, to=tmp_path / "again").directory)


def test_a_dry_run_uploads_nothing(hub: Hub, models: dict[str, Path], run: Path) -> None:
    finished = erniekit("push", str(models["vl"]), NAME, "--run", str(run), "--license", "mit", "--dry-run")
    assert finished.returncode == 0, finished.stderr
    assert "Nothing was uploaded" in finished.stdout and "license: mit" in finished.stdout
    assert "README.md (new)" in finished.stdout and "model-00001-of-00001.safetensors" in finished.stdout
    assert "pipeline_tag: image-text-to-text" in finished.stdout
    assert not hub.requests


def test_a_quantized_export_is_checked_and_uploaded(models: dict[str, Path], tmp_path: Path) -> None:
    export_model(models["dense"], tmp_path / "out", quantization=Quantization(8))
    with prepare_upload(tmp_path / "out", NAME) as found:
        assert {"config.json", "model-00001-of-00001.safetensors", "README.md"} <= found.files.keys()
    tensors = {name: read_array(info) for name, info in read_index(tmp_path / "out").items()}
    del tensors[next(name for name in tensors if name.endswith("weight_scale"))]
    types = {np.dtype(np.int32): "I32", np.dtype(np.float32): "F32", np.dtype(np.int64): "I64"}
    specs = [TensorSpec(name, types[array.dtype], array.shape) for name, array in tensors.items()]
    write_shards(tmp_path / "out", specs, tensors.__getitem__)
    with pytest.raises(CheckpointError, match="weight_scale"), prepare_upload(tmp_path / "out", NAME):
        pass


def test_an_adapter_and_a_card_that_is_there(hub: Hub, models: dict[str, Path], tmp_path: Path) -> None:
    train_adapter(models["moe"], tmp_path / "adapter", ["q_proj"])
    with prepare_upload(tmp_path / "adapter", NAME, base="baidu/ERNIE-4.5-21B-A3B-PT") as found:
        assert found.card is not None
        front = front_matter(found.card)
    assert (front["library_name"], front["base_model_relation"]) == ("peft", "adapter")
    assert "license" not in front
    (tmp_path / "adapter" / "README.md").write_text("# Mine\n")
    (tmp_path / "adapter" / "optimizer-00001.safetensors").write_bytes(b"x")
    with (
        pytest.raises(
            ConfigError, match=r"names .*/moe.* as its base model, .*; give .* with --base owner/name"
        ),
        prepare_upload(tmp_path / "adapter", NAME),
    ):
        pass
    with prepare_upload(tmp_path / "adapter", NAME, base="baidu/ERNIE-4.5-21B-A3B-PT") as found:
        assert found.card is None
        upload(found)
        # The repository exists now.
        upload(found, message="Again")
    files = hub.repositories[NAME].files[hub.repositories[NAME].revisions["main"]]
    assert files["README.md"] == b"# Mine\n"
    config = json.loads(files["adapter_config.json"])
    assert config["base_model_name_or_path"] == "baidu/ERNIE-4.5-21B-A3B-PT"
    assert sorted(files) == ["README.md", "adapter_config.json", "adapter_model.safetensors"]


def test_a_hub_that_refuses_or_is_not_there(
    hub: Hub, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with prepare_upload(models["dense"], NAME) as found:
        monkeypatch.setenv("HF_TOKEN", "hf_read")
        with pytest.raises(CheckpointError, match=r"refuses the upload \(401\): log in with `hf auth login`"):
            upload(found)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
        with pytest.raises(CheckpointError, match=r"the upload to http://127.0.0.1:9 failed: .*HF_ENDPOINT"):
            upload(found)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.raises(CheckpointError, match=r"while HF_HUB_OFFLINE is set; --dry-run needs no network"):
            upload(found)


def test_what_cannot_be_pushed(models: dict[str, Path], run: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(models["dense"], tmp_path / "broken")
    next(broken.glob("*.safetensors")).unlink()
    for path, options, error, words in (
        (models["dense"], {"repository": "digits"}, ConfigError, "is named owner/name"),
        (models["dense"], {"layout": "hub"}, ConfigError, "--layout is for a run"),
        (models["dense"], {"run": models["moe"]}, CheckpointError, "not a run or a checkpoint"),
        (run, {"run": run}, ConfigError, "--run is for an exported directory"),
        (run, {"layout": "adapter"}, CheckpointError, "holds a whole model, no adapter"),
        (broken, {}, CheckpointError, "the index names shards that are not there"),
        (tmp_path / "none", {}, CheckpointError, "no such directory"),
    ):
        with pytest.raises(error, match=words), prepare_upload(path, **{"repository": NAME} | options):  # type: ignore[arg-type]
            pass
