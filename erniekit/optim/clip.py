"""The norm of gradients, and clipping by norm."""

from __future__ import annotations

import math
from collections.abc import Iterable

import paddle

from erniekit.kernels.adamw import squared_norm


@paddle.no_grad()
def gradient_norm(gradients: Iterable[paddle.Tensor]) -> float:
    """L2 norm over all `gradients` together, in float32, with one transfer to the host."""
    return math.sqrt(squared_norm(gradients))


def clip_scale(norm: float, max_norm: float) -> float:
    """The factor on all gradients that clips their norm at `max_norm`; 0 turns clipping off."""
    return max_norm / norm if max_norm and norm > max_norm else 1.0
