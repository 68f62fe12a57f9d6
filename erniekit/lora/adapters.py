"""Adapter files in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from paddle import Tensor, nn

from erniekit.checkpoint.hub import TensorInfo, read_array, read_header, write_safetensors
from erniekit.checkpoint.weights import assign
from erniekit.errors import CheckpointError
from erniekit.layers import Linear
from erniekit.lora.layers import LoraLinear
from erniekit.lora.peft import CONFIG_FILE, AdapterConfig, read_adapter_config, write_adapter_config
from erniekit.models.config import ErnieConfig
from erniekit.models.ernie import ErnieModel
from erniekit.models.specs import TensorSpec, is_expert_tensor

WEIGHTS_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."
_HALF = re.compile(r"\.lora_[AB]\.weight$")
# Names of transformers' own classes -> the Hub's, in adapters that PEFT trained.
_FOREIGN_NAMES = (
    ("model.language_model.", "model."),
    ("model.vision_tower.", "vision_model."),
    ("_linear.fc1.", "_linear.0."),
    ("_linear.fc2.", "_linear.2."),
)


def is_adapter_directory(directory: str | Path) -> bool:
    """Whether a directory holds an adapter instead of a full model."""
    return (Path(directory) / CONFIG_FILE).is_file()


def adapter_parameters(model: nn.Layer) -> dict[str, Tensor]:
    """The parameters of an adapter file: all low-rank matrices, and trained base parameters (routers)."""
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
    base: ErnieConfig,
) -> None:
    """Write adapters into an existing directory.

    specs: the tensors of `adapter_parameters`, under the model's names; read: returns one of them, called in this
    order; base: configuration of the base model.
    """
    directory = Path(directory)
    modules = {_HALF.sub("", spec.name) for spec in specs if _HALF.search(spec.name)}
    whole = [spec.name for spec in specs if ".lora_" not in spec.name]
    write_adapter_config(directory, adapter, modules, whole, base)
    prefixed = [TensorSpec(PREFIX + spec.name, spec.dtype, spec.shape) for spec in specs]
    write_safetensors(directory / WEIGHTS_FILE, prefixed, lambda name: read(name.removeprefix(PREFIX)))


def read_adapter_index(directory: str | Path) -> dict[str, TensorInfo]:
    """The place of every tensor of an adapter file, under the model's name.

    Raises CheckpointError for a tensor that is neither lora_A or lora_B of a linear module nor a full tensor.
    """
    file = Path(directory) / WEIGHTS_FILE
    tensors = {}
    for stored, info in read_header(file).items():
        name = stored.removeprefix(PREFIX)
        for theirs, ours in _FOREIGN_NAMES:
            name = name.replace(theirs, ours)
        fused = re.search(r"\.experts\.(base_layer\.)?lora_", name)
        if fused or (".lora_" in name and not _HALF.search(name)):
            what = "an adapter on fused experts" if fused else "no lora_A or lora_B of a linear module"
            raise CheckpointError(
                f"{file}: {stored} is {what}, which cannot be read; merge the adapter with PEFT (merge_and_unload) "
                "and use the merged model"
            )
        tensors[name] = info
    return tensors


def adapter_vocab_size(directory: str | Path) -> int | None:
    """Rows of the embedding in an adapter file, as after model.resize_vocab; None without an embedding."""
    info = read_adapter_index(directory).get("model.embed_tokens.weight")
    return None if info is None else info.shape[0]


def _is_elsewhere(name: str, model: ErnieModel) -> bool:
    """Whether a tensor may belong to an expert of another process."""
    moe = model.config.moe
    return moe is not None and moe.expert_ranks > 1 and is_expert_tensor(name)


def add_adapter(model: ErnieModel, directory: str | Path) -> None:
    """Add the adapters of a directory to a model without adapters. Raises CheckpointError if they do not fit."""
    adapter, found = read_adapter_config(directory), read_adapter_index(directory)
    for name, parameter in model.named_parameters():
        # Full tensors in the file were trained together with the adapters (routers), and are loaded like them.
        parameter.stop_gradient = name not in found
    sublayers = dict(model.named_sublayers())
    for name, info in found.items():
        module, half, _ = name.partition(".lora_A.")
        if not half:
            continue
        base = sublayers.get(module)
        if not isinstance(base, Linear):
            raise CheckpointError(
                f"{directory}: the adapter does not fit this model, which has no linear module {module}"
            )
        rank = info.shape[0]
        alpha = adapter.scaling(module, rank) * rank
        parent, _, child = module.rpartition(".")
        (sublayers[parent] if parent else model).add_sublayer(
            child, LoraLinear(base, rank, alpha, adapter.dropout)
        )
    load_adapter(model, directory)


def load_adapter(model: ErnieModel, directory: str | Path) -> None:
    """Load the weights of existing adapters of a model. Raises CheckpointError if they do not fit."""
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
