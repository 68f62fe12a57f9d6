"""The gradient of an embedding, in every form, against a sum in float64."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import paddle
import pytest

from erniekit.kernels.choice import use_forms
from erniekit.kernels.embedding import embedding, sort_by_id
from tests.closeness import BFLOAT16, FLOAT32, assert_close
from tests.unit.kernels.forms import TRITON

VOCAB = 11


@pytest.fixture(params=["plain", "cpu", TRITON], autouse=True)
def form(request: pytest.FixtureRequest) -> Iterator[str]:
    with use_forms(embedding=request.param):
        yield request.param


def _check(numbers: list[int], width: int, dtype: str, relative: float) -> None:
    rng = np.random.default_rng(0)
    weight = paddle.to_tensor(rng.standard_normal((VOCAB, width)).astype("float32")).astype(dtype).detach()
    grad = paddle.to_tensor(rng.standard_normal((len(numbers), width)).astype("float32")).astype(dtype)
    weight.stop_gradient = False
    ids = paddle.to_tensor(np.array(numbers, np.int64))
    found = embedding(ids, weight, sort_by_id(ids.numpy(), weight))
    assert np.array_equal(found.numpy(), weight.numpy()[numbers])
    found.backward(grad)
    expected = np.zeros((VOCAB, width))
    np.add.at(expected, numbers, grad.astype("float64").numpy())
    assert weight.grad.dtype == weight.dtype
    assert_close(weight.grad, expected, relative)


@pytest.mark.parametrize("width", [1, 7, 300])
@pytest.mark.parametrize(
    "numbers",
    [[], [3], [0, 10, 0, 0, 5, 10], [4] * 70, [*range(11)] * 13],
    ids=["none", "one", "some twice", "one id in two blocks", "all in three blocks"],
)
def test_rows_and_gradient(numbers: list[int], width: int) -> None:
    _check(numbers, width, "float32", FLOAT32)


def test_a_bfloat16_gradient_is_rounded_once(form: str) -> None:
    if form == "cpu":
        pytest.skip("computes in float32")
    _check([*[2] * 500, *range(11)], 16, "bfloat16", BFLOAT16)


def test_a_frozen_embedding_has_no_gradient() -> None:
    frozen = paddle.ones([3, 2])
    assert sort_by_id(np.array([1, 1]), frozen) is None
    assert embedding(paddle.to_tensor([1, 1]), frozen).stop_gradient


def test_only_triton_needs_tokens_by_id(form: str) -> None:
    weight = paddle.ones([VOCAB, 2])
    weight.stop_gradient = False
    by_id = sort_by_id(np.array([5, 2, 5, 9]), weight)
    if form != "triton":
        assert by_id is None
        return
    assert by_id is not None
    assert by_id.order.tolist() == [1, 0, 2, 3]
    assert by_id.offsets.tolist() == [0, 1, 3, 4]
    with pytest.raises(ValueError, match="sorted by id"):
        embedding(paddle.to_tensor([5, 2]), weight)
