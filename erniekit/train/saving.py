"""Saving a run, and taking it up again."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from paddle import Tensor

from erniekit import __version__
from erniekit.checkpoint.best import BEST_FILE, write_best
from erniekit.checkpoint.hub import read_array, read_span, write_shards
from erniekit.checkpoint.resize import NO_CHANGES, ModelChanges
from erniekit.checkpoint.state import (
    TrainerState,
    checkpoint_name,
    copy_side_files,
    model_fingerprint,
    prune_checkpoints,
    read_optimizer,
    write_checkpoint,
)
from erniekit.checkpoint.weights import array_of, spec_of
from erniekit.config import Config
from erniekit.data.load.loader import RowLoader, join_states
from erniekit.distributed.context import DistributedContext
from erniekit.errors import CheckpointError
from erniekit.lora.adapters import adapter_parameters, write_adapter
from erniekit.lora.peft import AdapterConfig
from erniekit.models.ernie import ErnieModel
from erniekit.models.specs import is_expert_tensor
from erniekit.optim.adamw import AdamW
from erniekit.optim.schedule import Schedule
from erniekit.parallel.data_parallel import GradientReducer, TensorShard
from erniekit.parallel.fully_sharded import FullyShardedLayers
from erniekit.parallel.gather import GatheredTensors
from erniekit.train.best import BestTracker
from erniekit.train.figures import MetricsAccumulator
from erniekit.train.loop import Progress
from erniekit.train.prepare import lora_alpha

_ROW_SETTINGS = ("max_length", "shuffle", "mix", "stop", "streaming", "buffer")


@dataclass(frozen=True)
class Saver:
    """Writes checkpoints of a run and removes those that are not to be kept."""

    run: Path
    config: Config
    model: ErnieModel
    optimizer: AdamW
    loader: RowLoader
    schedule: Schedule
    identity: dict[str, Any]
    log: Callable[[str], None]
    dist: DistributedContext
    fully_sharded: FullyShardedLayers | None = None
    reducer: GradientReducer | None = None
    changes: ModelChanges = NO_CHANGES

    def __call__(self, progress: Progress) -> None:
        """Save `progress` with all that belongs to it. All processes of the team call this together."""
        weights, optimizer = self._weights(), self._optimizer_state()
        # Processes that share a row have the same state.
        states = self.dist.gather(self.loader.state_dict())[:: self.dist.mesh.context.size]
        if self.dist.is_main:
            with self.dist.mesh.busy("writing a checkpoint"):
                self._write(progress, weights, optimizer, join_states(states))
        else:
            weights.serve()
            optimizer.serve()
        self.dist.wait()

    def _write(
        self,
        progress: Progress,
        weights: GatheredTensors,
        optimizer: GatheredTensors,
        loader: dict[str, Any],
    ) -> None:
        state = TrainerState(
            step=progress.step,
            rows=progress.rows,
            tokens=progress.tokens,
            loss_tokens=progress.loss_tokens,
            seed=self.config.train.seed,
            loader=loader,
            window=progress.window.as_dict(),
            schedule=self.schedule.as_dict(),
            identity=self.identity,
            config=self.config.model_dump(),
            base_model=self.config.model.path,
            erniekit_version=__version__,
            best=progress.best.as_dict(),
        )
        path = write_checkpoint(
            self.run,
            state,
            write_weights=lambda directory: self._write_weights(directory, weights),
            optimizer_specs=optimizer.specs,
            optimizer_array=optimizer.read,
        )
        best = progress.best
        if best.value is not None and best.step == progress.step:
            write_best(self.run, best.step, best.metric, best.value)
        prune_checkpoints(self.run, self.config.checkpoint.keep, [best.step])
        self.log(f"saved {path}")

    def _weights(self) -> GatheredTensors:
        if self.config.lora.enabled:
            return GatheredTensors(self.dist.mesh, adapter_parameters(self.model), spec_of, array_of)
        parameters: dict[str, Tensor] = dict(self.model.named_parameters())
        if self.fully_sharded is None:
            return GatheredTensors(self.dist.mesh, parameters, spec_of, array_of)
        parameters |= self.fully_sharded.parts
        return GatheredTensors(self.dist.mesh, parameters, spec_of, array_of, self.fully_sharded.shard_of)

    def _optimizer_state(self) -> GatheredTensors:
        return GatheredTensors(
            self.dist.mesh,
            self.optimizer.state_tensors(),
            spec_of,
            array_of,
            lambda name: state_shard(self.reducer, name),
        )

    def _write_weights(self, directory: Path, weights: GatheredTensors) -> None:
        lora = self.config.lora
        if lora.enabled:
            adapter = AdapterConfig(self.config.model.path, lora.rank, lora_alpha(lora), lora.dropout)
            write_adapter(directory, weights.specs, weights.read, adapter, self.model.config)
        else:
            copy_side_files(Path(self.config.model.path), directory)
            self.changes.write(directory / "config.json")
            write_shards(directory, weights.specs, weights.read)


def run_identity(
    config: Config, dtype: str, data_fingerprint: str, changes: ModelChanges = NO_CHANGES
) -> dict[str, Any]:
    """What must be the same for a run to be continued, by configuration key: model, order of the data, and the goal.

    Rates, weights and constants (dpo.beta too) may be changed on the way, and how the reference of preference training
    is held (dpo.reference), which gives the same figures.
    """
    return {
        "task": config.task,
        "dpo.loss": config.dpo.loss,
        "data.share_prompt": config.data.share_prompt,
        "model.path": model_fingerprint(Path(config.model.path)),
        "model.dtype": dtype,
        "model.freeze": config.model.freeze,
        # The number of rows: tokens may have been added to the tokenizer since.
        "model.resize_vocab": changes.vocab_size if config.model.resize_vocab else False,
        **{f"lora.{key}": value for key, value in config.lora.model_dump().items()},
        "data.train": {"digest": data_fingerprint},
        **{f"data.{key}": getattr(config.data, key) for key in _ROW_SETTINGS},
        "train.rows_per_step": config.train.rows_per_step,
        "train.seed": config.train.seed,
    }


def saved_identity(state: TrainerState, keys: Iterable[str]) -> dict[str, Any]:
    """The `run_identity` of a checkpoint; its configuration tells those of `keys` that came to it later."""
    config = with_defaults(state.config)
    found = dict(state.identity)
    for key in keys:
        section, _, name = key.rpartition(".")
        values = config.get(section, {}) if section else config
        if key not in found and name in values:
            found[key] = values[name]
    return found


def state_shard(reducer: GradientReducer | None, name: str) -> TensorShard | None:
    """How the processes hold a tensor of the optimizer's state, such as "lm_head.weight.moment1"."""
    return None if reducer is None else reducer.shard_of(name.rpartition(".")[0])


def restore(
    checkpoint: Path,
    state: TrainerState,
    optimizer: AdamW,
    loader: RowLoader,
    dist: DistributedContext,
    reducer: GradientReducer | None = None,
) -> Progress:
    """Put optimizer and loader where the checkpoint left them. Raises CheckpointError or DataError."""
    tensors, own = read_optimizer(checkpoint), optimizer.state_tensors()
    # What belongs to experts that other processes hold is theirs to read.
    names = [
        name for name in tensors if name in own or not is_expert_tensor(name) or dist.mesh.expert.size == 1
    ]

    def part(name: str) -> np.ndarray:
        info, shard = tensors[name], state_shard(reducer, name)
        if shard is None:
            return read_array(info)
        if info.shape != shard.shape:
            raise CheckpointError(f"optimizer state {name}: shape {info.shape}, expected {shard.shape}")
        return read_span(info, shard.span.start, shard.span.stop)

    optimizer.load_state(state.step, names, part)
    loader.load_state_dict(state.loader)
    return Progress(
        state.step,
        state.rows,
        state.tokens,
        state.loss_tokens,
        MetricsAccumulator(**state.window),
        BestTracker(**state.best),
    )


def settle_best(
    run: Path, progress: Progress, metric: str | None, dist: DistributedContext, log: Callable[[str], None]
) -> None:
    """Make what a resumed run knows of its best agree with the configuration, and with its directory.

    metric: eval.best_metric; None: no evaluation will be judged, and the best that there was is still kept.
    """
    best = progress.best
    if metric is not None and best.metric not in ("", metric):
        log(f"the best was known by {best.metric}; it is sought anew by {metric}")
        best = BestTracker()
    elif best.value is not None and not (run / checkpoint_name(best.step)).is_dir():
        log(f"{run / checkpoint_name(best.step)}, the best, is not there; the next evaluation is the best")
        best = BestTracker(best.metric, mark=best.mark, waited=best.waited)
    progress.best = best
    # The directory may be ahead of the checkpoint, or one of them was cut off between the two.
    if dist.is_main and best.value is not None:
        write_best(run, best.step, best.metric, best.value)
    elif dist.is_main:
        (run / BEST_FILE).unlink(missing_ok=True)


def with_defaults(saved: dict[str, Any]) -> dict[str, Any]:
    """A configuration out of a checkpoint, with the defaults of keys that came to the schema after it was saved."""
    resolved = dict(saved)
    for name, section in Config.model_fields.items():
        fields = getattr(section.annotation, "model_fields", {})
        defaults = {key: field.default for key, field in fields.items() if not field.is_required()}
        if fields:
            resolved[name] = defaults | saved.get(name, {})
        elif not section.is_required():
            resolved.setdefault(name, section.default)
    return resolved


def changed_settings(saved: dict[str, Any], current: dict[str, Any], prefix: str = "") -> list[str]:
    """Lines that name each setting with its value before and now. Both are resolved configurations."""
    lines = []
    for key, now in current.items():
        before = saved.get(key)
        if isinstance(now, dict) and isinstance(before, dict):
            lines += changed_settings(before, now, f"{prefix}{key}.")
        elif before != now:
            lines.append(f"{prefix}{key}: {before} -> {now}")
    return lines
