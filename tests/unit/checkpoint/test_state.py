"""Training checkpoints: complete or not there, found, kept, read back and refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from erniekit.checkpoint import state as module
from erniekit.checkpoint.hub import read_array, read_span
from erniekit.checkpoint.state import (
    OPTIMIZER_FILE,
    STATE_FILE,
    TrainerState,
    check_identity,
    copy_side_files,
    find_checkpoints,
    fingerprint,
    model_fingerprint,
    newest_checkpoint,
    prune_checkpoints,
    read_optimizer,
    read_state,
    write_checkpoint,
)
from erniekit.errors import CheckpointError
from erniekit.models.specs import TensorSpec

MOMENTS = {
    "a.moment1": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a.moment2": np.full((3,), 0.1, np.float32),
}
SPECS = [TensorSpec(name, "F32", array.shape) for name, array in MOMENTS.items()]


def make_state(step: int = 3) -> TrainerState:
    return TrainerState(
        step=step,
        rows=2 * step,
        tokens=100,
        loss_tokens=40,
        seed=7,
        loader={"epoch": 1, "row": 2},
        window={"steps": 0, "loss_sum": 0.1 + 0.2},
        schedule={"type": "cosine", "peak": 1e-4},
        identity={"lora.rank": 8},
        config={"train": {"seed": 7}},
        base_model="models/base",
        erniekit_version="0",
    )


def write(run: Path, step: int = 3, **changes: Any) -> Path:
    def weights(directory: Path) -> None:
        (directory / "model.safetensors").write_bytes(b"weights")

    options = {
        "write_weights": weights,
        "optimizer_specs": SPECS,
        "optimizer_array": MOMENTS.__getitem__,
        **changes,
    }
    return write_checkpoint(run, make_state(step), **options)


def test_written_and_read_back(tmp_path: Path) -> None:
    path = write(tmp_path)
    assert path == tmp_path / "checkpoint-000003"
    assert read_state(path) == make_state()
    tensors = read_optimizer(path)
    assert list(tensors) == list(MOMENTS)
    for name, array in MOMENTS.items():
        assert np.array_equal(read_array(tensors[name]), array)
        assert np.array_equal(read_span(tensors[name], 1, 3), array.reshape(-1)[1:3])
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint-000003"]


def test_a_write_that_fails_leaves_earlier_checkpoints_and_no_name(tmp_path: Path) -> None:
    write(tmp_path, 3)

    def full(directory: Path) -> None:
        (directory / "part").write_bytes(b"x")
        raise OSError(28, "No space left on device")

    with pytest.raises(CheckpointError, match=r"\.checkpoint-000004\.tmp.*No space left on device"):
        write(tmp_path, 4, write_weights=full)
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-000003"
    assert not (tmp_path / "checkpoint-000004").exists()
    assert write(tmp_path, 4).is_dir()


def test_the_same_step_may_be_written_again(tmp_path: Path) -> None:
    write(tmp_path, 3)
    write(tmp_path, 3)
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-000003"


def test_newest_ignores_what_is_incomplete(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "nowhere") is None
    assert newest_checkpoint(tmp_path) is None
    for step in (2, 10, 11, 12, 13):
        write(tmp_path, step)
    (tmp_path / "checkpoint-000011" / STATE_FILE).unlink()
    (tmp_path / "checkpoint-000012" / OPTIMIZER_FILE).write_bytes(b"short")
    (tmp_path / "checkpoint-000013" / "model.safetensors").unlink()
    shutil.copytree(tmp_path / "checkpoint-000010", tmp_path / ".checkpoint-000099.tmp")
    (tmp_path / "checkpoint-000098").write_text("a file")
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-000010"
    problems = {found.step: found.problem for found in find_checkpoints(tmp_path)}
    assert list(problems) == [13, 12, 11, 10, 2]
    assert problems[13] == "model.safetensors is missing"
    assert problems[12] is not None and problems[12].startswith(
        "optimizer.safetensors has 5 bytes instead of"
    )
    assert problems[11] == "trainer_state.json is missing"
    assert problems[10] is None


def test_prune_keeps_the_newest(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        write(tmp_path, step)
    (tmp_path / "checkpoint-000001" / STATE_FILE).unlink()
    (tmp_path / ".checkpoint-000003.tmp").mkdir()
    prune_checkpoints(tmp_path, keep=2)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["checkpoint-000003", "checkpoint-000004"]
    prune_checkpoints(tmp_path, keep=1)
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint-000004"]


def test_damaged_states_are_errors(tmp_path: Path) -> None:
    path = write(tmp_path)
    content = json.loads((path / STATE_FILE).read_text())
    for broken, message in (
        ("{", "trainer_state.json is damaged"),
        (json.dumps({**content, "format": 99}), "another version of erniekit"),
        (json.dumps({**content, "unknown": 1}), "not a trainer state"),
    ):
        (path / STATE_FILE).write_text(broken)
        with pytest.raises(CheckpointError, match=message):
            read_state(path)
    with pytest.raises(CheckpointError, match=r"trainer_state\.json is missing"):
        read_state(tmp_path)


def test_a_damaged_optimizer_file_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path)
    size = (path / OPTIMIZER_FILE).stat().st_size
    (path / OPTIMIZER_FILE).write_bytes(b"\xff" * size)
    with pytest.raises(CheckpointError, match=r"optimizer\.safetensors"):
        read_optimizer(path)


def test_identity_names_every_key_that_differs() -> None:
    saved = {"lora.rank": 8, "data.train": fingerprint([b"a"]), "data.max_length": 64}
    check_identity(saved, dict(saved), Path("run/checkpoint-000001"))
    current = {
        "lora.rank": 16,
        "data.train": fingerprint([b"b"]),
        "data.max_length": 64,
        "model.freeze": ["vision"],
    }
    with pytest.raises(CheckpointError) as caught:
        check_identity(saved, current, Path("run/checkpoint-000001"))
    text = str(caught.value)
    assert "run/checkpoint-000001: cannot be resumed" in text
    assert "  lora.rank: was 8, is now 16" in text
    assert "  data.train: the content has changed since the run began" in text
    assert '  model.freeze: was null, is now ["vision"]' in text
    assert "max_length" not in text


def test_fingerprint_depends_on_content_and_its_division() -> None:
    assert fingerprint([b"ab", b"c"]) == fingerprint([b"ab", memoryview(b"c")])
    assert fingerprint([b"ab", b"c"]) != fingerprint([b"a", b"bc"])


def test_model_fingerprint_sees_config_and_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FINGERPRINT_BYTES", 8)
    (tmp_path / "config.json").write_text("{}")
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(bytes(range(64)))
    before = model_fingerprint(tmp_path)
    assert model_fingerprint(tmp_path) == before
    weights.write_bytes(bytes(range(63)) + b"\0")
    assert model_fingerprint(tmp_path) != before
    weights.write_bytes(bytes(range(64)))
    assert model_fingerprint(tmp_path) == before
    (tmp_path / "config.json").write_text("{ }")
    assert model_fingerprint(tmp_path) != before


def test_side_files_are_carried_and_weights_are_not(tmp_path: Path) -> None:
    source, target = tmp_path / "a", tmp_path / "b"
    source.mkdir()
    target.mkdir()
    side = [
        "config.json",
        "tokenizer.json",
        "chat_template.jinja",
        "spiece.model",
        "processing_x.py",
        "LICENSE.txt",
        "Roboto-Regular.ttf",
    ]
    others = [
        "model.safetensors",
        "model.safetensors.index.json",
        STATE_FILE,
        "adapter_config.json",
        "x.pdparams",
    ]
    for name in side + others:
        (source / name).write_text(name)
    copy_side_files(source, target)
    assert sorted(file.name for file in target.iterdir()) == sorted(side)
