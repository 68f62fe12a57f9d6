"""What the tests of whole runs start from. All of it is made once, and a test that changes a file copies it first."""

import fcntl
import os
from pathlib import Path

import pytest

from erniekit.checkpoint.state import newest_checkpoint
from erniekit.train.run import run_training
from tests.integration.training_setup import (
    TRAINED_STEPS,
    chats,
    make_config,
    make_model,
    tool_chats,
    write_chats,
)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small vision-language model."""
    return make_model(tmp_path_factory.mktemp("base") / "vl")


@pytest.fixture(scope="session")
def text_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small text models by shape."""
    parent = tmp_path_factory.mktemp("text-models")
    return {shape: make_model(parent / shape, shape) for shape in ("tiny-dense", "tiny-moe")}


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 chats, most of them about images."""
    return write_chats(tmp_path_factory.mktemp("data") / "train.jsonl", chats(16))


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    """A run of a model that memorized `chats(12)` and `tool_chats()`. Processes of pytest-xdist share one."""
    base = tmp_path_factory.getbasetemp()
    directory = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "memorized"
    directory.mkdir(exist_ok=True)
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if newest_checkpoint(directory / "run") is None:
            samples = write_chats(directory / "chats.jsonl", [*chats(12), *tool_chats()])
            config = make_config(
                directory / "run",
                model,
                samples,
                train__max_steps=TRAINED_STEPS,
                train__rows_per_step=1,
                data__max_length=900,
                schedule__type="constant",
            )
            assert run_training(config) == 0
    return directory / "run"
