"""Adapters of models in memory, written as a run writes them."""

from __future__ import annotations

from pathlib import Path

from erniekit.checkpoint.hub import write_safetensors
from erniekit.checkpoint.names import hub_tensors
from erniekit.checkpoint.weights import array_of, local_tensor
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
    expert_rank: int | None = None,
) -> None:
    """The adapters of a model, to a directory that exists."""
    parameters = adapters.adapter_parameters(model)
    tensors = {
        tensor.name: local_tensor(tensor, parameters[tensor.parameter])
        for tensor in hub_tensors(model)
        if tensor.parameter in parameters
    }
    adapter = AdapterConfig(base_path, rank, alpha, dropout, expert_rank)
    specs = adapters.stored_adapter([tensor.spec for tensor in tensors.values()])
    adapters.write_adapter_settings(directory, specs, adapter, model.config)
    write_safetensors(
        directory / adapters.WEIGHTS_FILE,
        specs,
        lambda name: array_of(tensors[name.removeprefix(adapters.PREFIX)].read()),
    )
