"""Tensors that several processes hold together, each an equal part of all of them laid end to end."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import paddle
from paddle import Tensor

from erniekit.distributed.collectives import start_all_gather, start_reduce_scatter
from erniekit.distributed.mesh import Mesh
from erniekit.distributed.process_group import ProcessGroup
from erniekit.models.specs import is_expert_tensor, is_router_tensor

Shapes = Mapping[str, Sequence[int]]

# Elements that travel together: enough to keep a network busy, few enough to take little memory.
BUCKET = 1 << 24


@dataclass(frozen=True)
class ShardSpan:
    """What a rank holds of one tensor: elements `start` to `stop` of its values in row-major order."""

    name: str
    start: int
    stop: int

    @property
    def size(self) -> int:
        """Number of elements, which may be 0."""
        return self.stop - self.start


class ShardSpec:
    """How tensors of one element type are spread: end to end, filled up with zeros, cut into equal parts.

    shapes: by name, in order. Every rank holds `length` elements, and a span of every tensor, if an empty one.
    """

    def __init__(self, shapes: Shapes, ranks: int) -> None:
        self.shapes = {name: tuple(shape) for name, shape in shapes.items()}
        self.ranks = ranks
        sizes = [math.prod(shape) for shape in self.shapes.values()]
        self.length = -(-sum(sizes) // ranks)
        self._sizes = dict(zip(self.shapes, sizes, strict=True))
        self.filling = ranks * self.length - sum(sizes)

    def spans(self, rank: int) -> list[ShardSpan]:
        """The span of every tensor, in order."""
        first, spans, begin = rank * self.length, [], 0
        for name, size in self._sizes.items():
            start = min(max(first - begin, 0), size)
            stop = min(max(first + self.length - begin, 0), size)
            spans.append(ShardSpan(name, start, stop))
            begin += size
        return spans

    def counts(self, name: str) -> list[int]:
        """How many elements of one tensor each rank holds."""
        sizes = list(self._sizes)
        place = sizes.index(name)
        return [self.spans(rank)[place].size for rank in range(self.ranks)]

    def split(self, flat: Tensor) -> dict[str, Tensor]:
        """[ranks * length] -> every tensor by its name, in its shape."""
        found, begin = {}, 0
        for name, size in self._sizes.items():
            found[name] = flat[begin : begin + size].reshape(list(self.shapes[name]))
            begin += size
        return found


class FlatShard:
    """This rank's part of some tensors of one element type.

    parts: by name the values of this rank's span, 1-D, to be changed in place.
    """

    def __init__(self, group: ProcessGroup, shapes: Shapes, parts: Mapping[str, Tensor]) -> None:
        self.group = group
        self.partition = ShardSpec(shapes, group.size)
        self.parts = dict(parts)
        self._dtype = next(iter(parts.values())).dtype

    @classmethod
    def of(cls, group: ProcessGroup, tensors: Mapping[str, Tensor]) -> FlatShard:
        """Of tensors that every rank has whole: copies of this rank's part."""
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        spans = ShardSpec(shapes, group.size).spans(group.rank)
        parts = {span.name: cut(tensors[span.name].detach(), span).clone() for span in spans}
        return cls(group, shapes, parts)

    @paddle.no_grad()
    def start_gather(self) -> Callable[[], dict[str, Tensor]]:
        """Begin to bring every tensor together; what is returned waits for them. All ranks call both together."""
        filling = self.partition.length - sum(int(part.size) for part in self.parts.values())
        own = [part for part in self.parts.values() if part.size]
        if filling:
            own.append(paddle.zeros([filling], self._dtype))
        coming = start_all_gather(own[0] if len(own) == 1 else paddle.concat(own), self.group)
        return lambda: self.partition.split(coming.wait())

    def gather(self) -> dict[str, Tensor]:
        """Every tensor, whole. All ranks of the group call this together."""
        return self.start_gather()()

    @paddle.no_grad()
    def start_sum(self, gradients: Mapping[str, Tensor | None]) -> Callable[[], dict[str, Tensor]]:
        """Begin to add gradients up over all ranks; what is returned waits for this rank's parts of the sums, float32
        and 1-D.

        None: zeros. The gradients may go once this has returned. All ranks call both together.
        """
        parts = []
        for name, shape in self.partition.shapes.items():
            gradient = gradients[name]
            if gradient is None:
                parts.append(paddle.zeros([math.prod(shape)], "float32"))
            else:
                parts.append(gradient.reshape([-1]).astype("float32"))
        if self.partition.filling:
            parts.append(paddle.zeros([self.partition.filling], "float32"))
        # A copy where one stands alone as well: what is given may go.
        coming = start_reduce_scatter(paddle.concat(parts), self.group)
        return lambda: self._own(coming.wait())

    def _own(self, values: Tensor) -> dict[str, Tensor]:
        """This rank's `length` values by their tensors."""
        found, begin = {}, 0
        for name, part in self.parts.items():
            found[name] = values[begin : begin + part.size].clone()
            begin += int(part.size)
        return found


class TensorShard(NamedTuple):
    """How a tensor is held by a group: each rank has `counts[rank]` of its values, this one those of `span`."""

    group: ProcessGroup
    counts: list[int]
    shape: tuple[int, ...]
    span: ShardSpan


def tensor_shard(one: FlatShard, name: str) -> TensorShard:
    """How one of its tensors is spread."""
    span = next(span for span in one.partition.spans(one.group.rank) if span.name == name)
    return TensorShard(one.group, one.partition.counts(name), one.partition.shapes[name], span)


def is_sharded(name: str, mesh: Mesh) -> bool:
    """Whether the processes that have a parameter spread it: no router, and several have it."""
    return not is_router_tensor(name) and _holders(name, mesh).size > 1


def shard_buckets(
    tensors: Mapping[str, Tensor], mesh: Mesh
) -> Iterator[tuple[ProcessGroup, dict[str, Tensor]]]:
    """Tensors that travel together, and the processes that spread them."""
    for group, experts in ((mesh.world, False), (mesh.replicas, True)):
        members = [(name, tensor) for name, tensor in tensors.items() if is_expert_tensor(name) == experts]
        for bucket in buckets(members):
            yield group, bucket


def _holders(name: str, mesh: Mesh) -> ProcessGroup:
    return mesh.replicas if is_expert_tensor(name) else mesh.world


def cut(tensor: Tensor, span: ShardSpan) -> Tensor:
    """The elements of a span, 1-D."""
    return tensor.reshape([-1])[span.start : span.stop]


def buckets(tensors: Iterable[tuple[str, Tensor]], limit: int = BUCKET) -> Iterator[dict[str, Tensor]]:
    """Named tensors in groups of one element type and of up to `limit` elements; a larger one stands alone."""
    bucket: dict[str, Tensor] = {}
    filled = 0
    for name, tensor in tensors:
        if bucket and (filled + tensor.size > limit or tensor.dtype != next(iter(bucket.values())).dtype):
            yield bucket
            bucket, filled = {}, 0
        bucket[name] = tensor
        filled += int(tensor.size)
    if bucket:
        yield bucket
