"""Chunked cross entropy against an oracle in float64."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from erniekit.objectives.language import chunked_cross_entropy
from tests.closeness import assert_close


def _inputs() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((50, 16)), rng.standard_normal((97, 16)) * 0.3, rng.integers(0, 97, 50)


def _oracle(
    hidden: np.ndarray, weight: np.ndarray, labels: np.ndarray
) -> tuple[float, np.ndarray, np.ndarray]:
    logits = hidden @ weight.T
    logits -= logits.max(1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    error = np.exp(log_p)
    error[np.arange(len(labels)), labels] -= 1
    return -log_p[np.arange(len(labels)), labels].sum(), error @ weight, error.T @ hidden


@pytest.mark.parametrize("chunk", [1, 7, 50, 1000])
def test_sum_and_gradients(chunk: int) -> None:
    hidden, weight, labels = _inputs()
    h, w = (paddle.to_tensor(x.astype("float32"), stop_gradient=False) for x in (hidden, weight))
    loss = chunked_cross_entropy(h, w, paddle.to_tensor(labels), chunk)
    (loss / 8).backward()
    expected, grad_hidden, grad_weight = _oracle(hidden, weight, labels)
    assert_close(loss, expected)
    assert_close(h.grad, grad_hidden / 8)
    assert_close(w.grad, grad_weight / 8)


def test_a_frozen_head_gets_no_gradient_and_no_memory_for_it() -> None:
    hidden, weight, labels = _inputs()
    h = paddle.to_tensor(hidden.astype("float32"), stop_gradient=False)
    w = paddle.to_tensor(weight.astype("float32"))
    chunked_cross_entropy(h, w, paddle.to_tensor(labels), 16).backward()
    assert_close(h.grad, _oracle(hidden, weight, labels)[1])
    assert w.grad is None


def test_without_gradients_only_the_sum() -> None:
    hidden, weight, labels = _inputs()
    with paddle.no_grad():
        h, w = (paddle.to_tensor(x.astype("float32"), stop_gradient=False) for x in (hidden, weight))
        loss = chunked_cross_entropy(h, w, paddle.to_tensor(labels), 16)
    assert loss.stop_gradient
    assert_close(loss, _oracle(hidden, weight, labels)[0])


def test_a_hopeless_token_costs_what_it_costs_and_nan_stays_nan() -> None:
    weight = paddle.to_tensor(np.array([[0.0], [300.0]], "float32"))
    labels = paddle.to_tensor([0])
    assert_close(chunked_cross_entropy(paddle.ones([1, 1]), weight, labels, 8), 300.0)
    nan = chunked_cross_entropy(paddle.to_tensor([[float("nan")]]), weight, labels, 8)
    assert np.isnan(float(nan))
