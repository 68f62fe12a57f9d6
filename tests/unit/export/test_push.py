"""What `push` uploads to a stand-in of the Hub: files, the model card, and errors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from erniekit.checkpoint.download import download_model
from erniekit.checkpoint.hub import read_array, read_index, write_shards
from erniekit.checkpoint.model_files import open_model
from erniekit.config import DataConfig
from erniekit.errors import CheckpointError, ConfigError
from erniekit.export.convert import convert_model
from erniekit.export.export import export_model
from erniekit.export.gguf import convert_to_gguf
from erniekit.export.paddle_adapter import export_paddle_adapter
from erniekit.export.push import prepare_upload, upload
from erniekit.export.quantized import Quantization
from erniekit.models.specs import TensorSpec
from tests.command import erniekit
from tests.hub_server import Hub, files_of, serving
from tests.unit.export.conftest import Copy, change_json, write_state
from tests.unit.export.weights import train_adapter

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
    write_state(checkpoint, "baidu/ERNIE-4.5-0.3B-PT")
    change_state(checkpoint)
    lines = [
        {"step": 6, "train/loss": 0.75, "eval/loss": 1.5, "eval/seconds": 3.0},
        {"step": 7, "train/loss": 0.5, "memory/peak_gib": 1.0},
        {"step": 8, "train/loss": 0.25, "eval/loss": 9.5},  # after the checkpoint
    ]
    log = "".join(json.dumps(line) + "\n" for line in lines) + '{"step": 8, "train'
    (checkpoint.parent / "log.jsonl").write_text(log)
    return checkpoint.parent


def change_state(checkpoint: Path) -> None:
    """Give the state of a checkpoint a configuration."""
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    state |= {"step": 7, "tokens": 12345, "loss_tokens": 678, "erniekit_version": "0.9"}
    state["config"] |= {
        "data": DataConfig(train=["secret/place/chats.jsonl", "hub:open/chats:train"]).model_dump(),
        "task": "sft",
        "model": {"path": "baidu/ERNIE-4.5-0.3B-PT", "revision": "abc", "dtype": "auto", "quantize": "none"},
        "lora": {"enabled": False},
        "optimizer": {"learning_rate": 1e-05},
        "train": {"output_dir": "/home/someone/run", "epochs": 1.5},
    }
    (checkpoint / "trainer_state.json").write_text(json.dumps(state))


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
        "A fine-tuned model, made with erniekit from baidu/ERNIE-4.5-0.3B-PT.",
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


def test_an_adapter_with_its_base_model_on_the_hub(hub: Hub, models: dict[str, Path], tmp_path: Path) -> None:
    """The card needs the kind of the model: its configuration is read, and no weights."""
    base = hub.add("me/base", files_of(models["vl"]))
    train_adapter(models["vl"], tmp_path / "adapter", ["q_proj"])
    file = tmp_path / "adapter" / "adapter_config.json"
    change_json(file, base_model_name_or_path="me/base", revision=base.revisions["main"])
    with prepare_upload(tmp_path / "adapter", NAME) as found:
        assert found.card is not None and "image-text-to-text" in found.card
        assert front_matter(found.card)["base_model"] == "me/base"
        assert found.files["adapter_config.json"] == file
    assert not any(name.endswith(".safetensors") for name in hub.downloaded())
    # An adapter on a directory of another machine.
    change_json(file, base_model_name_or_path="/elsewhere/base", revision=None)
    with prepare_upload(tmp_path / "adapter", NAME, base="me/base") as found:
        assert found.card is not None and "image-text-to-text" in found.card


def test_gguf_files(run: Path, models: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    convert_to_gguf(models["moe"], tmp_path / "gguf", "q8_0")
    with prepare_upload(tmp_path / "gguf", "me/digits-GGUF", base="me/digits") as found:
        assert sorted(found.files) == ["README.md", "model-q8_0.gguf"] and found.card is not None
    assert front_matter(found.card) == {
        "base_model": "me/digits",
        "base_model_relation": "quantized",
        "library_name": "gguf",
        "pipeline_tag": "text-generation",
        "tags": ["erniekit", "ernie4_5_moe", "gguf"],
    }
    assert "A model in GGUF, for llama.cpp, made with erniekit from me/digits." in found.card
    with prepare_upload(tmp_path / "gguf", NAME, run=run) as found:
        assert found.card is not None
        assert front_matter(found.card)["base_model_relation"] == "finetune"
    with prepare_upload(run, NAME, layout="gguf", gguf_type="f32") as found:
        assert sorted(found.files) == ["README.md", "model-f32.gguf"]
    file = tmp_path / "gguf" / "model-q8_0.gguf"
    whole = file.read_bytes()
    for content, words in (
        (whole[: len(whole) // 2], "damaged, or not complete"),
        (b"no GGUF", "damaged, or not complete"),
        (
            whole.replace(b"ernie4_5-moe", b"otherarch-ok"),
            "architecture is 'otherarch-ok', which is not an ERNIE",
        ),
    ):
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match=words), prepare_upload(tmp_path / "gguf", NAME):
            pass


def test_the_paddle_layout(models: dict[str, Path], tmp_path: Path) -> None:
    convert_model(models["dense"], tmp_path / "paddle", "paddle")
    with prepare_upload(tmp_path / "paddle", NAME) as found:
        assert found.card is not None
    assert front_matter(found.card)["library_name"] == "PaddlePaddle"
    assert "A model in the layout of the -Paddle releases, made with erniekit." in found.card


def test_an_adapter_for_paddle(models: dict[str, Path], tmp_path: Path) -> None:
    train_adapter(models["dense"], tmp_path / "adapter", ["q_proj"])
    directory = tmp_path / "paddle"
    export_paddle_adapter(tmp_path / "adapter", directory)
    with pytest.raises(ConfigError, match=r"give .* with --base"), prepare_upload(directory, NAME):
        pass
    with prepare_upload(directory, NAME, base="me/base-Paddle") as found:
        assert found.card is not None
    front = front_matter(found.card)
    assert (front["library_name"], front["base_model_relation"]) == ("PaddlePaddle", "adapter")
    assert {"lora_config.json", "peft_model-00001-of-00001.safetensors"} <= found.files.keys()
    settings = found.files["lora_config.json"]
    assert isinstance(settings, bytes)
    written = json.loads((directory / "lora_config.json").read_text())
    assert json.loads(settings) == written | {"base_model_name_or_path": "me/base-Paddle"}
    index = directory / "peft_model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"].popitem()
    for wrong, words in (
        (content, "disagree on"),
        ({"weight_map": {"x": "../x"}}, "is not the name of a file beside it"),
        ({}, "not a valid index"),
    ):
        index.write_text(json.dumps(wrong))
        with pytest.raises(CheckpointError, match=words), prepare_upload(directory, NAME, base="me/base"):
            pass


def test_a_second_upload_leaves_no_weights_of_the_first(
    hub: Hub, models: dict[str, Path], tmp_path: Path
) -> None:
    """transformers takes model.safetensors before an index of shards, and an adapter in any case."""
    kept = {"notes.md": b"mine", "model-f16.gguf": b"GGUF"}
    old = {"model.safetensors": b"old", "model-00003-of-00003.safetensors": b"old"}
    hub.add(NAME, kept | old | {"model-00001-of-00001.safetensors": b"old"})
    pushed = erniekit("push", models["dense"], NAME)
    assert pushed.returncode == 0, pushed.stderr
    assert "model.safetensors: an older weight file, removed from the repository" in pushed.stdout
    repository = hub.repositories[NAME]
    files = repository.files[repository.revisions["main"]]
    assert files.keys() == kept.keys() | files_of(models["dense"]).keys() | {"README.md"}
    train_adapter(models["dense"], tmp_path / "adapter", ["q_proj"])
    words = "it has model-00001-of-00001.safetensors, and an adapter beside a model is loaded with it"
    with prepare_upload(tmp_path / "adapter", NAME, base="me/base") as found:
        with pytest.raises(CheckpointError, match=words):
            upload(found)
        upload(replace(found, repository="me/adapter"))
    with (
        prepare_upload(models["dense"], "me/adapter") as found,
        pytest.raises(CheckpointError, match=r"it has adapter_config\.json"),
    ):
        upload(found)


def test_damaged_weights_are_not_uploaded(hub: Hub, models: dict[str, Path], tmp_path: Path) -> None:
    export_model(models["dense"], tmp_path / "out")
    shard = tmp_path / "out" / "model-00001-of-00001.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with (
        prepare_upload(tmp_path / "out", NAME) as found,
        pytest.raises(CheckpointError, match=r"model-00001-of-00001\.safetensors is damaged.*; export again"),
    ):
        upload(found)
    assert not hub.requests


def test_a_branch(hub: Hub, models: dict[str, Path]) -> None:
    hub.add(NAME, {"README.md": b"# Main\n"})
    for _ in range(2):
        pushed = erniekit("push", models["dense"], NAME, "--revision", "second")
        assert pushed.returncode == 0, pushed.stderr
    repository = hub.repositories[NAME]
    assert repository.files[repository.revisions["main"]] == {"README.md": b"# Main\n"}
    assert "config.json" in repository.files[repository.revisions["second"]]


def test_the_licence_of_the_base_of_a_run(run: Path, models: dict[str, Path], tmp_path: Path) -> None:
    """An export does not copy the card of its base, where some models state their licence."""
    base = shutil.copytree(models["dense"], tmp_path / "base")
    (base / "README.md").write_text("---\nlicense: mit\n---\n")
    checkpoint = next(run.glob("checkpoint-*"))
    for name in ("LICENSE", "trainer_state.json"):
        (checkpoint / name).unlink()
    write_state(checkpoint, str(base))
    change_state(checkpoint)
    export_model(run, tmp_path / "export")
    with prepare_upload(tmp_path / "export", NAME, run=run) as found:
        assert found.card is not None and front_matter(found.card)["license"] == "mit"


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
    (tmp_path / "file").touch()
    mixed = shutil.copytree(models["dense"], tmp_path / "mixed")
    (mixed / "model-00002-of-00002.safetensors").write_bytes(b"old")
    broken = shutil.copytree(models["dense"], tmp_path / "broken")
    next(broken.glob("*.safetensors")).unlink()
    for path, options, error, words in (
        (models["dense"], {"repository": "digits"}, ConfigError, "is named owner/name"),
        (models["dense"], {"layout": "hub"}, ConfigError, "--layout is for a run"),
        (models["dense"], {"base": "/home/someone/base"}, ConfigError, "--base /home/.*owner/name"),
        (run, {"gguf_type": "f16"}, ConfigError, "--gguf-type needs .* --layout gguf"),
        (models["dense"], {"run": models["moe"]}, CheckpointError, "not a run or a checkpoint"),
        (run, {"run": run}, ConfigError, "--run is for an exported directory"),
        (run, {"layout": "adapter"}, CheckpointError, "holds a whole model, not an adapter"),
        (mixed, {}, CheckpointError, "the index does not name model-00002-of-00002"),
        (broken, {}, CheckpointError, "the index names shards that are not there"),
        (tmp_path / "none", {}, CheckpointError, "no such directory"),
        (tmp_path / "file", {}, CheckpointError, "is a file; give a run, a checkpoint or an exported"),
        (tmp_path, {}, CheckpointError, "/config.json: not found; a model directory holds config.json"),
    ):
        with pytest.raises(error, match=words), prepare_upload(path, **{"repository": NAME} | options):  # type: ignore[arg-type]
            pass
