"""Adapter files in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from paddle import Tensor, nn

from erniekit.checkpoint.hub import TensorInfo, read_header
from erniekit.checkpoint.names import by_parameter, experts_path, hub_tensors, stacks_of
from erniekit.checkpoint.tensor_layouts import TRANSFORMERS_NAMES
from erniekit.checkpoint.weights import load_parameter
from erniekit.errors import CheckpointError
from erniekit.layers import Linear
from erniekit.local_files import read_json_object
from erniekit.lora.layers import LoraLinear, LoraStackedLinear
from erniekit.lora.patterns import read_patterns
from erniekit.lora.peft import CONFIG_FILE, AdapterConfig, read_adapter_config, write_adapter_config
from erniekit.lora.stacked import STACKED_NAME, adapted_parameter, unstack
from erniekit.lora.targets import replace_layer, stacked_modules
from erniekit.models.config import ErnieConfig
from erniekit.models.ernie import ErnieModel
from erniekit.models.specs import TensorSpec, is_expert_tensor

WEIGHTS_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."
_HALF = re.compile(r"\.lora_[AB]\.weight$")


def is_adapter_directory(directory: str | Path) -> bool:
    """Whether a directory holds an adapter instead of a full model."""
    return (Path(directory) / CONFIG_FILE).is_file()


def adapter_parameters(model: nn.Layer) -> dict[str, Tensor]:
    """The parameters that an adapter file holds: all low-rank matrices, and trained base parameters (routers)."""
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if ".lora_A." in name or ".lora_B." in name or not parameter.stop_gradient
    }


def stored_adapter(specs: Sequence[TensorSpec]) -> list[TensorSpec]:
    """The tensors of `WEIGHTS_FILE`, which have other names there. specs: from `adapter_parameters`."""
    return [TensorSpec(PREFIX + spec.name, spec.dtype, spec.shape) for spec in specs]


def write_adapter_settings(
    directory: str | Path, specs: Sequence[TensorSpec], adapter: AdapterConfig, base: ErnieConfig
) -> None:
    """Write `adapter_config.json`. specs: `stored_adapter`; base: configuration of the base model."""
    names = [spec.name.removeprefix(PREFIX) for spec in specs]
    modules = {_HALF.sub("", name) for name in names if _HALF.search(name)}
    whole = [name for name in names if ".lora_" not in name]
    write_adapter_config(Path(directory), adapter, modules, whole, base)


def read_adapter(directory: str | Path) -> tuple[AdapterConfig, dict[str, TensorInfo]]:
    """The configuration of an adapter, and the place of every tensor of its file under the model's name.

    Files of PEFT have the names of transformers' classes, with stacked experts, which are split into single experts.
    Raises CheckpointError for unsupported settings, and for a tensor that is neither lora_A or lora_B of a
    linear module nor a full tensor.
    """
    directory = Path(directory)
    config, raw = read_adapter_config(directory), read_json_object(directory / CONFIG_FILE)
    file = directory / WEIGHTS_FILE
    ranks, alphas = (
        read_patterns(directory / CONFIG_FILE, raw, f"{kind}_pattern") for kind in ("rank", "alpha")
    )
    targets = raw.get("target_parameters") or []
    if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        raise CheckpointError(f"{directory / CONFIG_FILE}: target_parameters must be a list of names")
    stored = {name.removeprefix(PREFIX): info for name, info in read_header(file).items()}
    tensors: dict[str, TensorInfo] = {}
    exact: dict[str, float] = {}
    for theirs, info in stored.items():
        name = theirs
        for old, new in TRANSFORMERS_NAMES:
            name = name.replace(old, new)
        if not math.prod(info.shape):
            raise CheckpointError(f"{file}: {PREFIX}{theirs} is empty: its shape is {list(info.shape)}")
        module, _, _ = theirs.partition(".lora_")
        found = [replace(info, name=name)]
        if STACKED_NAME.match(name):
            leaf = adapted_parameter(theirs, stored, targets)
            module = f"{module.removesuffix('.base_layer')}.{leaf}"
            found = list(unstack(info, name, leaf, int(ranks.value(module, config.rank))))
        elif (".lora_" in name and not _HALF.search(name)) or ".base_layer." in name:
            raise CheckpointError(
                f"{file}: {PREFIX}{theirs} is not lora_A or lora_B of a linear module, which cannot be read; merge the "
                "adapter with PEFT (merge_and_unload) and use the merged model"
            )
        for one in found:
            if one.name in tensors:
                raise CheckpointError(f"{file}: {PREFIX}{theirs} has the values of {one.name} a second time")
            tensors[one.name] = one
            exact[one.name.partition(".lora_")[0]] = float(alphas.value(module, config.alpha))
    return replace(config, module_alphas=exact), tensors


def read_adapter_index(directory: str | Path) -> dict[str, TensorInfo]:
    """The place of every tensor of an adapter file, under the model's name. Raises as `read_adapter` does."""
    return read_adapter(directory)[1]


def refuse_untied(directory: str | Path, adapter: AdapterConfig, names: Iterable[str]) -> None:
    """Raise CheckpointError for an adapter that trained only one of the embedding and the output matrix.

    Called for base models that tie them. names: of the tensors of the adapter.
    """
    output = next((name for name in names if name.startswith("lm_head.")), None)
    if output is not None or adapter.untied_embedding:
        raise CheckpointError(
            f"{directory}: {output or 'model.embed_tokens.weight'} was trained as a matrix of its own, but the base "
            "model ties embedding and output matrix (tie_word_embeddings). Merge the adapter with PEFT "
            "(merge_and_unload), save the model with tie_word_embeddings false, and use that"
        )


def adapter_vocab_size(directory: str | Path) -> int | None:
    """Rows of the embedding in an adapter file, as after model.resize_vocab; None without an embedding."""
    info = read_adapter_index(directory).get("model.embed_tokens.weight")
    return None if info is None else info.shape[0]


def _is_whole(name: str) -> bool:
    """Whether a tensor of an adapter file is a full tensor of the model."""
    return ".lora_" not in name


def _is_elsewhere(name: str, model: ErnieModel) -> bool:
    """Whether a tensor may belong to an expert of another process."""
    moe = model.config.moe
    return moe is not None and moe.expert_ranks > 1 and is_expert_tensor(name)


def add_adapter(model: ErnieModel, directory: str | Path) -> None:
    """Add the adapters of a directory to a model without adapters. Raises CheckpointError if they do not fit."""
    adapter, found = read_adapter(directory)
    for name, parameter in model.named_parameters():
        # Full tensors in the file were trained together with the adapters (routers), and are loaded like them.
        parameter.stop_gradient = name not in found
    ranks = {
        name.partition(".lora_A.")[0]: info.shape[0] for name, info in found.items() if ".lora_A." in name
    }
    alphas = {module: adapter.scaling(module, rank) * rank for module, rank in ranks.items()}
    sublayers, stacks = dict(model.named_sublayers(include_self=True)), stacks_of(model)
    for path, (stack, names) in stacked_modules(ranks, stacks).items():
        kinds = {
            (ranks[f"{experts_path(path)}.{name}"], alphas[f"{experts_path(path)}.{name}"]) for name in names
        }
        if len(kinds) > 1:
            raise CheckpointError(
                f"{directory}: the adapters of {experts_path(path)} differ in rank or alpha, which cannot be "
                "read; merge the adapter with PEFT (merge_and_unload) and use the merged model"
            )
        rank, alpha = kinds.pop()
        replace_layer(sublayers, path, LoraStackedLinear(stack, names, rank, alpha, adapter.dropout))
    for module, rank in ranks.items():
        base = sublayers.get(module)
        if isinstance(base, Linear):
            replace_layer(sublayers, module, LoraLinear(base, rank, alphas[module], adapter.dropout))
        elif module not in stacks:
            raise CheckpointError(
                f"{directory}: the adapter does not fit this model, which has no linear module {module}"
            )
    load_adapter(model, directory)


def load_adapter(model: ErnieModel, directory: str | Path, *, partial: bool = False) -> None:
    """Load the weights of existing adapters of a model. Raises CheckpointError if they do not fit.

    partial: full tensors that the file lacks (routers, a vocabulary) keep their values.
    """
    adapter, found = read_adapter(directory)
    if model.config.tie_word_embeddings:
        refuse_untied(directory, adapter, found)
    parameters = adapter_parameters(model)
    tensors = [
        tensor
        for tensor in hub_tensors(model)
        if tensor.parameter in parameters
        and not (partial and _is_whole(tensor.name) and tensor.name not in found)
    ]
    names = {tensor.name for tensor in tensors}
    differing = sorted(name for name in set(found) ^ names if not _is_elsewhere(name, model))
    if differing:
        side = "only the file has" if differing[0] in found else "the file lacks"
        raise CheckpointError(f"{directory}: the adapter does not fit this model: {side} {differing[0]}")
    for tensor in tensors:
        if found[tensor.name].shape != tensor.shape:
            raise CheckpointError(
                f"{directory}: {tensor.name} is {list(found[tensor.name].shape)}, the model wants {list(tensor.shape)}"
            )
    for name, parts in by_parameter(tensors).items():
        load_parameter(parameters[name], parts, found)
