"""Training checkpoints for tests: written as the only process of a run writes them, and read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from erniekit.checkpoint.hub import read_array, read_header
from erniekit.checkpoint.optimizer_state import optimizer_file
from erniekit.checkpoint.state import TrainerState, finish_checkpoint, newest_checkpoint, unfinished_name
from erniekit.checkpoint.writer import FileWriter, PlannedFile
from erniekit.models.specs import TensorSpec

OPTIMIZER_FILE = optimizer_file(0, 1)


def write_checkpoint(
    run: Path,
    state: TrainerState,
    write_weights: Callable[[Path], None],
    optimizer: Mapping[str, np.ndarray],
) -> Path:
    """A checkpoint in the directory of a run. optimizer: float32 tensors by name."""
    aside = run / unfinished_name(state.step)
    aside.mkdir(parents=True)
    write_weights(aside)
    specs = [TensorSpec(name, "F32", array.shape) for name, array in optimizer.items()]
    writer = FileWriter(aside, [PlannedFile(OPTIMIZER_FILE, specs)], iter(optimizer.values()))
    writer.run()
    assert writer.error is None
    return finish_checkpoint(aside, state, writer.records)


def tensors(run: Path) -> dict[str, np.ndarray]:
    """The tensors of the newest checkpoint; the optimizer's are 1-D, put together from the parts of all processes."""
    checkpoint = newest_checkpoint(run)
    assert checkpoint is not None
    values: dict[str, np.ndarray] = {}
    parts: dict[str, dict[int, np.ndarray]] = {}
    for file in sorted(checkpoint.glob("*.safetensors")):
        for name, info in read_header(file).items():
            if file.name.startswith("optimizer"):
                whole, _, span = name.partition("[")
                start = int(span.partition(":")[0] or 0)
                parts.setdefault(whole, {})[start] = read_array(info).reshape(-1)
            else:
                values[name] = read_array(info)
    return values | {
        name: np.concatenate([found[start] for start in sorted(found)]) for name, found in parts.items()
    }
