"""A run of two processes, one of which fails while both still write a checkpoint in the background."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest import mock

from erniekit.checkpoint import writer
from erniekit.data.load.loader import RowLoader
from erniekit.errors import DataError, ErnieKitError
from erniekit.evaluation.evaluator import EvalRows
from erniekit.parallel import tensor_stream
from erniekit.parallel.fully_sharded import FullyShardedLayers
from erniekit.train.hooks.checkpoint import CheckpointHook
from erniekit.train.trainer import Trainer
from tests.distributed.layouts import trainings
from tests.distributed.processes import OTHERS_HANG


def fails_to_read(settings: dict[str, Any], what: str) -> None:
    """Train; rank 1 cannot read a row of the third step, or of the evaluation after the second one."""
    rank, reader = int(os.environ["PADDLE_TRAINER_ID"]), RowLoader if what == "row" else EvalRows
    # Of the two rows of the step, the second one.
    name, step = ("next_row", 5) if what == "row" else ("once", 0)
    read, drawn = getattr(reader, name), 0

    def fail(source: Any) -> Any:
        nonlocal drawn
        drawn += 1
        if rank == 1 and drawn > step:
            raise DataError("the sample cannot be read")
        return read(source) if what == "row" else iter(read(source))

    def fail_late(source: Any) -> Any:
        yield from fail(source)

    with mock.patch.object(reader, name, fail if what == "row" else fail_late):
        try:
            trainings(2, [settings])
        except ErnieKitError as error:
            print(f"error: {error}", flush=True)
            os._exit(1)


def saves_what_is_gathered_anyway(settings: dict[str, Any], is_late: bool) -> dict[str, Any]:
    """Train. Returns the layers that are gathered for saves alone; no tensor is gathered by itself.

    is_late: the update after the first step comes without a forward pass.
    """
    gather, step = FullyShardedLayers.gather, Trainer.train_step
    gathered: list[int] = []

    def note(layers: FullyShardedLayers, number: int) -> Any:
        gathered.append(number)
        return gather(layers, number)

    def update_first(trainer: Trainer) -> Any:
        if is_late and trainer.progress.step == 1:
            for hook in trainer.hooks:
                if isinstance(hook, CheckpointHook):
                    hook.before_optimizer_step(trainer.optimizer)
        return step(trainer)

    with (
        mock.patch.object(FullyShardedLayers, "gather", note),
        mock.patch.object(Trainer, "train_step", update_first),
        mock.patch.object(tensor_stream, "gather_uneven", None),
        mock.patch.object(tensor_stream, "all_gather_uneven", None),
    ):
        trainings(2, [settings])
    return {"gathered": gathered}


def fails_while_saving(settings: dict[str, Any], how: str) -> None:
    """Train, and fail at the start of the step after the second one on rank 1: "error", or "killed".

    Nothing of the checkpoint of the second step is written before that, and nothing of rank 1 where it is killed.
    """
    rank = int(os.environ["PADDLE_TRAINER_ID"])
    failed = Path(f"{settings['train.output_dir']}.failed")
    write, step = writer.write_safetensors, Trainer.train_step

    def write_later(file: Path, *arguments: Any) -> Any:
        end = time.monotonic() + OTHERS_HANG
        while "000002" in str(file) and not failed.exists():
            assert time.monotonic() < end
            time.sleep(0.01)
        return write(file, *arguments)

    def fail(trainer: Trainer) -> Any:
        if trainer.progress.step == 2 and rank == 1:
            if how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            failed.touch()
            raise DataError("the sample cannot be read")
        with suppress(ErnieKitError):
            return step(trainer)
        failed.touch()
        raise ErnieKitError("the other process is lost")

    with (
        mock.patch.object(writer, "write_safetensors", write_later),
        mock.patch.object(Trainer, "train_step", fail),
    ):
        try:
            trainings(2, [settings])
        except ErnieKitError as error:
            print(f"error: {error}", flush=True)
            # As the command does: without a word to the other process.
            os._exit(1)
