"""Adapters with values, written as a run writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from erniekit.checkpoint.weights import load_model
from tests.adapters import write_adapter
from tests.models import apply_lora

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def write(
    base: Path, directory: Path, targets: list[str], dropout: float = 0.0, expert_rank: int | None = None
) -> dict[str, Any]:
    """An adapter with values; returns its configuration."""
    model = load_model(base)
    lora = dict(rank=4, alpha=12.0, dropout=dropout, expert_rank=expert_rank)
    apply_lora(model, targets=targets, seed=0, **lora)  # type: ignore[arg-type]
    rng = np.random.default_rng(1)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            parameter.set_value(paddle.to_tensor(rng.normal(0, 0.1, parameter.shape).astype(np.float32)))
    directory.mkdir()
    write_adapter(directory, model, base_path=str(base), **lora)  # type: ignore[arg-type]
    config: dict[str, Any] = json.loads((directory / "adapter_config.json").read_text())
    return config
