"""Make what the sides of a workload share: data, a seeded model, the rows of the run, and the first adapters.

    python -m tools.bench.peers.prepare WORKLOAD DIRECTORY [--quick]

Runs in erniekit's environment. What was made for the same workload is kept.
"""

from __future__ import annotations

import argparse
import json
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from erniekit import runtime

runtime.prepare_environment()

import numpy as np

from erniekit.checkpoint.hub import write_safetensors
from erniekit.checkpoint.names import hub_tensors
from erniekit.checkpoint.weights import array_of, local_tensor
from erniekit.config import Config, load_config
from erniekit.create.create import create_model
from erniekit.distributed.parallel_dims import ParallelDims
from erniekit.export.export import export_model
from erniekit.lora.adapters import (
    PREFIX,
    WEIGHTS_FILE,
    adapter_parameters,
    stored_adapter,
    write_adapter_settings,
)
from erniekit.lora.peft import AdapterConfig
from erniekit.train.build import build_trainer
from erniekit.train.console import PlainConsole
from erniekit.train.distributed import init_distributed
from erniekit.train.inputs import load_inputs
from erniekit.train.run_context import RunContext
from erniekit.train.trainer import Trainer
from tools.bench.peers import workloads
from tools.bench.peers.data import write_samples
from tools.bench.peers.workloads import WORKLOADS, Workload

# Of `PackedBatch`; a peer needs nothing else.
FIELDS = ("input_ids", "labels", "position_ids", "modality", "cu_seqlens", "patches", "grid_thw", "branches")
MODEL, TRANSFORMERS, CONFIG, ROWS, ADAPTER = "model", "transformers", "config.yaml", "rows.npz", "adapter"
WORKLOAD = "workload.txt"  # what all was made for, written last


def main() -> None:
    """Make all that is missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workload", choices=[workload.name for workload in WORKLOADS])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    workload = next(found for found in WORKLOADS if found.name == arguments.workload)
    prepare(workloads.quick(workload) if arguments.quick else workload, arguments.directory)


def prepare(workload: Workload, directory: Path) -> None:
    """Write all into `directory`, which is emptied first, unless all of the same workload is there."""
    made = directory / WORKLOAD
    if made.exists() and made.read_text() == repr(workload):
        return
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    samples, model = directory / "samples.jsonl", directory / MODEL
    write_samples(workload.data, workload.samples, samples)
    create_model(workload.shape, model, [samples], vocab_size=workload.vocab_size, overrides=workload.model)
    if workload.shape == "tiny-vl":
        export_model(model, directory / TRANSFORMERS, layout="transformers")
    else:
        (directory / TRANSFORMERS).symlink_to(MODEL)
    (directory / CONFIG).write_text(config_text(workload, directory), encoding="utf-8")
    config = load_config(directory / CONFIG, [])
    if config.lora.enabled:
        write_first_adapter(config, directory)
    write_rows(config, workload.rows, directory / ROWS)
    made.write_text(repr(workload))


def config_text(workload: Workload, directory: Path) -> str:
    """The YAML of `erniekit train` for the workload."""
    beta1, beta2 = workloads.BETAS
    settings: dict[str, Any] = {
        "model": {"path": directory / MODEL},
        "data": {
            "train": [f"{directory / 'samples.jsonl'}"],
            "max_length": workload.max_length,
            "on_long": "drop",
            "cache_dir": directory / "cache",
            "workers": 1,
        },
        "optimizer": {
            "learning_rate": workloads.LEARNING_RATE,
            "weight_decay": workloads.WEIGHT_DECAY,
            "beta1": beta1,
            "beta2": beta2,
            "epsilon": workloads.EPSILON,
            "max_grad_norm": workloads.CLIP_NORM,
        },
        "schedule": {"type": "constant"},
        "loss": {"chunk_tokens": workloads.CHUNK_TOKENS},
        "train": {"epochs": 1000, "output_dir": directory / "run"},
        "parallel": {"device": "cpu", "threads": workloads.THREADS},
        "log": {"tensorboard": False},
    }
    return json.dumps(settings | dict(workload.config), indent=1, default=str)


def make_trainer(config: Config, stack: ExitStack) -> Trainer:
    """The trainer of `erniekit train`."""
    device = runtime.configure(config.parallel.device, config.parallel.threads, config.train.seed)
    context = RunContext(config, device, init_distributed(config, ParallelDims(), None), PlainConsole())
    return build_trainer(context, resume=False, stack=stack)[0]


def write_first_adapter(config: Config, directory: Path) -> None:
    """The adapters that a run begins with, in PEFT's files."""
    with ExitStack() as stack:
        model: Any = make_trainer(config, stack).model
        parameters = adapter_parameters(model)
        tensors = {
            tensor.name: local_tensor(tensor, parameters[tensor.parameter])
            for tensor in hub_tensors(model)
            if tensor.parameter in parameters
        }
        (directory / ADAPTER).mkdir()
        adapter = AdapterConfig(config.model.path, workloads.LORA_RANK, workloads.LORA_ALPHA, 0.0)
        specs = stored_adapter([tensor.spec for tensor in tensors.values()])
        write_adapter_settings(directory / ADAPTER, specs, adapter, model.config)
        write_safetensors(
            directory / ADAPTER / WEIGHTS_FILE,
            specs,
            lambda name: array_of(tensors[name.removeprefix(PREFIX)].read()),
        )
    shutil.rmtree(config.train.output_dir)


def write_rows(config: Config, count: int, file: Path) -> None:
    """The first rows of the run, in its order."""
    inputs = load_inputs(config, print)
    arrays = {}
    for number in range(count):
        row = inputs.train.next_row()
        arrays |= {f"{number}.{name}": getattr(row, name) for name in FIELDS}
    inputs.close()
    np.savez(file, **arrays)


if __name__ == "__main__":
    main()
