"""Adapters of models in memory, written as a run writes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from paddle import nn

from erniekit.checkpoint.weights import array_of, spec_of
from erniekit.lora import adapters


def write_adapter(
    directory: Path,
    model: nn.Layer,
    *,
    base_path: str,
    rank: int,
    alpha: float,
    dropout: float,
    targets: Sequence[str],
) -> None:
    """The adapters of a model, to a directory that exists."""
    parameters = adapters.adapter_parameters(model)
    adapters.write_adapter(
        directory,
        [spec_of(name, parameter) for name, parameter in parameters.items()],
        lambda name: array_of(parameters[name]),
        adapters.AdapterConfig(base_path, rank, alpha, dropout, tuple(targets)),
    )
