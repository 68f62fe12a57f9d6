"""Chunked cross entropy and log-probabilities, in every form, against an oracle in float64."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import paddle
import pytest
from paddle import Tensor

from erniekit.kernels.choice import use_forms
from erniekit.kernels.cross_entropy import chunked_cross_entropy, chunked_log_probs, cross_entropy
from tests.closeness import BFLOAT16, assert_close
from tests.unit.kernels.forms import TRITON

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]


@pytest.fixture(params=["plain", "cpu", TRITON], autouse=True)
def form(request: pytest.FixtureRequest) -> Iterator[str]:
    with use_forms(cross_entropy=request.param):
        yield request.param


def _inputs(vocab: int = 97) -> Arrays:
    rng = np.random.default_rng(0)
    return rng.standard_normal((50, 16)), rng.standard_normal((vocab, 16)) * 0.3, rng.integers(0, vocab, 50)


def _oracle(
    hidden: np.ndarray, weight: np.ndarray, labels: np.ndarray, factors: np.ndarray | float = 1.0
) -> Arrays:
    """Losses, and the gradients of their sum weighted with `factors`."""
    logits = hidden @ weight.T
    logits -= logits.max(1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    error = np.exp(log_p)
    error[np.arange(len(labels)), labels] -= 1
    error *= np.reshape(factors, (-1, 1))
    return -log_p[np.arange(len(labels)), labels], error @ weight, error.T @ hidden


def _tensors(hidden: np.ndarray, weight: np.ndarray, dtype: str = "float32") -> tuple[Tensor, Tensor]:
    tensors = [paddle.to_tensor(x.astype("float32")).astype(dtype) for x in (hidden, weight)]
    for tensor in tensors:
        tensor.stop_gradient = False
    return tensors[0], tensors[1]


@pytest.mark.parametrize("vocab", [1, 97, 4500])
@pytest.mark.parametrize("chunk", [7, 1000])
def test_sum_and_gradients(chunk: int, vocab: int) -> None:
    hidden, weight, labels = _inputs(vocab)
    h, w = _tensors(hidden, weight)
    loss = chunked_cross_entropy(h, w, paddle.to_tensor(labels), chunk, scale=1 / 8)
    (loss / 8).backward()
    losses, grad_hidden, grad_weight = _oracle(hidden, weight, labels, 1 / 8)
    # Of a single entry the probability is 1: rounding in the gradients is that of 1.
    assert_close(loss, losses.sum(), scale=1.0)
    assert_close(h.grad, grad_hidden, scale=1.0)
    assert_close(w.grad, grad_weight, scale=1.0)


@pytest.mark.parametrize("for_weight", [True, False])
@pytest.mark.parametrize("chunk", [1, 7, 100])
def test_log_probs_and_gradients(chunk: int, for_weight: bool) -> None:
    hidden, weight, labels = _inputs()
    factors = np.random.default_rng(1).standard_normal(50)
    h, w = _tensors(hidden, weight)
    w.stop_gradient = not for_weight
    found = chunked_log_probs(h, w, paddle.to_tensor(labels), chunk)
    (found * paddle.to_tensor(factors.astype("float32"))).sum().backward()
    losses, grad_hidden, grad_weight = _oracle(hidden, weight, labels, -factors)
    assert_close(found, -losses)
    assert_close(h.grad, grad_hidden)
    if for_weight:
        assert_close(w.grad, grad_weight)
    else:
        assert w.grad is None


def test_a_frozen_head_gets_no_gradient_and_no_memory_for_it() -> None:
    hidden, weight, labels = _inputs()
    h, w = _tensors(hidden, weight)
    w.stop_gradient = True
    chunked_cross_entropy(h, w, paddle.to_tensor(labels), 16).backward()
    assert_close(h.grad, _oracle(hidden, weight, labels)[1])
    assert w.grad is None


def test_without_gradients_only_the_sum() -> None:
    hidden, weight, labels = _inputs()
    h, w = _tensors(hidden, weight)
    with paddle.no_grad():
        loss = chunked_cross_entropy(h, w, paddle.to_tensor(labels), 16)
        logps = chunked_log_probs(h, w, paddle.to_tensor(labels), 16)
    assert loss.stop_gradient and logps.stop_gradient
    losses, _, _ = _oracle(hidden, weight, labels)
    assert_close(loss, losses.sum())
    assert_close(logps, -losses)


def test_without_loss_tokens_the_sum_and_the_gradients_are_zero() -> None:
    _, weight, _ = _inputs()
    for function in (chunked_cross_entropy, chunked_log_probs):
        h, w = _tensors(np.zeros((0, 16)), weight)
        loss = function(h, w, paddle.zeros([0], "int64"), 16).sum()
        loss.backward()
        assert float(loss) == 0
        assert h.grad.shape == [0, 16]
        assert w.grad.shape == [97, 16] and not w.grad.numpy().any()


def test_an_unlikely_token_has_its_exact_loss_and_nan_stays_nan() -> None:
    weight = paddle.to_tensor(np.array([[0.0], [300.0], [40.0]], "float32"))
    for label, expected in ((0, 300.0), (1, 0.0), (2, 260.0)):
        loss = chunked_cross_entropy(paddle.ones([1, 1]), weight, paddle.to_tensor([label]), 8)
        assert_close(loss, expected, scale=1.0)
    for values in ([[float("nan")], [1.0]], [[1.0], [float("nan")]]):
        for label in (0, 1):
            one = paddle.to_tensor(values), paddle.ones([1, 1]), paddle.to_tensor([label])
            assert np.isnan(float(chunked_cross_entropy(one[1], one[0], one[2], 8)))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_hidden_state_that_is_not_finite_gives_a_loss_that_is_not(value: float) -> None:
    """Paddle's softmax on CPU makes a row of NaN uniform where the vocabulary is large."""
    hidden = np.ones((3, 4), np.float32)
    hidden[1] = value
    weight = np.random.default_rng(0).standard_normal((4096, 4)).astype(np.float32)
    arrays = (hidden, weight, np.array([5, 6, 7]))
    log_probs = chunked_log_probs(*map(paddle.to_tensor, arrays), 8).numpy()
    assert np.isfinite(log_probs).tolist() == [True, False, True]


@pytest.mark.parametrize("function", [chunked_cross_entropy, chunked_log_probs])
def test_bfloat16_gradients_are_scaled_before_they_are_rounded(
    function: object, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1 / 510 rounded to bfloat16 is 0.4% off; the products are the last to round."""
    if form == "cpu":
        pytest.skip("computes in float32")
    product = paddle.matmul

    def rounded(x: Tensor, y: Tensor, **options: bool) -> Tensor:
        assert x.dtype == y.dtype == paddle.bfloat16
        return product(x.astype("float32"), y.astype("float32"), **options).astype("bfloat16")

    monkeypatch.setattr(paddle, "matmul", rounded)  # Paddle has none for bfloat16 on a CPU
    hidden, weight, numbers = _inputs()
    h, w = _tensors(hidden, weight, "bfloat16")
    labels = paddle.to_tensor(numbers)
    with paddle.no_grad():
        _, error = cross_entropy(h, w, labels, paddle.full([50], 1 / 510), gradient=True)
    for chunk in (50, 16):
        if function is chunked_cross_entropy:
            loss = chunked_cross_entropy(h, w, labels, chunk, scale=1 / 510) / 510
        else:
            loss = -chunked_log_probs(h, w, labels, chunk).sum() / 510
        loss.backward()
        assert h.grad.dtype == w.grad.dtype == paddle.bfloat16
        assert np.array_equal(h.grad.numpy(), rounded(error, w).numpy())
        exact = rounded(error, h, transpose_x=True)
        if chunk == 50:
            assert np.array_equal(w.grad.numpy(), exact.numpy())
        else:
            assert_close(w.grad, exact, BFLOAT16)
        h.clear_gradient()
        w.clear_gradient()
    values = [x.detach().astype("float32").numpy().astype("float64") for x in (h, w)]
    losses, grad_hidden, _ = _oracle(values[0], values[1], numbers, 1 / 510)
    assert_close(loss, losses.sum() / 510, BFLOAT16)
    assert_close(rounded(error, w), grad_hidden, 2 * BFLOAT16)
