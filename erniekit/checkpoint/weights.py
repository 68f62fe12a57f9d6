"""Loading a model, and converting between parameters in memory and tensors on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from erniekit.checkpoint.names import HubTensor, ReadHub, assemble, by_parameter, hub_tensors, take
from erniekit.checkpoint.resize import NO_CHANGES, ModelChanges, read_rows
from erniekit.distributed.mesh import Mesh
from erniekit.models.config import ErnieConfig
from erniekit.models.ernie import ErnieModel
from erniekit.models.factory import build_model
from erniekit.models.specs import TensorSpec, is_vocab_tensor
from erniekit.parallel.flat_shard import ShardSpan, TensorShard, shard_part
from erniekit.parallel.fully_sharded import FullyShardedLayers
from erniekit.parallel.gather import LocalTensor

DTYPE_NAMES = {paddle.float32: "F32", paddle.bfloat16: "BF16", paddle.float16: "F16", paddle.int64: "I64"}


def array_of(tensor: Tensor) -> np.ndarray:
    """The values as a numpy array (bfloat16 as uint16). On CPU this is a view, not a copy."""
    tensor = tensor.detach()
    if tensor.place.is_cpu_place() and tensor.dtype != paddle.bfloat16:
        return np.from_dlpack(tensor)
    return tensor.numpy()


def assign(tensor: Tensor, array: np.ndarray, dtype: str) -> None:
    """Copy an array of element type `dtype` into a parameter, converted to the parameter's element type."""
    array = as_dtype(array, dtype, DTYPE_NAMES[tensor.dtype])
    if tensor.place.is_cpu_place() and tensor.dtype != paddle.bfloat16:
        np.from_dlpack(tensor.detach())[...] = array
    else:
        value = paddle.to_tensor(array, dtype="uint16" if tensor.dtype == paddle.bfloat16 else None)
        tensor.set_value(value.view(tensor.dtype) if tensor.dtype == paddle.bfloat16 else value)


def local_tensor(tensor: HubTensor, values: Tensor, shard: TensorShard | None = None) -> LocalTensor:
    """A tensor of the Hub, from the values that this process has of the parameter that holds it.

    shard: the sharding of the parameter, if the values are one part of it, 1-D.
    """
    spec = TensorSpec(tensor.name, DTYPE_NAMES[values.dtype], tensor.shape)
    if shard is None:
        return LocalTensor(spec, lambda: take(values, tensor))
    part = shard_part(shard, tensor.name, tensor.start, tensor.shape)
    first = tensor.start + part.span.start - shard.span.start
    return LocalTensor(spec, lambda: values[first : first + part.span.size], part)


def load_parameter(parameter: Tensor, tensors: Sequence[HubTensor], found: Mapping[str, TensorInfo]) -> None:
    """Fill a parameter from the tensors of the Hub that it holds."""
    infos = [found[tensor.name] for tensor in tensors]
    if len(infos) == 1:
        rows = int(parameter.shape[0]) if is_vocab_tensor(infos[0].name) else None
        assign(parameter, read_rows(infos[0], rows), infos[0].dtype)
        return
    dtype = DTYPE_NAMES[parameter.dtype]
    values = assemble(tensors, _span_reader(found), dtype, (0, tensors[-1].stop))
    assign(parameter, values.reshape(parameter.shape), dtype)


def _span_reader(found: Mapping[str, TensorInfo]) -> ReadHub:
    return lambda tensor, start, stop: (read_span(found[tensor.name], start, stop), found[tensor.name].dtype)


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
    tensors = by_parameter(hub_tensors(model))
    for name, parameter in model.named_parameters():
        load_parameter(parameter, tensors[name], found)
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
    tensors = by_parameter(hub_tensors(model))

    def read(span: ShardSpan) -> Tensor:
        part = paddle.zeros([span.size], dtype)
        if span.size:
            element = DTYPE_NAMES[part.dtype]
            values = assemble(tensors[span.name], _span_reader(found), element, (span.start, span.stop))
            assign(part, values, element)
        return part

    sharded = FullyShardedLayers(model, mesh, read)
    for name, parameter in model.named_parameters():
        if name not in sharded.names:
            parameter.initialize()
            load_parameter(parameter, tensors[name], found)
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
