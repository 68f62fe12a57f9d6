"""Moves tokens to their experts and back. Expert parallelism only replaces the dispatcher."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from paddle import Tensor

from erniekit.kernels.grouped_gemm import ExpertRows
from erniekit.kernels.permute import permute, sort_by_expert, unpermute
from erniekit.moe.router import Routing

# (tokens sorted by modality, then by expert [n, hidden], the rows of each modality) -> outputs [n, hidden]
ExpertCompute = Callable[[Tensor, Sequence[ExpertRows | None]], Tensor]
# -> [T, hidden]: computation that does not depend on the routed experts, such as the shared experts
OverlapFn = Callable[[], Tensor]


class Dispatcher(Protocol):
    """Moves every token to its experts, calls `compute` there, and returns the weighted sums."""

    def __call__(
        self,
        x: Tensor,
        routing: Routing,
        num_experts: int,
        compute: ExpertCompute,
        overlap_fn: OverlapFn | None = None,
    ) -> tuple[Tensor, Tensor]:
        """[T, hidden] -> combined outputs [T, hidden], and the number of tokens of each expert, int64 [num_experts].

        The result of `overlap_fn` is added to the outputs. A parallel form calls it while tokens are being exchanged.
        """
        ...


class LocalDispatcher:
    """All experts on this device: sort the (token, expert) pairs by expert, compute, restore the order, sum.

    Indices are computed on the device: the host only knows the number of tokens of each modality.
    """

    def __call__(
        self,
        x: Tensor,
        routing: Routing,
        num_experts: int,
        compute: ExpertCompute,
        overlap_fn: OverlapFn | None = None,
    ) -> tuple[Tensor, Tensor]:
        order, slots, offsets = sort_by_expert(routing.experts, num_experts)
        top_k = routing.experts.shape[1]
        sizes = [tokens * top_k for tokens in routing.tokens]
        outputs = compute(permute(x, order, slots), expert_rows(offsets, sizes))
        combined = unpermute(outputs, order, slots, routing.weights)
        counts = (offsets[1:] - offsets[:-1]).astype("int64")
        return combined if overlap_fn is None else combined + overlap_fn(), counts


def expert_rows(offsets: Tensor, sizes: Sequence[int]) -> list[ExpertRows | None]:
    """The rows of each modality, given their numbers and the offsets of all experts, int32 [modalities * E + 1]."""
    experts = (offsets.shape[0] - 1) // len(sizes)
    rows: list[ExpertRows | None] = []
    start = 0
    for modality, size in enumerate(sizes):
        own = offsets[modality * experts : (modality + 1) * experts + 1]
        rows.append(ExpertRows(own - start if start else own, size) if size else None)
        start += size
    return rows
