"""How tokens reach their experts and come back. Parallel forms replace the dispatcher, nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import paddle
from paddle import Tensor

from erniekit.moe.router import Routing

# (tokens sorted by expert [n, hidden], tokens of each expert) -> [n, hidden] in the same order
ExpertCompute = Callable[[Tensor, list[int]], Tensor]
# -> [T, hidden] for the tokens of this process, which needs none of the routed experts
OverlapFn = Callable[[], Tensor]


class Dispatcher(Protocol):
    """Brings every token to its experts, lets `compute` run there, and returns the weighted sums."""

    def __call__(
        self,
        x: Tensor,
        routing: Routing,
        num_experts: int,
        compute: ExpertCompute,
        overlap_fn: OverlapFn | None = None,
    ) -> tuple[Tensor, Tensor]:
        """[T, hidden] -> combined outputs [T, hidden], and int64 [num_experts] tokens that chose each expert.

        What `overlap_fn` computes is added to the outputs; a parallel form calls it while tokens travel.
        """
        ...


class LocalDispatcher:
    """All experts on this device: sort the (token, expert) pairs by expert, compute, sort back, add up."""

    def __call__(
        self,
        x: Tensor,
        routing: Routing,
        num_experts: int,
        compute: ExpertCompute,
        overlap_fn: OverlapFn | None = None,
    ) -> tuple[Tensor, Tensor]:
        top_k = routing.experts.shape[1]
        flat = routing.experts.reshape([-1])
        order = paddle.argsort(flat, stable=True)
        counts = paddle.bincount(flat, minlength=num_experts)
        outputs = compute(paddle.index_select(x, order // top_k), counts.tolist())
        combined = combine(outputs, order, routing.weights)
        return combined if overlap_fn is None else combined + overlap_fn(), counts


def combine(outputs: Tensor, order: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums [T, hidden] of the outputs [T * k, hidden] of pairs that stand in `order`; weights [T, k].

    A product of [1, k] and [k, hidden] for each token: on CPU a tenth of the time of scaling and adding up, and in
    bfloat16 the sum is not rounded before its end.
    """
    pairs = paddle.index_select(outputs, paddle.argsort(order)).reshape([*weights.shape, outputs.shape[-1]])
    return paddle.matmul(weights.astype(outputs.dtype).unsqueeze(1), pairs).squeeze(1)
