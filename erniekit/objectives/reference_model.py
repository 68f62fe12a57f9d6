"""The reference model of preference training: a frozen model, or the trained one with its adapters switched off."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import paddle
from paddle import Tensor

from erniekit.checkpoint.model_files import model_index
from erniekit.checkpoint.resize import read_rows
from erniekit.checkpoint.weights import assign
from erniekit.data.load.batch import PackedBatch
from erniekit.lora.adapters import adapter_parameters
from erniekit.lora.layers import Adapter
from erniekit.models.config import ErnieConfig
from erniekit.models.ernie import ErnieModel
from erniekit.models.specs import is_vocab_tensor
from erniekit.objectives.device_batch import DeviceBatch
from erniekit.objectives.dpo import branch_logps


class ReferenceModel:
    """A model without dropout, gradients and router losses."""

    def __init__(self, model: ErnieModel, chunk_tokens: int) -> None:
        self.model = model
        self.chunk_tokens = chunk_tokens

    def __call__(self, batch: PackedBatch | DeviceBatch) -> Tensor:
        training = self.model.training
        self.model.eval()
        try:
            with paddle.no_grad():
                return branch_logps(self.model, batch, self.chunk_tokens)[0]
        finally:
            if training:
                self.model.train()


class AdapterDisabledReference(ReferenceModel):
    """The trained model with its adapters switched off.

    base: the directory of the base model. Trained parameters other than adapters (routers) have the base model's
    values while the reference computes.
    """

    def __init__(self, model: ErnieModel, chunk_tokens: int, base: Path) -> None:
        super().__init__(model, chunk_tokens)
        self._adapters = [layer for layer in model.sublayers() if isinstance(layer, Adapter)]
        whole = {name: p for name, p in adapter_parameters(model).items() if ".lora_" not in name}
        self._whole: list[tuple[Tensor, Tensor]] = []
        index = model_index(base, ErnieConfig.from_dir(base)) if whole else {}
        for name, parameter in whole.items():
            value = paddle.empty_like(parameter)
            rows = int(parameter.shape[0]) if is_vocab_tensor(name) else None
            assign(value, read_rows(index[name], rows), index[name].dtype)
            self._whole.append((parameter, value))

    def __call__(self, batch: PackedBatch | DeviceBatch) -> Tensor:
        with self._base_weights():
            return super().__call__(batch)

    @contextmanager
    def _base_weights(self) -> Iterator[None]:
        trained = [parameter.detach().clone() for parameter, _ in self._whole]
        try:
            for layer in self._adapters:
                layer.active = False
            _assign((parameter, value) for parameter, value in self._whole)
            yield
        finally:
            for layer in self._adapters:
                layer.active = True
            _assign((parameter, before) for (parameter, _), before in zip(self._whole, trained, strict=True))


def _assign(values: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Copy each value into its parameter on the device: `set_value` copies through the host."""
    with paddle.no_grad():
        for parameter, value in values:
            paddle.assign(value, output=parameter)
