"""Sorting rows by expert and back: every form against indexing, in values and gradients."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from paddle import Tensor

from erniekit.kernels.choice import use_forms
from erniekit.kernels.permute import permute, sort_by_expert, unpermute
from tests.closeness import assert_close
from tests.unit.kernels.forms import TRITON

FORMS = ["plain", "cpu", TRITON]
# Tokens, experts per token, experts, width.
SIZES = [(1, 1, 1, 3), (13, 2, 5, 7), (17, 6, 64, 24), (0, 2, 4, 8)]


def _experts(tokens: int, top_k: int, num_experts: int, *, skewed: bool = False) -> Tensor:
    rng = np.random.default_rng(tokens)
    scores = rng.random((tokens, num_experts)) + skewed * 10 * (np.arange(num_experts) < top_k)
    return paddle.to_tensor(np.argsort(-scores, axis=1)[:, :top_k].astype(np.int64))


def _random(*shape: int, seed: int = 0) -> Tensor:
    tensor = paddle.to_tensor(np.random.default_rng(seed).standard_normal(shape).astype("float32"))
    tensor.stop_gradient = False
    return tensor


@pytest.mark.parametrize("skewed", [False, True])
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("form", FORMS)
def test_pairs_are_sorted_by_expert_and_stay_in_order(
    form: str, sizes: tuple[int, int, int, int], skewed: bool
) -> None:
    tokens, top_k, num_experts, _ = sizes
    experts = _experts(tokens, top_k, num_experts, skewed=skewed)
    with use_forms(permute=form):
        order, slots, offsets = sort_by_expert(experts, num_experts)
    assert {x.dtype for x in (order, slots, offsets)} == {paddle.int32}
    flat = experts.numpy().reshape(-1)
    expected = np.argsort(flat, kind="stable")
    assert order.numpy().tolist() == expected.tolist()
    assert slots.shape == [tokens, top_k]
    assert order.numpy()[slots.numpy().reshape(-1)].tolist() == list(range(tokens * top_k))
    assert np.diff(offsets.numpy()).tolist() == np.bincount(flat, minlength=num_experts).tolist()
    assert offsets[0] == 0 and offsets.shape == [num_experts + 1]


def _indexed(x: Tensor, experts: Tensor, weights: Tensor, num_experts: int) -> Tensor:
    """Each token through its experts, which here are tanh times the number of the expert, without any sorting."""
    scaled = paddle.tanh(x).unsqueeze(1) * (experts + 1).astype("float32").unsqueeze(2)
    return (scaled * weights.unsqueeze(2)).sum(1)


def _sorted(x: Tensor, experts: Tensor, weights: Tensor, num_experts: int) -> Tensor:
    order, slots, offsets = sort_by_expert(experts, num_experts)
    numbers = paddle.arange(1, num_experts + 1).astype("float32")
    scales = paddle.repeat_interleave(numbers, paddle.diff(offsets)).unsqueeze(1)
    return unpermute(paddle.tanh(permute(x, order, slots)) * scales, order, slots, weights)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("form", FORMS)
def test_rows_and_gradients_are_those_of_indexing(form: str, sizes: tuple[int, int, int, int]) -> None:
    tokens, top_k, num_experts, width = sizes
    experts = _experts(tokens, top_k, num_experts)
    upstream = _random(tokens, width, seed=2).detach()
    results = []
    for function in (_sorted, _indexed):
        x, weights = _random(tokens, width), _random(tokens, top_k, seed=1)
        with use_forms(permute=form):
            output = function(x, experts, weights, num_experts)
            (output * upstream).sum().backward()
        results.append((output, x.grad, weights.grad))
    for actual, expected in zip(*results, strict=True):
        assert_close(actual, expected)


@pytest.mark.parametrize("form", FORMS)
def test_only_what_trains_gets_a_gradient(form: str) -> None:
    experts = _experts(5, 2, 4)
    for trains_rows in (True, False):
        y, weights = _random(10, 3), _random(5, 2)
        (weights if trains_rows else y).stop_gradient = True
        with use_forms(permute=form):
            order, slots, _ = sort_by_expert(experts, 4)
            unpermute(y, order, slots, weights).sum().backward()
        assert (y.grad is not None, weights.grad is not None) == (trains_rows, not trains_rows)


def test_long_rows_are_summed_in_chunks_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("erniekit.kernels.permute._CHUNK_BYTES", 200)
    test_rows_and_gradients_are_those_of_indexing("cpu", (37, 2, 5, 7))


def test_many_pairs_are_sorted_by_several_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setattr("erniekit.kernels.triton.permute._PAIRS", 8)
    test_pairs_are_sorted_by_expert_and_stay_in_order("triton", (13, 3, 5, 1), skewed=False)
