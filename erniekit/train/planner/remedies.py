"""Finds the smallest changes of a configuration with which a run fits into memory, by the memory plan."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from erniekit.config.choices import REFERENCE_FREE, SHARDS
from erniekit.errors import ConfigError
from erniekit.train.planner.gpus import Gpu
from erniekit.train.planner.job import Job, Settings, overrides
from erniekit.train.planner.roofline import step_time

_MAX_REMEDIES = 5
_LORA_RANK = 32
_SMALL_CHUNK = 256


@dataclass(frozen=True)
class Remedy:
    """Settings with which a run fits, their cost in words, and the job with these settings."""

    settings: Settings
    cost: str
    job: Job

    @property
    def overrides(self) -> list[str]:
        """The settings as arguments of `erniekit train`."""
        return overrides(self.settings)


@dataclass(frozen=True)
class _Option:
    """One change. cost: in words; weight: orders options, cheap ones first."""

    settings: dict[str, Any]
    cost: str
    weight: int


_NOTHING = _Option({}, "", 0)


def find_remedies(job: Job, limit_bytes: int | None = None, gpu: Gpu | None = None) -> list[Remedy]:
    """The smallest changes with which a run fits its devices, cheapest first; at most five.

    Changes with the same results up to rounding come first, then changes of the trained parameters or of precision,
    each with the cheapest layout that it needs. gpu: the kind of the devices, to sort layouts by the time of a step;
    None: in a fixed order. limit_bytes: the memory to fit into, instead of the usable part of the device's memory;
    after an out-of-memory error, a value below the plan finds settings that need less.
    """
    if limit_bytes is None and job.fits:
        return []
    layouts = list(_layouts(job))
    found: list[Remedy] = []
    for change in _result_options(job):
        fitting = _smallest(job, change, layouts, limit_bytes, found, gpu)
        if change is _NOTHING:
            found += fitting[: _MAX_REMEDIES - 2]
            sufficient = [remedy.settings for remedy in fitting]
            layouts = [
                one for one in layouts if not any(_includes(_settings(one), own) for own in sufficient)
            ]
        else:
            found += fitting[:1]
        if len(found) >= _MAX_REMEDIES:
            break
    return found


def _smallest(
    job: Job,
    change: _Option,
    layouts: Sequence[list[_Option]],
    limit_bytes: int | None,
    found: Sequence[Remedy],
    gpu: Gpu | None,
) -> list[Remedy]:
    """The layouts that fit with a change, cheapest first, without supersets of other layouts and remedies."""
    fitting: list[Remedy] = []
    for layout in layouts:
        options = [change, *layout]
        settings = _settings(options)
        if any(_includes(settings, other.settings) for other in (*found, *fitting)):
            continue
        remedy = _try(job, options, limit_bytes)
        if remedy is not None:
            fitting.append(remedy)
            if gpu is None and change is not _NOTHING:
                break
    if gpu is not None:
        fitting.sort(key=lambda remedy: -round(step_time(remedy.job, gpu).tokens_per_second, 1))
    return fitting


def _settings(options: Iterable[_Option]) -> dict[str, Any]:
    return {key: value for option in options for key, value in option.settings.items()}


def _includes(settings: Settings, others: Settings) -> bool:
    """Whether settings contain all of the others."""
    return others.items() <= settings.items()


def _try(job: Job, options: list[_Option], limit_bytes: int | None) -> Remedy | None:
    """The remedy of these options; None if they contradict a rule or do not fit."""
    settings = _settings(options)
    if not settings:
        return None
    try:
        changed = job.changed(settings)
        unmatched = _unmatched_groups(changed)
        if unmatched:
            settings["optimizer.groups"] = []
            changed = job.changed(settings)
        memory = changed.plan.memory
    except ConfigError:
        return None
    if not (memory.fits(job.device_bytes) if limit_bytes is None else memory.total_bytes <= limit_bytes):
        return None
    costs = [option.cost for option in options if option.cost]
    return Remedy(settings, "; ".join(costs), changed)


def _unmatched_groups(job: Job) -> bool:
    """Whether a group of the optimizer matches no trained parameter."""
    names = job.selected.trained
    return any(not fnmatch.filter(names, group.match) for group in job.config.optimizer.groups)


def _layouts(job: Job) -> Iterator[list[_Option]]:
    """Combinations of options with the same results, cheapest first."""
    options = [_recompute(job), _chunks(job), _reference(job), _shard(job), _expert(job), _context(job)]
    combinations = product(*([_NOTHING, *found] for found in options))
    for chosen in sorted(combinations, key=lambda chosen: sum(option.weight for option in chosen)):
        yield list(chosen)


def _recompute(job: Job) -> list[_Option]:
    setting = job.config.train.recompute
    options = [
        _Option({"train.recompute": "auto"}, "computes some layers twice", 10),
        _Option({"train.recompute": "layers"}, "computes every layer twice, about a third more time", 30),
    ]
    return options if setting == "none" else []


def _chunks(job: Job) -> list[_Option]:
    if job.config.loss.chunk_tokens <= _SMALL_CHUNK:
        return []
    return [_Option({"loss.chunk_tokens": _SMALL_CHUNK}, "the loss is computed in smaller products", 5)]


def _reference(job: Job) -> list[_Option]:
    config = job.config
    if config.task != "dpo" or config.dpo.loss in REFERENCE_FREE or config.dpo.reference == "cached":
        return []
    return [_Option({"dpo.reference": "cached"}, "computes the reference before training, once", 8)]


def _shard(job: Job) -> list[_Option]:
    if job.processes == 1:
        return []
    costs = {
        "optimizer": ("weights are gathered after each step", 3),
        "gradients": ("gradients are reduced for each sequence", 6),
        "parameters": ("weights of each layer are gathered for each sequence", 25),
    }
    level = SHARDS.index(job.config.parallel.shard)
    return [_Option({"parallel.shard": shard}, *costs[shard]) for shard in SHARDS[level + 1 :]]


def _expert(job: Job) -> list[_Option]:
    if job.model.moe is None:
        return []
    return [
        _Option({"parallel.expert": degree}, "tokens are sent to the GPUs of their experts", 15 + place)
        for place, degree in enumerate(_degrees(job, job.config.parallel.expert))
    ]


def _context(job: Job) -> list[_Option]:
    return [
        _Option(
            {"parallel.context": degree},
            f"{degree} GPUs share each sequence: fewer sequences at a time",
            40 + 20 * place,
        )
        for place, degree in enumerate(_degrees(job, job.config.parallel.context))
    ]


def _degrees(job: Job, current: int) -> list[int]:
    """Larger degrees that divide the number of processes."""
    return [degree for degree in range(current + 1, job.processes + 1) if job.processes % degree == 0]


def _result_options(job: Job) -> Iterator[_Option]:
    """No change, then changes of the trained parameters or of precision, the smallest first."""
    config = job.config
    yield _NOTHING
    length = config.data.max_length
    shorter = [
        _Option(
            {"data.max_length": length // part},
            f"sequences of {length // part:,} tokens: longer samples are handled as data.on_long says",
            0,
        )
        for part in (2, 4)
    ]
    if not config.lora.enabled:
        yield from shorter
        lora = {"lora.enabled": True, "lora.rank": _LORA_RANK}
        adapters = "trains adapters only, which need a higher optimizer.learning_rate"
        yield _Option(lora, adapters, 0)
        for choice in ("int8", "int4"):
            yield _Option({**lora, "model.quantize": choice}, f"{adapters}, over weights in {choice}", 0)
        return
    if job.model.moe is not None and config.lora.expert_rank is None:
        yield _Option({"lora.expert_rank": "auto"}, "adapters of experts have a smaller rank", 0)
    yield from shorter
    for choice in {"none": ("int8", "int4"), "int8": ("int4",), "int4": ()}[config.model.quantize]:
        yield _Option({"model.quantize": choice}, f"frozen weights are rounded to {choice}", 0)
        if job.model.moe is not None and config.lora.expert_rank is None:
            yield _Option(
                {"model.quantize": choice, "lora.expert_rank": "auto"},
                f"frozen weights are rounded to {choice}, and adapters of experts have a smaller rank",
                0,
            )
