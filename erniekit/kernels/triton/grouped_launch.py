"""Launches of grouped products: sizes of tiles, grids, and descriptors of tensors for bulk copies."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

# Bytes of an H100, for a program.
_SHARED_MEMORY = 227 * 1024
_TYPES = {"bfloat16": tl.bfloat16, "float16": tl.float16, "float32": tl.float32}


class Block(NamedTuple):
    """Tiles of BM x BN with steps of BK along the sum; for gradients of weights BN x BK with steps of BM.

    programs: at a time on a multiprocessor, each for one tile after the other; 0: a program for each tile. flat: the
    loops over tiles and over steps are one, so that the copies for the next tile begin early.
    """

    BM: int
    BN: int
    BK: int
    warps: int
    stages: int
    programs: int = 1
    flat: bool = False


# The fastest of those tried on an H200 (docs/performance.md).
_BLOCKS = {
    "rows": Block(128, 256, 64, warps=8, stages=3, flat=True),
    # Adapters take registers and shared memory.
    "rows_low_rank": Block(128, 256, 64, warps=8, stages=3),
    "narrow": Block(128, 64, 64, warps=4, stages=4, programs=2),
    "gate_up": Block(128, 128, 64, warps=8, stages=3, flat=True),
    "gate_up_low_rank": Block(128, 128, 64, warps=8, stages=3),
    "down_dx": Block(128, 256, 64, warps=8, stages=4),
    "dw": Block(64, 128, 256, warps=8, stages=3),
    "dw_narrow": Block(64, 64, 64, warps=4, stages=4, programs=0),
}
# For GPUs with less shared memory than an H100, without bulk copies; these have not run on one.
_SMALL = Block(128, 128, 32, warps=8, stages=3)
_SMALL_DW = Block(32, 128, 128, warps=8, stages=3)
# Products of float32 use no tensor cores.
_FLOAT32 = Block(32, 64, 32, warps=4, stages=2, programs=2)


def block_of(kind: str, tensor: Any) -> Block:
    """The tiles of a kernel for the type of `tensor` and the GPU."""
    if _type(tensor) is tl.float32:
        return _FLOAT32
    if _is_large_gpu():
        return _BLOCKS[kind]
    return _SMALL_DW if kind.startswith("dw") else _SMALL


def launch(kernel: Any, tiles: int, block: Block, *arguments: Any, **sizes: Any) -> None:
    """Launch as many programs as run at a time, or one for each of the tiles."""
    programs = min(tiles, _properties()["multiprocessor_count"] * block.programs) if block.programs else tiles
    kernel[(programs,)](
        *arguments,
        **sizes,
        BM=block.BM,
        BN=block.BN,
        BK=block.BK,
        FLAT=block.flat,
        num_warps=block.warps,
        num_stages=block.stages,
    )


def cdiv(size: int, block: int) -> int:
    """size / block, rounded up. Triton's own takes microseconds, as does its `next_power_of_2`."""
    return -(-size // block)


def power_of_two(size: int) -> int:
    """The smallest power of two that is not below `size`, which is at least 1."""
    return 1 << (size - 1).bit_length()


def padded(size: int) -> int:
    """The smallest side of a tile that holds `size`."""
    return power_of_two(max(16, size))


def has_descriptor(tensor: Any, parts: int = 1) -> bool:
    """Whether bulk copies can read the tensor: not empty, it and parts of its rows begin at multiples of 16 bytes."""
    width = tensor.shape[-1] // parts * _type(tensor).itemsize
    is_aligned = width % 16 == 0 and tensor.data_ptr() % 16 == 0
    return is_aligned and math.prod(tensor.shape) > 0 and _is_large_gpu()


def descriptor(tensor: Any, block: list[int], shape: list[int] | None = None) -> TensorDescriptor:
    """Descriptor of a contiguous tensor for tiles of `block`: as a matrix of its last dimension, or of `shape`."""
    shape = shape or [math.prod(tensor.shape[:-1]), tensor.shape[-1]]
    strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    return TensorDescriptor(_base(tensor), shape, strides, block)


def ragged_descriptor(tensor: Any, block: list[int]) -> TensorDescriptor:
    """Descriptor of a matrix for `triton.tools.ragged_tma`, which reads zeros after the last row of an expert.

    Its two more dimensions move the end of the tensor to the end of the expert, since addresses wrap at 64 bits.
    """
    width = tensor.shape[1]
    return TensorDescriptor(
        _base(tensor),
        [0x7FFF0000, 0x7FFF0000, 1 << 30, width],
        [2**34 - width, width, width, 1],
        [1, 1, *block],
    )


def _type(tensor: Any) -> Any:
    return _type_of(tensor.dtype)


@functools.cache
def _type_of(dtype: Any) -> Any:
    return _TYPES[str(dtype).split(".")[-1]]


def _base(tensor: Any) -> Any:
    # Triton asks for the size of an element of a type, which Paddle's types do not have.
    return triton.reinterpret(tensor, _type(tensor))


def _is_large_gpu() -> bool:
    return _properties()["max_shared_mem"] >= _SHARED_MEMORY


def _properties() -> dict[str, int]:
    if triton.knobs.runtime.interpret:
        return {"multiprocessor_count": 1, "max_shared_mem": _SHARED_MEMORY}
    return _properties_of(triton.runtime.driver.active.get_current_device())


@functools.cache
def _properties_of(device: int) -> dict[str, int]:
    # Asking takes a millisecond.
    return dict(triton.runtime.driver.active.utils.get_device_properties(device))
