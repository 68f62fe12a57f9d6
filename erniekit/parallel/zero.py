"""ZeRO: optimizer state, gradients and weights sharded over processes.

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
from erniekit.kernels.adamw import accumulate, squared_norm
from erniekit.models.layer_runner import LayerHooks
from erniekit.models.specs import is_router_tensor
from erniekit.parallel.data_parallel import (
    REST,
    BackwardHook,
    Gradients,
    Named,
    by_layer,
    reduce_gradients,
)
from erniekit.parallel.flat_shard import FlatShard, TensorShard, is_sharded, shard_buckets, tensor_shard
from erniekit.parallel.fully_sharded import FullyShardedLayers


class ZeroReducer:
    """Every process holds the optimizer state of a shard of each parameter, and updates that shard alone.

    shard: with "optimizer", gradients stay complete until the last row. With "gradients", the gradients of a layer are
    reduce-scattered when its backward pass is done. With "parameters", the weights of layers are sharded as well, in
    `fully_sharded`. Routers are never sharded, since losses and statistics use them, and neither are experts without
    replicas. parameters: the tensors that the optimizer updates, 1-D shards or complete parameters; shapes: the shapes
    of the complete tensors. See `erniekit.parallel.data_parallel.GradientReducer`.
    """

    def __init__(
        self, mesh: Mesh, trained: Named, shard: Shard, fully_sharded: FullyShardedLayers | None = None
    ) -> None:
        self._mesh, self._stage, self._fully_sharded = mesh, shard, fully_sharded
        self._trained = dict(trained)
        self._unsharded = [name for name in self._trained if not is_sharded(name, mesh)]
        self._unsharded_by_layer = by_layer(self._unsharded)
        names = fully_sharded.names if fully_sharded is not None else set()
        self._shards = _shards_by_layer(
            mesh, [(n, p) for n, p in trained if n not in names | set(self._unsharded)]
        )
        shards = [shard for of_layer in self._shards.values() for shard in of_layer]
        shards += fully_sharded.all_shards if fully_sharded is not None else []
        self._shard_by_name = {
            name: found for found in shards for name in found.parts if name in self._trained
        }
        self.hooks: LayerHooks = BackwardHook(self._layer_done, fully_sharded)
        self.shapes: Mapping[str, Sequence[int]] = {
            name: self._shard_by_name[name].spec.shapes[name]
            if name in self._shard_by_name
            else tuple(parameter.shape)
            for name, parameter in trained
        }
        self.parameters: Named = [
            (name, self._shard_by_name[name].parts[name] if name in self._shard_by_name else parameter)
            for name, parameter in trained
        ]
        # Complete gradients in float32, of parameters of another dtype.
        self._upcast_gradients: dict[str, Tensor] = {}
        # This rank's shards of the reduced gradients, float32.
        self._reduced: dict[str, Tensor] = {}
        # Reduce-scatters in flight, of the layer before the current one in the backward pass.
        self._pending: list[Callable[[], dict[str, Tensor]]] = []
        self._optimizer: Gradients | None = None
        self._last = False

    def begin_row(self, optimizer: Gradients, *, last: bool) -> None:
        self._optimizer, self._last = optimizer, last

    @paddle.no_grad()
    def end_row(self) -> None:
        assert self._optimizer is not None
        self._optimizer.collect_gradients(self._unsharded)
        if self._stage == "optimizer":
            self._upcast(REST)
        else:
            self._reduce_scatter_async(REST)

    @paddle.no_grad()
    def reduce(self) -> None:
        assert self._optimizer is not None
        if self._stage == "optimizer":
            self._reduce_scatter_async(REST)
        self._wait()
        for name in list(self._reduced):
            self._optimizer.add_gradient(name, self._reduced.pop(name))
        reduce_gradients(self._mesh, self._optimizer.named_gradients(self._unsharded))()

    @paddle.no_grad()
    def norm(self) -> float:
        assert self._optimizer is not None
        named = self._optimizer.named_gradients()
        # Every process has the same routers; no other process has the rest.
        parts = squared_norm([gradient for name, gradient in named if not is_router_tensor(name)])
        routers = squared_norm([gradient for name, gradient in named if is_router_tensor(name)])
        return math.sqrt(float(all_reduce_host(np.array([parts]), self._mesh.world)[0]) + routers)

    @paddle.no_grad()
    def all_gather_params(self) -> None:
        for shards in self._shards.values():
            for shard in shards:
                for name, tensor in shard.all_gather().items():
                    paddle.assign(tensor, output=self._trained[name])

    def shard_of(self, name: str) -> TensorShard | None:
        return tensor_shard(self._shard_by_name[name], name) if name in self._shard_by_name else None

    @paddle.no_grad()
    def _layer_done(self, number: int) -> None:
        assert self._optimizer is not None
        self._optimizer.collect_gradients(self._unsharded_by_layer.get(number, ()))
        if self._stage == "optimizer" and not self._last:
            self._upcast(number)
            return
        self._wait()
        self._reduce_scatter_async(number)
        if self._fully_sharded is not None:
            gradients = self._fully_sharded.gradients(number)
            for shard in self._fully_sharded.shards(number):
                if not self._trained.keys().isdisjoint(shard.parts):
                    self._pending.append(shard.start_reduce_scatter(gradients))

    def _reduce_scatter_async(self, number: int) -> None:
        """Start the reduce-scatter of the gradients of a layer, except for fully sharded weights, and free them."""
        for shard in self._shards.get(number, ()):
            self._pending.append(
                shard.start_reduce_scatter({name: self._gradient(name) for name in shard.parts})
            )
            for name in shard.parts:
                self._upcast_gradients.pop(name, None)
                self._trained[name].clear_gradient(False)

    def _wait(self) -> None:
        """Wait for the reduce-scatters in flight, and add up their results."""
        for wait in self._pending:
            for name, reduced in wait().items():
                if name in self._reduced:
                    self._reduced[name].add_(reduced)
                elif name in self._trained:
                    self._reduced[name] = reduced
        self._pending.clear()

    def _gradient(self, name: str) -> Tensor | None:
        """The complete gradient over the rows since its last reduce-scatter."""
        gradient, upcast = self._trained[name].grad, self._upcast_gradients.get(name)
        if upcast is None or gradient is None:
            return upcast if gradient is None else gradient
        return upcast.add_(gradient.astype("float32"))

    def _upcast(self, number: int) -> None:
        """Add gradients of a layer that are not float32 to float32 sums: in bfloat16, the sum would lose the gradient
        of a row."""
        names = [name for shard in self._shards.get(number, ()) for name in shard.parts]
        found = {name: self._trained[name].grad for name in names}
        found = {
            name: gradient
            for name, gradient in found.items()
            if gradient is not None and gradient.dtype != paddle.float32
        }
        sums = accumulate([self._upcast_gradients.get(name) for name in found], list(found.values()))
        self._upcast_gradients.update(zip(found, sums, strict=True))
        for name in found:
            self._trained[name].clear_gradient(False)


def _shards_by_layer(mesh: Mesh, parameters: Named) -> dict[int, list[FlatShard]]:
    """Shards of parameters by the number of their layer, one for each bucket."""
    shards: dict[int, list[FlatShard]] = {}
    tensors = dict(parameters)
    for number, names in by_layer(tensors).items():
        buckets = shard_buckets({name: tensors[name] for name in names}, mesh)
        shards[number] = [FlatShard.of(group, bucket) for group, bucket in buckets]
    return shards
