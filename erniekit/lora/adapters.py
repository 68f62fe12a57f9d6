"""Adapter files in PEFT's form: `adapter_config.json` and `adapter_model.safetensors`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from paddle import Tensor, nn

from erniekit.checkpoint.hub import TensorInfo, read_array, read_header, write_safetensors
from erniekit.checkpoint.weights import assign
from erniekit.errors import CheckpointError
from erniekit.local_files import read_json_object
from erniekit.models.ernie import ErnieModel
from erniekit.models.specs import TensorSpec, is_expert_tensor

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."


@dataclass(frozen=True)
class AdapterConfig:
    """What an adapter directory says of itself. `base_path` is the model directory that it was trained on."""

    base_path: str
    rank: int
    alpha: float
    dropout: float
    targets: tuple[str, ...]


def is_adapter_directory(directory: str | Path) -> bool:
    """Whether a directory holds an adapter instead of a whole model."""
    return (Path(directory) / CONFIG_FILE).is_file()


def adapter_parameters(model: nn.Layer) -> dict[str, Tensor]:
    """What an adapter file holds: all low-rank matrices, and base parameters that are trained (the router)."""
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if ".lora_A." in name or ".lora_B." in name or not parameter.stop_gradient
    }


def write_adapter(
    directory: str | Path,
    specs: Sequence[TensorSpec],
    read: Callable[[str], np.ndarray],
    adapter: AdapterConfig,
) -> None:
    """Write adapters to a directory that exists.

    specs: the tensors of `adapter_parameters`, by the model's own names; read: gives one, asked in their order.
    """
    directory = Path(directory)
    whole = sorted({spec.name.rpartition(".")[0] for spec in specs if ".lora_" not in spec.name})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": adapter.base_path,
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "lora_dropout": adapter.dropout,
        "target_modules": list(adapter.targets),
        "modules_to_save": whole or None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    (directory / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    prefixed = [TensorSpec(PREFIX + spec.name, spec.dtype, spec.shape) for spec in specs]
    write_safetensors(directory / WEIGHTS_FILE, prefixed, lambda name: read(name.removeprefix(PREFIX)))


def read_adapter_config(directory: str | Path) -> AdapterConfig:
    """Read `adapter_config.json`. Raises CheckpointError naming what is missing."""
    file = Path(directory) / CONFIG_FILE
    raw = read_json_object(file)
    try:
        return AdapterConfig(
            base_path=str(raw["base_model_name_or_path"]),
            rank=int(raw["r"]),
            alpha=float(raw["lora_alpha"]),
            dropout=float(raw.get("lora_dropout", 0.0)),
            targets=tuple(raw["target_modules"]),
        )
    except KeyError as error:
        raise CheckpointError(f"{file}: key {error.args[0]!r} is missing") from None
    except (ValueError, TypeError):
        raise CheckpointError(f"{file}: not a valid adapter configuration") from None


def read_adapter_index(directory: str | Path) -> dict[str, TensorInfo]:
    """Place of every tensor of an adapter file, by the model's own name."""
    file = Path(directory) / WEIGHTS_FILE
    return {name.removeprefix(PREFIX): info for name, info in read_header(file).items()}


def _is_elsewhere(name: str, model: ErnieModel) -> bool:
    """Whether a tensor may belong to an expert that another process holds."""
    moe = model.config.moe
    return moe is not None and moe.expert_ranks > 1 and is_expert_tensor(name)


def load_adapter(model: ErnieModel, directory: str | Path) -> None:
    """Fill the adapters of a model that `apply_lora` prepared. Raises CheckpointError where they do not fit."""
    found = read_adapter_index(directory)
    parameters = adapter_parameters(model)
    differing = sorted(name for name in set(found) ^ set(parameters) if not _is_elsewhere(name, model))
    if differing:
        side = "only the file has" if differing[0] in found else "the file lacks"
        raise CheckpointError(f"{directory}: the adapter does not fit this model: {side} {differing[0]}")
    for name, parameter in parameters.items():
        if found[name].shape != tuple(parameter.shape):
            raise CheckpointError(
                f"{directory}: {name} is {list(found[name].shape)}, the model wants {list(parameter.shape)}"
            )
        assign(parameter, read_array(found[name]), found[name].dtype)
