"""Rotary position embeddings of neighbouring channels, and of the two halves of a head."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

_HEADS, _WARPS = 8, 2


def rotate_pairs(query: Any, key: Any, rotation: Any, out_query: Any, out_key: Any, *, inverse: bool) -> None:
    """Rotate channels (0, 1), (2, 3), ... of query [T, heads, d] and key [T, kv heads, d], in one launch.

    `rotation` float32 [T, d / 2, 2] holds cosine and sine. inverse: rotate back, which is the backward pass.
    """
    tokens, heads, width = query.shape
    if tokens:
        _rotate_pairs_kernel[(tokens,)](
            query,
            key,
            rotation,
            out_query,
            out_key,
            HEADS=heads,
            KV_HEADS=key.shape[1],
            PAIRS=width // 2,
            BLOCK=triton.next_power_of_2(width),
            STEP=_HEADS,
            SIGN=-1.0 if inverse else 1.0,
            num_warps=_WARPS,
        )


def rotate_halves(x: Any, cosine: Any, sine: Any, out: Any, *, inverse: bool) -> None:
    """Rotate channel i with channel i + d / 2 of x [T, heads, d]; `cosine` and `sine` float32 [T, d / 2].

    inverse: rotate back, which is the backward pass.
    """
    tokens, heads, width = x.shape
    if tokens:
        _rotate_halves_kernel[(tokens,)](
            x,
            cosine,
            sine,
            out,
            HEADS=heads,
            HALF=width // 2,
            BLOCK=triton.next_power_of_2(width // 2),
            STEP=_HEADS,
            SIGN=-1.0 if inverse else 1.0,
            num_warps=_WARPS,
        )


@triton.jit
def _rotate_pairs_kernel(
    query, key, rotation, out_query, out_key,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, PAIRS: tl.constexpr, BLOCK: tl.constexpr,
    STEP: tl.constexpr, SIGN: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, BLOCK)
    angles = tl.load(rotation + token * (2 * PAIRS) + channel, channel < 2 * PAIRS, 0.0)
    cosine, sine = tl.split(tl.reshape(angles, [1, BLOCK // 2, 2]))
    sine = sine * SIGN
    _rotate_heads(query, out_query, token, cosine, sine, HEADS, PAIRS, BLOCK, STEP)
    _rotate_heads(key, out_key, token, cosine, sine, KV_HEADS, PAIRS, BLOCK, STEP)


@triton.jit
def _rotate_heads(
    x, out, token, cosine, sine,
    HEADS: tl.constexpr, PAIRS: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    channel = tl.arange(0, BLOCK)[None, :]
    for start in tl.static_range(0, HEADS, STEP):
        head = start + tl.arange(0, STEP)[:, None]
        place = (token * HEADS + head) * (2 * PAIRS) + channel
        mask = (head < HEADS) & (channel < 2 * PAIRS)
        values = tl.load(x + place, mask, 0.0)
        first, second = tl.split(tl.reshape(values.to(tl.float32), [STEP, BLOCK // 2, 2]))
        rotated = tl.join(first * cosine - second * sine, second * cosine + first * sine)
        tl.store(out + place, tl.reshape(rotated, [STEP, BLOCK]).to(values.dtype), mask)


@triton.jit
def _rotate_halves_kernel(
    x, cosine, sine, out,
    HEADS: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr, SIGN: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, BLOCK)[None, :]
    inside = channel < HALF
    cos = tl.load(cosine + token * HALF + channel, inside, 0.0)
    sin = tl.load(sine + token * HALF + channel, inside, 0.0) * SIGN
    for start in tl.static_range(0, HEADS, STEP):
        head = start + tl.arange(0, STEP)[:, None]
        place = (token * HEADS + head) * (2 * HALF) + channel
        mask = (head < HEADS) & inside
        values = tl.load(x + place, mask, 0.0)
        first = values.to(tl.float32)
        second = tl.load(x + place + HALF, mask, 0.0).to(tl.float32)
        tl.store(out + place, (first * cos - second * sin).to(values.dtype), mask)
        tl.store(out + place + HALF, (second * cos + first * sin).to(values.dtype), mask)
