"""How tensors are cut into parts: nothing is lost, nothing is held twice."""

from __future__ import annotations

import math

import numpy as np
import paddle
from hypothesis import given
from hypothesis import strategies as st

from erniekit.distributed.process_group import ProcessGroup
from erniekit.parallel.flat_shard import FlatShard, ShardSpec, buckets, cut, tensor_shard

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
def test_parts_laid_end_to_end_are_the_tensors(shapes: list[list[int]], ranks: int) -> None:
    tensors = named(shapes)
    partition = ShardSpec({name: tensor.shape for name, tensor in tensors.items()}, ranks)
    parts = [
        paddle.concat([cut(tensors[span.name], span) for span in partition.spans(rank)])
        for rank in range(ranks)
    ]
    assert all(part.shape[0] <= partition.length for part in parts)
    filled = paddle.concat([*parts, paddle.full([partition.filling], -1.0)])
    assert filled.shape == [ranks * partition.length]
    for name, tensor in partition.split(filled).items():
        np.testing.assert_array_equal(tensor.numpy(), tensors[name].numpy())
    for name, tensor in tensors.items():
        assert sum(partition.counts(name)) == tensor.size
        places = [span for rank in range(ranks) for span in partition.spans(rank) if span.name == name]
        assert [part.start for part in places[1:]] == [part.stop for part in places[:-1]]


def test_more_ranks_than_elements() -> None:
    partition = ShardSpec({"bias": [2]}, 4)
    assert partition.counts("bias") == [1, 1, 0, 0]
    assert partition.spans(3)[0].size == 0


def test_a_group_of_one_has_everything() -> None:
    tensors = named([[3, 2], [5]])
    shards = FlatShard.of(ProcessGroup((0,), 0), tensors)
    assert {name: part.shape for name, part in shards.parts.items()} == {"p0": [6], "p1": [5]}
    for name, tensor in shards.gather().items():
        np.testing.assert_array_equal(tensor.numpy(), tensors[name].numpy())
    sums = shards.start_sum({"p0": tensors["p0"].astype("bfloat16"), "p1": None})()
    assert sums["p0"].dtype == paddle.float32
    np.testing.assert_array_equal(sums["p0"].numpy(), np.arange(6))
    np.testing.assert_array_equal(sums["p1"].numpy(), np.zeros(5))
    assert tensor_shard(shards, "p1").shape == (5,)


def test_portions_have_one_type_and_a_limit() -> None:
    tensors = named([[4], [4], [9], [1]])
    tensors["p3"] = tensors["p3"].astype("bfloat16")
    found = [list(bucket) for bucket in buckets(tensors.items(), limit=8)]
    assert found == [["p0", "p1"], ["p2"], ["p3"]]
