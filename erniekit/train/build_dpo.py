"""Builds the objective and the reference model of preference training (`task: dpo`)."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from functools import cache, partial

import numpy as np
import paddle

from erniekit.config import Config
from erniekit.config.choices import REFERENCE_FREE
from erniekit.data.store.dataset import Dataset
from erniekit.display.progress import log_progress
from erniekit.display.text import counted
from erniekit.distributed.context import DistributedContext
from erniekit.models.ernie import ErnieModel
from erniekit.objectives.dpo import DpoObjective, Reference
from erniekit.objectives.preference import preference_settings
from erniekit.objectives.reference_model import AdapterDisabledReference, ReferenceModel
from erniekit.objectives.routing import RouterWeights
from erniekit.parallel.unsharded import unsharded_rows
from erniekit.train.reference_model import cache_references, cached_reference, model_key

Log = Callable[[str], None]
_PROGRESS_SECONDS = 10.0


def build_dpo_objective(config: Config, model: ErnieModel, reference: Reference | None) -> DpoObjective:
    """The objective of a run. reference: from `build_reference`."""
    weight = config.dpo.sft_weight
    if weight is None:
        weight = 1.0 if config.dpo.loss == "orpo" else 0.0
    return DpoObjective(
        model,
        preference_settings(config.dpo),
        reference,
        config.loss.chunk_tokens,
        sft_weight=weight,
        router_weights=RouterWeights(balance=config.loss.balance_weight, z=config.loss.z_weight),
    )


def keeps_reference_copy(config: Config) -> bool:
    """Whether a frozen copy of the model stays in memory during training."""
    if config.task != "dpo" or config.dpo.loss in REFERENCE_FREE or config.dpo.reference == "cached":
        return False
    return config.dpo.reference == "copy" or not config.lora.enabled


def caches_reference_with_copy(config: Config) -> bool:
    """Whether a cached reference is computed with a copy of the model.

    Without: a process that has the complete model disables its adapters instead.
    """
    if config.task != "dpo" or config.dpo.loss in REFERENCE_FREE or config.dpo.reference != "cached":
        return False
    parallel = config.parallel
    return not config.lora.enabled or parallel.expert > 1 or parallel.shard == "parameters"


def needs_base(config: Config) -> bool:
    """Whether a run needs the weights of the base model again when it is resumed."""
    return config.lora.enabled or (config.task == "dpo" and config.dpo.loss not in REFERENCE_FREE)


def build_reference(
    config: Config,
    model: ErnieModel,
    dtype: str,
    datasets: Sequence[Dataset],
    load_base: Callable[[], ErnieModel],
    log: Log,
    dist: DistributedContext,
) -> Reference | None:
    """Build the reference of a run; None for a loss without a reference model.

    model: the trained model, with its adapters; load_base: loads model.path again in the same way. With dpo.reference
    "cached", the main process computes the log-probabilities of all pairs of `datasets` that are not cached yet, and
    sends them to the other processes. Raises DataError.
    """
    if config.dpo.loss in REFERENCE_FREE:
        return None

    @cache
    def load_reference() -> ReferenceModel:
        if config.lora.enabled and config.dpo.reference != "copy" and not caches_reference_with_copy(config):
            return AdapterDisabledReference(model, config.loss.chunk_tokens, config.model.directory)
        log(f"reference: loading a frozen copy of {config.model.path}")
        copy = load_base()
        copy.image_mean, copy.image_std = model.image_mean, model.image_std
        copy.eval()
        for parameter in copy.parameters():
            parameter.stop_gradient = True
        return ReferenceModel(copy, config.loss.chunk_tokens)

    if config.dpo.reference != "cached":
        return load_reference()
    for dataset in datasets:
        if dist.is_main:
            with dist.mesh.long_operation("computing the reference"), unsharded_rows(model):
                num_cached, num_computed = cache_references(
                    dataset,
                    model_key(config.model.directory, dtype, model.config.vocab_size, config.model.quantize),
                    load_reference,
                    max_length=config.data.max_length,
                    workers=config.data.workers,
                    progress=partial(log_progress(log, "pairs", _PROGRESS_SECONDS), "  reference"),
                )
            num_unreadable = sum(dataset.sizes) - num_cached - num_computed
            unreadable = f"; {counted(num_unreadable, 'pair')} cannot be read" if num_unreadable else ""
            log(
                f"reference: log-probabilities of {counted(num_computed, 'pair')} computed, {num_cached:,} cached "
                f"before{unreadable}"
            )
        for source in dataset.sources:
            values = source.store.references
            if values is None:
                values = np.empty((len(source.store), 2), np.float32)
            source.store.references = dist.broadcast(values)
    # Free a copy of the model before the optimizer's state is allocated.
    load_reference.cache_clear()
    gc.collect()
    if paddle.get_device().startswith("gpu"):
        paddle.device.cuda.empty_cache()
    return cached_reference
