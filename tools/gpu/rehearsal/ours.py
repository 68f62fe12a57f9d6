"""One case through erniekit's model code. Imported after the adapter is installed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import paddle

from erniekit.checkpoint.names import hub_tensors, named_weights
from erniekit.data.load.batch import PackedBatch
from erniekit.kernels.quantize import quantize
from erniekit.layers import QuantizedParameter
from erniekit.lora.targets import add_adapters
from erniekit.models.config import ErnieConfig
from erniekit.models.ernie import ErnieModel
from erniekit.models.factory import build_model
from erniekit.models.quantize import quantize_layers
from erniekit.models.specs import TensorSpec
from erniekit.objectives.dpo import DpoObjective
from erniekit.objectives.preference import PreferenceSettings
from erniekit.objectives.sft import SftObjective
from erniekit.objectives.totals import StepTotals, count_pairs, count_rows
from erniekit.optim.adamw import AdamW
from erniekit.optim.clip import clip_scale, gradient_norm
from erniekit.train.flops import make_flop_counter
from erniekit.train.recompute import backward_plan
from erniekit.upload import AsyncUpload

from .adapter.tensor import Tensor, unwrap
from .cases import ALPHA, BETA, RANK, Case, Sizes, architecture, make_row
from .measure import Figures, measure
from .weights import values

_RATE = 1e-6


class TrainingStep:
    """A model with its optimizer, and a row to train on. bits: of a frozen base, 16, 8 or 4."""

    def __init__(self, case: Case, layers: int, sizes: Sizes, bits: int = 16) -> None:
        self.model, self.batch = _model(case, layers, sizes, bits), make_batch(case, sizes)
        trained = [(name, p) for name, p in self.model.named_parameters() if not p.stop_gradient]
        self._specs = [TensorSpec(tensor.name, "BF16", tensor.shape) for tensor in hub_tensors(self.model)]
        wanted = {name for name, _ in trained}
        self._trained = [tensor.name for tensor in hub_tensors(self.model) if tensor.parameter in wanted]
        plan = backward_plan(self.model.config, self._trained)
        replace(plan, num_recomputed=plan.size if case.recompute else 0).apply(self.model)
        self.optimizer = AdamW(trained)
        self._objective, self.totals = _objective(case, self.model, self.batch)

    def flops(self) -> float:
        """FLOPs of the forward and backward pass."""
        return make_flop_counter(self.model.config, self._specs, self._trained)(self.batch)

    def upload(self) -> tuple[Any, AsyncUpload]:
        """The row on the device."""
        upload = AsyncUpload()
        return self._objective.upload(self.batch, upload), upload

    def compute(self, uploaded: tuple[Any, AsyncUpload] | None = None) -> tuple[Any, AsyncUpload]:
        """Forward and backward pass."""
        row, upload = uploaded or self.upload()
        output = self._objective(row, self.totals)
        output.total.backward()
        return output, upload

    def update(self) -> None:
        """Norm, clipping and AdamW."""
        norm = gradient_norm(self.optimizer.gradients())
        self.optimizer.step(_RATE, clip_scale(norm, 1.0))
        self.optimizer.clear_gradients()


def run(case: Case, layers: int, sizes: Sizes, *, steps: int, bits: int = 16) -> tuple[Figures, float]:
    """Figures of a step, and the FLOPs of its forward and backward pass. bits: of a frozen base, 16, 8 or 4."""
    step = TrainingStep(case, layers, sizes, bits)
    divisor = max(1, step.totals.pairs or step.totals.loss_tokens)
    figures = measure(
        step.compute, lambda found: found[0].loss_sum.item() / divisor, step.update, steps=steps
    )
    return figures, step.flops()


def _objective(case: Case, model: ErnieModel, batch: PackedBatch) -> tuple[Any, StepTotals]:
    _, loss_tokens, text, vision = count_rows([batch]).tolist()
    pairs, chosen = count_pairs([batch]).tolist()
    totals = StepTotals(loss_tokens, len(batch.labels), (text, vision), pairs, chosen)
    if case.row != "pairs":
        return SftObjective(model), totals
    return DpoObjective(model, PreferenceSettings(beta=BETA), lambda found: found.reference), totals


def make_batch(case: Case, sizes: Sizes, seed: int = 0) -> PackedBatch:
    """A row as erniekit packs it."""
    row = make_row(case, sizes, seed)
    pairs = len(row["branches"])
    names = tuple(f"row:{number}" for number in range(len(row["cu_seqlens"]) - 1))
    reference = np.zeros((pairs, 2), np.float32) if pairs else None
    return PackedBatch(**row, sample_ids=names, reference=reference)


def _model(case: Case, layers: int, sizes: Sizes, bits: int) -> ErnieModel:
    model = build_model(ErnieConfig.from_json(architecture(case, layers, sizes)), "bfloat16")
    if bits < 16:
        if case.method == "full":
            raise ValueError("a quantized base needs adapters")
        quantize_layers(model, bits)
    with paddle.no_grad():
        for name, parameter in named_weights(model):
            if isinstance(parameter, QuantizedParameter):
                device = unwrap(parameter.codes).device
                found = values(name, tuple(parameter.shape), device, parameter.dtype)
                quantized = quantize(Tensor(found), bits)
                parameter.codes.set_value(quantized.codes)
                parameter.scales.set_value(quantized.scales)
            else:
                raw = unwrap(parameter)
                raw.copy_(values(name, tuple(raw.shape), raw.device, raw.dtype))
    if case.method != "full":
        add_adapters(
            model,
            adapted_modules(model, case.method),
            rank=RANK,
            alpha=ALPHA,
            dropout=0.0,
            seed=0,
            expert_rank=RANK,
        )
    model.train()
    return model


def adapted_modules(model: ErnieModel, method: str) -> list[str]:
    """The modules with adapters: attention of the decoder, and with `experts` all routed experts."""
    names = [tensor.name.removesuffix(".weight") for tensor in hub_tensors(model)]
    return [
        name for name in names if ".self_attn." in name or (method == "experts" and ".mlp.experts." in name)
    ]
