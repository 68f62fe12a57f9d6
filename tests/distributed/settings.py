"""What the runs of these tests learn from, and when two of them are the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from erniekit.optim.adamw import STATES
from tests.checkpoints import tensors
from tests.closeness import MODEL, assert_all_close, assert_close
from tests.integration.training_setup import chats, losses, make_model, write_chats

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = ROOT / "data" / "samples"
STEPS = 2


def vl_setting(directory: Path) -> dict[str, Any]:
    """A small VL model; text, images and videos. A step costs little but its collectives; an epoch has 1.4 steps."""
    return {
        "model.path": str(make_model(directory / "model")),
        "data.train": [str(write_chats(directory / "chats.jsonl", chats(16))), str(SAMPLES / "video.jsonl")],
        "data.max_length": 160,
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
        "train.peak_tflops": 0.001,
        "log.every": 1,
        "parallel.device": "cpu",
        "parallel.threads": 1,
    }


def assert_same(one: Path, other: Path, steps: int = STEPS) -> None:
    """The loss of the first step, the losses and gradient norms of all, weights and the optimizer's state."""
    expected, found = (np.asarray(losses(run))[:, 1:3] for run in (one, other))
    assert len(expected) == steps
    assert_close(found[0, 0], expected[0, 0], what="first loss")
    assert_close(found[:, 0], expected[:, 0], MODEL, what="losses")
    assert_close(found[:, 1], expected[:, 1], MODEL, what="gradient norms")
    values, others = tensors(one), tensors(other)
    assert sorted(values) == sorted(others)
    # Weights, first and second moments are of different sizes.
    for kind in {_kind(name) for name in values}:
        chosen = [{n: x for n, x in run.items() if _kind(n) == kind} for run in (others, values)]
        assert_all_close(*chosen, what=kind)


def _kind(name: str) -> str:
    state = name.rpartition(".")[2]
    return state if state in STATES else "weights"
