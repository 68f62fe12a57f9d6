"""Saves the checkpoints of a run, and loads one to resume it."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from erniekit import __version__
from erniekit.checkpoint.best import recorded_best, write_best
from erniekit.checkpoint.host_copy import host_copy
from erniekit.checkpoint.hub import read_header, shard_name, spec_bytes, split_shards, write_index
from erniekit.checkpoint.manifest import FileRecord, size_problem
from erniekit.checkpoint.optimizer_state import optimizer_file
from erniekit.checkpoint.parts import POLL_SECONDS, is_locked, part_file, wait_for_part
from erniekit.checkpoint.retention import BackgroundRemoval, outdated_checkpoints
from erniekit.checkpoint.state import (
    STATE_FILE,
    TrainerState,
    finish_checkpoint,
    newest_checkpoint,
    read_side_files,
    unfinished_name,
    write_side_files,
)
from erniekit.checkpoint.weights import array_of
from erniekit.checkpoint.writer import FileWriter, PlannedFile
from erniekit.config import Config
from erniekit.data.load.loader import RowLoader, join_states
from erniekit.distributed.context import DistributedContext
from erniekit.errors import CheckpointError
from erniekit.lora.adapters import WEIGHTS_FILE, stored_adapter, write_adapter_settings
from erniekit.lora.peft import AdapterConfig
from erniekit.models.specs import TensorSpec
from erniekit.optim.adamw import AdamW
from erniekit.optim.schedule import Schedule
from erniekit.parallel.data_parallel import GradientReducer
from erniekit.parallel.tensor_stream import TensorStream
from erniekit.train.best import existing_best
from erniekit.train.checkpoint_tensors import CheckpointTensors
from erniekit.train.console import Console
from erniekit.train.describe import format_bytes
from erniekit.train.device_memory import host_memory
from erniekit.train.metrics import MetricsAccumulator
from erniekit.train.model import PreparedModel
from erniekit.train.progress import BestTracker, TrainerProgress, restored, restored_losses
from erniekit.train.selection import lora_alpha, lora_expert_rank


@dataclass
class _Save:
    """A checkpoint that is being written. waited: seconds that training has waited for it; started: on the clock."""

    state: TrainerState
    directory: Path
    writer: FileWriter
    started: float
    waited: float


class Checkpointer:
    """Saves and loads everything that changes during a run. All processes call its methods together.

    Every process writes the tensors that it holds, or its share of those that several hold. With checkpoint.background,
    they are copied to host memory while the next gradients are computed, and a thread writes the copies.
    """

    def __init__(
        self,
        config: Config,
        prepared: PreparedModel,
        optimizer: AdamW,
        loader: RowLoader,
        schedule: Schedule,
        identity: dict[str, Any],
        console: Console,
        dist: DistributedContext,
        reducer: GradientReducer | None = None,
    ) -> None:
        """identity: `run_identity` of the run."""
        self._config, self._prepared, self._optimizer, self._loader = config, prepared, optimizer, loader
        self._schedule, self._identity = schedule, identity
        self._log, self._warn = console.log, console.warn
        self._dist = dist
        self._tensors = CheckpointTensors(
            prepared,
            optimizer,
            dist.mesh,
            reducer,
            adapters=config.lora.enabled,
            shared=config.checkpoint.shared,
        )
        self._run_dir = Path(config.train.output_dir)
        # Now: the base model may be gone when a checkpoint is written, with its disk or a cache that is cleaned.
        whole = dist.is_main and not config.lora.enabled
        self._side_files = read_side_files(config.model.directory) if whole else {}
        self._unfinished: _Save | None = None
        self._copy = host_copy()
        self._forward_weights = self._tensors.forward_weights(self._copy)
        self._removal = BackgroundRemoval(self._log)
        # Finishing a save takes no messages; after an error the watchdog's thread may do it.
        self._finishing = threading.Lock()
        dist.mesh.before_abort(self.finish_after_error)
        # The step of the checkpoint that is being written, in the background or not.
        self.saving_step: int | None = None
        # Whether the last checkpoint could not be written, and its step until `forget_lost_best`.
        self.has_failed = False
        self._lost_step: int | None = None

    def checkpoint_bytes(self) -> int:
        """The size of a checkpoint, of the files of all processes. All of them call it together."""
        streams = (self._tensors.weights(), self._tensors.optimizer_state())
        own = sum(spec_bytes(spec) for stream in streams for spec in stream.specs)
        return int(self._dist.all_reduce(np.array([own], np.int64))[0])

    def save(self, progress: TrainerProgress, *, needed: bool = False) -> None:
        """Write a checkpoint, or begin to write it in the background unless it is `needed`; see `wait`."""
        self.wait()
        self.forget_lost_best(progress)
        started = time.perf_counter()
        self.saving_step = progress.step
        state = self._state(progress)
        directory = self._run_dir / unfinished_name(progress.step)
        files, weights, optimizer = self._files(directory)
        in_background = self._config.checkpoint.background and self._fits_in_memory(files)
        rank = self._dist.mesh.rank
        waited_for = rank if rank in self._writers() else None
        with self._dist.mesh.long_operation("writing a checkpoint"):
            if in_background:
                # The first copy allocates its memory, which takes long.
                writer = FileWriter(directory, files, self._start_copy(weights, optimizer), waited_for)
                writer.start()
            else:
                arrays = (array_of(tensor.read()) for tensor in chain(weights, optimizer))
                writer = FileWriter(directory, files, arrays, waited_for)
                writer.run()
        self._unfinished = _Save(state, directory, writer, started, time.perf_counter() - started)
        # A process that fails from here on finds the part files of the others.
        self._dist.barrier()
        if needed or not in_background:
            self.wait(needed=needed)

    def forget_lost_best(self, progress: TrainerProgress) -> None:
        """Return to the best evaluation before, where the checkpoint of the best one could not be written."""
        step, self._lost_step = self._lost_step, None
        if step is not None and progress.best.is_at(step):
            progress.best = existing_best(self._run_dir, progress, self._dist, self._log)

    def save_after_error(self, progress: TrainerProgress, *, is_begun: bool = False) -> None:
        """Write a checkpoint of the last whole step while an error ends the run. What goes wrong is logged.

        is_begun: it is saved, or being written in the background; then `finish_after_error` does what is left.
        """
        try:
            if is_begun:
                self._gather_rest()
            else:
                self._log(f"saving step {progress.step} after an error")
                self.save(progress, needed=True)
        except Exception as error:  # such as of a device that has failed, which must not hide the first one
            self._warn(f"step {progress.step} cannot be saved: {error}")

    def before_update(self) -> None:
        """Wait until the tensors of the save in the background are copied: an update changes them."""
        if self._unfinished is not None:
            started = time.perf_counter()
            if self._forward_weights is not None:
                self._unfinished.waited += self._forward_weights.take_seconds()
            self._gather_rest()
            self._copy.wait()
            self._unfinished.waited += time.perf_counter() - started

    def poll(self) -> None:
        """Finish the save in the background if all processes have written their files; see `wait`."""
        save = self._unfinished
        if save is not None and not self._anywhere(save.writer.is_running):
            self.wait()

    def wait(self, *, needed: bool = False) -> None:
        """Wait for the save in the background, and give the checkpoint its name.

        Raises CheckpointError where it could not be written, and it is needed or there is no earlier one.
        """
        save = self._unfinished
        if save is None:
            return
        started = time.perf_counter()
        self._gather_rest()
        with self._dist.mesh.long_operation("writing a checkpoint"):
            save.writer.join()
        # An error of another process ends the exchange: `finish_after_error` does what is left then.
        reports = self._dist.all_gather_object([save.writer.error, save.writer.records])
        errors = [error for error, _ in reports if error is not None]
        files = {name: FileRecord(*record) for _, records in reports for name, record in records.items()}
        with self._finishing:
            self._unfinished = None
            if self._dist.is_main:
                with self._dist.mesh.long_operation("writing a checkpoint"):
                    errors = self._conclude(save, errors, files, started)
        self.saving_step = None
        earlier = newest_checkpoint(self._run_dir)
        errors, path = self._dist.all_gather_object([errors, None if earlier is None else str(earlier)])[0]
        self.has_failed = bool(errors)
        if errors:
            self._lost_step = save.state.step
        if errors and (needed or path is None):
            raise CheckpointError(errors[0])
        if errors:
            self._log(f"{errors[0]}\n  Training continues; the last checkpoint is {path}")

    def finish_after_error(self) -> None:
        """Finish the save in the background without a message to other processes, any of which may have ended.

        Each process writes what it has in memory. The main process waits for the parts of the others, for as long as
        they write, and gives the checkpoint its name; the others stop where the main process has ended.
        """
        with self._finishing:
            save, self._unfinished = self._unfinished, None
            if save is None:
                return
            started = time.perf_counter()
            self._copy.give_up(
                CheckpointError("training ended before all processes had passed on their weights")
            )
            if not self._dist.is_main:
                main = part_file(save.directory, 0)
                while save.writer.is_running and is_locked(main):
                    save.writer.wait(POLL_SECONDS)
                return
            self._log(f"finishing the checkpoint of step {save.state.step}, which is being written")
            save.writer.join()
            parts = {0: (save.writer.records, save.writer.error)}
            for rank in self._writers()[1:]:
                part = wait_for_part(save.directory, rank)
                parts[rank] = part or ({}, f"rank {rank} ended before it had written its part")
            errors = [error for _, error in parts.values() if error is not None]
            files = {name: record for records, _ in parts.values() for name, record in records.items()}
            errors = self._conclude(save, errors, files, started)
            if errors:
                self._log(f"the checkpoint of step {save.state.step} is lost: {errors[0]}")
            else:
                self.saving_step = None

    def _start_copy(self, weights: TensorStream, optimizer: TensorStream) -> Iterator[np.ndarray]:
        if self._forward_weights is None:
            return self._copy.start(chain(weights, optimizer))
        arrays = self._copy.start(chain(weights.without_gathering(), optimizer))
        self._forward_weights.begin()
        return arrays

    def _gather_rest(self) -> None:
        """Gather the weights that the save in the background awaits from a forward pass."""
        if self._forward_weights is not None and self._anywhere(bool(self._copy.awaited)):
            self._forward_weights.gather_rest()

    def _writers(self) -> Sequence[int]:
        """The ranks that write a checkpoint, the main process first."""
        return range(self._dist.mesh.world.size if self._config.checkpoint.shared else 1)

    def _conclude(
        self, save: _Save, errors: list[str], files: Mapping[str, FileRecord], started: float
    ) -> list[str]:
        """Finish a save of which all files are written, or remove them after `errors`. Returns all errors."""
        try:
            if errors:
                shutil.rmtree(save.directory, ignore_errors=True)
            else:
                self._finish(save, files, started)
        except (OSError, CheckpointError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            errors = [f"{save.directory}: the checkpoint cannot be written: {reason}"]
        finally:
            save.writer.close()
        return errors

    def close(self) -> None:
        """Wait until old checkpoints are removed."""
        self._removal.join()

    def load(self, checkpoint: Path, state: TrainerState) -> TrainerProgress:
        """Bring optimizer and loader to the state of a checkpoint. Raises CheckpointError or DataError."""
        self._tensors.load_optimizer(checkpoint, state.step - state.skipped_steps)
        self._loader.load_state_dict(state.loader)
        return TrainerProgress(
            state.step,
            state.rows,
            state.tokens,
            state.loss_tokens,
            state.skipped_steps,
            state.skipped_in_row,
            restored(MetricsAccumulator, state.window, checkpoint / STATE_FILE),
            restored(BestTracker, state.best, checkpoint / STATE_FILE),
            restored_losses(state.losses, checkpoint / STATE_FILE),
            state.pending_evaluation,
        )

    def _finish(self, save: _Save, files: Mapping[str, FileRecord], started: float) -> None:
        """Add what the main process writes, and remove checkpoints that need not be kept."""
        state, directory, run_dir = save.state, save.directory, self._run_dir
        for name, record in files.items():
            problem = size_problem(directory / name, record)
            if problem is not None:
                raise CheckpointError(
                    f"{problem}; without a disk that all machines see, set checkpoint.shared: false"
                )
        if self._config.lora.enabled:
            self._write_adapter_settings(directory, save.writer.files[0].specs)
        else:
            write_side_files(self._side_files, directory)
            self._prepared.changes.write(directory / "config.json")
            shards = sorted(name for name in files if name.startswith("model-"))
            tensors = {
                name: info for shard in shards for name, info in read_header(directory / shard).items()
            }
            total = sum(info.nbytes for info in tensors.values())
            write_index(directory, {name: info.file.name for name, info in tensors.items()}, total)
        path = finish_checkpoint(directory, state, files)
        best = BestTracker(**state.best)
        if best.value is not None and best.is_at(state.step):
            write_best(run_dir, best.step, best.metric, best.value)
        keep = self._config.checkpoint
        # Also the one before, while the best one has no checkpoint.
        recorded = recorded_best(run_dir, best.metric)
        spare = [best.step, *([] if recorded is None else [recorded[0]])]
        self._removal.start(outdated_checkpoints(run_dir, keep.keep, spare, keep.keep_every))
        now = time.perf_counter()
        waited = save.waited + now - started
        size = format_bytes(sum(record.size for record in files.values()))
        self._log(f"saved {path}: {size} in {now - save.started:.1f} s; training waited {waited:.2f} s")

    def _state(self, progress: TrainerProgress) -> TrainerState:
        config = self._config
        # Processes that share a row have the same state.
        states = self._dist.all_gather_object(self._loader.state_dict())[:: self._dist.mesh.context.size]
        return TrainerState(
            step=progress.step,
            rows=progress.rows,
            tokens=progress.tokens,
            loss_tokens=progress.loss_tokens,
            seed=config.train.seed,
            loader=join_states(states),
            window=progress.window.as_dict(),
            schedule=self._schedule.as_dict(),
            identity=self._identity,
            config=config.model_dump(),
            base_model=config.model.path,
            erniekit_version=__version__,
            best=progress.best.as_dict(),
            skipped_steps=progress.skipped_steps,
            skipped_in_row=progress.skipped_in_row,
            losses=list(progress.losses),
            pending_evaluation=progress.pending_evaluation,
        )

    def _files(self, directory: Path) -> tuple[list[PlannedFile], TensorStream, TensorStream]:
        """The files that this process writes, and their tensors, file by file: weights and optimizer state."""
        shared, world = self._config.checkpoint.shared, self._dist.mesh.world
        weights, optimizer = self._tensors.weights(), self._tensors.optimizer_state()
        if self._dist.is_main:
            shutil.rmtree(directory, ignore_errors=True)
        self._dist.barrier()
        if self._config.lora.enabled:
            shards = [stored_adapter(weights.specs)] if self._dist.is_main else []
            names = [WEIGHTS_FILE] * len(shards)
        else:
            shards = split_shards(weights.specs)
            counts = self._dist.all_gather_object(len(shards))
            before = sum(counts[: world.rank])
            names = [shard_name(before + number, sum(counts)) for number in range(len(shards))]
        files = [PlannedFile(name, specs) for name, specs in zip(names, shards, strict=True)]
        if optimizer.specs:
            name = optimizer_file(world.rank, world.size) if shared else optimizer_file(0, 1)
            files.append(PlannedFile(name, optimizer.specs))
        return files, weights, optimizer

    def _write_adapter_settings(self, directory: Path, specs: Sequence[TensorSpec]) -> None:
        lora, model, architecture = self._config.lora, self._config.model, self._prepared.model.config
        adapter = AdapterConfig(
            model.path,
            lora.rank,
            lora_alpha(lora),
            lora.dropout,
            lora_expert_rank(lora, architecture.moe),
            base_revision=model.revision,
        )
        write_adapter_settings(directory, specs, adapter, architecture)

    def _fits_in_memory(self, files: Sequence[PlannedFile]) -> bool:
        """Whether the files of each process fit into the memory of its machine; says so if they do not."""
        needed = sum(file.size for file in files) - self._copy.nbytes
        free = int(host_memory(self._dist.mesh.local_size) * self._copy.memory_share)
        everywhere = self._dist.all_gather_object([needed, free])
        needed, free = max(everywhere, key=lambda memory: memory[0] - memory[1])
        if needed > free:
            self._log(
                f"a checkpoint in the background needs {format_bytes(needed)} of memory per process, and "
                f"{format_bytes(free)} are free: training waits while this one is written"
            )
        return needed <= free

    def _anywhere(self, flag: bool) -> bool:
        """Whether `flag` holds for any process."""
        return bool(self._dist.all_reduce(np.array([flag], np.int64))[0])
