"""Gathers sharded tensors on the main process, one at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import paddle
from paddle import Tensor

from erniekit.distributed.collectives import all_gather, all_gather_uneven, broadcast_
from erniekit.distributed.mesh import Mesh
from erniekit.models.specs import TensorSpec
from erniekit.parallel.flat_shard import TensorShard


@dataclass(frozen=True)
class LocalTensor:
    """A tensor as this process holds it. `spec` is of the complete tensor.

    read: returns the complete values, or with `shard` this process's part of them, 1-D.
    """

    spec: TensorSpec
    read: Callable[[], Tensor]
    shard: TensorShard | None = None


class GatheredTensors:
    """The named tensors of one model replica, complete over its expert-parallel group.

    All processes create it together, each with the tensors that it holds. The main process then calls `read` for each
    of `specs` in order, and the other processes call `serve`. to_array: the values of a tensor.
    """

    def __init__(
        self, mesh: Mesh, tensors: Sequence[LocalTensor], to_array: Callable[[Tensor], np.ndarray]
    ) -> None:
        self._group, self._to_array = mesh.expert, to_array
        self._tensors = {tensor.spec.name: tensor for tensor in tensors}
        self._takes_part = mesh.rank < mesh.dims.expert
        self.specs: list[TensorSpec] = []
        self._owners: dict[str, int] = {}
        self._by_name: dict[str, TensorSpec] = {}
        for rank, specs in enumerate(self._all_gather_specs([tensor.spec for tensor in tensors])):
            for spec in specs:
                if spec.name not in self._owners:
                    self._owners[spec.name] = rank
                    self._by_name[spec.name] = spec
                    self.specs.append(spec)

    def read(self, name: str) -> np.ndarray:
        """The values of a tensor, whichever process holds it. On the main process."""
        if self._owners[name] == self._group.rank:
            return self._to_array(self._all_gather(name))
        return self._to_array(self._receive(self._by_name[name]))

    def serve(self) -> None:
        """Send the tensors that the main process reads. On the other processes."""
        for spec in self.specs:
            owner = self._owners[spec.name]
            # All replicas take part in the all-gather of a sharded tensor.
            complete = self._all_gather(spec.name) if spec.name in self._tensors else None
            if not owner or not self._takes_part:
                continue
            if complete is not None:
                broadcast_(complete.detach().clone(), owner, self._group)
            else:
                self._receive(spec)

    def _all_gather(self, name: str) -> Tensor:
        tensor = self._tensors[name]
        if tensor.shard is None:
            return tensor.read()
        shard = tensor.shard
        return all_gather_uneven(tensor.read(), shard.counts, shard.group).reshape(list(shard.shape))

    def _receive(self, spec: TensorSpec) -> Tensor:
        buffer = paddle.empty(list(spec.shape), _PADDLE_TYPES[spec.dtype])
        broadcast_(buffer, self._owners[spec.name], self._group)
        return buffer

    def _all_gather_specs(self, own: list[TensorSpec]) -> list[list[TensorSpec]]:
        """The specs of the tensors of each process of the expert-parallel group."""
        text = json.dumps([(spec.name, spec.dtype, spec.shape) for spec in own]).encode()
        encoded = paddle.to_tensor(np.frombuffer(text, np.uint8).astype(np.int64))
        counts = all_gather(paddle.to_tensor([len(text)], dtype="int64"), self._group).tolist()
        gathered = all_gather_uneven(encoded, counts, self._group).numpy().astype(np.uint8).tobytes()
        specs, offset = [], 0
        for count in counts:
            fields = json.loads(gathered[offset : offset + count])
            specs.append([TensorSpec(name, dtype, tuple(shape)) for name, dtype, shape in fields])
            offset += count
        return specs


_PADDLE_TYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "I64": "int64"}
