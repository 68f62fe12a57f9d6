"""What a checkpoint records of its run's configuration, compared with the configuration that resumes it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from erniekit.checkpoint.resize import NO_CHANGES, ModelChanges
from erniekit.checkpoint.state import TrainerState, model_fingerprint
from erniekit.config import Config
from erniekit.config.schema import as_recompute
from erniekit.display.text import clipped

_ROW_SETTINGS = ("max_length", "shuffle", "mix", "stop", "streaming", "buffer")


def run_identity(
    config: Config, dtype: str, data_fingerprint: str, changes: ModelChanges = NO_CHANGES
) -> dict[str, Any]:
    """What must be the same for a run to be resumed, by configuration key: model, order of the data, and objective.

    Rates, weights and constants (dpo.beta too) may change between resumes, and so may dpo.reference, of which every
    choice gives the same metrics.
    """
    return {
        "task": config.task,
        "dpo.loss": config.dpo.loss,
        "data.share_prompt": config.data.share_prompt,
        "model.path": model_fingerprint(config.model.directory),
        "model.dtype": dtype,
        "model.quantize": config.model.quantize,
        "model.freeze": config.model.freeze,
        # The number of rows: tokens may have been added to the tokenizer since.
        "model.resize_vocab": changes.vocab_size if config.model.resize_vocab else False,
        # A resumed run has its adapters in the checkpoint, and not in lora.path.
        **{f"lora.{key}": value for key, value in config.lora.model_dump(exclude={"path"}).items()},
        "data.train": {"digest": data_fingerprint},
        **{f"data.{key}": getattr(config.data, key) for key in _ROW_SETTINGS},
        "train.rows_per_step": config.num_rows(),
        "train.seed": config.train.seed,
    }


def saved_identity(state: TrainerState, keys: Iterable[str]) -> dict[str, Any]:
    """The `run_identity` of a checkpoint.

    Those of `keys` that are newer than the checkpoint are taken from its configuration.
    """
    config = with_defaults(state.config)
    found = dict(state.identity)
    for key in keys:
        section, _, name = key.rpartition(".")
        values = config.get(section, {}) if section else config
        if key not in found and name in values:
            found[key] = values[name]
    return found


def with_defaults(saved: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a checkpoint, with the defaults of keys that are newer than the checkpoint."""
    resolved = dict(saved)
    for name, section in Config.model_fields.items():
        fields = getattr(section.annotation, "model_fields", {})
        defaults = {key: field.default for key, field in fields.items() if not field.is_required()}
        if fields:
            resolved[name] = defaults | saved.get(name, {})
        elif not section.is_required():
            resolved.setdefault(name, section.default)
    # A boolean before it had choices.
    resolved["train"]["recompute"] = as_recompute(resolved["train"]["recompute"])
    return resolved


def changed_settings(saved: dict[str, Any], current: dict[str, Any], prefix: str = "") -> list[str]:
    """Lines such as "train.seed: 1 -> 2" for each setting that differs. Both are resolved configurations."""
    lines = []
    for key, now in current.items():
        before = saved.get(key)
        if isinstance(now, dict) and isinstance(before, dict):
            lines += changed_settings(before, now, f"{prefix}{key}.")
        elif before != now:
            lines.append(f"{prefix}{key}: {clipped(str(before))} -> {clipped(str(now))}")
    return lines
