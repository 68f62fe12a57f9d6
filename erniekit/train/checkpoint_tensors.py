"""The tensors of a checkpoint that this process holds: weights or adapters, and the optimizer state."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from paddle import Tensor

from erniekit.checkpoint.host_copy import HostCopy
from erniekit.checkpoint.names import HubTensor, assemble, by_parameter, hub_tensors
from erniekit.checkpoint.optimizer_state import OptimizerState, part_name
from erniekit.checkpoint.weights import local_tensor
from erniekit.distributed.mesh import Mesh
from erniekit.lora.adapters import adapter_parameters
from erniekit.models.specs import is_expert_tensor
from erniekit.optim.adamw import STATES, AdamW
from erniekit.parallel.data_parallel import GradientReducer
from erniekit.parallel.flat_shard import TensorShard
from erniekit.parallel.tensor_stream import LocalTensor, TensorStream
from erniekit.train.forward_weights import ForwardWeights
from erniekit.train.model import PreparedModel

ShardOf = Callable[[str], TensorShard | None]


class CheckpointTensors:
    """Distributes the tensors of a checkpoint over the processes that write it. All processes call it together.

    adapters: save the adapters instead of all weights. shared: whether all processes write to one disk; if not, the
    main process writes everything.
    """

    def __init__(
        self,
        prepared: PreparedModel,
        optimizer: AdamW,
        mesh: Mesh,
        reducer: GradientReducer | None,
        *,
        adapters: bool,
        shared: bool,
    ) -> None:
        self._prepared, self._optimizer, self._mesh, self._reducer = prepared, optimizer, mesh, reducer
        self._adapters, self._shared = adapters, shared

    def weights(self) -> TensorStream:
        """The weights, or the adapters."""
        model, fully_sharded = self._prepared.model, self._prepared.fully_sharded
        values: dict[str, Tensor] = dict(model.named_parameters())
        shard_of: ShardOf = _no_shard
        if self._adapters:
            values = adapter_parameters(model)
        elif fully_sharded is not None:
            values |= fully_sharded.parts
            shard_of = fully_sharded.shard_of
        tensors = [tensor for tensor in hub_tensors(model) if tensor.parameter in values]
        # PEFT reads adapters from one file.
        to_main = self._adapters or not self._shared
        return TensorStream(self._mesh, _local_tensors(tensors, values, shard_of), to_main=to_main)

    def optimizer_state(self) -> TensorStream:
        """The state of the optimizer: with a shared disk, the part that this process holds."""
        tensors = _local_tensors(self.optimizer_tensors(), self._optimizer.state_tensors(), self.shard_of)
        if not self._shared:
            return TensorStream(self._mesh, tensors, to_main=True)
        return TensorStream(self._mesh, [part for tensor in tensors if (part := _own_part(tensor))])

    def optimizer_tensors(self) -> list[HubTensor]:
        """The tensors of the optimizer's state in a checkpoint, such as "lm_head.weight.moment1"."""
        own = self._optimizer.state_tensors()
        return [
            replace(tensor, name=f"{tensor.name}.{state}", parameter=f"{tensor.parameter}.{state}")
            for tensor in hub_tensors(self._prepared.model)
            for state in STATES
            if f"{tensor.parameter}.{state}" in own
        ]

    def forward_weights(self, copy: HostCopy) -> ForwardWeights | None:
        """What supplies a copy with sharded weights; None if none are saved, or the main process writes everything."""
        layers = self._prepared.fully_sharded
        if layers is None or self._adapters or not self._shared:
            return None
        return ForwardWeights(layers, hub_tensors(self._prepared.model), copy)

    def load_optimizer(self, checkpoint: Path, step: int) -> None:
        """Bring the optimizer to the state of a checkpoint. step: number of updates. Raises CheckpointError."""
        saved = OptimizerState(checkpoint)
        states = by_parameter(self.optimizer_tensors())
        whole = {part.name for parts in states.values() for part in parts}
        # The state of experts held by other processes is read there.
        others = [
            name
            for name in saved.names
            if name not in whole and (not is_expert_tensor(name) or self._mesh.expert.size == 1)
        ]
        names = set(saved.names)
        complete = [name for name, parts in states.items() if all(part.name in names for part in parts)]

        def read_part(part: HubTensor, start: int, stop: int) -> tuple[np.ndarray, str]:
            return saved.read(part.name, part.shape, start, stop)

        def read(name: str) -> np.ndarray:
            parts, shard = states[name], self.shard_of(name)
            if shard is not None:
                return assemble(parts, read_part, "F32", (shard.span.start, shard.span.stop))
            return assemble(parts, read_part, "F32", (0, parts[-1].stop)).reshape(own[name].shape)

        own = self._optimizer.state_tensors()
        self._optimizer.load_state(step, [*complete, *others], read)

    def shard_of(self, name: str) -> TensorShard | None:
        """The sharding of a tensor of the optimizer's state, such as "lm_head.weight.moment1"."""
        return None if self._reducer is None else self._reducer.shard_of(name.rpartition(".")[0])


def _local_tensors(
    tensors: Sequence[HubTensor], values: Mapping[str, Tensor], shard_of: ShardOf
) -> list[LocalTensor]:
    shards = {name: shard_of(name) for name in values}
    return [local_tensor(tensor, values[tensor.parameter], shards[tensor.parameter]) for tensor in tensors]


def _own_part(tensor: LocalTensor) -> LocalTensor | None:
    """The part of a tensor that only this process holds, as a tensor; None if it holds no element."""
    if tensor.shard is None:
        return tensor
    span = tensor.shard.span
    if not span.size:
        return None
    spec = replace(tensor.spec, name=part_name(tensor.spec.name, span.start, span.stop), shape=(span.size,))
    return LocalTensor(spec, tensor.values, tensor.start, unique=True)


def _no_shard(name: str) -> None:
    """The sharding of a parameter that every process holds."""
