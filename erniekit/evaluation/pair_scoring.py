"""How preference pairs are scored: by the rewards of a run of task dpo, or by log-probabilities."""

from __future__ import annotations

from dataclasses import dataclass, replace

from erniekit.config.choices import REFERENCE_FREE
from erniekit.errors import CheckpointError
from erniekit.generation.load import ModelSource, find_model
from erniekit.models.ernie import ErnieModel
from erniekit.objectives.dpo import Reference
from erniekit.objectives.preference import PreferenceSettings, preference_settings
from erniekit.objectives.reference_model import AdapterDisabledReference, ReferenceModel

_CHUNK_TOKENS = 1024


@dataclass(frozen=True)
class PairScoring:
    """settings: beta, and whether log-probabilities are per token; reference: None without a reference model;
    description: both in words.
    """

    settings: PreferenceSettings
    reference: Reference | None
    description: str


NO_REFERENCE = PairScoring(
    PreferenceSettings(beta=1.0),
    None,
    "a reward is the log-probability of an answer; there is no reference model",
)


def pair_scoring(source: ModelSource, model: ErnieModel, dtype: str) -> PairScoring:
    """The scoring of the run that trained a model, as in its own evaluations.

    model: of `source`, in memory. The reference of adapters is the model without them, else the base model of the run,
    which is loaded. Without a run of task dpo a reward is the log-probability. Raises CheckpointError if the base model
    is not there.
    """
    dpo, base = source.dpo, source.base
    if dpo is None or base is None:
        return NO_REFERENCE
    settings = preference_settings(dpo)
    beta = f"rewards with beta {settings.beta:g}"
    if dpo.loss in REFERENCE_FREE:
        return PairScoring(settings, None, f"{beta}; dpo.loss {dpo.loss} has no reference model")
    if source.checkpoint != source.directory:
        reference: Reference = AdapterDisabledReference(model, _CHUNK_TOKENS, source.directory)
        return PairScoring(settings, reference, f"{beta}; the reference is the model without its adapters")
    try:
        found = find_model(base)
    except CheckpointError as error:
        raise CheckpointError(f"{source.checkpoint}: the reference model of its run: {error}") from error
    found = replace(found, vocab_size=model.config.vocab_size, max_positions=source.max_positions)
    reference = ReferenceModel(found.load(dtype), _CHUNK_TOKENS)
    return PairScoring(settings, reference, f"{beta}; the reference is {base}")
