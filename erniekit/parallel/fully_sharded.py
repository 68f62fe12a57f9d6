"""Decoder layers with sharded weights, which are gathered only while a layer is computed.

Rajbhandari et al., ZeRO, arXiv 1910.02054, section 5.3, with a decoder layer as the unit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from paddle import Tensor, nn

from erniekit.distributed.mesh import Mesh
from erniekit.models.ernie import ErnieModel
from erniekit.models.specs import is_router_tensor
from erniekit.parallel.flat_shard import (
    FlatShard,
    ShardSpan,
    ShardSpec,
    TensorShard,
    is_sharded,
    shard_buckets,
    tensor_shard,
)

# Returns this rank's values of a span, 1-D, in the dtype of the tensor.
ReadSpan = Callable[[ShardSpan], Tensor]


class FullyShardedLayers:
    """Shards of the weights of a model's decoder layers, except for routers.

    Dense weights are sharded over all processes, experts over their replicas if there are several. Embeddings, vision
    tower, head and routers are complete on every rank: they are not computed at the same time on all ranks, as the
    vision tower is not computed for a row without images.
    """

    lowest: int
    """The lowest layer with a backward pass: none below it is prefetched there."""
    on_gather: Callable[[Mapping[str, Tensor]], None] | None
    """Called with the complete weights of a layer before its forward and its backward pass, and before the weights of
    the next layer take memory. They do not change."""

    def __init__(self, model: ErnieModel, mesh: Mesh, read: ReadSpan) -> None:
        """model: created under `paddle.LazyGuard`, with layers that have no values yet; `read` returns them."""
        self.lowest = 0
        self.on_gather = None
        self._layers: list[nn.Layer] = list(model.model.layers)
        weights = _weights(model, mesh)
        self._shards = [_read(named, mesh, read) for named in weights]
        self._empty = {name: parameter for named in weights for name, parameter in named.items()}
        self._slots: list[list[tuple[dict[str, Tensor], str, str]]] | None = None
        self._gathered: dict[int, dict[str, Tensor]] = {}
        self._prefetched: dict[int, list[Callable[[], dict[str, Tensor]]]] = {}

    @property
    def names(self) -> set[str]:
        """The names of the sharded parameters."""
        return set(self._empty)

    @property
    def parts(self) -> dict[str, Tensor]:
        """This process's values of every sharded parameter."""
        return {name: part for shard in self.all_shards for name, part in shard.parts.items()}

    def shard_of(self, name: str) -> TensorShard | None:
        """The sharding of a parameter; None if it is not sharded."""
        return next((tensor_shard(shard, name) for shard in self.all_shards if name in shard.parts), None)

    @property
    def num_layers(self) -> int:
        """Number of layers."""
        return len(self._layers)

    @property
    def all_shards(self) -> list[FlatShard]:
        """The shards of all layers."""
        return [shard for of_layer in self._shards for shard in of_layer]

    def shards(self, number: int) -> list[FlatShard]:
        """The shards of one layer."""
        return self._shards[number]

    def enter(self, number: int, *, backward: bool) -> None:
        """Gather the weights of a layer, and prefetch the next layer. See `erniekit.models.layer_runner.LayerHooks`."""
        waits = self._prefetched.pop(number, None) or self._start_all_gather(number)
        gathered = _wait(waits)
        if self.on_gather is not None:
            self.on_gather(gathered)
        next_number = number - 1 if backward else number + 1
        first = self.lowest if backward else 0
        if first <= next_number < len(self._layers) and next_number not in self._prefetched:
            self._prefetched[next_number] = self._start_all_gather(next_number)
        for name, tensor in gathered.items():
            tensor.stop_gradient = self._empty[name].stop_gradient
        self._gathered[number] = gathered
        for parameters, key, name in self._layer_slots(number):
            parameters[key] = gathered[name]

    def _start_all_gather(self, number: int) -> list[Callable[[], dict[str, Tensor]]]:
        return [shard.start_all_gather() for shard in self._shards[number]]

    def gather(self, number: int) -> dict[str, Tensor]:
        """The complete weights of a layer. All ranks call this."""
        return _wait(self._start_all_gather(number))

    def leave(self, number: int) -> None:
        """Free the gathered weights of a layer."""
        for parameters, key, name in self._layer_slots(number):
            parameters[key] = self._empty[name]
        del self._gathered[number]

    def done(self, number: int) -> None:
        """Does nothing: `gradients` returns the gradients on request."""

    def gradients(self, number: int) -> Mapping[str, Tensor | None]:
        """The gradient of each weight of a layer; between `enter` and `leave`."""
        return {name: tensor.grad for name, tensor in self._gathered[number].items()}

    def _layer_slots(self, number: int) -> list[tuple[dict[str, Tensor], str, str]]:
        """The slots of the weights of a layer: a module's table of parameters, the key in it, and the weight's name."""
        if self._slots is None:
            # On first use, since adapters move weights to other modules after the constructor.
            names = {id(parameter): name for name, parameter in self._empty.items()}
            self._slots = [
                [
                    (module._parameters, key, names[id(parameter)])
                    for module in layer.sublayers(include_self=True)
                    for key, parameter in module._parameters.items()
                    if id(parameter) in names
                ]
                for layer in self._layers
            ]
        return self._slots[number]


def _wait(waits: Sequence[Callable[[], dict[str, Tensor]]]) -> dict[str, Tensor]:
    return {name: tensor for wait in waits for name, tensor in wait().items()}


def is_fully_sharded(name: str) -> bool:
    """Whether a parameter may be sharded: it is in a decoder layer, and neither a router nor an adapter."""
    return name.startswith("model.layers.") and not is_router_tensor(name) and ".lora_" not in name


def _weights(model: ErnieModel, mesh: Mesh) -> list[dict[str, Tensor]]:
    """The weights to shard of each decoder layer."""
    weights: list[dict[str, Tensor]] = []
    for number, layer in enumerate(model.model.layers):
        named = ((f"model.layers.{number}.{name}", p) for name, p in layer.named_parameters())
        weights.append({name: p for name, p in named if is_fully_sharded(name) and is_sharded(name, mesh)})
    return weights


def _read(named: Mapping[str, Tensor], mesh: Mesh, read: ReadSpan) -> list[FlatShard]:
    """This process's shards of the weights of one layer, one for each bucket."""
    shards = []
    for group, bucket in shard_buckets(named, mesh):
        shapes = {name: parameter.shape for name, parameter in bucket.items()}
        spans = ShardSpec(shapes, group.size).spans(group.rank)
        shards.append(FlatShard(group, shapes, {span.name: read(span) for span in spans}))
    return shards
