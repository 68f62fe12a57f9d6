"""The modules that get adapters."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase

from paddle import nn

from erniekit.checkpoint.names import experts_path, stacks_of
from erniekit.errors import ConfigError
from erniekit.layers import Linear
from erniekit.lora.layers import LoraLinear, LoraStackedLinear
from erniekit.models.specs import TensorSpec, is_router_tensor
from erniekit.moe.experts import StackedLinear


@dataclass(frozen=True)
class LoraMatch:
    """One adapted module, and the number of parameters of its adapter."""

    module: str
    in_features: int
    out_features: int
    params: int
    rank: int


@dataclass(frozen=True)
class LoraGroup:
    """Matches that differ only in layer or expert number, for the table printed before training."""

    pattern: str
    modules: int
    params: int


def match_targets(names: Sequence[str], targets: Sequence[str]) -> list[str]:
    """The linear modules of a model that targets name, in the order of `names`.

    A target is the last part of a module's name, or a pattern over the full name. Raises ConfigError for a target that
    matches nothing, with the names that exist.
    """
    found: set[str] = set()
    for target in targets:
        matched = [name for name in names if name.rpartition(".")[2] == target or fnmatchcase(name, target)]
        if not matched:
            raise ConfigError(
                f"lora.targets: {target!r} matches no module of this model. {_known(names, target)}"
            )
        found.update(matched)
    return [name for name in names if name in found]


def linear_shapes(specs: Sequence[TensorSpec]) -> dict[str, tuple[int, int]]:
    """The linear modules of a model by name, with (out, in) features, from the tensors of its checkpoint."""
    return {
        spec.name.removesuffix(".weight"): (spec.shape[0], spec.shape[1])
        for spec in specs
        if len(spec.shape) == 2
        and spec.name.endswith(".weight")
        and not is_router_tensor(spec.name)
        and "embed_tokens" not in spec.name
    }


def add_adapters(
    model: nn.Layer,
    modules: Collection[str],
    *,
    rank: int,
    alpha: float,
    dropout: float,
    seed: int,
    expert_rank: int | None = None,
) -> None:
    """Freeze the model and add an adapter to each named linear module, of `expert_rank` (None: `rank`) to experts.

    Names of experts on other processes are skipped.
    """
    for parameter in model.parameters():
        parameter.stop_gradient = True
    sublayers = dict(model.named_sublayers(include_self=True))
    stacks = stacks_of(model)
    for path, (stack, names) in stacked_modules(modules, stacks).items():
        adapted = LoraStackedLinear(stack, names, expert_rank or rank, alpha, dropout)
        adapted.reset(seed, experts_path(path))
        replace_layer(sublayers, path, adapted)
    for name in modules:
        base = sublayers.get(name)
        if isinstance(base, Linear):
            adapter = LoraLinear(base, rank, alpha, dropout)
            adapter.reset(seed, name)
            replace_layer(sublayers, name, adapter)


def stacked_modules(
    modules: Iterable[str], stacks: Mapping[str, tuple[str, StackedLinear]]
) -> dict[str, tuple[StackedLinear, list[str]]]:
    """The modules that are stacked in memory: path of the stack -> the stack, and their names in it.

    stacks: `erniekit.checkpoint.names.stacks_of` of the model.
    """
    found: dict[str, tuple[StackedLinear, list[str]]] = {}
    for module in modules:
        if module in stacks:
            path, stack = stacks[module]
            found.setdefault(path, (stack, []))[1].append(module.removeprefix(experts_path(path) + "."))
    return found


def replace_layer(sublayers: Mapping[str, nn.Layer], path: str, layer: nn.Layer) -> None:
    """Replace the layer at `path`. sublayers: all layers of the model by path; "" is the model itself."""
    parent, _, child = path.rpartition(".")
    sublayers[parent].add_sublayer(child, layer)


def match_of(module: str, in_features: int, out_features: int, rank: int) -> LoraMatch:
    """The match of a module for an adapter of this rank."""
    return LoraMatch(module, in_features, out_features, rank * (in_features + out_features), rank)


def group_matches(matches: Sequence[LoraMatch]) -> list[LoraGroup]:
    """Matches grouped by their name with every number replaced by `*`."""
    groups: dict[str, list[LoraMatch]] = {}
    for match in matches:
        groups.setdefault(_pattern(match.module), []).append(match)
    return [LoraGroup(pattern, len(group), sum(m.params for m in group)) for pattern, group in groups.items()]


def _pattern(name: str) -> str:
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name)


def _known(linears: Sequence[str], target: str) -> str:
    names = sorted({name.rpartition(".")[2] for name in linears if not name.rpartition(".")[2].isdigit()})
    near = get_close_matches(target, names, n=1)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    return f"{hint}Module names: {', '.join(names)}; or a pattern such as 'model.layers.*.self_attn.*'"
