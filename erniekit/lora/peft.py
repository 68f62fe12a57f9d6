"""`adapter_config.json`, as PEFT (https://github.com/huggingface/peft) reads and writes it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from erniekit.display.text import clipped
from erniekit.errors import CheckpointError
from erniekit.json_fields import above_zero, read_flag, read_integer, read_text
from erniekit.local_files import read_json_object
from erniekit.models.config import ErnieConfig
from erniekit.models.specs import is_expert_tensor, is_router_tensor, is_vocab_tensor, parameter_specs

CONFIG_FILE = "adapter_config.json"
_MOST_RANK = 65_536
# Settings that change the computation of an adapter and are not supported.
_REFUSED = (
    *("use_dora", "fan_in_fan_out", "lora_bias", "layer_replication"),
    *("trainable_token_indices", "alora_invocation_tokens", "use_qalora", "use_bdlora"),
    *("arrow_config", "kasa_config", "monteclora_config"),
)
# Initialisations that also change the weights of the base model, so the adapter does not fit the base on disk.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
# The part of a module name from the layer on, which transformers' classes and the Hub's names have in common.
_IN_LAYER = re.compile(r"(?:^|\.)((?:layers|blocks)\.\d+\..*)$")
# The experts of a layer as transformers 5 has them.
_FUSED = ("experts.gate_up_proj", "experts.down_proj")
# Numbered modules of the resampler, as transformers' Ernie4_5_VLMoe calls them.
_RESAMPLER = {"0": "fc1", "2": "fc2"}


@dataclass(frozen=True)
class AdapterConfig:
    """The configuration of an adapter. `base_path` is the directory of its base model, or its repository on the Hub.

    base_revision: branch, tag or commit of that repository.
    expert_rank: the rank of experts, None: `rank`. When an adapter is read, the rank of a module is that of its
    tensors, and its alpha is in `module_alphas`, by alpha_pattern of the file. use_rslora: the output is scaled by
    alpha / sqrt(rank) instead of alpha / rank (Kalajdzievski 2023). untied_embedding: PEFT trained the embedding in
    full, and not the output matrix, even if the base model ties them.
    """

    base_path: str
    rank: int
    alpha: float
    dropout: float
    expert_rank: int | None = None
    use_rslora: bool = False
    base_revision: str | None = None
    module_alphas: dict[str, float] = field(default_factory=dict)
    untied_embedding: bool = False

    def scaling(self, module: str, rank: int) -> float:
        """The scaling factor of the adapter of a module, given its rank."""
        alpha = self.module_alphas.get(module, self.alpha)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)


def read_adapter_config(directory: str | Path) -> AdapterConfig:
    """Read `adapter_config.json`. Raises CheckpointError for missing keys and unsupported settings."""
    file = Path(directory) / CONFIG_FILE
    raw = read_json_object(file)
    try:
        _check_supported(file, raw)
        dropout, revision = raw.get("lora_dropout") or 0.0, raw.get("revision")
        if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout < 1:
            raise ValueError("lora_dropout must be a number from 0 to 1")
        if revision is not None and not isinstance(revision, str):
            raise ValueError("revision must be text")
        return AdapterConfig(
            base_path=read_text(raw, "base_model_name_or_path"),
            rank=read_integer(raw, "r", most=_MOST_RANK),
            alpha=above_zero("lora_alpha", raw["lora_alpha"]),
            dropout=float(dropout),
            use_rslora=read_flag(raw, "use_rslora", False),
            base_revision=revision,
            untied_embedding=_trains_embedding_alone(raw),
        )
    except KeyError as error:
        raise CheckpointError(f"{file}: key {error.args[0]!r} is missing") from None
    except ValueError as error:
        raise CheckpointError(f"{file}: {error}") from None


def write_adapter_config(
    directory: Path, adapter: AdapterConfig, modules: Collection[str], whole: Iterable[str], base: ErnieConfig
) -> None:
    """Write `adapter_config.json` for adapters on `modules` and full tensors `whole` that are trained without one."""
    target_modules, target_parameters = targets_of(modules, base)
    rank, rank_pattern = _ranks(adapter, modules, [*target_modules, *target_parameters], base)
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": adapter.base_path,
        "revision": adapter.base_revision,
        "r": rank,
        "lora_alpha": adapter.alpha,
        # PEFT refuses dropout on parameters.
        "lora_dropout": 0.0 if target_parameters else adapter.dropout,
        "target_modules": target_modules,
        "target_parameters": target_parameters or None,
        "modules_to_save": _modules_to_save(whole, base) or None,
        "rank_pattern": rank_pattern,
        "alpha_pattern": {},
        "use_rslora": adapter.use_rslora,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    (directory / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _ranks(
    adapter: AdapterConfig, modules: Collection[str], targets: Iterable[str], base: ErnieConfig
) -> tuple[int, dict[str, int]]:
    """PEFT's r, and its rank_pattern for targets of another rank.

    Where PEFT stacks experts (text models) it gives them r, whatever a pattern says: the others are then listed.
    """
    expert_rank = adapter.expert_rank or adapter.rank
    experts = {name for name in modules if is_expert_tensor(f"{name}.")}
    if expert_rank == adapter.rank or not experts:
        return adapter.rank, {}
    if base.family == "vl":
        return adapter.rank, {re.escape(name): expert_rank for name in _FUSED}
    leaves = {name.rpartition(".")[2] for name in experts}
    others = (name.removesuffix(".weight") for name in targets if name.rpartition(".")[2] not in leaves)
    return expert_rank, {
        f"{re.escape(name)}(\\.weight)?": adapter.rank for name in others if ".experts." not in name
    }


def targets_of(modules: Collection[str], base: ErnieConfig) -> tuple[list[str], list[str]]:
    """PEFT's target_modules and target_parameters for adapters on `modules`, as PEFT 0.21 loads them.

    transformers 5 stacks the experts of a layer into parameters. For text models PEFT converts the names of experts'
    projections to these, together with every other projection of the same name: projections of dense layers and shared
    experts are therefore listed as parameters. For vision-language models PEFT has no such conversion: the parameters
    are listed, and PEFT warns that it finds no adapters for them.
    """
    linears = linear_modules(base)
    if base.family == "dense":
        return target_names(modules, linears), []
    experts = {name for name in modules if is_expert_tensor(name)}
    if base.family == "vl":
        others = [name for name in linears if not is_expert_tensor(name)]
        return target_names(set(modules) - experts, others), list(_FUSED) if experts else []
    alone = {name for name in linears if ".mlp." in name and not is_expert_tensor(name)}
    parameters = [f"{name.removeprefix('model.')}.weight" for name in linears if name in alone & set(modules)]
    return target_names(set(modules) - alone, [name for name in linears if name not in alone]), parameters


def _modules_to_save(whole: Iterable[str], base: ErnieConfig) -> list[str]:
    """PEFT's modules_to_save for the full tensors of an adapter file.

    An embedding and a head need not be listed: PEFT loads them into a model that was resized before, and a tied head
    stays tied. PEFT cannot load routers, nor an embedding with another name than in transformers; they are listed under
    transformers' names, so that PEFT fails (KeyError) instead of ignoring them.
    """
    found = set()
    for name in whole:
        module = name.rpartition(".")[0]
        if base.family == "vl" and is_router_tensor(name):
            module = module.removesuffix("gate") + (
                "vision_moe.gate" if name.endswith("_1") else "text_moe.gate"
            )
        if base.family == "vl":
            module = module.removeprefix("model.")
        if base.family == "vl" or not is_vocab_tensor(name):
            found.add(module)
    return sorted(found)


def linear_modules(config: ErnieConfig) -> list[str]:
    """Every module that can have an adapter, by its name on the Hub."""
    return [
        spec.name.removesuffix(".weight")
        for spec in parameter_specs(config)
        if len(spec.shape) == 2
        and spec.name != "model.embed_tokens.weight"
        and not is_router_tensor(spec.name)
    ]


def target_names(modules: Collection[str], linears: Sequence[str]) -> list[str]:
    """`modules` as PEFT's target_modules: full names or name suffixes after a dot, not patterns.

    One name covers the projections of all layers if each of them has an adapter. Otherwise names begin at the layer,
    because the part before it differs between transformers' classes and the Hub.
    """
    chosen, found = set(modules), []
    partly = {module.rpartition(".")[2] for module in linears if module not in chosen}
    for module in linears:
        if module not in chosen:
            continue
        leaf = module.rpartition(".")[2]
        if leaf.endswith("_proj") and leaf not in partly:
            found.append(leaf)
            continue
        inner = _IN_LAYER.search(module)
        found.append(inner[1] if inner else module.removeprefix("model."))
        if ".resampler_model." in module and leaf in _RESAMPLER:
            found.append(found[-1].removesuffix(leaf) + _RESAMPLER[leaf])
    return list(dict.fromkeys(found))


def _trains_embedding_alone(raw: dict[str, Any]) -> bool:
    """Whether PEFT wrote the file (it has auto_mapping), and copied the embedding to train it."""
    saved = raw.get("modules_to_save")
    names = {str(name).rpartition(".")[2] for name in saved} if isinstance(saved, list) else set()
    return "auto_mapping" in raw and "embed_tokens" in names and not raw.get("ensure_weight_tying")


def _check_supported(file: Path, raw: dict[str, Any]) -> None:
    kind = raw.get("peft_type")
    if kind != "LORA":
        raise CheckpointError(f"{file}: peft_type is {clipped(repr(kind))}; only LORA can be read")
    for key in _REFUSED:
        if raw.get(key):
            raise CheckpointError(
                f"{file}: {key} is {clipped(repr(raw[key]))}, which is not supported; merge the adapter with PEFT "
                "(merge_and_unload) and use the merged model"
            )
    start = raw.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
        raise CheckpointError(
            f"{file}: init_lora_weights is {clipped(repr(start))}, which also changed the weights of the base model; "
            "save the adapter with PEFT's path_initial_model_for_weight_conversion, or merge it with PEFT"
        )
