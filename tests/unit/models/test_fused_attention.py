"""Paddle's fused attention, in stand-ins that follow its definition, gives the models what the plain form gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import paddle
import pytest
from paddle import Tensor

from erniekit.kernels.choice import use_forms
from erniekit.models.attention import Attend, DocumentAttention
from erniekit.models.branches import BranchAttention
from erniekit.models.config import VisionConfig
from erniekit.models.rope import vision_rotation
from erniekit.models.vision import VisionTower
from tests.closeness import assert_close
from tests.unit.kernels.forms import random
from tests.unit.models.fused_attention import calls, fused

__all__ = ["calls", "fused"]

DOCUMENTS = {
    "one": [9],
    "of many lengths": [3, 40, 1, 7, 130, 2, 2],
    "with empty ones": [0, 5, 0, 4],
    "one long, many short": [300, *[2] * 40],
}
BRANCHES = {
    "one": ([0, 9], [[3, 6]]),
    "equal prompts": ([0, 12, 23, 40], [[4, 8], [16, 19], [27, 29]]),
    "nothing shared": ([0, 7, 12], [[0, 3], [7, 9]]),
    "some shared": ([0, 7, 12], [[0, 3], [8, 9]]),
    "no branches": ([0, 4, 9], []),
    "empty first branch": ([0, 9, 16], [[3, 3], [12, 14]]),
    "empty second branch": ([0, 9, 16], [[3, 9], [12, 14]]),
    "one long": ([0, 300, 309, 318], [[150, 220], [303, 306], [312, 315]]),
}


def _results(attend: Attend, inputs: Sequence[Tensor]) -> list[np.ndarray]:
    copies = [x.detach() for x in inputs]
    for copy in copies:
        copy.stop_gradient = False
    output = attend(0, *copies)
    (output * random(*output.shape, seed=5)).sum().backward()
    return [output.numpy(), *(copy.grad.numpy() for copy in copies)]


def _assert_as_plain(make: Callable[[], Attend], tokens: int) -> None:
    inputs = [random(tokens, heads, 8, seed=heads) for heads in (4, 2, 2)]
    found = _results(make(), inputs)
    with use_forms(attention="plain"):
        expected = _results(make(), inputs)
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("name", DOCUMENTS)
def test_documents(name: str, causal: bool, fused: str, calls: list[str]) -> None:
    bounds = np.cumsum([0, *DOCUMENTS[name]]).astype(np.int32)
    _assert_as_plain(lambda: DocumentAttention(bounds, causal=causal, heads=4), int(bounds[-1]))
    assert set(calls) == {fused}


@pytest.mark.parametrize("name", BRANCHES)
def test_branches(name: str, fused: str, calls: list[str]) -> None:
    bounds, branches = BRANCHES[name]
    branched = np.array(branches, np.int32).reshape(-1, 2)
    _assert_as_plain(lambda: BranchAttention(np.array(bounds, np.int32), branched, heads=4), bounds[-1])
    assert set(calls) == {fused}


@pytest.mark.usefixtures("fused")
def test_the_heads_of_a_context_parallel_process() -> None:
    bounds, branches = BRANCHES["equal prompts"]
    attend = BranchAttention(np.array(bounds, np.int32), np.array(branches, np.int32), heads=4)
    query, key, value = (random(bounds[-1], heads, 8, seed=heads) for heads in (4, 2, 2))
    shards = [
        attend(0, query[:, 2 * rank : 2 * rank + 2], key[:, rank : rank + 1], value[:, rank : rank + 1])
        for rank in range(2)
    ]
    with use_forms(attention="plain"):
        expected = attend(0, query, key, value)
    assert_close(paddle.concat(shards, axis=1), expected)


def test_the_vision_tower(fused: str, calls: list[str]) -> None:
    vision = VisionConfig(
        depth=2,
        hidden_size=32,
        intermediate_size=48,
        num_heads=2,
        patch_size=2,
        in_channels=3,
        spatial_merge_size=2,
        temporal_merge_size=2,
    )
    grid = np.array([[1, 4, 6], [2, 2, 4]], np.int32)
    paddle.seed(0)
    tower = VisionTower(vision, "float32")
    pixels = random(40, vision.patch_dim)
    results = []
    for form in (fused, "plain"):
        with use_forms(attention=form):
            output = tower(pixels, vision_rotation(grid, vision), tower.attention(grid))
        (output * random(*output.shape, seed=1)).sum().backward()
        results.append([output, *(parameter.grad.clone() for parameter in tower.parameters())])
        tower.clear_gradients()
    for one, other in zip(*results, strict=True):
        assert_close(one, other, scale=1.0)
    assert set(calls) == {fused}


@pytest.mark.parametrize("kind", ["documents", "branches"])
def test_all_layers_and_passes_share_what_was_uploaded(kind: str, fused: str) -> None:
    copied: list[np.ndarray] = []

    def upload(array: np.ndarray) -> Tensor:
        copied.append(array)
        return paddle.to_tensor(array)

    bounds = np.cumsum([0, *DOCUMENTS["one long, many short"]]).astype(np.int32)
    attend: Attend = DocumentAttention(bounds, causal=True, heads=4, upload=upload)
    if kind == "branches":
        firsts = bounds[:-1] + 1
        attend = BranchAttention(bounds, np.stack([firsts, firsts], 1), heads=4, upload=upload)
    inputs = [random(int(bounds[-1]), heads, 8, seed=heads) for heads in (4, 2, 2)]
    _results(attend, inputs)
    first = len(copied)
    assert first == 1 if fused == "flashmask" else first > 1
    _results(attend, inputs)
    assert len(copied) == first


def test_short_documents_do_not_get_accumulators_of_the_longest_one() -> None:
    lengths = [18] * 60 + [6000] + [18] * 60
    attend = DocumentAttention(np.cumsum([0, *lengths]).astype(np.int32), causal=True, heads=1)
    buckets, order, restore = attend._buckets
    assert order is not None
    assert restore is not None
    assert len(buckets) == 2
    assert sum(bucket.tokens for bucket in buckets) == sum(lengths)
    for bucket in buckets:
        rows = (len(bucket.cu_seqlens) - 1) * -(-bucket.longest // 128) * 128
        assert rows <= 4 * -(-sum(lengths) // 128) * 128


def test_documents_of_like_lengths_are_one_call_without_gathers() -> None:
    attend = DocumentAttention(np.cumsum([0, 200, 100, 250, 256]).astype(np.int32), causal=True, heads=1)
    buckets, order, restore = attend._buckets
    assert [bucket.longest for bucket in buckets] == [256]
    assert order is None
    assert restore is None
