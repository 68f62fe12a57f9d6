"""The norm of gradients, and clipping by it."""

from __future__ import annotations

import math
from collections.abc import Iterable

import paddle
from paddle import _C_ops


@paddle.no_grad()
def gradient_norm(gradients: Iterable[paddle.Tensor]) -> float:
    """L2 norm over all `gradients` together, in float32, with one transfer to the host."""
    squares = []
    for gradient in gradients:
        wide = gradient if gradient.dtype == paddle.float32 else gradient.astype("float32")
        # Accurate where paddle.dot is not (7% off at 30 million elements), and a single pass.
        squares.append(_C_ops.squared_l2_norm(wide))
    return math.sqrt(paddle.stack(squares).sum().item()) if squares else 0.0


@paddle.no_grad()
def clip_gradients(gradients: Iterable[paddle.Tensor], norm: float, max_norm: float) -> None:
    """Scale all gradients by max_norm / norm where `norm` is above `max_norm`; 0 turns clipping off."""
    if not max_norm or norm <= max_norm:
        return
    for gradient in gradients:
        gradient.scale_(max_norm / norm)
