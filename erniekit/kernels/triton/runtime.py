"""Paddle's tensors as arguments of Triton kernels, on a GPU and in Triton's interpreter."""

from __future__ import annotations

import os
from typing import Any

import paddle
from paddle import Tensor


def is_interpreted() -> bool:
    """Whether Triton runs kernels in its interpreter on the CPU, which its variable TRITON_INTERPRET decides."""
    return os.environ.get("TRITON_INTERPRET") == "1"


# Read once: `pointer` runs thousands of times in a step.
_INTERPRETED = is_interpreted()


def enable_on_gpu() -> None:
    """Make Triton take Paddle's tensors and launch on Paddle's stream. Must run before anything imports Triton."""
    # Fuse products and sums, as Triton does by default up to 3.9, which warns about it.
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
    # Where Triton imports torch, it gets Paddle's modules.
    paddle.enable_compat(scope={"triton"}, silent=True)
    from triton.runtime import driver

    # Without a torch module, Triton from 3.9 on launches on the default stream, which Paddle's does not wait for.
    driver.active.get_current_stream = _current_stream


def pointer(tensor: Tensor) -> Any:
    """The tensor as a launch function takes it, without a copy. Raises ValueError if it is not contiguous."""
    if not tensor.is_contiguous():
        raise ValueError("Triton kernels take contiguous tensors")
    if not _INTERPRETED:
        return tensor
    # The interpreter works on torch's storages.
    import torch

    return torch.utils.dlpack.from_dlpack(tensor.detach())


def _current_stream(device: int) -> int:
    return int(paddle.base.core._get_current_stream(device).cuda_stream)
