"""Selects the trained parameters of a model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

from erniekit.errors import ConfigError
from erniekit.models.specs import is_vocab_tensor

# Prefixes of parameter names. Adapters have the prefix of their part, so they are frozen with it.
_PREFIXES = {
    "vision": ("vision_model.",),
    "resampler": ("model.resampler_model.",),
    "language": ("model.embed_tokens.", "model.layers.", "model.norm.", "lm_head."),
}
_ROUTERS = (".mlp.gate.weight", ".mlp.gate.weight_1")
PARTS = (*_PREFIXES, "router")

_EXPERT = re.compile(r"(.*\.experts\.)(\d+)\.(gate|up|down)_proj\.(.*)")


def part_of(name: str) -> str:
    """The part of a parameter. Routers are only in "router", not in "language"."""
    if name.endswith(_ROUTERS):
        return "router"
    return next(part for part, prefixes in _PREFIXES.items() if name.startswith(prefixes))


def frozen_names(names: Sequence[str], freeze: Sequence[str]) -> set[str]:
    """The parameters that model.freeze covers. An entry is the name of a part or an fnmatch pattern.

    Raises ConfigError, with similar names, for an entry that covers no parameter.
    """
    frozen: set[str] = set()
    for entry in freeze:
        covered = {
            name for name in names if (part_of(name) == entry if entry in PARTS else fnmatchcase(name, entry))
        }
        if not covered:
            raise ConfigError(f"model.freeze: {entry!r} {_explain_no_match(names, entry)}")
        frozen |= covered
    return frozen


def trained_names(
    names: Sequence[str],
    *,
    freeze: Sequence[str],
    adapters: bool = False,
    train_router: bool = False,
    train_vocab: bool = False,
) -> list[str]:
    """The trained parameters among `names`, in their order.

    adapters: train the low-rank matrices instead of all parameters; train_router: also the routers; train_vocab: also
    embedding and head. Parameters in `freeze` are not trained, and neither is the correction bias of a router, which
    has no gradient. Raises ConfigError as `frozen_names`, for `train_router` in a model without routers, and if no
    parameter is trained.
    """
    frozen = frozen_names(names, freeze)
    routers = {name for name in names if part_of(name) == "router"}
    if train_router and not routers:
        raise ConfigError("lora.train_router: this model has no router; remove it")
    chosen = []
    for name in names:
        if adapters:
            wanted = ".lora_A." in name or ".lora_B." in name or (train_router and name in routers)
            wanted = wanted or (train_vocab and is_vocab_tensor(name))
        else:
            wanted = not name.endswith("e_score_correction_bias")
        if wanted and name not in frozen:
            chosen.append(name)
    if not chosen:
        raise ConfigError("there is nothing to train: model.freeze covers every parameter")
    return chosen


def check_experts(names: Sequence[str], trained: Iterable[str], num_experts: int) -> None:
    """Raise ConfigError if only some experts of a layer are trained, or their gate_proj without their up_proj.

    In memory, they are one parameter. num_experts: of each modality.
    """
    wanted = set(trained)
    first: dict[tuple[str, int, str], str] = {}
    for name in names:
        match = _EXPERT.fullmatch(name)
        if match is None:
            continue
        path, number, projection, rest = match.groups()
        stack = (path + rest, int(number) // num_experts, projection.replace("up", "gate"))
        other = first.setdefault(stack, name)
        if (name in wanted) != (other in wanted):
            kept, frozen = (name, other) if name in wanted else (other, name)
            raise ConfigError(
                f"model.freeze covers {frozen} but not {kept}: all experts of a layer and modality, and their "
                "gate_proj and up_proj, are frozen or trained together"
            )


def check_routers(names: Sequence[str], trained: Iterable[str], settings: Sequence[str]) -> None:
    """Raise ConfigError if no router is trained, but `settings` for trained routers (configuration keys) are set."""
    routers = {name for name in names if part_of(name) == "router"}
    if not settings or routers & set(trained):
        return
    if not routers:
        raise ConfigError(f"{settings[0]}: this model has no experts and no router; remove it")
    raise ConfigError(f"{settings[0]}: has no effect, since model.freeze covers every router; remove it")


def _explain_no_match(names: Sequence[str], entry: str) -> str:
    if entry in PARTS:
        parts = ", ".join(sorted({part_of(name) for name in names}))
        return f"is not a part of this model, which has: {parts}"
    near = get_close_matches(entry, [*PARTS, *names], n=3, cutoff=0.4)
    hint = f"; similar names: {', '.join(near)}" if near else ""
    return f"is neither a part ({', '.join(PARTS)}) nor a pattern that matches a parameter{hint}"
