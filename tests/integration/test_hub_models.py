"""Every command that takes a model, with the model on the Hub."""

import json
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import yaml

from erniekit.checkpoint.state import newest_checkpoint, read_state
from tests.command import erniekit
from tests.hub_server import Hub, files_of, serving
from tests.integration.training_setup import chats, make_config, write_chats

NAME = "me/tiny"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hub")


@pytest.fixture(scope="module")
def hub(work: Path, text_models: dict[str, Path]) -> Iterator[Hub]:
    """A hub with a small model."""
    found = Hub()
    found.add(NAME, files_of(text_models["tiny-dense"]))
    with serving(found, work / "cache"):
        yield found


@pytest.fixture(scope="module")
def config(work: Path, hub: Hub) -> Path:
    """The configuration of a run that trains adapters of the model on the Hub."""
    data = write_chats(work / "chats.jsonl", chats(4, images=False))
    settings = {"lora__enabled": True, "lora__rank": 2, "train__max_steps": 1}
    resolved = make_config(work / "run", Path(NAME), data, **settings).model_dump(exclude_defaults=True)
    (work / "run.yaml").write_text(yaml.safe_dump(resolved))
    return work / "run.yaml"


@pytest.fixture(scope="module")
def run(work: Path, config: Path) -> Path:
    """The run, after a step; and then main has moved."""
    assert ok(erniekit("train", config)).stdout
    return work / "run"


def ok(result: CompletedProcess[str]) -> CompletedProcess[str]:
    assert result.returncode == 0, result.stderr
    return result


def test_data_is_checked_without_weights(hub: Hub, config: Path, work: Path) -> None:
    unchecked = ok(erniekit("train", config, "--dry-run", "--no-weights")).stdout
    command = f"`erniekit download {NAME} --no-weights` fetches it"
    assert f"not checked: the model ({NAME} has no config.json here: {command}): lora.targets" in unchecked
    assert f"not checked: the data ({NAME} has no tokenizer here: {command}): samples" in unchecked
    assert not hub.requests
    assert "tokens" in ok(erniekit("data", "check", work / "chats.jsonl", "--model", NAME)).stdout
    assert "tokens" in ok(erniekit("data", "check", "--config", config)).stdout
    assert "It is" in ok(erniekit("data", "preview", config, "-n", 1)).stdout
    assert not any(path.endswith(".safetensors") for path in hub.downloaded())
    hub.requests.clear()
    checked = ok(erniekit("train", config, "--dry-run", "--no-weights")).stdout
    assert f"revision: {hub.repositories[NAME].revisions['main']}" in checked
    assert "not checked: the weights" in checked
    assert "not checked: the model" not in checked
    assert not hub.requests
    planned = ok(erniekit("train", config, "--dry-run")).stdout
    assert (
        f"not checked: the weights, which `erniekit train` downloads (`erniekit download {NAME}`" in planned
    )
    assert "about" in planned and "steps: 1" in planned
    assert not any(path.endswith(".safetensors") for path in hub.downloaded())


def test_a_run_names_the_commit(hub: Hub, run: Path) -> None:
    commit = hub.repositories[NAME].revisions["main"]
    model = yaml.safe_load((run / "config.yaml").read_text())["model"]
    assert (model["path"], model["revision"]) == (NAME, commit)
    checkpoint = newest_checkpoint(run)
    assert checkpoint is not None
    adapter = json.loads((checkpoint / "adapter_config.json").read_text())
    assert (adapter["base_model_name_or_path"], adapter["revision"]) == (NAME, commit)
    state = read_state(checkpoint)
    assert (state.base_model, state.config["model"]["revision"]) == (NAME, commit)


def test_later_commands_use_the_weights_of_the_run(
    hub: Hub, config: Path, run: Path, work: Path, text_models: dict[str, Path]
) -> None:
    commit = hub.repositories[NAME].revisions["main"]
    before = hub.repositories[NAME].files[commit]
    moved = hub.repositories[NAME].commit(before | {"generation_config.json": b'{"eos_token_id": 1}'})
    ok(erniekit("download", NAME, "--no-weights"))
    resumed = ok(erniekit("train", config, "--resume", "train.max_steps=2")).stdout
    assert "model.revision" not in resumed
    assert yaml.safe_load((run / "config.yaml").read_text())["model"]["revision"] == commit != moved
    answers = ok(
        erniekit("eval", run, "--data", work / "chats.jsonl", "--limit", 1, "--max-new-tokens", 2)
    ).stdout
    assert "loss" in answers
    assert f"snapshots/{commit}" in ok(erniekit("export", run, "--output", work / "export")).stdout
    verified = ok(erniekit("verify", work / "export", "--base", NAME, "--no-transformers"))
    assert "result: ok" in verified.stdout


def test_a_model_of_the_hub_is_used_as_it_is(hub: Hub, run: Path, work: Path) -> None:
    assert "result: ok" in ok(erniekit("verify", NAME, "--no-transformers")).stdout
    assert f"vllm serve {NAME} " in ok(erniekit("serve", NAME, "--commands")).stdout
    chat = ok(erniekit("chat", NAME, "--max-new-tokens", 2, stdin="Hello\n"))
    assert hub.repositories[NAME].revisions["main"] in chat.stdout
    ok(erniekit("export", NAME, "--output", work / "copy"))


def test_download_to_a_directory(hub: Hub, work: Path, text_models: dict[str, Path]) -> None:
    result = ok(erniekit("download", NAME, "--to", work / "mine"))
    commit = hub.repositories[NAME].revisions["main"]
    assert f"{NAME}, commit {commit}: {work / 'mine'}\n" in result.stdout
    assert result.stdout.endswith(f"use it with model.path: {work / 'mine'}\n")
    assert (work / "mine" / "tokenizer.json").is_file()


def test_a_base_model_that_cannot_be_found(hub: Hub, run: Path, work: Path) -> None:
    checkpoint = newest_checkpoint(run)
    assert checkpoint is not None
    adapter = work / "adapter"
    adapter.mkdir()
    for file in checkpoint.glob("adapter*"):
        (adapter / file.name).write_bytes(file.read_bytes())
    content = json.loads((adapter / "adapter_config.json").read_text())
    changed = content | {"base_model_name_or_path": "me/gone", "revision": None}
    (adapter / "adapter_config.json").write_text(json.dumps(changed))
    result = erniekit("chat", adapter)
    assert result.returncode == 1
    assert f"error: {adapter}: its base model: me/gone: there is no directory with this name" in result.stderr
