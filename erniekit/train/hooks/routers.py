"""The orthogonal loss of routers and the update of their correction biases, once a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import paddle
from paddle import Tensor

from erniekit.config.choices import OrthogonalMode
from erniekit.models.ernie import ErnieModel
from erniekit.moe.balance import update_bias
from erniekit.moe.layer import MoeLayer
from erniekit.moe.losses import mean_cosine, orthogonal_loss
from erniekit.objectives.totals import MODALITIES
from erniekit.optim.adamw import AdamW
from erniekit.train.trainer import Hook


@dataclass(frozen=True)
class _Router:
    """The router of a layer and modality. name: of its parameter; place: such as "layer_1/text"."""

    name: str
    place: str
    modality: str
    layer: MoeLayer
    weight: Tensor

    @property
    def rows(self) -> Tensor:
        """[experts, hidden]."""
        return self.transpose(self.weight)

    def transpose(self, tensor: Tensor) -> Tensor:
        """Convert from the parameter's shape to [experts, hidden], or back."""
        return tensor if self.layer.gate.transposed else tensor.T


class RouterHook(Hook):
    """Applies the orthogonal loss and the bias update to all routers of a model, once per step.

    orthogonal_weight: factor of the orthogonal loss. orthogonal_mode: "loss" adds its gradient to that of the rows;
    "decoupled" updates the weights with it after the optimizer's step, without the moments, like decoupled weight
    decay. bias_update_rate: see `erniekit.moe.balance`. Frozen routers and their correction biases do not change.
    """

    def __init__(
        self,
        model: ErnieModel,
        *,
        orthogonal_weight: float = 0.0,
        orthogonal_mode: OrthogonalMode = "loss",
        bias_update_rate: float = 0.0,
    ) -> None:
        self._weight, self._mode, self._bias_rate = orthogonal_weight, orthogonal_mode, bias_update_rate
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        self._routers = []
        for number, decoder_layer in enumerate(model.model.layers):
            layer = decoder_layer.mlp
            if isinstance(layer, MoeLayer):
                for modality in range(layer.moe.num_modalities):
                    kind, weight = MODALITIES[modality], layer.gate.of(modality)
                    place = f"layer_{number}/{kind}"
                    self._routers.append(_Router(names[id(weight)], place, kind, layer, weight))

    def before_optimizer_step(self, optimizer: AdamW) -> dict[str, float]:
        if not self._weight or self._mode != "loss":
            return {}
        return self._apply(optimizer.add_gradient)

    def after_optimizer_step(
        self, optimizer: AdamW, learning_rate: float, expert_counts: Mapping[str, np.ndarray]
    ) -> dict[str, float]:
        self._update_biases(expert_counts)
        if not self._weight or self._mode != "decoupled":
            return {}
        return self._apply(lambda name, gradient: optimizer.descend(name, gradient, learning_rate))

    def scalars(self) -> dict[str, float]:
        """The mean cosine of each router's rows, by "router/mean_cosine/layer_1/text"."""
        if not self._routers:
            return {}
        values = paddle.stack([mean_cosine(router.rows) for router in self._routers]).tolist()
        return {
            f"router/mean_cosine/{r.place}": value for r, value in zip(self._routers, values, strict=True)
        }

    def _apply(self, use: Callable[[str, Tensor], None]) -> dict[str, float]:
        """Pass the weighted gradient of every trained router to `use`.

        Returns the losses of all layers together, by "orthogonal_loss/text".
        """
        losses: dict[str, list[Tensor]] = {}
        for router in self._routers:
            if router.weight.stop_gradient:
                continue
            value, gradient = orthogonal_loss(router.rows)
            use(router.name, router.transpose(gradient) * self._weight)
            losses.setdefault(f"orthogonal_loss/{router.modality}", []).append(value)
        return {name: float(paddle.stack(values).sum().item()) for name, values in losses.items()}

    def _update_biases(self, expert_counts: Mapping[str, np.ndarray]) -> None:
        if not self._bias_rate:
            return
        usage: dict[MoeLayer, list[np.ndarray | None]] = {}
        for router in self._routers:
            counts = None if router.weight.stop_gradient else expert_counts[router.place]
            usage.setdefault(router.layer, []).append(counts)
        for layer, by_modality in usage.items():
            update_bias(layer.moe_statics.e_score_correction_bias, by_modality, self._bias_rate)
