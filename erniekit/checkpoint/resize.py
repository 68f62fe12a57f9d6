"""Enlarging a model beyond its checkpoint: more token ids, more positions."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from erniekit.checkpoint.element_types import as_dtype
from erniekit.checkpoint.hub import TensorInfo, read_array
from erniekit.models.config import ErnieConfig, is_paddle_config


@dataclass(frozen=True)
class ModelChanges:
    """Larger sizes than in the checkpoint's `config.json`. None or a smaller value leaves a size unchanged."""

    vocab_size: int | None = None
    max_position_embeddings: int | None = None

    def apply(self, config: ErnieConfig) -> ErnieConfig:
        """The configuration of the larger model."""
        return replace(
            config,
            vocab_size=max(self.vocab_size or 0, config.vocab_size),
            max_position_embeddings=max(self.max_position_embeddings or 0, config.max_position_embeddings),
        )

    def write(self, file: Path) -> None:
        """Update a `config.json`, flat or nested, in place.

        One of a `-Paddle` release then says that linear weights are [out, in], as checkpoints have them.
        """
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        transposed = is_paddle_config(content)
        if transposed:
            content["torch_dtype"] = content.pop("dtype")
        section = content.get("text_config", content)
        changed = {k: v for k, v in vars(self).items() if v is not None and v > section.get(k, 0)}
        if changed or transposed:
            section.update(changed)
            file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


NO_CHANGES = ModelChanges()


def read_rows(info: TensorInfo, rows: int | None) -> np.ndarray:
    """A tensor, extended to `rows` rows (None: unchanged). New rows are the mean of the existing ones.

    Initialised with the mean embedding, a new token changes the distribution over the other tokens least: Hewitt 2021,
    "Initializing New Word Embeddings for Pretrained Language Models".
    """
    array = read_array(info)
    if rows is None or rows == len(array):
        return array
    mean = as_dtype(array, info.dtype, "F32").mean(axis=0, dtype=np.float64).astype(np.float32)
    row = as_dtype(mean, "F32", info.dtype)
    return np.concatenate([array, np.broadcast_to(row, (rows - len(array), *row.shape))])
