"""Tensors that are concatenated and sharded over the ranks of a group in equal parts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import paddle
from paddle import Tensor

from erniekit.distributed.collectives import start_all_gather, start_reduce_scatter
from erniekit.distributed.mesh import Mesh
from erniekit.distributed.process_group import ProcessGroup
from erniekit.models.specs import is_expert_tensor, is_router_tensor

Shapes = Mapping[str, Sequence[int]]

# Elements of a bucket: enough for the full bandwidth of a network, few enough to take little memory.
BUCKET_ELEMENTS = 1 << 24


@dataclass(frozen=True)
class ShardSpan:
    """The part of one tensor that a rank holds: elements `start` to `stop` in row-major order."""

    name: str
    start: int
    stop: int

    @property
    def size(self) -> int:
        """Number of elements, which may be 0."""
        return self.stop - self.start


class ShardSpec:
    """The sharding of tensors of one dtype: concatenated, padded with zeros and split into equal parts.

    shapes: by name, in order. Every rank holds `length` elements, and a span of every tensor, which may be empty.
    """

    def __init__(self, shapes: Shapes, ranks: int) -> None:
        self.shapes = {name: tuple(shape) for name, shape in shapes.items()}
        self.ranks = ranks
        sizes = [math.prod(shape) for shape in self.shapes.values()]
        self.length = -(-sum(sizes) // ranks)
        self._sizes = dict(zip(self.shapes, sizes, strict=True))
        self.padding = ranks * self.length - sum(sizes)

    def spans(self, rank: int) -> list[ShardSpan]:
        """The span of every tensor, in order."""
        first, spans, offset = rank * self.length, [], 0
        for name, size in self._sizes.items():
            start = min(max(first - offset, 0), size)
            stop = min(max(first + self.length - offset, 0), size)
            spans.append(ShardSpan(name, start, stop))
            offset += size
        return spans

    def counts(self, name: str) -> list[int]:
        """The number of elements of one tensor that each rank holds."""
        index = list(self._sizes).index(name)
        return [self.spans(rank)[index].size for rank in range(self.ranks)]

    def split(self, flat: Tensor) -> dict[str, Tensor]:
        """[ranks * length] -> every tensor by name, in its shape."""
        tensors, offset = {}, 0
        for name, size in self._sizes.items():
            tensors[name] = flat[offset : offset + size].reshape(list(self.shapes[name]))
            offset += size
        return tensors


class FlatShard:
    """This rank's shard of a bucket of tensors of one dtype.

    parts: the values of this rank's span of each tensor, by name, 1-D; the optimizer updates them in place.
    """

    def __init__(self, group: ProcessGroup, shapes: Shapes, parts: Mapping[str, Tensor]) -> None:
        self.group = group
        self.spec = ShardSpec(shapes, group.size)
        self.parts = dict(parts)
        self._dtype = next(iter(parts.values())).dtype

    @classmethod
    def of(cls, group: ProcessGroup, tensors: Mapping[str, Tensor]) -> FlatShard:
        """Shard tensors that every rank holds completely; copies this rank's spans."""
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        spans = ShardSpec(shapes, group.size).spans(group.rank)
        parts = {span.name: slice_span(tensors[span.name].detach(), span).clone() for span in spans}
        return cls(group, shapes, parts)

    @paddle.no_grad()
    def start_all_gather(self) -> Callable[[], dict[str, Tensor]]:
        """Start the all-gather of every tensor; the returned function waits for them. All ranks call both."""
        padding = self.spec.length - sum(int(part.size) for part in self.parts.values())
        own = [part for part in self.parts.values() if part.size]
        if padding:
            own.append(paddle.zeros([padding], self._dtype))
        work = start_all_gather(own[0] if len(own) == 1 else paddle.concat(own), self.group)
        return lambda: self.spec.split(work.wait())

    def all_gather(self) -> dict[str, Tensor]:
        """Every complete tensor. All ranks of the group call this."""
        return self.start_all_gather()()

    @paddle.no_grad()
    def start_reduce_scatter(self, gradients: Mapping[str, Tensor | None]) -> Callable[[], dict[str, Tensor]]:
        """Start the reduce-scatter (sum) of gradients; the returned function waits for this rank's parts of the sums.

        A gradient of None counts as zeros. The parts are 1-D and float32. The gradients may be freed when
        this returns. All ranks call both.
        """
        flat = []
        for name, shape in self.spec.shapes.items():
            gradient = gradients[name]
            if gradient is None:
                flat.append(paddle.zeros([math.prod(shape)], "float32"))
            else:
                flat.append(gradient.reshape([-1]).astype("float32"))
        if self.spec.padding:
            flat.append(paddle.zeros([self.spec.padding], "float32"))
        # concat copies a single tensor as well, so that the gradient itself may be freed.
        work = start_reduce_scatter(paddle.concat(flat), self.group)
        return lambda: self._split_shard(work.wait())

    def _split_shard(self, shard: Tensor) -> dict[str, Tensor]:
        """[length] values of this rank -> its span of every tensor."""
        parts, offset = {}, 0
        for name, part in self.parts.items():
            parts[name] = shard[offset : offset + part.size].clone()
            offset += int(part.size)
        return parts


class TensorShard(NamedTuple):
    """The sharding of one tensor over a group: each rank holds `counts[rank]` elements, this rank those in `span`."""

    group: ProcessGroup
    counts: list[int]
    shape: tuple[int, ...]
    span: ShardSpan


def tensor_shard(shard: FlatShard, name: str) -> TensorShard:
    """The sharding of one tensor of a bucket."""
    span = next(span for span in shard.spec.spans(shard.group.rank) if span.name == name)
    return TensorShard(shard.group, shard.spec.counts(name), shard.spec.shapes[name], span)


def shard_part(shard: TensorShard, name: str, start: int, shape: Sequence[int]) -> TensorShard:
    """The sharding of a part of a sharded tensor: its elements from `start` on, as a separate tensor."""
    stop = start + math.prod(shape)
    counts, offset = [], 0
    for count in shard.counts:
        counts.append(max(0, min(offset + count, stop) - max(offset, start)))
        offset += count
    first = min(max(shard.span.start, start), stop)
    last = max(min(shard.span.stop, stop), first)
    return TensorShard(shard.group, counts, tuple(shape), ShardSpan(name, first - start, last - start))


def is_sharded(name: str, mesh: Mesh) -> bool:
    """Whether a parameter is sharded: it is not a router, and several processes hold it."""
    return not is_router_tensor(name) and (mesh.replicas if is_expert_tensor(name) else mesh.world).size > 1


def shard_buckets(
    tensors: Mapping[str, Tensor], mesh: Mesh
) -> Iterator[tuple[ProcessGroup, dict[str, Tensor]]]:
    """Buckets of tensors, each with the group over which it is sharded."""
    dtypes = dict.fromkeys(tensor.dtype for tensor in tensors.values())
    for (group, experts), dtype in product(((mesh.world, False), (mesh.replicas, True)), dtypes):
        # A bucket has one dtype. Codes and scales of quantized weights alternate, so they are grouped by dtype here.
        members = [
            (name, tensor)
            for name, tensor in tensors.items()
            if is_expert_tensor(name) == experts and tensor.dtype == dtype
        ]
        for bucket in buckets(members):
            yield group, bucket


def slice_span(tensor: Tensor, span: ShardSpan) -> Tensor:
    """The elements of a span, 1-D."""
    return tensor.reshape([-1])[span.start : span.stop]


def buckets(
    tensors: Iterable[tuple[str, Tensor]], limit: int = BUCKET_ELEMENTS
) -> Iterator[dict[str, Tensor]]:
    """Named tensors in buckets of one dtype with at most `limit` elements; a larger tensor is a bucket by itself."""
    bucket: dict[str, Tensor] = {}
    elements = 0
    for name, tensor in tensors:
        if bucket and (elements + tensor.size > limit or tensor.dtype != next(iter(bucket.values())).dtype):
            yield bucket
            bucket, elements = {}, 0
        bucket[name] = tensor
        elements += int(tensor.size)
    if bucket:
        yield bucket
