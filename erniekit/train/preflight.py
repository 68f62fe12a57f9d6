"""Checks before the processes of a run are started, so that an error is printed once and at once."""

from __future__ import annotations

from pathlib import Path

from erniekit.checkpoint.state import newest_checkpoint, read_state
from erniekit.config import Config
from erniekit.models.config import ErnieConfig
from erniekit.train.distributed import fit_parallel_dims, fix_rows
from erniekit.train.inputs import check_sources
from erniekit.train.model import check_model, check_start
from erniekit.train.run_directory import check_run_directory
from erniekit.train.selection import select_parameters


def check_before_launch(config: Config, processes: int, *, resume: bool, is_main: bool) -> None:
    """Check what needs neither the weights' values nor the contents of data files. The processes check it again.

    is_main: whether rank 0 is one of the processes of this machine. Raises ErnieKitError.
    """
    # The main process logs notes.
    check_model(config.model.directory, lambda line: None)
    model = ErnieConfig.from_dir(config.model.directory)
    dims = fit_parallel_dims(config, model, processes)
    checkpoint = newest_checkpoint(Path(config.train.output_dir)) if resume else None
    if checkpoint is not None:
        fix_rows(config, dims, read_state(checkpoint).identity.get("train.rows_per_step"))
    if not config.model.resize_vocab:
        # Otherwise the tokenizer decides which matrices are trained.
        select_parameters(config, model, "float32")
    if not resume:
        check_start(config)
    check_sources(config.data)
    if is_main:
        check_run_directory(config, resume=resume)
