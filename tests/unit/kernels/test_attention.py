"""The plain form of attention against a softmax over a mask, in values and gradients, and its memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import paddle
import pytest
from paddle import Tensor

from erniekit.errors import ConfigError
from erniekit.kernels import attention
from erniekit.kernels.attention import attention_form, batched_attention, flash_attention, flashmask_attention
from erniekit.kernels.choice import use_forms
from tests.unit.kernels.forms import assert_same_results, random

SHAPES = {
    "one position": (3, 1, 1),
    "one chunk": (2, 9, 9),
    "chunks": (2, 150, 150),
    "a last chunk of one": (1, 129, 129),
    "keys before the queries": (2, 70, 143),
    "one query": (3, 1, 30),
    "long chunks": (1, 300, 300),
}


@pytest.fixture(params=["kept", "computed again"])
def weights(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Softmax weights are kept for the backward pass, or not."""
    monkeypatch.setattr(attention, "_MAX_KEPT_KEYS", 0 if request.param == "computed again" else 1 << 20)
    yield


@pytest.mark.usefixtures("weights")
@pytest.mark.parametrize("form", ["plain", "cpu"])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_against_a_mask(shape: str, causal: bool, kv_heads: int, form: str) -> None:
    documents, length, keys = SHAPES[shape]
    inputs = [
        random(documents, length, 4, 8),
        random(documents, keys, kv_heads, 8, seed=1),
        random(documents, keys, kv_heads, 8, seed=2),
    ]
    with use_forms(attention=form):
        assert_same_results(
            lambda q, k, v: batched_attention(q, k, v, causal=causal), _over_a_mask(causal), inputs
        )


def _over_a_mask(causal: bool) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        length, keys, group = query.shape[1], key.shape[1], query.shape[2] // key.shape[2]
        k, v = (x.repeat_interleave(group, axis=2).transpose([0, 2, 1, 3]) for x in (key, value))
        scores = paddle.matmul(query.transpose([0, 2, 1, 3]), k, transpose_y=True) / query.shape[3] ** 0.5
        if causal:
            scores = scores + paddle.triu(paddle.full([length, keys], -1e30, scores.dtype), keys - length + 1)
        return paddle.matmul(paddle.nn.functional.softmax(scores, -1), v).transpose([0, 2, 1, 3])

    return attend


@pytest.mark.usefixtures("weights")
@pytest.mark.parametrize("trained", [0, 1, 2])
def test_frozen_inputs_get_no_gradient(trained: int) -> None:
    inputs = [random(1, 70, 2, 8, seed=seed) for seed in range(3)]
    for tensor in inputs:
        tensor.stop_gradient = False
    batched_attention(*inputs, causal=True).sum().backward()
    wanted = inputs[trained].grad.numpy()
    alone = [tensor.detach() for tensor in inputs]
    alone[trained].stop_gradient = False
    batched_attention(*alone, causal=True).sum().backward()
    assert [tensor.grad is not None for tensor in alone] == [number == trained for number in range(3)]
    np.testing.assert_array_equal(alone[trained].grad.numpy(), wanted)


def test_large_scores_do_not_overflow() -> None:
    query = paddle.full([1, 3, 1, 8], 100.0)
    output = batched_attention(query, query, random(1, 3, 1, 8), causal=True)
    assert paddle.isfinite(output).all()


def test_memory_grows_with_the_length_and_not_with_its_square() -> None:
    shorter, longer = (_peak_memory(length) for length in (2048, 4096))
    assert longer < 2.3 * shorter


def _peak_memory(length: int) -> int:
    """Bytes that Paddle holds at most in a forward and a backward pass, without the inputs."""
    stat = paddle.base.core
    inputs = [random(1, length, heads, 16) for heads in (4, 2, 2)]
    for tensor in inputs:
        tensor.stop_gradient = False
    before = stat.host_memory_stat_current_value("Allocated", 0)
    stat.host_memory_stat_reset_peak_value("Allocated", 0)
    batched_attention(*inputs, causal=True).sum().backward()
    return stat.host_memory_stat_peak_value("Allocated", 0) - before


def test_only_16_bit_types_use_the_fused_kernels() -> None:
    with use_forms(attention="flashmask"):
        assert attention_form(paddle.bfloat16) == "flashmask"
        assert attention_form(paddle.float16) == "flashmask"
        assert attention_form(paddle.float32) == "plain"


@pytest.mark.parametrize("width", [12, 264])
def test_head_dimensions_that_the_fused_kernels_do_not_have_are_refused(width: int) -> None:
    x = random(4, 1, width)
    with pytest.raises(ConfigError, match=rf"multiple of 8 and at most 256, and this model has {width}"):
        flashmask_attention(x, x, x, paddle.full([1, 1, 4, 1], 4, "int32"), causal=True)
    with pytest.raises(ConfigError, match=r"train with kernels.backend: plain"):
        flash_attention(x, x, x, [], causal=True)
