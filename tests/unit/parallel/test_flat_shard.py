"""Sharding of tensors: every element is held by exactly one rank."""

from __future__ import annotations

import math

import numpy as np
import paddle
from hypothesis import given
from hypothesis import strategies as st

from erniekit.distributed.process_group import ProcessGroup
from erniekit.parallel.flat_shard import FlatShard, ShardSpec, buckets, slice_span, tensor_shard

SHAPES = st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=3), min_size=1, max_size=6)


def named(shapes: list[list[int]]) -> dict[str, paddle.Tensor]:
    values = iter(range(10**6))
    return {
        f"p{number}": paddle.to_tensor(
            np.array([next(values) for _ in range(math.prod(shape))], np.float32).reshape(shape)
        )
        for number, shape in enumerate(shapes)
    }


@given(SHAPES, st.integers(1, 9))
def test_concatenated_parts_are_the_tensors(shapes: list[list[int]], ranks: int) -> None:
    tensors = named(shapes)
    spec = ShardSpec({name: tensor.shape for name, tensor in tensors.items()}, ranks)
    parts = [
        paddle.concat([slice_span(tensors[span.name], span) for span in spec.spans(rank)])
        for rank in range(ranks)
    ]
    assert all(part.shape[0] <= spec.length for part in parts)
    filled = paddle.concat([*parts, paddle.full([spec.padding], -1.0)])
    assert filled.shape == [ranks * spec.length]
    for name, tensor in spec.split(filled).items():
        np.testing.assert_array_equal(tensor.numpy(), tensors[name].numpy())
    for name, tensor in tensors.items():
        assert sum(spec.counts(name)) == tensor.size
        places = [span for rank in range(ranks) for span in spec.spans(rank) if span.name == name]
        assert [part.start for part in places[1:]] == [part.stop for part in places[:-1]]


def test_more_ranks_than_elements() -> None:
    spec = ShardSpec({"bias": [2]}, 4)
    assert spec.counts("bias") == [1, 1, 0, 0]
    assert spec.spans(3)[0].size == 0


def test_a_group_of_one_holds_everything() -> None:
    tensors = named([[3, 2], [5]])
    shard = FlatShard.of(ProcessGroup((0,), 0), tensors)
    assert {name: part.shape for name, part in shard.parts.items()} == {"p0": [6], "p1": [5]}
    for name, tensor in shard.all_gather().items():
        np.testing.assert_array_equal(tensor.numpy(), tensors[name].numpy())
    sums = shard.start_reduce_scatter({"p0": tensors["p0"].astype("bfloat16"), "p1": None})()
    assert sums["p0"].dtype == paddle.float32
    np.testing.assert_array_equal(sums["p0"].numpy(), np.arange(6))
    np.testing.assert_array_equal(sums["p1"].numpy(), np.zeros(5))
    assert tensor_shard(shard, "p1").shape == (5,)


def test_buckets_have_one_dtype_and_a_limit() -> None:
    tensors = named([[4], [4], [9], [1]])
    tensors["p3"] = tensors["p3"].astype("bfloat16")
    found = [list(bucket) for bucket in buckets(tensors.items(), limit=8)]
    assert found == [["p0", "p1"], ["p2"], ["p3"]]
