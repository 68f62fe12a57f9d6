"""What the runs of these tests learn from, and when two of them are the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from erniekit.checkpoint.hub import read_array, read_header
from erniekit.checkpoint.state import newest_checkpoint
from tests.integration.training_setup import chats, losses, make_model, write_chats

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = ROOT / "data" / "samples"
STEPS = 20


def vl_setting(directory: Path) -> dict[str, Any]:
    """A small VL model; text, pictures and videos."""
    return {
        "model.path": str(make_model(directory / "model")),
        "data.train": [str(write_chats(directory / "chats.jsonl", chats(40))), str(SAMPLES / "video.jsonl")],
        "data.max_length": 400,
        "data.max_pixels": 3136,
        "data.video_max_frames": 4,
        "data.video_min_frames": 2,
        "data.video_max_pixels": 3136,
        "data.video_min_pixels": 784,
        "data.workers": 0,
        "data.cache_dir": str(directory / "cache"),
        "optimizer.learning_rate": 1e-3,
        # Where a gradient is nothing but rounding, Adam would still take a whole step in its direction.
        "optimizer.epsilon": 1e-3,
        "loss.balance_weight": 0.01,
        "loss.z_weight": 0.001,
        "loss.orthogonal_weight": 0.01,
        "train.rows_per_step": 4,
        "train.max_steps": STEPS,
        "log.every": 1,
    }


def tensors(run: Path) -> dict[str, np.ndarray]:
    """Everything in the newest checkpoint, by "model", "adapter_model" or "optimizer" and its name there."""
    checkpoint = newest_checkpoint(run)
    assert checkpoint is not None
    return {
        f"{file.name.split('.')[0].split('-')[0]} {name}": read_array(info)
        for file in sorted(checkpoint.glob("*.safetensors"))
        for name, info in read_header(file).items()
    }


def assert_same(one: Path, other: Path, steps: int = STEPS) -> None:
    """Losses and gradient norms within 1e-5 relative, weights and the optimizer's state within 1e-5."""
    expected, found = (np.asarray(losses(run))[:, 1:3] for run in (one, other))
    assert len(expected) == steps
    np.testing.assert_allclose(found[:, 0], expected[:, 0], rtol=1e-5)
    np.testing.assert_allclose(found[:, 1], expected[:, 1], rtol=1e-4)
    values, others = tensors(one), tensors(other)
    assert sorted(values) == sorted(others)
    for name, value in values.items():
        np.testing.assert_allclose(others[name], value, rtol=0, atol=1e-5, err_msg=name)
