"""Router losses against their definitions in float64, and their gradients against numerical differences."""

from __future__ import annotations

import numpy as np
import paddle
import paddle.nn.functional as F

from erniekit.moe.losses import balance_sum, entropies, mean_cosine, orthogonal_loss, z_terms
from tests.closeness import FLOAT64, assert_close
from tests.unit.moe import oracle

TOKENS, EXPERTS, TOP_K = 11, 5, 2


def logits_and_tensor(scale: float = 1.5) -> tuple[np.ndarray, paddle.Tensor]:
    logits = np.random.default_rng(0).standard_normal((TOKENS, EXPERTS)) * scale
    return logits, paddle.to_tensor(logits, stop_gradient=False)


def test_balance_value_and_gradient() -> None:
    logits, tensor = logits_and_tensor()
    counts = oracle.choices(logits, TOP_K)
    mass = F.softmax(tensor, axis=-1).sum(0)
    total = balance_sum(mass, paddle.to_tensor(counts.astype(np.int64)), TOP_K)
    total.backward()
    assert total.dtype == paddle.float64
    assert_close(total / TOKENS, oracle.balance(logits, counts), FLOAT64)
    expected = oracle.numerical_gradient(lambda x: TOKENS * oracle.balance(x, counts), logits)
    assert_close(tensor.grad, expected)


def test_even_use_costs_top_k_and_no_tokens_nothing() -> None:
    counts = paddle.to_tensor([[TOP_K * TOKENS] * EXPERTS, [0] * EXPERTS])
    mass = paddle.to_tensor([[float(TOKENS)] * EXPERTS, [0.0] * EXPERTS])
    total = balance_sum(mass, counts, TOP_K).numpy()
    assert_close(total[0] / (EXPERTS * TOKENS), TOP_K)
    assert total[1] == 0.0


def test_balance_of_a_row_in_parts_adds_up() -> None:
    """A row split over processes: each has its part of the mass, and the counts of the whole row."""
    logits, tensor = logits_and_tensor()
    counts = paddle.to_tensor(oracle.choices(logits, TOP_K).astype(np.int64))
    p = F.softmax(tensor, axis=-1)
    parts = [float(balance_sum(part.sum(0), counts, TOP_K)) for part in (p[:4], p[4:])]
    assert_close(sum(parts), balance_sum(p.sum(0), counts, TOP_K), FLOAT64)


def test_z_value_and_gradient() -> None:
    logits, tensor = logits_and_tensor()
    total = z_terms(paddle.logsumexp(tensor, axis=-1)).sum()
    total.backward()
    assert_close(total / TOKENS, oracle.z(logits), FLOAT64)
    expected = oracle.numerical_gradient(lambda x: TOKENS * oracle.z(x), logits)
    assert_close(tensor.grad, expected)


def test_entropy_where_probabilities_vanish_too() -> None:
    logits, tensor = logits_and_tensor()
    value = entropies(paddle.logsumexp(tensor, axis=-1), F.softmax(tensor, axis=-1), tensor).sum()
    assert_close(value / TOKENS, oracle.entropy(logits), FLOAT64)
    sharp = paddle.to_tensor([[0.0, 2000.0]])
    certain = entropies(paddle.logsumexp(sharp, axis=-1), F.softmax(sharp, axis=-1), sharp).sum()
    assert float(certain) == 0.0


def test_orthogonal_value_and_gradient() -> None:
    rows = np.random.default_rng(1).standard_normal((EXPERTS, 7)) * np.array([[0.1], [1], [2], [0.5], [9]])
    value, gradient = orthogonal_loss(paddle.to_tensor(rows))
    assert_close(value, oracle.orthogonal(rows), FLOAT64)
    assert_close(gradient, oracle.numerical_gradient(oracle.orthogonal, rows))
    assert value.stop_gradient and gradient.stop_gradient


def test_orthogonal_rows_cost_nothing_and_equal_ones_the_most() -> None:
    value, gradient = orthogonal_loss(paddle.eye(4) * 3.0)
    assert float(value) == 0.0
    assert not gradient.numpy().any()
    value, _ = orthogonal_loss(paddle.ones([4, 6]))
    assert_close(value, 12 / 16)


def test_a_row_of_zeros_has_no_gradient() -> None:
    rows = np.random.default_rng(2).standard_normal((3, 4)).astype(np.float32)
    rows[1] = 0.0
    value, gradient = orthogonal_loss(paddle.to_tensor(rows))
    assert_close(value, oracle.orthogonal(rows.astype(np.float64)))
    assert np.isfinite(gradient.numpy()).all()
    assert not gradient.numpy()[1].any()


def test_mean_cosine() -> None:
    rows = np.random.default_rng(3).standard_normal((EXPERTS, 7))
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    pairs = [unit[i] @ unit[j] for i in range(EXPERTS) for j in range(EXPERTS) if i != j]
    assert_close(mean_cosine(paddle.to_tensor(rows)), np.mean(pairs), FLOAT64, scale=1.0)
    assert_close(mean_cosine(paddle.ones([4, 3])), 1.0)
    assert_close(mean_cosine(paddle.ones([1, 3])), 0.0, scale=1.0)
