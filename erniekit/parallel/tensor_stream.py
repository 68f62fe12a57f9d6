"""Which process writes which tensor of a checkpoint, and bringing its complete values there."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
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

    Its elements, or with `shard` this process's part of them, follow each other in `values` from `start` on, in
    row-major order. unique: no other process holds them.
    """

    spec: TensorSpec
    values: Tensor
    start: int = 0
    shard: TensorShard | None = None
    unique: bool = False

    def read(self) -> Tensor:
        """The elements as a tensor, with `shard` 1-D, in the memory of `values`."""
        return view(
            self.values, self.start, self.spec.shape if self.shard is None else (self.shard.span.size,)
        )


class CompleteTensor(NamedTuple):
    """A tensor that this process writes: the elements of `values` from `start` on.

    is_live: `values` is in use by training, and not a copy.
    """

    spec: TensorSpec
    values: Tensor
    start: int = 0
    is_live: bool = True

    def read(self) -> Tensor:
        """The elements as a tensor, in the memory of `values`."""
        return view(self.values, self.start, self.spec.shape)


class AwaitedTensor(NamedTuple):
    """A tensor that this process writes; its complete values come later."""

    spec: TensorSpec


def view(values: Tensor, start: int, shape: Sequence[int]) -> Tensor:
    """Elements of a tensor from `start` on, in row-major order, without a copy (but in bfloat16 on a CPU)."""
    values, size = values.detach(), math.prod(shape)
    if tuple(values.shape) == tuple(shape):
        return values
    if values.place.is_cpu_place() and values.dtype != paddle.bfloat16 and size:
        # Slices are copies there: see `runtime.configure`.
        return paddle.from_dlpack(np.from_dlpack(values).reshape(-1)[start : start + size].reshape(shape))
    return values.reshape([-1])[start : start + size].reshape(list(shape))


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
            tensor, is_own = self._tensors.get(spec.name), spec.name in self._own
            if tensor is not None and tensor.shard is None and spec.name not in self._senders:
                if is_own:
                    yield CompleteTensor(spec, tensor.values, tensor.start)
                continue
            complete = None if tensor is None else self._complete(tensor)
            if spec.name in self._senders:
                complete = self._to_main(spec, complete)
            if is_own and complete is not None:
                yield CompleteTensor(spec, complete, is_live=False)

    def without_gathering(self) -> Iterator[CompleteTensor | AwaitedTensor]:
        """The same, with an `AwaitedTensor` for each sharded tensor. Takes no messages; not with `to_main`."""
        for spec in self.specs:
            tensor = self._tensors[spec.name]
            if tensor.shard is None:
                yield CompleteTensor(spec, tensor.values, tensor.start)
            else:
                yield AwaitedTensor(spec)

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
