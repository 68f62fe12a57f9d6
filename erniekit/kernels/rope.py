"""Rotary position embeddings: pairs of channels turned by angles. Products are float32."""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle
from paddle import Tensor
from paddle.autograd import PyLayer

from erniekit.kernels.choice import form_of
from erniekit.kernels.tensors import needs_gradient, numpy_view
from erniekit.kernels.triton.runtime import pointer


def rotate_pairs(query: Tensor, key: Tensor, rotation: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate neighbouring channels (x0, x1), (x2, x3), ... of query [T, heads, d] and key [T, kv heads, d].

    `rotation` float32 [T, d / 2, 2] holds cosine and sine, and is not differentiated.
    """
    form = form_of("rope")
    if form == "triton":
        rotated_query, rotated_key = _TritonPairs.apply(query, key, rotation)
        return rotated_query, rotated_key
    if form == "cpu" and query.dtype == paddle.float32:
        return _CpuPairs.apply(query, rotation), _CpuPairs.apply(key, rotation)
    return _plain_pairs(query, rotation), _plain_pairs(key, rotation)


def rotate_halves(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotate channel i with channel i + d / 2 of [T, heads, d]; `cosine`, `sine` float32 [T, 1, d / 2]."""
    if form_of("rope") == "triton":
        return _TritonHalves.apply(x, cosine, sine)
    first, second = paddle.split(x.astype("float32"), 2, axis=-1)
    rotated = paddle.concat([first * cosine - second * sine, second * cosine + first * sine], axis=-1)
    return rotated.astype(x.dtype)


def _plain_pairs(x: Tensor, rotation: Tensor) -> Tensor:
    cosine, sine = rotation.unsqueeze(1).unbind(-1)
    first, second = x.astype("float32").reshape([*x.shape[:2], -1, 2]).unbind(-1)
    rotated = paddle.stack([first * cosine - second * sine, second * cosine + first * sine], -1)
    return rotated.reshape(x.shape).astype(x.dtype)


class _TritonPairs(PyLayer):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, rotation: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(rotation)
        ctx.needs_gradient = needs_gradient(query, key)
        return _rotate_pairs(query, key, rotation, inverse=False)

    @staticmethod
    def backward(ctx: Any, query: Tensor, key: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (rotation,) = ctx.saved_tensor()
        for_query, for_key = ctx.needs_gradient
        query, key = _rotate_pairs(query, key, rotation, inverse=True)
        return query if for_query else None, key if for_key else None, None


class _TritonHalves(PyLayer):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        ctx.save_for_backward(cosine, sine)
        return _rotate_halves(x, cosine, sine, inverse=False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _rotate_halves(grad, *ctx.saved_tensor(), inverse=True), None, None


class _CpuPairs(PyLayer):
    """One product of complex numbers over numpy views: the channels of a pair are their real and imaginary part."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rotation: Tensor) -> Tensor:
        ctx.save_for_backward(rotation)
        return _multiply(x, _complex(rotation.flatten(1)))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (rotation,) = ctx.saved_tensor()
        return _multiply(grad, _complex(rotation.flatten(1)).conj()), None


def _rotate_pairs(query: Tensor, key: Tensor, rotation: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
    from erniekit.kernels.triton.rope import rotate_pairs

    query, key = query.contiguous(), key.contiguous()
    outputs = paddle.empty_like(query), paddle.empty_like(key)
    rotate_pairs(*(pointer(tensor) for tensor in (query, key, rotation, *outputs)), inverse=inverse)
    return outputs


def _rotate_halves(x: Tensor, cosine: Tensor, sine: Tensor, *, inverse: bool) -> Tensor:
    from erniekit.kernels.triton.rope import rotate_halves

    x = x.contiguous()
    output = paddle.empty_like(x)
    rotate_halves(*(pointer(tensor) for tensor in (x, cosine, sine, output)), inverse=inverse)
    return output


def _multiply(x: Tensor, rotation: np.ndarray) -> Tensor:
    output = paddle.empty_like(x)
    np.multiply(_complex(x.contiguous()), rotation[:, None], out=_complex(output))
    return output


def _complex(tensor: Tensor) -> np.ndarray:
    """The memory of float32 [..., 2 n] as complex [..., n]."""
    return numpy_view(tensor).view(np.complex64)
