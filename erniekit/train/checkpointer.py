"""Saves the checkpoints of a run, and loads one to resume it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from paddle import Tensor

from erniekit import __version__
from erniekit.checkpoint.best import BEST_FILE, write_best
from erniekit.checkpoint.hub import read_array, read_span, write_shards
from erniekit.checkpoint.state import (
    TrainerState,
    checkpoint_name,
    copy_side_files,
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
from erniekit.models.specs import is_expert_tensor
from erniekit.optim.adamw import AdamW
from erniekit.optim.schedule import Schedule
from erniekit.parallel.data_parallel import GradientReducer, TensorShard
from erniekit.parallel.gather import GatheredTensors
from erniekit.train.metrics import MetricsAccumulator
from erniekit.train.model import PreparedModel, lora_alpha
from erniekit.train.progress import BestTracker, TrainerProgress

Log = Callable[[str], None]


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
        tensors, own = read_optimizer(checkpoint), self.optimizer.state_tensors()
        # The state of experts held by other processes is read there.
        names = [
            name
            for name in tensors
            if name in own or not is_expert_tensor(name) or self.dist.mesh.expert.size == 1
        ]

        def read(name: str) -> np.ndarray:
            info, shard = tensors[name], self._shard_of(name)
            if shard is None:
                return read_array(info)
            if info.shape != shard.shape:
                raise CheckpointError(f"optimizer state {name}: shape {info.shape}, expected {shard.shape}")
            return read_span(info, shard.span.start, shard.span.stop)

        self.optimizer.load_state(state.step, names, read)
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
        model, fully_sharded, mesh = self.prepared.model, self.prepared.fully_sharded, self.dist.mesh
        if self.config.lora.enabled:
            return GatheredTensors(mesh, adapter_parameters(model), spec_of, array_of)
        parameters: dict[str, Tensor] = dict(model.named_parameters())
        if fully_sharded is None:
            return GatheredTensors(mesh, parameters, spec_of, array_of)
        parameters |= fully_sharded.parts
        return GatheredTensors(mesh, parameters, spec_of, array_of, fully_sharded.shard_of)

    def _optimizer_state(self) -> GatheredTensors:
        tensors = self.optimizer.state_tensors()
        return GatheredTensors(self.dist.mesh, tensors, spec_of, array_of, self._shard_of)

    def _shard_of(self, name: str) -> TensorShard | None:
        """How processes share a tensor of the optimizer's state, such as "lm_head.weight.moment1"."""
        return None if self.reducer is None else self.reducer.shard_of(name.rpartition(".")[0])

    def _write_weights(self, directory: Path, weights: GatheredTensors) -> None:
        lora, base = self.config.lora, self.config.model.path
        if lora.enabled:
            adapter = AdapterConfig(base, lora.rank, lora_alpha(lora), lora.dropout)
            write_adapter(directory, weights.specs, weights.read, adapter, self.prepared.model.config)
        else:
            copy_side_files(Path(base), directory)
            self.prepared.changes.write(directory / "config.json")
            write_shards(directory, weights.specs, weights.read)


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
