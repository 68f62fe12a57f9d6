"""Router losses and statistics, as functions of the logits, probabilities or weights of one router.

Losses over tokens are sums, which the caller divides by the tokens of the whole step, so that a step's loss does not
depend on how rows are distributed. All are computed in the dtype of their inputs, float32 in training.
"""

from __future__ import annotations

import paddle
from paddle import Tensor

_SMALLEST_NORM = 1e-12


def balance_sum(mass: Tensor, counts: Tensor, top_k: int) -> Tensor:
    """T times the load-balancing loss of a row: L = E * sum_e me_e * ce_e, me = mass / T, ce = counts / T.

    `mass` [..., E] is the sum over tokens of the probability of each expert, `counts` int64 [..., E] the number of
    tokens of the row with the expert among their top k (T * k in total). Only `mass` has a gradient, and a part of the
    mass of a row gives the same part of the loss. L is k if the load is even; without tokens the sum is 0.
    Shazeer et al., arXiv 1701.06538, in the form of Fedus et al., arXiv 2101.03961, equation 4.
    """
    used = counts.astype(mass.dtype)
    tokens = paddle.clip(used.sum(-1) / top_k, min=1.0)
    return (mass * used).sum(-1) * mass.shape[-1] / tokens


def z_terms(log_normalizer: Tensor) -> Tensor:
    """The squared log-sum-exp of the logits of each token, [T] -> [T]. Zoph et al., arXiv 2202.08906, equation 5."""
    return log_normalizer.square()


def entropies(log_normalizer: Tensor, probabilities: Tensor, logits: Tensor) -> Tensor:
    """The entropy of the routing distribution of each token, in nats. [T], [T, E], [T, E] -> [T]."""
    return log_normalizer - (probabilities * logits).sum(-1)


@paddle.no_grad()
def orthogonal_loss(rows: Tensor) -> tuple[Tensor, Tensor]:
    """|R R^T - I|^2 / E^2 (squared Frobenius norm) and its gradient [E, H], R being [E, H] with rows of unit length.

    With G = R R^T - I, dL/dR = 4 G R / E^2. The gradient of the scaling to unit length keeps the part that is
    orthogonal to the unit row and divides it by the length of the row. A row of zeros has no gradient.
    """
    experts = rows.shape[0]
    length = paddle.clip(rows.norm(axis=-1, keepdim=True), min=_SMALLEST_NORM)
    unit = rows / length
    gram = paddle.matmul(unit, unit, transpose_y=True) - paddle.eye(experts, dtype=rows.dtype)
    outer = paddle.matmul(gram, unit) * (4 / experts**2)
    gradient = (outer - unit * (unit * outer).sum(-1, keepdim=True)) / length
    return gram.square().sum() / experts**2, gradient


@paddle.no_grad()
def mean_cosine(rows: Tensor) -> Tensor:
    """Mean cosine over all pairs of different rows of [E, H], scalar; 0 for a single row.

    The sum over pairs is the sum of the Gram matrix of unit rows, |sum of rows|^2, minus its diagonal.
    """
    experts = rows.shape[0]
    unit = rows / paddle.clip(rows.norm(axis=-1, keepdim=True), min=_SMALLEST_NORM)
    pairs = unit.sum(0).square().sum() - unit.square().sum()
    return pairs / max(1, experts * (experts - 1))
