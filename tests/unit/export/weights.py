"""Weights and adapters to export, and the logits that they give."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from erniekit.checkpoint.element_types import float32_to_bfloat16
from erniekit.checkpoint.hub import TensorInfo, read_array, read_index, write_shards
from erniekit.checkpoint.weights import load_model
from erniekit.models.ernie import ErnieModel
from erniekit.models.row import RowInputs
from erniekit.models.specs import TensorSpec, is_router_tensor
from tests.adapters import write_adapter
from tests.models import apply_lora

Arrays = dict[str, np.ndarray]


def change(directory: Path, edit: Callable[[Arrays], Any]) -> None:
    """Rewrite the weights of a model, float32, after `edit` of them by name."""
    arrays = {name: read_array(info) for name, info in read_index(directory).items()}
    edit(arrays)
    for file in directory.glob("*.safetensors"):
        file.unlink()
    specs = [TensorSpec(name, "F32", array.shape) for name, array in arrays.items()]
    write_shards(directory, specs, lambda name: np.ascontiguousarray(arrays[name]))


def rewrite(directory: Path, change: Any) -> None:
    """Write the weights of a model again: `change(name, info, array)` gives the new (dtype, array), or None."""
    tensors: dict[str, TensorInfo] = read_index(directory)
    new = {name: change(name, info, read_array(info)) for name, info in tensors.items()}
    new = {name: value for name, value in new.items() if value is not None}
    for file in directory.glob("*.safetensors"):
        file.unlink()
    specs = [TensorSpec(name, dtype, array.shape) for name, (dtype, array) in new.items()]
    write_shards(directory, specs, lambda name: new[name][1])


def to_bfloat16(name: str, info: TensorInfo, array: np.ndarray) -> tuple[str, np.ndarray]:
    return ("F32", array) if is_router_tensor(name) else ("BF16", float32_to_bfloat16(array))


def logits(model: ErnieModel) -> np.ndarray:
    """Logits of a row of two documents, the second with an image in VL models."""
    config = model.config
    rng = np.random.default_rng(0)
    ids = rng.integers(10, 300, 12)
    patches = rng.integers(0, 255, (16 if config.vision else 0, 588), dtype=np.uint8)
    media = np.arange(6, 10) if config.vision else np.zeros(0, int)
    modality = np.zeros(12, np.int8)
    modality[media] = 1
    grid = np.array([[1, 4, 4]] if config.vision else np.zeros((0, 3)), np.int32)
    positions = np.tile(np.concatenate([np.arange(5), np.arange(7)]), (3, 1))
    row = RowInputs(ids, positions, modality, np.array([0, 5, 12], np.int32), patches, grid, media)
    with paddle.no_grad():
        return model.logits(model(row).hidden).numpy()


def train_adapter(base: Path, directory: Path, targets: list[str], router: bool = False) -> np.ndarray:
    """Write an adapter with values of its own; returns the logits of the model that it makes."""
    model = load_model(base)
    apply_lora(model, rank=4, alpha=12.0, dropout=0.0, targets=targets, seed=0)
    rng = np.random.default_rng(1)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            parameter.set_value(paddle.to_tensor(rng.normal(0, 0.1, parameter.shape).astype(np.float32)))
        if router and name.endswith("gate.weight"):
            parameter.stop_gradient = False
            parameter.set_value(parameter + 0.1)
    directory.mkdir()
    write_adapter(directory, model, base_path=str(base), rank=4, alpha=12.0, dropout=0.0)
    model.eval()
    return logits(model)
