"""Router losses and routing statistics of a row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import paddle
from paddle import Tensor

from erniekit.models.ernie import ErnieModel
from erniekit.moe.router import RouterLossFlags, RouterOutput, RouterSums
from erniekit.objectives.totals import MODALITIES, StepTotals


@dataclass(frozen=True)
class RouterWeights:
    """Weights of the router losses that are means over tokens. 0: not computed."""

    balance: float = 0.0
    z: float = 0.0

    @property
    def loss_flags(self) -> RouterLossFlags:
        """The sums that routers compute in training: of losses with a weight, and of the entropy for the log."""
        return RouterLossFlags(balance=self.balance != 0, z=self.z != 0, entropy=True)


NO_ROUTER_WEIGHTS = RouterWeights()


@dataclass(frozen=True)
class RowRouting:
    """Routing statistics of one row, without graph, on the device.

    `counts` int64 [layers, modalities, experts]; `sums` [layers, modalities] each, over the tokens of the row;
    `trained` bool [layers, modalities], whether a router is trained.
    """

    layers: tuple[int, ...]
    trained: np.ndarray
    counts: Tensor
    sums: RouterSums

    def expert_counts(self) -> dict[str, np.ndarray]:
        """Tokens routed to each expert, int64 [experts], by "layer_3/text". Synchronises with the device."""
        counts = self.counts.numpy()
        return {name: counts[place] for name, place in self._places()}

    def router_sums(self) -> dict[str, float]:
        """Entropy sums by "entropy/layer_3/text", and losses summed over layers by "z_loss/text".

        A modality without trained routers has no losses. Synchronises with the device.
        """
        found: dict[str, float] = {}
        for name, sums in (("balance_loss", self.sums.balance), ("z_loss", self.sums.z)):
            if sums is not None:
                values = sums.numpy().astype(np.float64).sum(0)
                found |= {
                    f"{name}/{MODALITIES[modality]}": float(values[modality])
                    for modality in np.flatnonzero(self.trained.any(0))
                }
        if self.sums.entropy is not None:
            values = self.sums.entropy.numpy()
            found |= {f"entropy/{name}": float(values[place]) for name, place in self._places()}
        return found

    def _places(self) -> Iterator[tuple[str, tuple[int, int]]]:
        for row, layer in enumerate(self.layers):
            for modality in range(self.trained.shape[1]):
                yield f"layer_{layer}/{MODALITIES[modality]}", (row, modality)


def add_router_losses(
    total: Tensor,
    model: ErnieModel,
    routers: Mapping[int, RouterOutput],
    weights: RouterWeights,
    totals: StepTotals,
) -> tuple[Tensor, RowRouting | None]:
    """Add the router losses of a row to its loss `total`. Also returns the routing statistics; None without routers."""
    if not routers:
        return total, None
    sums = _stack_sums(routers)
    loss = router_loss(sums, weights, totals)
    return total if loss is None else total + loss, _row_routing(model, routers, sums)


def _stack_sums(routers: Mapping[int, RouterOutput]) -> RouterSums:
    """The sums of all layers (at least one) as [layers, modalities]."""
    columns = zip(*(output.sums for output in routers.values()), strict=True)
    return RouterSums(*(None if column[0] is None else paddle.stack(column) for column in columns))


def router_loss(sums: RouterSums, weights: RouterWeights, totals: StepTotals) -> Tensor | None:
    """The contribution of a row to the router losses of its step, summed over layers; None without such losses.

    Weighted sums, divided by the tokens of the modality in the step.
    """
    parts = []
    for stacked, weight in ((sums.balance, weights.balance), (sums.z, weights.z)):
        if stacked is not None:
            by_modality = stacked.sum(0).unbind()
            parts += [
                total * (weight / max(1, tokens))
                for total, tokens in zip(by_modality, totals.modality_tokens, strict=False)
            ]
    return sum(parts[1:], parts[0]) if parts else None


def _row_routing(model: ErnieModel, routers: Mapping[int, RouterOutput], sums: RouterSums) -> RowRouting:
    """Routing statistics of a row from the router outputs of each layer and their stacked sums."""
    moe = model.config.moe
    assert moe is not None, "routers come from layers with experts"
    counts = paddle.stack([output.counts for output in routers.values()])
    gates = [model.model.layers[layer].mlp.gate for layer in routers]
    return RowRouting(
        layers=tuple(routers),
        trained=np.array(
            [[not gate.of(m).stop_gradient for m in range(moe.num_modalities)] for gate in gates]
        ),
        counts=counts.reshape([len(routers), moe.num_modalities, moe.num_experts]),
        sums=RouterSums(*(None if stacked is None else stacked.detach() for stacked in sums)),
    )
