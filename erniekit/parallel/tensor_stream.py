"""Which process writes which tensor of a checkpoint, and bringing its complete values there."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import paddle
from paddle import Tensor

from erniekit.distributed.collectives import all_gather, all_gather_uneven, broadcast_, gather_uneven
from erniekit.distributed.mesh import Mesh
from erniekit.models.specs import TensorSpec, is_expert_tensor
from erniekit.parallel.flat_shard import TensorShard


@dataclass(frozen=True)
class LocalTensor:
    """A tensor as this process holds it. `spec` is of the complete tensor.

    read: returns the complete values, or with `shard` this process's part of them, 1-D, in the memory that training
    uses. unique: no other process holds these values.
    """

    spec: TensorSpec
    read: Callable[[], Tensor]
    shard: TensorShard | None = None
    unique: bool = False


class CompleteTensor(NamedTuple):
    """A tensor that this process writes. is_live: the values are memory that training uses, not a copy."""

    spec: TensorSpec
    values: Tensor
    is_live: bool


class TensorStream:
    """The tensors that this process writes, complete, one at a time.

    Each tensor is written by one of the processes that hold it, so that they share the work; with `to_main` the main
    process writes all of them. All processes create a stream together, each with the tensors that it holds in
    the model's order, and iterate over it together to the end: sharded tensors are gathered on the way.
    """

    def __init__(self, mesh: Mesh, tensors: Sequence[LocalTensor], *, to_main: bool = False) -> None:
        self._mesh = mesh
        self._tensors = {tensor.spec.name: tensor for tensor in tensors}
        # The rank inside the expert-parallel group that sends a tensor to the main process.
        self._senders: dict[str, int] = {}
        # The rank that writes a sharded tensor, inside the group that shares it; unknown with `to_main`.
        self._writers: dict[str, int] = {}
        if to_main:
            self._order = self._all_specs()
            self.specs = self._order if mesh.is_main else []
        else:
            self._order = [tensor.spec for tensor in tensors]
            self.specs = self._own_share()
        self._own = {spec.name for spec in self.specs}

    def __iter__(self) -> Iterator[CompleteTensor]:
        for spec in self._order:
            tensor = self._tensors.get(spec.name)
            complete = None if tensor is None else self._complete(tensor)
            is_live = tensor is not None and tensor.shard is None
            if spec.name in self._senders:
                complete, is_live = self._to_main(spec, complete), False
            if spec.name in self._own and complete is not None:
                yield CompleteTensor(spec, complete, is_live)

    def _own_share(self) -> list[TensorSpec]:
        """The tensors that this process writes: each goes to the holder that has the fewest elements so far."""
        mesh, own = self._mesh, []
        elements: dict[tuple[int, ...], list[int]] = {}
        for tensor in self._tensors.values():
            spec = tensor.spec
            group = mesh.replicas if is_expert_tensor(spec.name) else mesh.world
            if tensor.unique or group.size == 1:
                own.append(spec)
                continue
            loads = elements.setdefault(group.ranks, [0] * group.size)
            writer = loads.index(min(loads))
            loads[writer] += spec.size
            if tensor.shard is not None and tensor.shard.group.ranks == group.ranks:
                self._writers[spec.name] = writer
            if writer == group.rank:
                own.append(spec)
        return own

    def _all_specs(self) -> list[TensorSpec]:
        """The tensors of one model replica, over all processes that share its experts."""
        specs: dict[str, TensorSpec] = {}
        for rank, held in enumerate(self._all_gather_specs()):
            for spec in held:
                if spec.name not in specs:
                    specs[spec.name] = spec
                    if rank:
                        self._senders[spec.name] = rank
        return list(specs.values())

    def _complete(self, tensor: LocalTensor) -> Tensor | None:
        """The values of a tensor, where they are wanted."""
        writer = self._writers.get(tensor.spec.name)
        if tensor.shard is None:
            return tensor.read()
        shard = tensor.shard
        if writer is None:
            values = all_gather_uneven(tensor.read(), shard.counts, shard.group)
        else:
            values = gather_uneven(tensor.read(), shard.counts, writer, shard.group)
        return None if values is None else values.reshape(list(shard.shape))

    def _to_main(self, spec: TensorSpec, complete: Tensor | None) -> Tensor | None:
        """Send a tensor that the main process does not hold to it, inside its expert-parallel group."""
        group, sender = self._mesh.expert, self._senders[spec.name]
        if 0 not in group.ranks:
            return None
        if group.rank == sender and complete is not None:
            buffer = complete.detach().clone()
        else:
            buffer = paddle.empty(list(spec.shape), _PADDLE_TYPES[spec.dtype])
        broadcast_(buffer, sender, group)
        return buffer

    def _all_gather_specs(self) -> list[list[TensorSpec]]:
        """The specs of the tensors of each process of the expert-parallel group."""
        group, own = self._mesh.expert, [tensor.spec for tensor in self._tensors.values()]
        text = json.dumps([(spec.name, spec.dtype, spec.shape) for spec in own]).encode()
        encoded = paddle.to_tensor(np.frombuffer(text, np.uint8).astype(np.int32))
        counts = all_gather(paddle.to_tensor([len(text)], dtype="int64"), group).tolist()
        gathered = all_gather_uneven(encoded, counts, group).numpy().astype(np.uint8).tobytes()
        specs, offset = [], 0
        for count in counts:
            fields = json.loads(gathered[offset : offset + count])
            specs.append([TensorSpec(name, dtype, tuple(shape)) for name, dtype, shape in fields])
            offset += count
        return specs


_PADDLE_TYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "I64": "int64"}
