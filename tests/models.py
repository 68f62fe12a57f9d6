"""Models in memory, written as checkpoints and adapted as a run adapts them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import paddle
from paddle import nn

from erniekit.checkpoint.hub import write_shards
from erniekit.checkpoint.names import hub_tensors, take
from erniekit.checkpoint.weights import DTYPE_NAMES, array_of
from erniekit.lora.targets import LoraMatch, add_adapters, match_of, match_targets
from erniekit.models.ernie import ErnieModel
from erniekit.models.specs import TensorSpec, is_router_tensor


def save_weights(
    model: ErnieModel, directory: str | Path, *, only: Callable[[str], bool] | None = None
) -> None:
    """Write the parameters, in their own element types, as shards in the Hub's layout."""
    values = {name: value for name, value in hub_values(model).items() if only is None or only(name)}
    dtypes = {name: DTYPE_NAMES[parameter.dtype] for name, parameter in model.named_parameters()}
    specs = [
        TensorSpec(tensor.name, dtypes[tensor.parameter], tensor.shape)
        for tensor in hub_tensors(model)
        if tensor.name in values
    ]
    write_shards(directory, specs, values.__getitem__)


def hub_values(
    model: nn.Layer, of: Callable[[paddle.Tensor], paddle.Tensor | None] = lambda parameter: parameter
) -> dict[str, np.ndarray]:
    """The values of every tensor of the Hub in a model, or what `of` gives for its parameter, unless that is None."""
    values = {name: of(parameter) for name, parameter in model.named_parameters()}
    return {
        tensor.name: array_of(take(value, tensor))
        for tensor in hub_tensors(model)
        if (value := values[tensor.parameter]) is not None
    }


def hub_gradients(model: nn.Layer) -> dict[str, np.ndarray]:
    """The gradient of every tensor of the Hub in a model that has one."""
    return hub_values(model, lambda parameter: parameter.grad)


def apply_lora(
    model: nn.Layer,
    *,
    rank: int,
    alpha: float,
    dropout: float,
    targets: Sequence[str],
    seed: int,
    expert_rank: int | None = None,
) -> list[LoraMatch]:
    """Freeze a model and put an adapter on every module that `targets` names, which may have adapters already."""
    shapes = {
        tensor.name.removesuffix(".weight"): tensor.shape
        for tensor in hub_tensors(model)
        if len(tensor.shape) == 2
        and not is_router_tensor(tensor.name)
        and not tensor.name.endswith(
            ("embed_tokens.weight", "_A.weight", "_B.weight", "score_correction_bias")
        )
    }
    modules = match_targets(list(shapes), targets)
    add_adapters(model, modules, rank=rank, alpha=alpha, dropout=dropout, seed=seed, expert_rank=expert_rank)
    return [match_of(name, shapes[name][1], shapes[name][0], rank) for name in modules]
