"""Questions about tensors that several kernels ask."""

from __future__ import annotations

import numpy as np
from paddle import Tensor


def needs_gradient(*tensors: Tensor) -> tuple[bool, ...]:
    """Whether the backward pass of a PyLayer must return a gradient for each tensor.

    For the forward pass: under recomputation, the tensors of `ctx.saved_tensor()` have lost `stop_gradient`.
    """
    return tuple(not tensor.stop_gradient for tensor in tensors)


def numpy_view(tensor: Tensor) -> np.ndarray:
    """The memory of a contiguous CPU tensor as an array: writing to it changes the tensor."""
    view: np.ndarray = np.from_dlpack(tensor.detach())
    return view
