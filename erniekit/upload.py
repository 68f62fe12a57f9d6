"""Copies arrays to the device without waiting for it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import paddle
from paddle import Tensor

# Array -> the same values on the device. `paddle.to_tensor` is one; on a GPU it waits for all kernels in flight.
Upload = Callable[[np.ndarray], Tensor]


class AsyncUpload:
    """An `Upload` that does not wait: on a GPU through pinned memory, behind the kernels in flight.

    Pinned memory may be reused as soon as its tensor is freed, so this object keeps all of it. Keep it until the
    host has waited for the device after the last copy.
    """

    def __init__(self) -> None:
        self._pinned: list[Tensor] = []

    def __call__(self, array: np.ndarray) -> Tensor:
        if not paddle.get_device().startswith("gpu"):
            return paddle.to_tensor(array)
        if not array.size:
            return paddle.empty(array.shape, array.dtype.name)
        pinned = paddle.to_tensor(array, place=paddle.CUDAPinnedPlace())
        self._pinned.append(pinned)
        return pinned.cuda(blocking=False)
