"""Models in memory, written as checkpoints and adapted as a run adapts them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from paddle import nn

from erniekit.checkpoint.hub import write_shards
from erniekit.checkpoint.weights import array_of, spec_of
from erniekit.layers import Linear
from erniekit.lora.targets import LoraMatch, add_adapters, match_of, match_targets
from erniekit.models.ernie import ErnieModel


def save_weights(
    model: ErnieModel, directory: str | Path, *, only: Callable[[str], bool] | None = None
) -> None:
    """Write the parameters, in their own element types, as shards in the Hub's layout."""
    parameters = {n: p for n, p in model.named_parameters() if only is None or only(n)}
    specs = [spec_of(name, parameter) for name, parameter in parameters.items()]
    write_shards(directory, specs, lambda name: array_of(parameters[name]))


def apply_lora(
    model: nn.Layer, *, rank: int, alpha: float, dropout: float, targets: Sequence[str], seed: int
) -> list[LoraMatch]:
    """Freeze a model and put an adapter on every module that `targets` names, which may have adapters already."""
    linears = {
        name: layer
        for name, layer in model.named_sublayers()
        if isinstance(layer, Linear) and not name.endswith((".lora_A", ".lora_B"))
    }
    modules = match_targets(list(linears), targets)
    add_adapters(model, modules, rank=rank, alpha=alpha, dropout=dropout, seed=seed)
    return [match_of(name, linears[name].in_features, linears[name].out_features, rank) for name in modules]
