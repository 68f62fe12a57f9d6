"""How tokens reach their experts and come back. Parallel forms replace the dispatcher, nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import paddle
from paddle import Tensor

from erniekit.moe.router import Routing

# (tokens sorted by expert [n, hidden], tokens of each expert) -> [n, hidden] in the same order
ExpertCompute = Callable[[Tensor, list[int]], Tensor]


class Dispatcher(Protocol):
    """Brings every token to its experts, lets `compute` run there, and returns the weighted sums."""

    def __call__(
        self, x: Tensor, routing: Routing, num_experts: int, compute: ExpertCompute
    ) -> tuple[Tensor, Tensor]:
        """[T, hidden] -> combined outputs [T, hidden], and int64 [num_experts] tokens that chose each expert."""
        ...


class LocalDispatcher:
    """All experts on this device: sort the (token, expert) pairs by expert, compute, sort back, add up."""

    def __call__(
        self, x: Tensor, routing: Routing, num_experts: int, compute: ExpertCompute
    ) -> tuple[Tensor, Tensor]:
        """See `Dispatcher`."""
        top_k = routing.experts.shape[1]
        flat = routing.experts.reshape([-1])
        order = paddle.argsort(flat, stable=True)
        counts = paddle.bincount(flat, minlength=num_experts)
        outputs = compute(paddle.index_select(x, order // top_k), counts.tolist())
        outputs = paddle.index_select(outputs, paddle.argsort(order))
        pairs = outputs.reshape([-1, top_k, x.shape[-1]])
        return (pairs * routing.weights.astype(x.dtype).unsqueeze(-1)).sum(1), counts
