"""Softmax routing. A correction bias takes part in choosing experts, not in weighting them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from erniekit.moe.config import MoeConfig
from erniekit.moe.losses import balance_sum, entropy_sum, z_sum
from erniekit.upload import Upload


class ModalityIndex:
    """Indices that gather the text tokens and the vision tokens of a row. Built once per row, used by every layer.

    `modality` int8 [T]: 0 text, 1 vision. `valid` is False for a filler row, which only keeps this process in step with
    the others: its tokens are not counted. `add` sums counts over the processes that hold parts of the row.
    """

    def __init__(
        self,
        modality: np.ndarray,
        valid: bool = True,
        add: Callable[[Tensor], Tensor] = lambda counts: counts,
        upload: Upload = paddle.to_tensor,
    ) -> None:
        self.valid, self.add = valid, add
        parts = [np.flatnonzero(modality == kind) for kind in (0, 1)]
        self.sizes = tuple(part.size for part in parts)
        self.present = [kind for kind in (0, 1) if parts[kind].size]
        self.tokens: list[Tensor | None] = [None, None]
        self.restore: Tensor | None = None
        # A row of one modality needs no gathering at all.
        if len(self.present) == 2:
            self.tokens = [upload(part.astype(np.int64)) for part in parts]
            self.restore = upload(np.argsort(np.concatenate(parts), kind="stable").astype(np.int64))


class Routing(NamedTuple):
    """The experts of each token, int64 [T, k], their weights, float32 [T, k], and the tokens of each modality.

    Expert e of modality m has the index m * num_experts + e.
    """

    experts: Tensor
    weights: Tensor
    tokens: tuple[int, ...]


class RouterLossFlags(NamedTuple):
    """The router losses and statistics to compute besides the routing; see `RouterSums`."""

    balance: bool = False
    z: bool = False
    entropy: bool = False


NO_ROUTER_LOSSES = RouterLossFlags()


class RouterSums(NamedTuple):
    """Sums over the tokens of a row, float32 [modalities]; None if the sum was not requested.

    `balance` and `z` are losses with a graph (`erniekit.moe.losses`), 0 for a frozen router. `entropy` is in nats.
    """

    balance: Tensor | None = None
    z: Tensor | None = None
    entropy: Tensor | None = None


class RouterOutput(NamedTuple):
    """Statistics of one layer: `counts` int64 [modalities * experts] are the tokens routed to each expert."""

    counts: Tensor
    sums: RouterSums


class Gate(nn.Layer):
    """Router weights of a layer, float32: `weight` for text and, in VL models, `weight_1` for vision.

    Text models store [experts, hidden], VL models [hidden, experts], as on the Hub.
    """

    def __init__(self, hidden_size: int, moe: MoeConfig) -> None:
        super().__init__()
        self.transposed = moe.num_modalities == 1
        shape = [moe.num_experts, hidden_size] if self.transposed else [hidden_size, moe.num_experts]
        zero = nn.initializer.Constant(0.0)
        self.weight = self.create_parameter(shape, dtype="float32", default_initializer=zero)
        if moe.num_modalities == 2:
            self.weight_1 = self.create_parameter(shape, dtype="float32", default_initializer=zero)

    def logits(self, x: Tensor, modality: int) -> Tensor:
        """[n, hidden] of one modality -> float32 [n, experts]."""
        return paddle.matmul(x.astype("float32"), self.of(modality), transpose_y=self.transposed)

    def of(self, modality: int) -> Tensor:
        """The router weights of one modality."""
        return self.weight_1 if modality else self.weight


class MoeStatics(nn.Layer):
    """`e_score_correction_bias` float32 [modalities, experts], which has no gradient."""

    def __init__(self, moe: MoeConfig) -> None:
        super().__init__()
        self.e_score_correction_bias = self.create_parameter(
            [moe.num_modalities, moe.num_experts],
            dtype="float32",
            default_initializer=nn.initializer.Constant(0.0),
        )
        self.e_score_correction_bias.stop_gradient = True


def route(
    x: Tensor,
    index: ModalityIndex,
    gate: Gate,
    bias: Tensor,
    moe: MoeConfig,
    loss_flags: RouterLossFlags = NO_ROUTER_LOSSES,
) -> tuple[Routing, RouterSums]:
    """Route every token of [T, hidden] to `top_k` experts of its modality, and sum what `loss_flags` requests.

    With p = softmax of the float32 logits, experts are selected by p + bias, and weighted by p over the sum of the
    selected p. Agrees with transformers' Ernie4_5_MoeTopKRouter and Ernie4_5_VLMoeMoeTopKRouter.
    """
    experts, weights = [], []
    found = [_NOTHING] * moe.num_modalities
    for modality in index.present:
        positions = index.tokens[modality]
        rows = x if positions is None else paddle.index_select(x, positions)
        logits = gate.logits(rows, modality)
        probabilities = F.softmax(logits, axis=-1)
        _, chosen = paddle.topk(probabilities.detach() + bias[modality], moe.top_k, axis=-1)
        share = paddle.take_along_axis(probabilities, chosen, axis=-1)
        weights.append(share / paddle.clip(share.sum(-1, keepdim=True), min=moe.norm_min))
        experts.append(chosen + modality * moe.num_experts if modality else chosen)
        if index.valid:
            trained = not gate.of(modality).stop_gradient
            wanted = RouterLossFlags(
                loss_flags.balance and trained, loss_flags.z and trained, loss_flags.entropy
            )
            found[modality] = _over_tokens(logits, probabilities, moe.top_k, wanted)
    sums = _by_modality(found, loss_flags, moe, index.add)
    tokens = index.sizes[: moe.num_modalities]
    if index.restore is None:
        return Routing(experts[0], weights[0], tokens), sums
    routing = Routing(
        paddle.index_select(paddle.concat(experts), index.restore),
        paddle.index_select(paddle.concat(weights), index.restore),
        tokens,
    )
    return routing, sums


class _OverTokens(NamedTuple):
    """Sums over the tokens of one modality: `mass` and `counts` [experts] of `balance_sum`, the others scalars."""

    mass: Tensor | None = None
    counts: Tensor | None = None
    z: Tensor | None = None
    entropy: Tensor | None = None


_NOTHING = _OverTokens()


def _over_tokens(
    logits: Tensor, probabilities: Tensor, top_k: int, loss_flags: RouterLossFlags
) -> _OverTokens:
    """Sums over n tokens, from their logits and probabilities [n, experts]."""
    mass = counts = z = entropy = None
    if loss_flags.balance:
        # The loss counts what the router would choose without the correction bias.
        _, chosen = paddle.topk(probabilities.detach(), top_k, axis=-1)
        mass = probabilities.sum(0)
        counts = paddle.bincount(chosen.reshape([-1]), minlength=logits.shape[1])
    if loss_flags.z or loss_flags.entropy:
        log_normalizer = paddle.logsumexp(logits if loss_flags.z else logits.detach(), axis=-1)
        z = z_sum(log_normalizer) if loss_flags.z else None
        if loss_flags.entropy:
            entropy = entropy_sum(log_normalizer.detach(), probabilities.detach(), logits.detach())
    return _OverTokens(mass, counts, z, entropy)


def _by_modality(
    found: list[_OverTokens], loss_flags: RouterLossFlags, moe: MoeConfig, add: Callable[[Tensor], Tensor]
) -> RouterSums:
    """The sums of all modalities as vectors, 0 for a modality without tokens."""
    balance = z = entropy = None
    if loss_flags.balance:
        mass = _stack([tokens.mass for tokens in found], [moe.num_experts], "float32")
        counts = _stack([tokens.counts for tokens in found], [moe.num_experts], "int64")
        balance = balance_sum(mass, add(counts), moe.top_k)
    if loss_flags.z:
        z = _stack([tokens.z for tokens in found], [], "float32")
    if loss_flags.entropy:
        entropy = _stack([tokens.entropy for tokens in found], [], "float32")
    return RouterSums(balance, z, entropy)


def _stack(parts: list[Tensor | None], shape: list[int], dtype: str) -> Tensor:
    return paddle.stack([paddle.zeros(shape, dtype) if part is None else part for part in parts])
