"""Weights for a checkpoint that the next forward pass gathers."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from paddle import Tensor

from erniekit.checkpoint.host_copy import HostCopy
from erniekit.checkpoint.names import HubTensor, by_parameter
from erniekit.checkpoint.weights import local_tensor
from erniekit.parallel.fully_sharded import FullyShardedLayers
from erniekit.parallel.tensor_stream import CompleteTensor


class ForwardWeights:
    """Supplies a copy with the weights of sharded layers that it awaits.

    The forward pass that follows a save gathers every layer, with the same weights, beside its computation. So the save
    gathers nothing, unless no forward pass follows.
    """

    def __init__(self, layers: FullyShardedLayers, tensors: Sequence[HubTensor], copy: HostCopy) -> None:
        """tensors: of the whole model."""
        self._layers, self._copy = layers, copy
        self._tensors = by_parameter(tensor for tensor in tensors if tensor.parameter in layers.names)
        self._seconds = 0.0

    def begin(self) -> None:
        """Supply the copy that has just started, layer by layer."""
        self._seconds = 0.0
        self._layers.on_gather = self._supply_in_pass

    def gather_rest(self) -> None:
        """Gather all layers, of which some have not come. All processes call this."""
        for number in range(self._layers.num_layers):
            self._supply(self._layers.gather(number))

    def take_seconds(self) -> float:
        """How long passes have waited, since this was last called or a copy has started."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    def _supply_in_pass(self, gathered: Mapping[str, Tensor]) -> None:
        started = time.perf_counter()
        if not self._copy.awaited:
            self._layers.on_gather = None
        self._supply(gathered)
        self._seconds += time.perf_counter() - started

    def _supply(self, gathered: Mapping[str, Tensor]) -> None:
        awaited = [
            local_tensor(tensor, values)
            for name, values in gathered.items()
            for tensor in self._tensors[name]
            if tensor.name in self._copy.awaited
        ]
        self._copy.supply(CompleteTensor(tensor.spec, tensor.values, tensor.start) for tensor in awaited)
