"""Small models of each family, made once for all tests of exports."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from erniekit.config import DataConfig
from erniekit.create.create import create_model

FAMILIES = ("dense", "moe", "vl")
_OVERRIDES = ["num_hidden_layers=2"]

Copy = Callable[..., Path]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Family -> model directory with a tokenizer. Not to be changed."""
    parent = tmp_path_factory.mktemp("models")
    text = parent / "text.txt"
    text.write_text("A small cat sits on the red mat and looks at two green apples.\n" * 3)
    for family in FAMILIES:
        create_model(f"tiny-{family}", parent / family, [text], vocab_size=400, std=0.1, overrides=_OVERRIDES)
    return {family: parent / family for family in FAMILIES}


@pytest.fixture
def copy(models: dict[str, Path], tmp_path: Path) -> Copy:
    """Copies a model for a test to change; keyword arguments replace keys of its config.json, None removes."""

    def make(family: str, name: str = "model", **changes: Any) -> Path:
        directory = tmp_path / name
        shutil.copytree(models[family], directory)
        if changes:
            change_json(directory / "config.json", **changes)
        return directory

    return make


def change_json(file: Path, **changes: Any) -> None:
    """Replace keys of a JSON object; None removes a key."""
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def write_state(directory: Path, base: str, **data: Any) -> None:
    """Make a model directory a training checkpoint."""
    settings = DataConfig(train=["x"]).model_dump() | data
    files = {file.name: file.stat().st_size for file in directory.iterdir()}
    state = dict.fromkeys(("step", "rows", "tokens", "loss_tokens", "seed"), 0) | {
        **{key: {} for key in ("loader", "window", "schedule", "identity")},
        "step": int(number) if (number := directory.name.removeprefix("checkpoint-")).isdigit() else 0,
        "base_model": base,
        "config": {"data": settings},
        "erniekit_version": "0",
    }
    (directory / "trainer_state.json").write_text(json.dumps({"format": 1, **state, "files": files}))
