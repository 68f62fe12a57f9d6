"""Weights in bfloat16 or float32 from codes of 8 or 4 bits and the scales of their groups."""

from __future__ import annotations

import math
from typing import Any

import triton
import triton.language as tl

# Groups of one program. On an H200, 16 to 64 groups and 4 or 8 warps differ by 5%.
_GROUPS = 64


def dequantize(codes: Any, scales: Any, out: Any, *, group: int) -> None:
    """out [..., N, K] = code * scale, with the layout of `erniekit.kernels.quantize.QuantizedWeight`.

    codes int8 [..., N, K] or uint8 [..., N, K / 2]; scales [..., N, ceil(K / group)].
    """
    groups = math.prod(scales.shape)
    if groups:
        _dequantize_kernel[(triton.cdiv(groups, _GROUPS),)](
            codes,
            scales,
            out,
            groups,
            COLUMNS=out.shape[-1],
            ROW_GROUPS=scales.shape[-1],
            GROUP=group,
            PACKED=codes.shape[-1] < out.shape[-1],
            GROUPS=_GROUPS,
        )


@triton.jit
def _dequantize_kernel(
    codes, scales, out, groups,
    COLUMNS: tl.constexpr, ROW_GROUPS: tl.constexpr, GROUP: tl.constexpr, PACKED: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    number = tl.program_id(0).to(tl.int64) * GROUPS + tl.arange(0, GROUPS)
    first = number % ROW_GROUPS * GROUP
    begin = number // ROW_GROUPS * COLUMNS + first
    scale = tl.load(scales + number, number < groups, 0.0).to(tl.float32)[:, None]
    columns = tl.arange(0, GROUP)
    inside = (number < groups)[:, None] & (columns[None, :] < (COLUMNS - first)[:, None])
    if PACKED:
        pairs = tl.arange(0, GROUP // 2)
        inside_pairs = (number < groups)[:, None] & (pairs[None, :] < ((COLUMNS - first) // 2)[:, None])
        packed = tl.load(codes + (begin // 2)[:, None] + pairs[None, :], inside_pairs, 0)
        values = tl.interleave((packed & 15).to(tl.float32), (packed >> 4).to(tl.float32)) - 8.0
    else:
        values = tl.load(codes + begin[:, None] + columns[None, :], inside, 0).to(tl.float32)
    tl.store(out + begin[:, None] + columns[None, :], (values * scale).to(out.dtype.element_ty), inside)
