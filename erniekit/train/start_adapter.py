"""Finds the adapter to start from (lora.path), and checks that it fits the run."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from erniekit.config import Config
from erniekit.errors import CheckpointError, ConfigError
from erniekit.generation.load import find_checkpoint
from erniekit.lora.adapters import is_adapter_directory, read_adapter
from erniekit.lora.targets import LoraMatch

_SHOWN = 3


def find_start_adapter(config: Config, matches: Sequence[LoraMatch], alpha: float) -> Path | None:
    """The directory of the adapter of lora.path; None if it is not set.

    matches: the modules with adapters in the run; alpha: lora.alpha. Raises CheckpointError for a path without an
    adapter, and ConfigError if modules, ranks or scales differ, with the settings that fit.
    """
    if config.lora.path is None:
        return None
    directory = find_checkpoint(Path(config.lora.path))
    if not is_adapter_directory(directory):
        raise CheckpointError(
            f"lora.path: {directory} is a complete model, not an adapter; to train new adapters on it, set model.path"
        )
    adapter, tensors = read_adapter(directory)
    ranks = {
        name.partition(".lora_A.")[0]: info.shape[0] for name, info in tensors.items() if ".lora_A." in name
    }
    wanted = {match.module: match.rank for match in matches}
    problems = []
    if extra := ranks.keys() - wanted.keys():
        problems.append(f"it has adapters on {_some(extra)}, and lora.targets does not name them")
    if lacking := wanted.keys() - ranks.keys():
        problems.append(f"it has no adapters on {_some(lacking)}, and lora.targets names them")
    common = ranks.keys() & wanted.keys()
    if other := [module for module in common if ranks[module] != wanted[module]]:
        module = min(other)
        key = "lora.expert_rank" if ".mlp.experts." in module else "lora.rank"
        problems.append(
            f"its rank is {ranks[module]} on {_some(other)}, not {wanted[module]}: set {key} to it"
        )
    same = common - set(other)
    scalings = {module: adapter.scaling(module, ranks[module]) for module in same}
    if other := [m for m in same if abs(scalings[m] - alpha / wanted[m]) > 1e-6 * scalings[m]]:
        module = min(other)
        problems.append(
            f"it is scaled by {scalings[module]:g} on {_some(other)}, not by {alpha / wanted[module]:g}: set "
            f"lora.alpha to {scalings[module] * wanted[module]:g} (alpha / rank is the scale)"
        )
    routers = [name for name in tensors if ".mlp.gate.weight" in name]
    if routers and not config.lora.train_router:
        problems.append(f"it has trained {_some(routers)}: set lora.train_router: true")
    if problems:
        raise ConfigError(
            f"lora.path: {directory} does not fit this run:\n" + "\n".join(f"  {p}" for p in problems)
        )
    return directory


def _some(names: Collection[str]) -> str:
    shown = ", ".join(sorted(names)[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more modules"
