"""Settings that depend on several old keys: batch size, sources, adapters, parallelism, intervals.

Each function reads roles (`erniekit.config.others.table.Key.role`) and yields the settings that follow from them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args

from erniekit.config import choices
from erniekit.config.others.table import OFF, KeyTable, NoEquivalent, NotNeeded
from erniekit.errors import ConfigError


@dataclass(frozen=True)
class Setting:
    """A setting of our configuration. key: section.key, or task; value: OFF keeps our default.

    old: the old keys that it follows from; comment: for its line, which starts with "check:" where the user decides.
    """

    key: str
    value: Any
    old: tuple[str, ...] = ()
    comment: str = ""


@dataclass(frozen=True)
class Unconverted:
    """Old keys without a setting here, and the reason or what to do instead."""

    old: tuple[str, ...]
    outcome: NotNeeded | NoEquivalent


_COUNT = re.compile(r"#\d+\Z")
"""A number of samples at the end of a path, with ms-swift."""

Made = Iterator[Setting | Unconverted]


@dataclass(frozen=True)
class Roles:
    """The values of roles, and the old keys that set them.

    model: the name of the checkpoint; gpus: the number of GPUs of the old run, None if it is not known.
    """

    table: KeyTable
    model: str
    values: dict[str, Any]
    keys: dict[str, tuple[str, ...]]
    gpus: int | None

    def get(self, role: str, otherwise: Any = None) -> Any:
        """The value in the file, or the other trainer's default; `otherwise` if there is neither, or it is off."""
        found = self.values.get(role, self.table.roles.get(role))
        return otherwise if found is None or found is OFF else found

    def old(self, *roles: str) -> tuple[str, ...]:
        """The old keys of these roles that are in the file."""
        return tuple(key for role in roles for key in self.keys.get(role, ()))

    @property
    def lora(self) -> bool:
        """Whether the run trains adapters."""
        return bool(self.get("lora", False))


def combine(roles: Roles) -> Made:
    """The settings of all roles."""
    yield from _adapters(roles)
    yield from _frozen_parts(roles)
    yield from _train_sources(roles)
    yield from _eval_sources(roles)
    yield from _length(roles)
    yield from _rows_per_step(roles)
    yield from _intervals(roles)
    yield from _parallel(roles)


def _adapters(roles: Roles) -> Made:
    yield Setting("lora.enabled", roles.lora, roles.old("lora"))
    if not roles.lora:
        return
    rank = roles.get("rank", 8)
    yield Setting("lora.rank", rank, roles.old("rank"))
    alpha = roles.get("alpha")
    if roles.get("rslora", False):
        alpha = alpha or roles.table.rslora_alpha or 2 * rank
        yield Setting(
            "lora.alpha",
            round(alpha * math.sqrt(rank), 4),
            roles.old("alpha", "rslora"),
            f"rsLoRA: {alpha:g} * sqrt(rank), since adapters are scaled by alpha / rank",
        )
    elif alpha is not None:
        yield Setting("lora.alpha", alpha, roles.old("alpha"))
    ratio = roles.get("lora_plus", 1)
    if ratio != 1:
        group = {"match": "*.lora_B.*", "learning_rate_ratio": ratio}
        yield Setting("optimizer.groups", [group], roles.old("lora_plus"), "LoRA+")


def _frozen_parts(roles: Roles) -> Made:
    switches = {f"freeze_{part}": part for part in ("vision", "resampler", "language")}
    old = roles.old("freeze", *switches)
    if roles.lora:
        if old:
            yield Unconverted(old, NotNeeded("with LoRA, the weights of the checkpoint are frozen"))
        return
    frozen = roles.get("freeze", [])
    if "-vl" in roles.model.lower():
        frozen = frozen or [part for switch, part in switches.items() if roles.get(switch, False)]
    if frozen:
        yield Setting("model.freeze", frozen, old)


def _train_sources(roles: Roles) -> Made:
    """data.train, data.mix, data.stop and data.format: paths with weights, formats, and a second stream of texts."""
    paths, texts = roles.get("paths", []), roles.get("text_paths", [])
    sources = [*map(_as_source, paths), *map(_as_source, texts)]
    if not sources:
        return
    yield from _mix(roles, len(sources))
    used, comment = ["paths", "text_paths", "datasets", "dataset_dir"], ""
    weights = _weights(roles, len(paths), len(texts))
    if weights is None:
        advice = f"not one probability for each of {len(sources)} paths; set the weights in data.train"
        yield Unconverted(roles.old("weights", "text_weights"), NoEquivalent(advice))
    elif len(sources) > 1 and _mix_of(roles) == "weighted":
        used += ["weights", "text_weights"]
        for source, weight in zip(sources, weights, strict=True):
            source |= {} if weight == 1 else {"weight": weight}
        if paths and texts and roles.old("modality_ratio"):
            used.append("modality_ratio")
            comment = "check: modality_ratio counts steps, and weights count samples"
    formats = roles.get("formats", [])
    if len(set(formats)) == 1:
        yield Setting("data.format", formats[0], roles.old("formats"))
        if formats[0] == "messages":
            yield Setting(
                "data.loss_on", "each_turn", (), "every answer in a sample of its own, as in ERNIEKit"
            )
    elif len(formats) == len(sources):
        used.append("formats")
        for source, name in zip(sources, formats, strict=True):
            source["format"] = name
    unknown = roles.get("undescribed", [])
    if unknown:
        comment = f"check: no dataset_info.json says where {', '.join(unknown)} is"
    counted = [source for source in sources if roles.table.sample_counts and _COUNT.search(source["path"])]
    if counted:
        comment = "check: whole sources; the old run took a number of samples of each (#)"
        sources = [source | {"path": _COUNT.sub("", source["path"])} for source in sources]
    sources = [source for source in sources if source.get("weight") != 0]
    yield Setting("data.train", _short(sources), roles.old(*used), comment)


def _mix(roles: Roles, sources: int) -> Made:
    mix, old = _mix_of(roles), roles.old("mix")
    if sources == 1:
        return
    if mix in get_args(choices.Stop):
        yield Setting("data.mix", "interleave", old)
        yield Setting("data.stop", mix, old)
    else:
        yield Setting("data.mix", mix, old)


def _mix_of(roles: Roles) -> str:
    """concat, weighted, or interleave by its stop. Interleaving by probabilities is weighted here."""
    weighted = bool(roles.old("weights", "text_weights"))
    mix: str = roles.get("mix", "weighted" if weighted else "concat")
    return "weighted" if weighted and mix != "concat" else mix


def _weights(roles: Roles, paths: int, texts: int) -> list[float] | None:
    """The weight of each path, with texts after the others; None if the number of weights does not match."""
    weights, text_weights = roles.get("weights", [1.0] * paths), roles.get("text_weights", [1.0] * texts)
    if paths and texts:
        ratio = roles.get("modality_ratio", [1.0, 1.0])
        media, text = ratio if len(ratio) == 2 else (1.0, 1.0)
        weights = [round(media * weight / (sum(weights) or 1), 6) for weight in weights]
        text_weights = [round(text * weight / (sum(text_weights) or 1), 6) for weight in text_weights]
    found = [*weights, *text_weights] if texts else weights
    return found if len(found) == paths + texts else None


def _as_source(path: str | dict[str, Any]) -> dict[str, Any]:
    return dict(path) if isinstance(path, dict) else {"path": path}


def _short(sources: list[dict[str, Any]]) -> Any:
    """A single path without a list, and paths without other keys as plain strings."""
    plain = [source["path"] if list(source) == ["path"] else source for source in sources]
    return plain[0] if len(plain) == 1 and isinstance(plain[0], str) else plain


def _eval_sources(roles: Roles) -> Made:
    paths = roles.get("eval_paths", [])
    if paths:
        yield Setting(
            "data.eval", _short([*map(_as_source, paths)]), roles.old("eval_paths", "eval_datasets")
        )


def _length(roles: Roles) -> Made:
    steps = roles.get("max_steps")
    if steps is not None:
        yield Setting("train.max_steps", steps, roles.old("max_steps"))
        if roles.old("epochs"):
            yield Unconverted(roles.old("epochs"), NotNeeded("train.max_steps overrides train.epochs"))
    else:
        yield Setting("train.epochs", roles.get("epochs", 1.0), roles.old("epochs"))
        if roles.old("max_steps"):
            yield Unconverted(roles.old("max_steps"), NotNeeded("train.epochs sets the length of the run"))


def _rows_per_step(roles: Roles) -> Made:
    batch, accumulation = roles.get("batch", 1), roles.get("accumulation", 1)
    split = roles.get("tensor", 1) * roles.get("pipeline", 1) * roles.get("context", 1)
    gpus = roles.gpus or max(split, split * roles.get("shard_degree", 1))
    if gpus % split:
        raise ConfigError(
            f"--gpus {gpus} is not a multiple of {split}, the GPUs that share one batch in the old configuration "
            "(tensor, pipeline and context or sequence parallel degrees)"
        )
    old = roles.old("batch", "accumulation", "tensor", "pipeline", "context", "shard_degree")
    ranks = gpus // split
    rows, made = batch * accumulation * ranks, f"{batch} x {accumulation} accumulated x {ranks} data-parallel"
    if accumulation <= 0:
        rows, made = max(roles.table.auto_batch, batch * ranks), "the old trainer chose the accumulation"
    if not roles.get("packing", False):
        made = f"the old run had {rows} samples per step, unpacked; a packed sequence holds several"
    elif roles.gpus and accumulation > 0 and rows % gpus == 0:
        yield Setting("train.rows_per_step", rows, old, made)
        return
    guess = (
        ""
        if roles.gpus
        else f"; convert with --gpus N if the old run had more than {gpus} GPU{'s' * (gpus > 1)}"
    )
    comment = f"check: {made}; must be a multiple of your GPUs{guess}"
    yield Setting("train.rows_per_step", max(rows, 1), old, comment)


def _intervals(roles: Roles) -> Made:
    for key, steps, strategy in (
        ("checkpoint.save_every", "save_steps", "save_strategy"),
        ("train.eval_every", "eval_steps", "eval_strategy"),
    ):
        chosen, old = roles.get(strategy, "steps"), roles.old(steps, strategy)
        if key == "train.eval_every" and not roles.get("eval_paths", []):
            if old:
                yield Unconverted(old, NotNeeded("there is no evaluation data"))
        elif chosen == "epoch":
            yield Setting(key, OFF)
            yield Unconverted(
                old,
                NoEquivalent(f"intervals are steps: set {key} (`--dry-run` prints the steps of an epoch)"),
            )
        elif chosen == "steps" and roles.get(steps) is not None:
            yield Setting(key, roles.get(steps), old)
        elif chosen == "no":
            yield Setting(key, OFF, old)


def _parallel(roles: Roles) -> Made:
    tensor, pipeline = roles.get("tensor", 1), roles.get("pipeline", 1)
    context = roles.get("context", 1)
    if context > 1:
        yield Setting("parallel.context", context, roles.old("context"))
    if roles.get("expert", 1) > 1:
        yield Setting("parallel.expert", roles.get("expert"), roles.old("expert"))
    elif roles.get("expert_group") == "mp" and tensor > 1:
        yield Setting(
            "parallel.expert",
            tensor,
            roles.old("expert_group", "tensor"),
            "the degree that split the experts before",
        )
    shard, old, comment = roles.get("shard"), roles.old("shard"), ""
    level = None if shard is None else choices.SHARDS[shard]
    if tensor * pipeline > 1 and not roles.lora:
        level, old = "parameters", (*old, *roles.old("tensor", "pipeline"))
        comment = "in place of tensor and pipeline parallelism; `--dry-run` prints the memory of a process"
    if level is not None:
        yield Setting("parallel.shard", level, old, comment)
    if level == "parameters":
        comment = "" if roles.get("recompute", False) else "parallel.shard: parameters needs it"
        yield Setting("train.recompute", "layers", roles.old("recompute"), comment)
    elif roles.get("recompute") is not None:
        yield Setting(
            "train.recompute", "layers" if roles.get("recompute") else "none", roles.old("recompute")
        )
