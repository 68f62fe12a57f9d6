"""Tensors that are spread over processes, read by one of them, one at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import paddle
from paddle import Tensor

from erniekit.distributed.collectives import all_gather, all_gather_uneven, broadcast_
from erniekit.distributed.mesh import Mesh
from erniekit.models.specs import TensorSpec
from erniekit.parallel.data_parallel import TensorShard


class GatheredTensors:
    """The named tensors of all processes that share the experts of the first copy of a model.

    All processes make it together, each with those that it holds; what several hold is the same. The main process
    then calls `read` for every one of `specs` in their order, and the other processes call `serve`. describe: what
    is known of a tensor; to_array: its values; shard_of: how it is sharded, None where it is whole.
    """

    def __init__(
        self,
        mesh: Mesh,
        tensors: Mapping[str, Tensor],
        describe: Callable[[str, Tensor], TensorSpec],
        to_array: Callable[[Tensor], np.ndarray],
        shard_of: Callable[[str], TensorShard | None] = lambda _: None,
    ) -> None:
        self._group, self._tensors, self._to_array = mesh.expert, tensors, to_array
        self._shards = {name: found for name in tensors if (found := shard_of(name)) is not None}
        self._takes_part = mesh.rank < mesh.dims.expert
        self.specs: list[TensorSpec] = []
        self._owners: dict[str, int] = {}
        self._by_name: dict[str, TensorSpec] = {}
        own = [
            replace(spec, shape=self._shards[name].shape) if name in self._shards else spec
            for name, tensor in tensors.items()
            for spec in [describe(name, tensor)]
        ]
        for rank, specs in enumerate(self._exchange(own)):
            for spec in specs:
                if spec.name not in self._owners:
                    self._owners[spec.name] = rank
                    self._by_name[spec.name] = spec
                    self.specs.append(spec)

    def read(self, name: str) -> np.ndarray:
        """On the main process: the values of a tensor, whoever holds it."""
        if self._owners[name] == self._group.rank:
            return self._to_array(self._whole(name))
        return self._to_array(self._receive(self._by_name[name]))

    def serve(self) -> None:
        """On the others: hand over what the main process reads."""
        for spec in self.specs:
            owner = self._owners[spec.name]
            # What several hold in parts they put together at the same time, in every copy of the model.
            whole = self._whole(spec.name) if spec.name in self._tensors else None
            if not owner or not self._takes_part:
                continue
            if whole is not None:
                broadcast_(whole.detach().clone(), owner, self._group)
            else:
                self._receive(spec)

    def _whole(self, name: str) -> Tensor:
        shard = self._shards.get(name)
        if shard is None:
            return self._tensors[name]
        return all_gather_uneven(self._tensors[name], shard.counts, shard.group).reshape(list(shard.shape))

    def _receive(self, spec: TensorSpec) -> Tensor:
        buffer = paddle.empty(list(spec.shape), _PADDLE_TYPES[spec.dtype])
        broadcast_(buffer, self._owners[spec.name], self._group)
        return buffer

    def _exchange(self, own: list[TensorSpec]) -> list[list[TensorSpec]]:
        """What each process of the expert group holds."""
        text = json.dumps([(spec.name, spec.dtype, spec.shape) for spec in own]).encode()
        letters = paddle.to_tensor(np.frombuffer(text, np.uint8).astype(np.int64))
        counts = all_gather(paddle.to_tensor([len(text)], dtype="int64"), self._group).tolist()
        gathered = all_gather_uneven(letters, counts, self._group).numpy().astype(np.uint8).tobytes()
        specs, start = [], 0
        for count in counts:
            parts = json.loads(gathered[start : start + count])
            specs.append([TensorSpec(name, dtype, tuple(shape)) for name, dtype, shape in parts])
            start += count
        return specs


_PADDLE_TYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "I64": "int64"}
