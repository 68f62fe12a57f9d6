"""Saves the checkpoints of a run, and loads one to resume it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from paddle import Tensor

from erniekit import __version__
from erniekit.checkpoint.best import BEST_FILE, write_best
from erniekit.checkpoint.hub import read_span, write_shards
from erniekit.checkpoint.names import HubTensor, assemble, by_parameter, hub_tensors
from erniekit.checkpoint.state import (
    TrainerState,
    checkpoint_name,
    copy_side_files,
    prune_checkpoints,
    read_optimizer,
    write_checkpoint,
)
from erniekit.checkpoint.weights import array_of, local_tensor
from erniekit.config import Config
from erniekit.data.load.loader import RowLoader, join_states
from erniekit.distributed.context import DistributedContext
from erniekit.errors import CheckpointError
from erniekit.lora.adapters import adapter_parameters, write_adapter
from erniekit.lora.peft import AdapterConfig
from erniekit.models.specs import is_expert_tensor
from erniekit.optim.adamw import STATES, AdamW
from erniekit.optim.schedule import Schedule
from erniekit.parallel.data_parallel import GradientReducer
from erniekit.parallel.flat_shard import TensorShard
from erniekit.parallel.gather import GatheredTensors
from erniekit.train.metrics import MetricsAccumulator
from erniekit.train.model import PreparedModel, lora_alpha, lora_expert_rank
from erniekit.train.progress import BestTracker, TrainerProgress

Log = Callable[[str], None]
ShardOf = Callable[[str], TensorShard | None]


@dataclass(frozen=True)
class Checkpointer:
    """Saves and loads everything that changes during a run.

    identity: `run_identity` of the run.
    """

    config: Config
    prepared: PreparedModel
    optimizer: AdamW
    loader: RowLoader
    schedule: Schedule
    identity: dict[str, Any]
    log: Log
    dist: DistributedContext
    reducer: GradientReducer | None = None

    def save(self, progress: TrainerProgress) -> None:
        """Write a checkpoint, and remove those that checkpoint.keep does not cover. All processes call it together.

        Raises CheckpointError where the disk does not take it.
        """
        weights, optimizer = self._weights(), self._optimizer_state()
        # Processes that share a row have the same state.
        states = self.dist.all_gather_object(self.loader.state_dict())[:: self.dist.mesh.context.size]
        if self.dist.is_main:
            with self.dist.mesh.long_operation("writing a checkpoint"):
                self._write(progress, weights, optimizer, join_states(states))
        else:
            weights.serve()
            optimizer.serve()
        self.dist.barrier()

    def load(self, checkpoint: Path, state: TrainerState) -> TrainerProgress:
        """Bring optimizer and loader to the state of a checkpoint. Raises CheckpointError or DataError."""
        tensors = read_optimizer(checkpoint)
        states = by_parameter(self._optimizer_tensors())
        whole = {part.name for parts in states.values() for part in parts}
        # The state of experts held by other processes is read there.
        others = [
            name
            for name in tensors
            if name not in whole and (not is_expert_tensor(name) or self.dist.mesh.expert.size == 1)
        ]
        complete = [name for name, parts in states.items() if all(part.name in tensors for part in parts)]

        def read_part(part: HubTensor, start: int, stop: int) -> tuple[np.ndarray, str]:
            info = tensors[part.name]
            if info.shape != part.shape:
                raise CheckpointError(
                    f"optimizer state {part.name}: shape {info.shape}, expected {part.shape}"
                )
            return read_span(info, start, stop), info.dtype

        def read(name: str) -> np.ndarray:
            parts, shard = states[name], self._shard_of(name)
            if shard is not None:
                return assemble(parts, read_part, "F32", (shard.span.start, shard.span.stop))
            return assemble(parts, read_part, "F32", (0, parts[-1].stop)).reshape(own[name].shape)

        own = self.optimizer.state_tensors()
        self.optimizer.load_state(state.step, [*complete, *others], read)
        self.loader.load_state_dict(state.loader)
        return TrainerProgress(
            state.step,
            state.rows,
            state.tokens,
            state.loss_tokens,
            MetricsAccumulator(**state.window),
            BestTracker(**state.best),
        )

    def _write(
        self,
        progress: TrainerProgress,
        weights: GatheredTensors,
        optimizer: GatheredTensors,
        loader: dict[str, Any],
    ) -> None:
        run_dir = Path(self.config.train.output_dir)
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
            run_dir,
            state,
            write_weights=lambda directory: self._write_weights(directory, weights),
            optimizer_specs=optimizer.specs,
            optimizer_array=optimizer.read,
        )
        best = progress.best
        if best.value is not None and best.is_at(progress.step):
            write_best(run_dir, best.step, best.metric, best.value)
        prune_checkpoints(run_dir, self.config.checkpoint.keep, [best.step])
        self.log(f"saved {path}")

    def _weights(self) -> GatheredTensors:
        model, fully_sharded = self.prepared.model, self.prepared.fully_sharded
        values: dict[str, Tensor] = dict(model.named_parameters())
        shard_of: ShardOf = _no_shard
        if self.config.lora.enabled:
            values = adapter_parameters(model)
        elif fully_sharded is not None:
            values |= fully_sharded.parts
            shard_of = fully_sharded.shard_of
        tensors = [tensor for tensor in hub_tensors(model) if tensor.parameter in values]
        return self._gathered(tensors, values, shard_of)

    def _optimizer_state(self) -> GatheredTensors:
        return self._gathered(self._optimizer_tensors(), self.optimizer.state_tensors(), self._shard_of)

    def _optimizer_tensors(self) -> list[HubTensor]:
        """The tensors of the optimizer's state in a checkpoint, such as "lm_head.weight.moment1"."""
        own = self.optimizer.state_tensors()
        return [
            replace(tensor, name=f"{tensor.name}.{state}", parameter=f"{tensor.parameter}.{state}")
            for tensor in hub_tensors(self.prepared.model)
            for state in STATES
            if f"{tensor.parameter}.{state}" in own
        ]

    def _gathered(
        self, tensors: Sequence[HubTensor], values: Mapping[str, Tensor], shard_of: ShardOf
    ) -> GatheredTensors:
        shards = {name: shard_of(name) for name in values}
        local = [
            local_tensor(tensor, values[tensor.parameter], shards[tensor.parameter]) for tensor in tensors
        ]
        return GatheredTensors(self.dist.mesh, local, array_of)

    def _shard_of(self, name: str) -> TensorShard | None:
        """The sharding of a tensor of the optimizer's state, such as "lm_head.weight.moment1"."""
        return None if self.reducer is None else self.reducer.shard_of(name.rpartition(".")[0])

    def _write_weights(self, directory: Path, weights: GatheredTensors) -> None:
        lora, model = self.config.lora, self.config.model
        if lora.enabled:
            model_config = self.prepared.model.config
            expert_rank = lora_expert_rank(lora, model_config.moe)
            adapter = AdapterConfig(
                model.path,
                lora.rank,
                lora_alpha(lora),
                lora.dropout,
                expert_rank,
                base_revision=model.revision,
            )
            write_adapter(directory, weights.specs, weights.read, adapter, model_config)
        else:
            copy_side_files(model.directory, directory)
            self.prepared.changes.write(directory / "config.json")
            write_shards(directory, weights.specs, weights.read)


def _no_shard(name: str) -> None:
    """The sharding of a parameter that every process holds."""


def check_best(
    run_dir: Path, progress: TrainerProgress, metric: str | None, dist: DistributedContext, log: Log
) -> None:
    """Make the best evaluation of a resumed run agree with the configuration and with the run's directory.

    metric: eval.best_metric; None: evaluations are not compared, and the best checkpoint so far is still kept.
    """
    best = progress.best
    if metric is not None and best.metric not in ("", metric):
        log(
            f"eval.best_metric was {best.metric} and is {metric} now; the search for the best checkpoint starts again"
        )
        best = BestTracker()
    elif best.value is not None and not (run_dir / checkpoint_name(best.step)).is_dir():
        missing = run_dir / checkpoint_name(best.step)
        log(f"{missing}, the best checkpoint, does not exist; the next evaluation is the best")
        best = BestTracker(best.metric, mark=best.mark, waited=best.waited)
    progress.best = best
    # The directory may be ahead of the checkpoint, or the last run may have been killed between writing the two.
    if dist.is_main and best.value is not None:
        write_best(run_dir, best.step, best.metric, best.value)
    elif dist.is_main:
        (run_dir / BEST_FILE).unlink(missing_ok=True)
