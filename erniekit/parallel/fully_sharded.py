"""Decoder layers whose weights are spread over processes, and whole only while a layer is computed.

Rajbhandari et al., ZeRO, arXiv 1910.02054, section 5.3, with a decoder layer as the unit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

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

# Gives this rank's values of a tensor's span, 1-D, in the tensor's element type.
ReadSpan = Callable[[ShardSpan], Tensor]


class FullyShardedLayers:
    """The weights of a model's decoder layers, but for routers: each rank keeps a part.

    What is dense is spread over all processes, an expert over those that have it, where there are several. Embeddings,
    vision tower, head and routers are whole everywhere: a row without pictures, say, would not know when to fetch the
    tower for others.
    """

    def __init__(self, model: ErnieModel, mesh: Mesh, read: ReadSpan) -> None:
        """model: made under `paddle.LazyGuard`, its layers without values; `read` gives them."""
        self._layers: list[nn.Layer] = list(model.model.layers)
        weights = _weights(model, mesh)
        self._shards = [_read(named, mesh, read) for named in weights]
        self._empty = {name: parameter for named in weights for name, parameter in named.items()}
        self._places: list[list[tuple[dict[str, Tensor], str, str]]] | None = None
        self._bound: dict[int, dict[str, Tensor]] = {}
        self._coming: dict[int, list[Callable[[], dict[str, Tensor]]]] = {}

    @property
    def names(self) -> set[str]:
        """The parameters that are kept here."""
        return set(self._empty)

    @property
    def parts(self) -> dict[str, Tensor]:
        """This process's values of every parameter that is kept here."""
        return {name: part for one in self.everything for name, part in one.parts.items()}

    def shard_of(self, name: str) -> TensorShard | None:
        """How a parameter is spread; None: it is not kept here."""
        return next((tensor_shard(one, name) for one in self.everything if name in one.parts), None)

    @property
    def everything(self) -> list[FlatShard]:
        """Those of all layers."""
        return [one for buckets in self._shards for one in buckets]

    def shards(self, number: int) -> list[FlatShard]:
        """Those of one layer."""
        return self._shards[number]

    def enter(self, number: int, *, backward: bool) -> None:
        """Give a layer its weights, and send for those of the next. See `erniekit.models.layer_runner.LayerHooks`."""
        coming = self._coming.pop(number, None) or self._send_for(number)
        whole = {name: tensor for wait in coming for name, tensor in wait().items()}
        following = number - 1 if backward else number + 1
        if 0 <= following < len(self._layers) and following not in self._coming:
            self._coming[following] = self._send_for(following)
        for name, tensor in whole.items():
            tensor.stop_gradient = self._empty[name].stop_gradient
        self._bound[number] = whole
        for owner, key, name in self._of(number):
            owner[key] = whole[name]

    def _send_for(self, number: int) -> list[Callable[[], dict[str, Tensor]]]:
        return [shards.start_gather() for shards in self._shards[number]]

    def leave(self, number: int) -> None:
        """Take a layer's weights away."""
        for owner, key, name in self._of(number):
            owner[key] = self._empty[name]
        del self._bound[number]

    def done(self, number: int) -> None:
        """Nothing: whose gradients are wanted asks for them."""

    def gradients(self, number: int) -> Mapping[str, Tensor | None]:
        """Between `enter` and `leave`: the gradient of each weight of a layer."""
        return {name: tensor.grad for name, tensor in self._bound[number].items()}

    def _of(self, number: int) -> list[tuple[dict[str, Tensor], str, str]]:
        """Where the weights of a layer belong: the modules' own tables, the key in them, and the name."""
        if self._places is None:
            # Not before the first use: adapters move weights to other modules.
            names = {id(parameter): name for name, parameter in self._empty.items()}
            self._places = [
                [
                    (module._parameters, key, names[id(parameter)])
                    for module in layer.sublayers(include_self=True)
                    for key, parameter in module._parameters.items()
                    if id(parameter) in names
                ]
                for layer in self._layers
            ]
        return self._places[number]


def is_fully_sharded(name: str) -> bool:
    """Whether a parameter may be kept in parts: of a decoder layer, but neither a router nor an adapter."""
    return name.startswith("model.layers.") and not is_router_tensor(name) and ".lora_" not in name


def _weights(model: ErnieModel, mesh: Mesh) -> list[dict[str, Tensor]]:
    """Those of each decoder layer that are to be kept in parts."""
    found: list[dict[str, Tensor]] = []
    for number, layer in enumerate(model.model.layers):
        named = ((f"model.layers.{number}.{name}", p) for name, p in layer.named_parameters())
        found.append({name: p for name, p in named if is_fully_sharded(name) and is_sharded(name, mesh)})
    return found


def _read(named: Mapping[str, Tensor], mesh: Mesh, read: ReadSpan) -> list[FlatShard]:
    """This process's parts of one layer's weights, in portions that travel together."""
    found = []
    for group, bucket in shard_buckets(named, mesh):
        shapes = {name: parameter.shape for name, parameter in bucket.items()}
        spans = ShardSpec(shapes, group.size).spans(group.rank)
        found.append(FlatShard(group, shapes, {span.name: read(span) for span in spans}))
    return found
