"""Softmax routing. A correction bias takes part in choosing experts, not in weighting them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from erniekit.moe.config import MoeConfig
from erniekit.moe.losses import balance_sum, entropies, z_terms
from erniekit.upload import Upload


class ModalityIndex:
    """The modality of each token of a row on the device. Built once per row, used by every layer.

    `modality` int8 [T]: 0 text, 1 vision. `valid` is False for a filler row, which only keeps this process in step with
    the others: its tokens are not counted. `add` sums counts over the processes that hold parts of the row.

    sizes: the number of tokens of each modality. is_vision: bool [T, 1], None for a row of one modality, which is
    `only`. mask: float32 [2, T], one where a token has a modality.
    """

    def __init__(
        self,
        modality: np.ndarray,
        valid: bool = True,
        add: Callable[[Tensor], Tensor] = lambda counts: counts,
        upload: Upload = paddle.to_tensor,
    ) -> None:
        self.valid, self.add = valid, add
        vision = int(np.count_nonzero(modality))
        self.sizes = (len(modality) - vision, vision)
        self.only = None if all(self.sizes) else int(vision > 0)
        self.is_vision = None if self.only is not None else upload(modality.astype(bool)[:, None])
        self.mask = upload(np.stack([modality == 0, modality == 1]).astype(np.float32))


class Routing(NamedTuple):
    """The experts of each token, int64 [T, k], their weights, float32 [T, k], and the tokens of each modality.

    Expert e of modality m has the index m * num_experts + e.
    """

    experts: Tensor
    weights: Tensor
    tokens: tuple[int, ...]


class RouterLossFlags(NamedTuple):
    """The router losses and statistics to compute in addition to the routing; see `RouterSums`."""

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
        """float32 [n, hidden] -> float32 [n, experts]."""
        return paddle.matmul(x, self.of(modality), transpose_y=self.transposed)

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
    logits, row_bias = _logits(x, index, gate), _of_token(index, bias)
    probabilities = F.softmax(logits, axis=-1)
    _, chosen = paddle.topk(probabilities.detach() + row_bias, moe.top_k, axis=-1)
    share = paddle.take_along_axis(probabilities, chosen, axis=-1)
    weights = share / paddle.clip(share.sum(-1, keepdim=True), min=moe.norm_min)
    if index.is_vision is not None:
        chosen = chosen + index.is_vision.astype("int64") * moe.num_experts
    elif index.only:
        chosen = chosen + moe.num_experts
    routing = Routing(chosen, weights, index.sizes[: moe.num_modalities])
    return routing, _sums(logits, probabilities, index, gate, moe, loss_flags)


def _logits(x: Tensor, index: ModalityIndex, gate: Gate) -> Tensor:
    """[T, hidden] -> float32 [T, experts], of the router of each token's modality.

    A mixed row goes through both routers: their products are small, and no token is moved.
    """
    wide = x.astype("float32")
    if index.only is not None:
        return gate.logits(wide, index.only)
    return paddle.where(index.is_vision, gate.logits(wide, 1), gate.logits(wide, 0))


def selection_margins(x: Tensor, index: ModalityIndex, gate: Gate, bias: Tensor, moe: MoeConfig) -> Tensor:
    """The margin between each token's last chosen expert and the next one, relative to p + bias of the chosen one.

    float32 [T]. Where it is near zero, rounding decides.
    """
    scores = F.softmax(_logits(x, index, gate), axis=-1) + _of_token(index, bias)
    if moe.top_k == moe.num_experts:
        return paddle.ones([x.shape[0]])
    best, _ = paddle.topk(scores, moe.top_k + 1, axis=-1)
    last, following = best[:, moe.top_k - 1], best[:, moe.top_k]
    return (last - following) / last.abs()


def _of_token(index: ModalityIndex, bias: Tensor) -> Tensor:
    """The row of `bias` [modalities, experts] of each token's modality, [T, experts] or [experts]."""
    if index.only is not None:
        return bias[index.only]
    return paddle.where(index.is_vision, bias[1], bias[0])


def _sums(
    logits: Tensor,
    probabilities: Tensor,
    index: ModalityIndex,
    gate: Gate,
    moe: MoeConfig,
    loss_flags: RouterLossFlags,
) -> RouterSums:
    """Sums over the tokens of each modality, from logits and probabilities [T, experts]."""
    if not index.valid:
        return _nothing(index, moe, loss_flags)
    mask = index.mask[: moe.num_modalities]
    # Only trained routers have losses.
    trained = [not gate.of(modality).stop_gradient for modality in range(moe.num_modalities)]
    loss_mask = (
        mask
        if all(trained)
        else paddle.stack(
            [
                row if is_trained else paddle.zeros_like(row)
                for row, is_trained in zip(mask, trained, strict=True)
            ]
        )
    )
    balance = z = entropy = None
    if loss_flags.balance:
        # The loss counts what the router would choose without the correction bias.
        _, chosen = paddle.topk(probabilities.detach(), moe.top_k, axis=-1)
        counts = paddle.matmul(loss_mask, F.one_hot(chosen, moe.num_experts).sum(1))
        mass = paddle.matmul(loss_mask, probabilities)
        balance = balance_sum(mass, index.add(counts.astype("int64")), moe.top_k)
    if loss_flags.z or loss_flags.entropy:
        log_normalizer = paddle.logsumexp(logits if loss_flags.z else logits.detach(), axis=-1)
        z = paddle.mv(loss_mask, z_terms(log_normalizer)) if loss_flags.z else None
        if loss_flags.entropy:
            terms = entropies(log_normalizer.detach(), probabilities.detach(), logits.detach())
            entropy = paddle.mv(mask, terms)
    return RouterSums(balance, z, entropy)


def _nothing(index: ModalityIndex, moe: MoeConfig, loss_flags: RouterLossFlags) -> RouterSums:
    """The sums of a filler row. All processes that share a row add its counts."""
    if loss_flags.balance:
        index.add(paddle.zeros([moe.num_modalities, moe.num_experts], "int64"))
    return RouterSums(*(paddle.zeros([moe.num_modalities]) if wanted else None for wanted in loss_flags))
