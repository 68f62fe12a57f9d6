"""Checks a run and prints its plan without training (`erniekit train --dry-run`)."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from erniekit.checkpoint.download import download_command, names_repository
from erniekit.checkpoint.resize import ModelChanges
from erniekit.config import Config, SourceConfig, dump_config
from erniekit.create.shapes import released_architecture
from erniekit.data.encode.limits import enlarged_limits
from erniekit.data.files.find import Use, expand
from erniekit.errors import DataError
from erniekit.kernels.choice import describe_forms
from erniekit.runtime import compute_dtype, configure
from erniekit.train.activations import RowShape
from erniekit.train.console import make_console
from erniekit.train.describe import describe_lora, describe_rounding, describe_run
from erniekit.train.distributed import fit_parallel_dims, plan_parallel_dims
from erniekit.train.inputs import load_inputs
from erniekit.train.model import check_model, check_start, describe_model_plan
from erniekit.train.plan import plan_run
from erniekit.train.planner.command import plan_job
from erniekit.train.planner.gpus import Gpu
from erniekit.train.planner.report import plan_lines
from erniekit.train.selection import select_parameters
from erniekit.train.trackers.installed import check_installed


def dry_run_training(
    config: Config,
    *,
    processes: int = 1,
    no_weights: bool = False,
    show_all: bool = False,
    target: tuple[int, Gpu] | None = None,
) -> None:
    """Check configuration, model and data, and print the plan of `run_training` with `processes` processes.

    no_weights: skip checks that need missing files; show_all: also print settings that have their default; target: plan
    memory and time for this number and kind of GPUs instead of the devices of this machine. Raises ErnieKitError for
    errors in configuration, data or files.
    """
    log = make_console().log
    check_installed(config.log)
    log(dump_config(config, defaults=show_all).rstrip())
    if not show_all:
        log("# All other settings are the default; --all prints them.")
    log("")
    if target is None:
        dtype = _check_device_and_files(config, log, no_weights)
        unchecked, row = _check_data(config, processes, log, no_weights)
        unchecked = [*_check_model(config, dtype, row, log, processes, no_weights), *unchecked]
    else:
        _plan(config, log, *target)
        unchecked, _ = _check_data(config, target[0], log, no_weights)
    if no_weights:
        log("not checked: the weights")
    elif not _has_weights(config):
        download = f"`erniekit download {config.model.path}`"
        log(f"not checked: the weights, which `erniekit train` downloads ({download} does it beforehand)")
    for line in unchecked:
        log(f"not checked: {line}")
    log("The configuration is valid. Nothing was trained (--dry-run).")


def _plan(config: Config, log: Callable[[str], None], gpus: int, gpu: Gpu) -> None:
    """Print memory and time on other GPUs."""
    if (config.model.directory / "config.json").is_file():
        check_model(config.model.directory, log, weights=False)
    for line in plan_lines(plan_job(config, gpus, gpu), gpu):
        log(line)


def _check_device_and_files(config: Config, log: Callable[[str], None], no_weights: bool) -> str:
    """Configure the device, and check the local files of the model. Returns the dtype of the weights."""
    device = configure(
        config.parallel.device,
        config.parallel.threads,
        config.train.seed,
        kernels=config.kernels.backend,
        attention=config.kernels.attention,
    )
    dtype = compute_dtype(config.model.dtype, device)
    log(describe_forms(dtype))
    if not no_weights or (config.model.directory / "config.json").is_file():
        check_model(config.model.directory, log, weights=not no_weights and _has_weights(config))
        check_start(config)
    return dtype


def _check_model(
    config: Config,
    dtype: str,
    row: RowShape | None,
    log: Callable[[str], None],
    processes: int,
    no_weights: bool,
) -> list[str]:
    """Check the model and print its plan. row: the largest packed sequence, if it is known.

    Returns descriptions of the checks that were not possible.
    """
    model = config.model.directory
    if no_weights and not (model / "config.json").is_file():
        return _check_released(config, dtype, log, processes)
    if no_weights and config.model.resize_vocab and not (model / "tokenizer_config.json").is_file():
        return [f"the model ({_absent(config, 'tokenizer')}, which model.resize_vocab counts): memory"]
    changes = ModelChanges(*enlarged_limits(config.model))
    describe_model_plan(config, dtype, log, plan_parallel_dims(config, processes), changes, row)
    return []


def _has_weights(config: Config) -> bool:
    """Whether the weights are on this machine; False for a repository of the Hub with only its small files cached."""
    directory = config.model.directory
    return directory == Path(config.model.path) or any(directory.glob("*.safetensors"))


def _check_released(config: Config, dtype: str, log: Callable[[str], None], processes: int) -> list[str]:
    """Check a model without local files by the shape of the release of that name.

    Returns descriptions of the checks that were not possible.
    """
    absent, architecture = _absent(config, "config.json"), released_architecture(config.model.path)
    if architecture is None:
        return [f"the model ({absent}): lora.targets, model.freeze, parallel, memory"]
    selected = select_parameters(config, architecture, dtype)
    log(f"model: the shape of the released {Path(config.model.path).name}")
    for line in describe_lora(selected.matches) if config.lora.enabled else []:
        log(line)
    # The machine may have fewer devices than the configuration is meant for.
    least = math.lcm(config.parallel.expert, config.parallel.context)
    fit_parallel_dims(config, architecture, least * math.ceil(processes / least))
    unchecked = [f"the files of the model ({absent})", "memory, which `erniekit plan` plans for any GPUs"]
    if processes % least:
        unchecked.append(
            f"the number of devices, {processes} here: parallel.expert and parallel.context need a multiple of {least}"
        )
    return unchecked


def _check_data(
    config: Config, processes: int, log: Callable[[str], None], no_weights: bool
) -> tuple[list[str], RowShape | None]:
    """Check the data and print its plan.

    Returns descriptions of the checks that were not possible, and the largest packed sequence if it is known.
    """
    model, missing = config.model.directory, _missing_sources(config)
    if no_weights and not (model / "tokenizer_config.json").is_file():
        return [f"the data ({_absent(config, 'tokenizer')}): samples, rows, steps"], None
    if no_weights and missing:
        return [f"the data ({', '.join(missing)} not there): samples, rows, steps"], None
    given, rows = config, config.num_rows(max(1, processes // config.parallel.context))
    config = config.with_rows(rows)
    inputs = load_inputs(config, log)
    try:
        lines = describe_run(plan_run(config, inputs.rows), config, inputs.encoder.template.name)
        for line in [*lines, *describe_rounding(given, rows)]:
            log(line)
        return [], inputs.largest_row(config.data.max_length)
    finally:
        inputs.close()


def _absent(config: Config, what: str) -> str:
    """A description of a missing file of the model, with the command that downloads it."""
    model = config.model
    if names_repository(model.path) and model.directory == Path(model.path):
        download = download_command(model.path, model.revision)
        return f"{model.path} has no {what} here: `{download}` fetches it"
    return f"{model.directory} has no {what}"


def _missing_sources(config: Config) -> list[str]:
    """Paths of the sources without any file."""
    missing = []
    sources: list[tuple[Use, SourceConfig]] = [("train", source) for source in config.data.train]
    sources += [("eval", source) for source in config.data.eval]
    for use, source in sources:
        try:
            expand([source.path], use)
        except DataError:
            missing.append(source.path)
    return missing
