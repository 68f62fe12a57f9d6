"""Operators of `paddle`, and those of them that are methods of tensors as well."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from .device import Place, current_device, dtype_of, pin
from .tensor import Tensor, unwrap

# Making tensors.


def to_tensor(
    data: Any,
    dtype: str | torch.dtype | None = None,
    place: Place | None = None,
    stop_gradient: bool = True,
) -> Tensor:
    if isinstance(data, Tensor):
        raw = data.raw.detach().clone()
    elif isinstance(data, np.ndarray):
        raw = torch.from_numpy(data.copy())
    else:
        raw = torch.tensor(data)
    if dtype is not None:
        raw = raw.to(dtype_of(dtype))
    if place is not None and place.pinned:
        raw = pin(raw)
    else:
        raw = raw.to(current_device() if place is None else place.device)
    found = Tensor(raw)
    if not stop_gradient:
        found.stop_gradient = False
    return found


def zeros(shape: Sequence[int], dtype: str | torch.dtype | None = None) -> Tensor:
    return Tensor(torch.zeros(tuple(shape), dtype=dtype_of(dtype), device=current_device()))


def empty(shape: Sequence[int], dtype: str | torch.dtype | None = None) -> Tensor:
    return Tensor(torch.empty(tuple(shape), dtype=dtype_of(dtype), device=current_device()))


def full(shape: Sequence[int], fill_value: float, dtype: str | torch.dtype | None = None) -> Tensor:
    return Tensor(torch.full(tuple(shape), fill_value, dtype=dtype_of(dtype), device=current_device()))


def zeros_like(x: Tensor) -> Tensor:
    return Tensor(torch.zeros(x.raw.shape, dtype=x.raw.dtype, device=x.raw.device))


def empty_like(x: Tensor) -> Tensor:
    """Contiguous, as all tensors that Paddle makes."""
    return Tensor(torch.empty(x.raw.shape, dtype=x.raw.dtype, device=x.raw.device))


def ones_like(x: Tensor) -> Tensor:
    return Tensor(torch.ones(x.raw.shape, dtype=x.raw.dtype, device=x.raw.device))


def arange(end: int, dtype: str = "int64") -> Tensor:
    return Tensor(torch.arange(end, dtype=dtype_of(dtype), device=current_device()))


def eye(num_rows: int, dtype: str | torch.dtype | None = None) -> Tensor:
    return Tensor(torch.eye(num_rows, dtype=dtype_of(dtype), device=current_device()))


def assign(x: Tensor, output: Tensor) -> Tensor:
    with torch.no_grad():
        output.raw.copy_(x.raw)
    return output


# Shapes.


def reshape(x: Tensor, shape: Sequence[int]) -> Tensor:
    """A 0 stands for the size that the axis has in `x`."""
    sizes = [size or (x.raw.shape[axis] if axis < x.raw.ndim else 0) for axis, size in enumerate(shape)]
    if -1 in sizes and 0 in sizes:
        # Only the other sizes say what is left.
        known = [size for size in sizes if size > 0]
        rest = [size for size in x.raw.shape if size > 0]
        sizes[sizes.index(-1)] = int(np.prod(rest) // np.prod(known))
    return Tensor(x.raw.reshape(sizes))


def transpose(x: Tensor, perm: Sequence[int]) -> Tensor:
    return Tensor(x.raw.permute(tuple(perm)))


def t(x: Tensor) -> Tensor:
    return Tensor(x.raw.t())


def flatten(x: Tensor, start_axis: int = 0, stop_axis: int = -1) -> Tensor:
    return Tensor(x.raw.flatten(start_axis, stop_axis))


def unsqueeze(x: Tensor, axis: int) -> Tensor:
    return Tensor(x.raw.unsqueeze(axis))


def squeeze(x: Tensor, axis: int) -> Tensor:
    return Tensor(x.raw.squeeze(axis))


def unbind(x: Tensor, axis: int = 0) -> list[Tensor]:
    return [Tensor(part) for part in x.raw.unbind(axis)]


def split(x: Tensor, num_or_sections: int | Sequence[int], axis: int = 0) -> list[Tensor]:
    """Into a number of equal parts, or parts of these sizes."""
    length = x.raw.shape[axis]
    sizes: int | list[int]
    if isinstance(num_or_sections, int):
        if length % num_or_sections:
            raise ValueError(f"{length} does not split into {num_or_sections} equal parts")
        sizes = length // num_or_sections
        if not sizes:
            return [x] * num_or_sections
    else:
        sizes = list(num_or_sections)
    return [Tensor(part) for part in x.raw.split(sizes, axis)]


def chunk(x: Tensor, chunks: int, axis: int = 0) -> list[Tensor]:
    return split(x, chunks, axis)


def concat(x: Sequence[Tensor], axis: int = 0) -> Tensor:
    return Tensor(torch.cat([part.raw for part in x], axis))


def stack(x: Sequence[Tensor], axis: int = 0) -> Tensor:
    return Tensor(torch.stack([part.raw for part in x], axis))


def repeat_interleave(x: Tensor, repeats: int, axis: int) -> Tensor:
    return Tensor(x.raw.repeat_interleave(repeats, axis))


def triu(x: Tensor, diagonal: int = 0) -> Tensor:
    return Tensor(x.raw.triu(diagonal))


# Rows by index.


def gather(x: Tensor, index: Tensor) -> Tensor:
    return Tensor(x.raw.index_select(0, index.raw))


def index_select(x: Tensor, index: Tensor, axis: int = 0) -> Tensor:
    return Tensor(x.raw.index_select(axis, index.raw))


def scatter(x: Tensor, index: Tensor, updates: Tensor) -> Tensor:
    """Rows are replaced; each at most once."""
    return Tensor(x.raw.index_copy(0, index.raw, updates.raw))


def take_along_axis(arr: Tensor, indices: Tensor, axis: int) -> Tensor:
    return Tensor(torch.take_along_dim(arr.raw, indices.raw, axis))


def put_along_axis_(arr: Tensor, indices: Tensor, values: Tensor, axis: int, reduce: str) -> Tensor:
    if reduce != "add":
        raise AttributeError(f"the adapter has no put_along_axis_ that reduces by {reduce}")
    arr.raw.scatter_add_(axis, indices.raw, values.raw)
    return arr


def index_put_(x: Tensor, indices: tuple[Tensor, ...], value: Tensor) -> Tensor:
    x.raw.index_put_(tuple(index.raw for index in indices), value.raw)
    return x


def topk(x: Tensor, k: int, axis: int = -1) -> tuple[Tensor, Tensor]:
    values, indices = torch.topk(x.raw, k, axis)
    return Tensor(values), Tensor(indices)


def searchsorted(sorted_sequence: Tensor, values: Tensor, right: bool = False) -> Tensor:
    return Tensor(torch.searchsorted(sorted_sequence.raw, values.raw, right=right))


def argsort(x: Tensor) -> Tensor:
    return Tensor(x.raw.argsort(-1))


def where(condition: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return Tensor(torch.where(condition.raw, x.raw, y.raw))


# Products and functions of elements.


def matmul(
    x: Tensor, y: Tensor, transpose_x: bool = False, transpose_y: bool = False, *, out: Tensor | None = None
) -> Tensor:
    left = x.raw.transpose(-1, -2) if transpose_x else x.raw
    right = y.raw.transpose(-1, -2) if transpose_y else y.raw
    if out is None:
        return Tensor(torch.matmul(left, right))
    torch.matmul(left, right, out=out.raw)
    return out


def mv(x: Tensor, vec: Tensor) -> Tensor:
    return Tensor(torch.mv(x.raw, vec.raw))


def clip(x: Tensor, min: float | None = None, max: float | None = None) -> Tensor:
    """The gradient at a bound itself is torch's, 1; Paddle's is 0."""
    return Tensor(x.raw.clamp(min, max))


def round(x: Tensor) -> Tensor:
    """Halves to the even number, as torch's; Paddle's go away from zero."""
    return Tensor(x.raw.round())


def bitwise_and(x: Tensor, y: Tensor) -> Tensor:
    return Tensor(x.raw & y.raw)


def bitwise_right_shift(x: Tensor, y: Tensor) -> Tensor:
    return Tensor(x.raw >> y.raw)


def square(x: Tensor) -> Tensor:
    return Tensor(x.raw.square())


def rsqrt(x: Tensor) -> Tensor:
    return Tensor(x.raw.rsqrt())


def log(x: Tensor) -> Tensor:
    return Tensor(x.raw.log())


def expm1(x: Tensor) -> Tensor:
    return Tensor(x.raw.expm1())


def cos(x: Tensor) -> Tensor:
    return Tensor(x.raw.cos())


def sin(x: Tensor) -> Tensor:
    return Tensor(x.raw.sin())


# Reductions.


def sum(x: Tensor, axis: int | None = None, keepdim: bool = False) -> Tensor:
    return Tensor(x.raw.sum() if axis is None else x.raw.sum(axis, keepdim))


def mean(x: Tensor, axis: int | None = None, keepdim: bool = False) -> Tensor:
    return Tensor(x.raw.mean() if axis is None else x.raw.mean(axis, keepdim))


def max(x: Tensor, axis: int, keepdim: bool = False) -> Tensor:
    return Tensor(x.raw.amax(axis, keepdim))


def min(x: Tensor, axis: int, keepdim: bool = False) -> Tensor:
    return Tensor(x.raw.amin(axis, keepdim))


def norm(x: Tensor, axis: int, keepdim: bool = False) -> Tensor:
    return Tensor(torch.linalg.vector_norm(x.raw, dim=axis, keepdim=keepdim))


def logsumexp(x: Tensor, axis: int) -> Tensor:
    return Tensor(x.raw.logsumexp(axis))


def cumsum(x: Tensor, axis: int | None = None) -> Tensor:
    return Tensor(x.raw.flatten().cumsum(0) if axis is None else x.raw.cumsum(axis))


def from_dlpack(source: Any) -> Tensor:
    return Tensor(torch.from_dlpack(unwrap(source)))


_METHODS = (
    *(reshape, transpose, t, flatten, unsqueeze, squeeze, unbind, split, chunk, repeat_interleave),
    *(put_along_axis_, square, sum, mean, max, min, norm, cumsum),
)
for _method in _METHODS:
    setattr(Tensor, _method.__name__, _method)

OFFERED = (
    *(
        to_tensor,
        zeros,
        empty,
        full,
        zeros_like,
        empty_like,
        ones_like,
        arange,
        eye,
        assign,
        concat,
        stack,
        split,
        chunk,
    ),
    *(
        triu,
        gather,
        index_select,
        scatter,
        take_along_axis,
        index_put_,
        topk,
        searchsorted,
        argsort,
        where,
        matmul,
        mv,
        clip,
    ),
    *(rsqrt, log, expm1, cos, sin, logsumexp, round, bitwise_and, bitwise_right_shift),
)
"""The operators under `paddle`."""
