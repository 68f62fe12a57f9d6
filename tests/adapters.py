"""Adapters of models in memory, written as a run writes them."""

from __future__ import annotations

from pathlib import Path

from erniekit.checkpoint.weights import array_of, spec_of
from erniekit.lora import adapters
from erniekit.lora.peft import AdapterConfig
from erniekit.models.ernie import ErnieModel


def write_adapter(
    directory: Path,
    model: ErnieModel,
    *,
    base_path: str,
    rank: int,
    alpha: float,
    dropout: float,
) -> None:
    """The adapters of a model, to a directory that exists."""
    parameters = adapters.adapter_parameters(model)
    adapters.write_adapter(
        directory,
        [spec_of(name, parameter) for name, parameter in parameters.items()],
        lambda name: array_of(parameters[name]),
        AdapterConfig(base_path, rank, alpha, dropout),
        model.config,
    )
