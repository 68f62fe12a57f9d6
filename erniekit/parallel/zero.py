"""Optimizer state, gradients and weights spread over processes.

Rajbhandari et al., ZeRO, arXiv 1910.02054: "optimizer" is its stage 1, "gradients" stage 2, "parameters" stage 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import paddle
from paddle import Tensor

from erniekit.config.choices import Shard
from erniekit.distributed.collectives import all_reduce_host
from erniekit.distributed.mesh import Mesh
from erniekit.models.layer_runner import LayerHooks
from erniekit.models.specs import is_router_tensor
from erniekit.parallel.data_parallel import (
    REST,
    BackwardHook,
    Gradients,
    Named,
    by_layer,
    reduce_gradients,
    squared_norm,
)
from erniekit.parallel.flat_shard import FlatShard, TensorShard, is_sharded, shard_buckets, tensor_shard
from erniekit.parallel.fully_sharded import FullyShardedLayers


class ZeroReducer:
    """Every process has the optimizer's state of a part of each parameter, and steps with that part alone.

    shard: "optimizer": gradients are whole until the last row; from "gradients" on those of a layer are given away when
    its backward pass is done; with "parameters" so are the weights of layers, which are `stored`. Routers, at which
    losses and statistics look, stay whole throughout, and so do experts that no other process has. parameters: the
    parts that the optimizer updates, 1-D, and what stays whole; shapes: those of the whole tensors. See
    `erniekit.parallel.data_parallel.GradientReducer`.
    """

    def __init__(
        self, mesh: Mesh, trained: Named, shard: Shard, fully_sharded: FullyShardedLayers | None = None
    ) -> None:
        self._mesh, self._shard, self._fully_sharded = mesh, shard, fully_sharded
        self._trained = dict(trained)
        self._unshared = [name for name in self._trained if not is_sharded(name, mesh)]
        kept = fully_sharded.names if fully_sharded is not None else set()
        self._whole = _portions(mesh, [(n, p) for n, p in trained if n not in kept | set(self._unshared)])
        everything = [one for buckets in self._whole.values() for one in buckets]
        everything += fully_sharded.everything if fully_sharded is not None else []
        self._holder = {name: one for one in everything for name in one.parts if name in self._trained}
        self.hooks: LayerHooks = BackwardHook(self._layer_done, fully_sharded)
        self.shapes: Mapping[str, Sequence[int]] = {
            name: self._holder[name].partition.shapes[name]
            if name in self._holder
            else tuple(parameter.shape)
            for name, parameter in trained
        }
        self.parameters: Named = [
            (name, self._holder[name].parts[name] if name in self._holder else parameter)
            for name, parameter in trained
        ]
        self._wide: dict[str, Tensor] = {}
        self._sums: dict[str, Tensor] = {}
        # Sums that are under way, of the layer before the one that is computed.
        self._coming: list[Callable[[], dict[str, Tensor]]] = []
        self._optimizer: Gradients | None = None
        self._last = False

    def begin_row(self, optimizer: Gradients, *, last: bool) -> None:
        self._optimizer, self._last = optimizer, last

    @paddle.no_grad()
    def end_row(self) -> None:
        assert self._optimizer is not None
        self._optimizer.collect_gradients(self._unshared)
        if self._shard == "optimizer":
            self._upcast()
        else:
            self._reduce_scatter_async(REST)

    @paddle.no_grad()
    def reduce(self) -> None:
        assert self._optimizer is not None
        if self._shard == "optimizer":
            self._reduce_scatter_async(REST)
        self._wait()
        for name in list(self._sums):
            self._optimizer.add_gradient(name, self._sums.pop(name))
        reduce_gradients(self._mesh, self._optimizer.named_gradients(self._unshared))()

    @paddle.no_grad()
    def norm(self) -> float:
        assert self._optimizer is not None
        named = self._optimizer.named_gradients()
        # Every process has the same routers; all else is here alone.
        parts = squared_norm([gradient for name, gradient in named if not is_router_tensor(name)])
        routers = squared_norm([gradient for name, gradient in named if is_router_tensor(name)])
        return math.sqrt(float(all_reduce_host(np.array([parts]), self._mesh.world)[0]) + routers)

    @paddle.no_grad()
    def all_gather_params(self) -> None:
        for buckets in self._whole.values():
            for one in buckets:
                for name, tensor in one.gather().items():
                    paddle.assign(tensor, output=self._trained[name])

    def shard_of(self, name: str) -> TensorShard | None:
        return tensor_shard(self._holder[name], name) if name in self._holder else None

    @paddle.no_grad()
    def _layer_done(self, number: int) -> None:
        if self._shard == "optimizer" and not self._last:
            return
        self._wait()
        self._reduce_scatter_async(number)
        if self._fully_sharded is not None:
            gradients = self._fully_sharded.gradients(number)
            for one in self._fully_sharded.shards(number):
                if not self._trained.keys().isdisjoint(one.parts):
                    self._coming.append(one.start_sum(gradients))

    def _reduce_scatter_async(self, number: int) -> None:
        """Begin to add up the gradients of whole parameters of a layer; of the sums this process keeps its part."""
        for one in self._whole.get(number, ()):
            self._coming.append(one.start_sum({name: self._gradient(name) for name in one.parts}))
            for name in one.parts:
                self._wide.pop(name, None)
                self._trained[name].clear_gradient(False)

    def _wait(self) -> None:
        """Wait for the sums that are under way."""
        for wait in self._coming:
            for name, total in wait().items():
                if name in self._sums:
                    self._sums[name].add_(total)
                elif name in self._trained:
                    self._sums[name] = total
        self._coming.clear()

    def _gradient(self, name: str) -> Tensor | None:
        """A whole gradient, over the rows since the last time that it was given away."""
        gradient, wide = self._trained[name].grad, self._wide.get(name)
        if wide is None or gradient is None:
            return wide if gradient is None else gradient
        return wide.add_(gradient.astype("float32"))

    def _upcast(self) -> None:
        """Move gradients of other types than float32 into float32 sums: theirs would lose what single rows add."""
        for buckets in self._whole.values():
            for name in (name for one in buckets for name in one.parts):
                gradient = self._trained[name].grad
                if gradient is not None and gradient.dtype != paddle.float32:
                    wide = gradient.astype("float32")
                    self._wide[name] = self._wide[name].add_(wide) if name in self._wide else wide
                    self._trained[name].clear_gradient(False)


def _portions(mesh: Mesh, parameters: Named) -> dict[int, list[FlatShard]]:
    """Whole parameters by layer, in portions that travel together."""
    found: dict[int, list[FlatShard]] = {}
    tensors = dict(parameters)
    for number, names in by_layer(tensors).items():
        buckets = shard_buckets({name: tensors[name] for name in names}, mesh)
        found[number] = [FlatShard.of(group, bucket) for group, bucket in buckets]
    return found
