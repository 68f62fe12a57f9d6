"""Loading a model, and converting between parameters in memory and tensors on disk."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import paddle
from paddle import Tensor

from erniekit.checkpoint.hub import (
    TensorInfo,
    as_dtype,
    read_span,
)
from erniekit.checkpoint.model_files import open_model
from erniekit.checkpoint.resize import NO_CHANGES, ModelChanges, read_rows
from erniekit.distributed.mesh import Mesh
from erniekit.models.config import ErnieConfig
from erniekit.models.ernie import ErnieModel
from erniekit.models.factory import build_model
from erniekit.models.specs import TensorSpec, is_vocab_tensor
from erniekit.parallel.flat_shard import ShardSpan
from erniekit.parallel.fully_sharded import FullyShardedLayers

DTYPE_NAMES = {paddle.float32: "F32", paddle.bfloat16: "BF16", paddle.float16: "F16", paddle.int64: "I64"}


def array_of(tensor: Tensor) -> np.ndarray:
    """The values as a numpy array (bfloat16 as uint16). On CPU this is a view, not a copy."""
    tensor = tensor.detach()
    if tensor.place.is_cpu_place() and tensor.dtype != paddle.bfloat16:
        return np.from_dlpack(tensor)
    return tensor.numpy()


def spec_of(name: str, tensor: Tensor) -> TensorSpec:
    """Name, element type and shape of a tensor in memory."""
    return TensorSpec(name, DTYPE_NAMES[tensor.dtype], tuple(tensor.shape))


def assign(tensor: Tensor, array: np.ndarray, dtype: str) -> None:
    """Copy an array of element type `dtype` into a parameter, converted to the parameter's element type."""
    array = as_dtype(array, dtype, DTYPE_NAMES[tensor.dtype])
    if tensor.place.is_cpu_place() and tensor.dtype != paddle.bfloat16:
        np.from_dlpack(tensor.detach())[...] = array
    else:
        value = paddle.to_tensor(array, dtype="uint16" if tensor.dtype == paddle.bfloat16 else None)
        tensor.set_value(value.view(tensor.dtype) if tensor.dtype == paddle.bfloat16 else value)


def _fill(parameters: Iterable[tuple[str, Tensor]], found: Mapping[str, TensorInfo]) -> None:
    for name, parameter in parameters:
        rows = int(parameter.shape[0]) if is_vocab_tensor(name) else None
        assign(parameter, read_rows(found[name], rows), found[name].dtype)


def load_model(
    directory: str | Path,
    dtype: str = "float32",
    *,
    expert_rank: int = 0,
    expert_ranks: int = 1,
    changes: ModelChanges = NO_CHANGES,
) -> ErnieModel:
    """Build the model that `config.json` describes and load its weights, computing in `dtype`.

    expert_rank, expert_ranks: for expert parallelism, see `MoeConfig`. changes: sizes that differ from the checkpoint.
    """
    config, found = _open(directory, expert_rank, expert_ranks, changes)
    model = build_model(config, dtype)
    _fill(model.named_parameters(), found)
    return model


def load_fully_sharded(
    directory: str | Path, dtype: str, mesh: Mesh, changes: ModelChanges = NO_CHANGES
) -> tuple[ErnieModel, FullyShardedLayers]:
    """As `load_model`, with the weights of decoder layers sharded over the processes of `mesh`.

    Every process reads only its shard of each weight.
    """
    config, found = _open(directory, mesh.expert.rank, mesh.expert.size, changes)
    with paddle.LazyGuard():
        model = build_model(config, dtype)

    def read(span: ShardSpan) -> Tensor:
        info = found[span.name]
        part = paddle.zeros([span.size], dtype)
        if span.size:
            assign(part, read_span(info, span.start, span.stop), info.dtype)
        return part

    sharded = FullyShardedLayers(model, mesh, read)
    whole = [(name, p) for name, p in model.named_parameters() if name not in sharded.names]
    for _, parameter in whole:
        parameter.initialize()
    _fill(whole, found)
    return model, sharded


def _open(
    directory: str | Path, expert_rank: int, expert_ranks: int, changes: ModelChanges
) -> tuple[ErnieConfig, dict[str, TensorInfo]]:
    """Configuration and tensors, checked before memory is allocated."""
    config, found = open_model(directory)
    config = changes.apply(config)
    if config.moe is not None:
        moe = replace(config.moe, expert_rank=expert_rank, expert_ranks=expert_ranks)
        config = replace(config, moe=moe)
    return config, found
