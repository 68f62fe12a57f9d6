"""Selects the modules with adapters and the trained parameters of a run."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from erniekit.checkpoint.hub import spec_bytes
from erniekit.checkpoint.quantizer import stored_bytes
from erniekit.checkpoint.resize import NO_CHANGES, ModelChanges
from erniekit.config import Config, LoraConfig
from erniekit.config.choices import Quantize
from erniekit.config.rules import router_settings
from erniekit.errors import ConfigError
from erniekit.lora.targets import LoraMatch, linear_shapes, match_of, match_targets
from erniekit.models.config import ErnieConfig
from erniekit.models.factory import parameter_specs
from erniekit.models.specs import TensorSpec, is_expert_tensor, is_router_tensor, is_vocab_tensor
from erniekit.moe.config import MoeConfig
from erniekit.parallel.data_parallel import layer_number
from erniekit.parallel.fully_sharded import is_fully_sharded
from erniekit.train.parameters import check_experts, check_routers, trained_names

_DTYPE_NAMES = {"float32": "F32", "bfloat16": "BF16"}


@dataclass
class TensorGroup:
    """The tensors of one decoder layer, or outside of the layers, that are trained and sharded in the same way.

    layer: REST outside of the layers. is_wide: always float32. size: elements; num_bytes: in their own dtype;
    stored_bytes: as model.quantize stores them.
    """

    layer: int
    is_expert: bool
    is_router: bool
    is_adapter: bool
    is_trained: bool
    is_fully_sharded: bool
    is_wide: bool
    size: int = 0
    num_bytes: int = 0
    stored_bytes: int = 0


def group_tensors(
    specs: Iterable[TensorSpec], trained: Collection[str], quantize: Quantize = "none"
) -> list[TensorGroup]:
    """Group the tensors of a model. It has many thousands of tensors, but only a few groups per layer."""
    trained = set(trained)
    groups: dict[tuple[int, bool, bool, bool, bool, bool, bool], TensorGroup] = {}
    for spec in specs:
        name = spec.name
        kind = (
            layer_number(name),
            is_expert_tensor(name),
            is_router_tensor(name),
            ".lora_" in name,
            name in trained,
            is_fully_sharded(name),
            spec.dtype == "F32",
        )
        group = groups.setdefault(kind, TensorGroup(*kind))
        group.size += spec.size
        group.num_bytes += spec_bytes(spec)
        group.stored_bytes += stored_bytes(spec, quantize)
    return list(groups.values())


@dataclass(frozen=True)
class ParameterSelection:
    """The modules with adapters, and all parameters and trained parameters of the whole model over all processes.

    rows_before, rows: rows of the embedding in the checkpoint and in memory.
    """

    matches: list[LoraMatch]
    specs: list[TensorSpec]
    trained: list[str]
    rows_before: int
    rows: int
    _groups: dict[Quantize, list[TensorGroup]] = field(default_factory=dict, repr=False, compare=False)

    def groups(self, quantize: Quantize) -> list[TensorGroup]:
        """`group_tensors`, cached."""
        if quantize not in self._groups:
            self._groups[quantize] = group_tensors(self.specs, self.trained, quantize)
        return self._groups[quantize]


def lora_alpha(lora: LoraConfig) -> float:
    """lora.alpha, or its default of twice the rank."""
    return 2.0 * lora.rank if lora.alpha is None else lora.alpha


def lora_expert_rank(lora: LoraConfig, moe: MoeConfig | None) -> int:
    """The rank of adapters on experts: lora.expert_rank; lora.rank if it is not set.

    "auto" is lora.rank divided by the number of active experts, at least 1 (Schulman et al. 2025, "LoRA Without
    Regret").
    """
    if moe is None or lora.expert_rank is None:
        return lora.rank
    return max(1, lora.rank // moe.top_k) if lora.expert_rank == "auto" else lora.expert_rank


def select_parameters(
    config: Config, before: ErnieConfig, dtype: str, changes: ModelChanges = NO_CHANGES
) -> ParameterSelection:
    """Select the parameters of the whole model, not only of this process.

    before: the architecture of the checkpoint. Raises ConfigError if lora.targets or model.freeze match nothing, and if
    model.freeze covers new rows.
    """
    architecture = changes.apply(before)
    is_resized = architecture.vocab_size > before.vocab_size
    specs = parameter_specs(architecture, _DTYPE_NAMES[dtype])
    matches: list[LoraMatch] = []
    if config.lora.enabled:
        linears = linear_shapes(specs)
        expert_rank = lora_expert_rank(config.lora, architecture.moe)
        for module in match_targets(list(linears), config.lora.targets):
            outer, inner = linears[module]
            rank = expert_rank if is_expert_tensor(f"{module}.") else config.lora.rank
            matches.append(match_of(module, inner, outer, rank))
            specs.append(TensorSpec(f"{module}.lora_A.weight", _DTYPE_NAMES[dtype], (rank, inner)))
            specs.append(TensorSpec(f"{module}.lora_B.weight", _DTYPE_NAMES[dtype], (outer, rank)))
    names = [spec.name for spec in specs]
    trained = trained_names(
        names,
        freeze=config.model.freeze,
        adapters=config.lora.enabled,
        train_router=config.lora.train_router,
        # Adapter files cannot store new rows, so the tensors with new rows are trained and saved completely.
        train_vocab=is_resized,
    )
    if is_resized:
        untrained = [name for name in names if is_vocab_tensor(name) and name not in trained]
        if untrained:
            raise ConfigError(
                f"model.freeze covers {untrained[0]}: its new rows (model.resize_vocab) would stay untrained; leave "
                "it out of model.freeze"
            )
    check_routers(names, trained, router_settings(config))
    if architecture.moe is not None:
        check_experts(names, trained, architecture.moe.num_experts)
    return ParameterSelection(matches, specs, trained, before.vocab_size, architecture.vocab_size)
