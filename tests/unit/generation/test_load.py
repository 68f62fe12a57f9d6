from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from erniekit.checkpoint.state import (
    STATE_FILE,
    TrainerState,
    checkpoint_name,
    read_side_files,
    write_side_files,
)
from erniekit.checkpoint.weights import load_model
from erniekit.config import DataConfig
from erniekit.errors import CheckpointError
from erniekit.generation.load import find_model
from erniekit.models.ernie import ErnieModel
from erniekit.models.row import RowInputs
from tests.adapters import write_adapter
from tests.checkpoints import write_checkpoint
from tests.closeness import assert_close, relative_difference
from tests.models import apply_lora, save_weights
from tests.unit.generation.helpers import all_logits, make_model, prompt, seed_values

DATA: dict[str, Any] = {"template": "auto", "min_pixels": None, "max_pixels": None}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("base") / "model", "moe")


def _save(
    run: Path,
    step: int,
    base: Path,
    write: Callable[[Path], None],
    data: dict[str, Any] = DATA,
    **sections: Any,
) -> Path:
    state = TrainerState(
        step=step,
        rows=step,
        tokens=0,
        loss_tokens=0,
        seed=0,
        loader={},
        window={},
        schedule={},
        identity={},
        config={"data": data, **sections},
        base_model=str(base),
        erniekit_version="0",
    )
    return write_checkpoint(run, state, write, {})


def _writer(base: Path, model: ErnieModel) -> Callable[[Path], None]:
    def write(directory: Path) -> None:
        write_side_files(read_side_files(base), directory)
        save_weights(model, directory)

    return write


def _logits(model: ErnieModel) -> np.ndarray:
    return all_logits(model, prompt(9, 3))


def test_a_plain_model_directory(base: Path) -> None:
    source = find_model(base)
    loaded = source.load()
    assert source.directory == source.checkpoint == base
    assert source.data == DataConfig.without_sources()
    assert not loaded.training
    np.testing.assert_array_equal(_logits(loaded), _logits(load_model(base)))


def test_a_run_is_its_newest_complete_checkpoint(base: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    old, new = load_model(base), load_model(base)
    seed_values(new, "q_proj.weight", 1)
    data = {
        "template": "ernie",
        "min_pixels": 4000,
        "max_pixels": 9000,
        "reasoning": "drop",
        "video_fps": 1.0,
    }
    _save(run, 2, base, _writer(base, old))
    newest = _save(run, 10, base, _writer(base, new), data)
    broken = _save(run, 11, base, _writer(base, old))
    (broken / "config.json").unlink()

    source = find_model(run)
    loaded = source.load()
    assert source.checkpoint == newest
    options = source.data
    assert (options.template, options.min_pixels, options.max_pixels) == ("ernie", 4000, 9000)
    assert (options.video_fps, options.video_max_frames, options.reasoning) == (1.0, None, "drop")
    assert source.encoder().template.name == "ernie"
    np.testing.assert_array_equal(_logits(loaded), _logits(new))
    assert find_model(run / checkpoint_name(2)).checkpoint == run / checkpoint_name(2)
    with pytest.raises(CheckpointError, match=r"checkpoint-000011.*config\.json is missing"):
        find_model(broken)


@pytest.mark.parametrize("train_router", [False, True])
def test_an_adapter_goes_on_its_base(base: Path, tmp_path: Path, train_router: bool) -> None:
    lora = dict(rank=4, alpha=8.0, dropout=0.1)
    trained = load_model(base)
    apply_lora(trained, seed=5, targets=["q_proj", "down_proj"], **lora)  # type: ignore[arg-type]
    seed_values(trained, "lora_B.weight", 2)
    if train_router:
        for name, parameter in trained.named_parameters():
            if name.endswith("gate.weight"):
                parameter.stop_gradient = False
        seed_values(trained, "gate.weight", 3)
    run = tmp_path / "run"
    write = lambda directory: write_adapter(directory, trained, base_path=str(base), **lora)  # type: ignore[arg-type]  # noqa: E731
    checkpoint = _save(run, 3, base, write)
    trained.eval()

    source = find_model(run)
    loaded = source.load()
    assert (source.checkpoint, source.directory) == (checkpoint, base)
    np.testing.assert_array_equal(_logits(loaded), _logits(trained))
    assert relative_difference(_logits(loaded), _logits(load_model(base))) > 1e-3


def test_images_are_normalised_as_the_checkpoint_says(tmp_path: Path) -> None:
    directory = make_model(tmp_path / "model", "vl")
    file = directory / "preprocessor_config.json"
    file.write_text(file.read_text().replace("0.48145466", "0.25"), encoding="utf-8")
    model = find_model(directory).load()
    assert model.image_mean[0] == 0.25
    pixels, grid = np.full((4, 588), 255, np.uint8), np.array([[1, 2, 2]], np.int32)
    row = RowInputs(
        input_ids=np.array([30]),
        position_ids=np.zeros((3, 1), np.int64),
        modality=np.ones(1, np.int8),
        cu_seqlens=np.array([0, 1], np.int32),
        patches=pixels,
        grid_thw=grid,
        media_positions=np.array([0]),
    )
    patches = model.upload(row).patches
    assert patches is not None
    assert_close((1 - patches.mean[0]) / patches.std[0], (1 - 0.25) / 0.26862954)


def test_what_is_not_there_is_named(base: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere: no such directory"):
        find_model(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"holds no model"):
        find_model(tmp_path)
    model = load_model(base)
    run = tmp_path / "run"
    checkpoint = _save(run, 1, base, _writer(base, model))
    (checkpoint / STATE_FILE).unlink()
    with pytest.raises(CheckpointError, match=r"no checkpoint of this run is complete \(checkpoint-000001"):
        find_model(run)
    apply_lora(model, rank=2, alpha=2.0, dropout=0.0, targets=["q_proj"], seed=0)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    gone = str(tmp_path / "gone")
    write_adapter(adapter, model, base_path=gone, rank=2, alpha=2.0, dropout=0.0)
    with pytest.raises(CheckpointError, match=r"its base model .*gone does not exist"):
        find_model(adapter)
    shutil.rmtree(adapter)


@pytest.mark.parametrize(
    ("key", "sections"),
    [
        ("dpo", {"task": "dpo", "dpo": {"beta": -1}}),
        ("model.quantize", {"model": {"quantize": "int3"}}),
        ("model.max_position_embeddings", {"model": {"max_position_embeddings": "9"}}),
    ],
)
def test_an_invalid_setting_of_a_checkpoint_is_named(
    base: Path, tmp_path: Path, key: str, sections: dict[str, Any]
) -> None:
    checkpoint = _save(tmp_path / "run", 1, base, _writer(base, load_model(base)), **sections)
    with pytest.raises(CheckpointError) as caught:
        find_model(tmp_path / "run")
    assert str(caught.value).startswith(f"{checkpoint / STATE_FILE}: its config.{key} is not valid; ")
