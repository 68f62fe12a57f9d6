"""Loading a model, and converting between parameters in memory and tensors on disk."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import paddle
from paddle import Tensor

from erniekit.checkpoint.element_types import as_dtype
from erniekit.checkpoint.hub import TensorInfo, read_span
from erniekit.checkpoint.model_files import open_model
from erniekit.checkpoint.names import (
    HubTensor,
    ReadHub,
    assemble,
    by_parameter,
    hub_tensors,
    named_weights,
)
from erniekit.checkpoint.quantizer import Quantizer
from erniekit.checkpoint.resize import NO_CHANGES, ModelChanges, read_rows
from erniekit.distributed.mesh import Mesh
from erniekit.kernels.quantize import QuantizedWeight
from erniekit.layers import QuantizedParameter
from erniekit.models.config import ErnieConfig
from erniekit.models.ernie import ErnieModel
from erniekit.models.factory import build_model
from erniekit.models.quantize import quantize_layers
from erniekit.models.specs import TensorSpec, is_expert_tensor, is_vocab_tensor
from erniekit.parallel.flat_shard import ShardSpan, TensorShard, shard_part
from erniekit.parallel.fully_sharded import FullyShardedLayers
from erniekit.parallel.tensor_stream import LocalTensor

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
        tensor.set_value(tensor_from(array, tensor.dtype))


def tensor_from(array: np.ndarray, dtype: paddle.dtype) -> Tensor:
    """An array on the device, in the element type that it has (bfloat16 as uint16)."""
    value = paddle.to_tensor(array)
    return value.view(dtype) if dtype == paddle.bfloat16 else value


def local_tensor(tensor: HubTensor, values: Tensor, shard: TensorShard | None = None) -> LocalTensor:
    """A tensor of the Hub, from the values that this process has of the parameter that holds it.

    shard: the sharding of the parameter, if the values are one part of it, 1-D.
    """
    spec = TensorSpec(tensor.name, DTYPE_NAMES[values.dtype], tensor.shape)
    if shard is None:
        return LocalTensor(spec, values, tensor.start)
    part = shard_part(shard, tensor.name, tensor.start, tensor.shape)
    return LocalTensor(spec, values, tensor.start + part.span.start - shard.span.start, part)


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
    quantizer: Quantizer | None = None,
) -> ErnieModel:
    """Build the model that `config.json` describes and load its weights, computing in `dtype`.

    expert_rank, expert_ranks: for expert parallelism, see `MoeConfig`. changes: sizes that differ from the checkpoint.
    quantizer: quantizes the weights of linear layers while they are read, and measures each of them on one process of
    an expert-parallel group.
    """
    config, found = _open(directory, expert_rank, expert_ranks, changes)
    model = _build(config, dtype, quantizer)
    _load_weights(model, found, quantizer)
    return model


def load_fully_sharded(
    directory: str | Path,
    dtype: str,
    mesh: Mesh,
    changes: ModelChanges = NO_CHANGES,
    quantizer: Quantizer | None = None,
) -> tuple[ErnieModel, FullyShardedLayers]:
    """As `load_model`, with the weights of decoder layers sharded over the processes of `mesh`.

    Every process reads only its shard of each weight; quantizer: measures each weight on one process of all.
    """
    config, found = _open(directory, mesh.expert.rank, mesh.expert.size, changes)
    model = _build(config, dtype, quantizer)
    tensors, weights = by_parameter(hub_tensors(model)), dict(named_weights(model))

    def read(span: ShardSpan) -> Tensor:
        path, _, half = span.name.rpartition(".")
        quantized = weights.get(path)
        if isinstance(quantized, QuantizedParameter):
            assert quantizer is not None
            return _read_quantized(quantized, half, tensors[path], found, span, quantizer)
        part = paddle.zeros([span.size], dtype)
        if span.size:
            element = DTYPE_NAMES[part.dtype]
            values = assemble(tensors[span.name], _span_reader(found), element, (span.start, span.stop))
            assign(part, values, element)
        return part

    sharded = FullyShardedLayers(model, mesh, read)
    _load_weights(model, found, quantizer, but=sharded.names)
    return model, sharded


def _build(config: ErnieConfig, dtype: str, quantizer: Quantizer | None) -> ErnieModel:
    """A model without values: what is quantized never exists as a whole in another form."""
    with paddle.LazyGuard():
        model = build_model(config, dtype)
        if quantizer is not None:
            quantize_layers(model, quantizer.bits)
    return model


def _load_weights(
    model: ErnieModel,
    found: Mapping[str, TensorInfo],
    quantizer: Quantizer | None,
    but: Collection[str] = (),
) -> None:
    """Fill the parameters of a model without values, except for those named in `but`."""
    tensors = by_parameter(hub_tensors(model))
    for name, parameter in named_weights(model):
        if isinstance(parameter, QuantizedParameter):
            assert quantizer is not None
            if f"{name}.codes" not in but:
                _load_quantized(parameter, tensors[name], found, quantizer, model.config)
        elif name not in but:
            parameter.initialize()
            load_parameter(parameter, tensors[name], found)


def _load_quantized(
    parameter: QuantizedParameter,
    tensors: Sequence[HubTensor],
    found: Mapping[str, TensorInfo],
    quantizer: Quantizer,
    config: ErnieConfig,
) -> None:
    """Fill a quantized parameter, from one tensor of the Hub after the other."""
    parameter.codes.initialize()
    parameter.scales.initialize()
    *outer, rows, _ = parameter.shape
    # The other processes of an expert-parallel group hold the same dense weights.
    is_measured = config.moe is None or config.moe.expert_rank == 0 or is_expert_tensor(tensors[0].name)
    for start, weight in _read_rows(tensors, found, parameter.dtype, (0, math.prod(outer) * rows)):
        quantized = quantizer(weight)
        number, first = divmod(start, rows)
        place = (*[number] * len(outer), slice(first, first + weight.shape[0]))
        parameter.codes[place], parameter.scales[place] = quantized.codes, quantized.scales
        if is_measured:
            quantizer.measure(weight, quantized)


def _read_quantized(
    parameter: QuantizedParameter,
    half: str,
    tensors: Sequence[HubTensor],
    found: Mapping[str, TensorInfo],
    span: ShardSpan,
    quantizer: Quantizer,
) -> Tensor:
    """A span of the codes or the scales (`half`) of a quantized parameter, 1-D.

    The rows that it touches are read whole, so that values do not depend on where a span begins. Codes are measured,
    each row by the process that holds its first code.
    """
    width = int(getattr(parameter, half).shape[-1])
    first, last = span.start // width, -(-span.stop // width) if span.size else span.start // width
    parts = []
    for start, weight in _read_rows(tensors, found, parameter.dtype, (first, last)):
        quantized = quantizer(weight)
        parts.append(getattr(quantized, half).reshape([-1]))
        if half == "codes":
            skipped = int(start == first and span.start % width > 0)
            own = QuantizedWeight(quantized.codes[skipped:], quantized.scales[skipped:])
            quantizer.measure(weight[skipped:], own)
    if not parts:
        return paddle.zeros([0], getattr(parameter, half).dtype)
    offset = first * width
    return paddle.concat(parts)[span.start - offset : span.stop - offset].clone()


def _read_rows(
    tensors: Sequence[HubTensor], found: Mapping[str, TensorInfo], dtype: paddle.dtype, rows: tuple[int, int]
) -> Iterator[tuple[int, Tensor]]:
    """Rows of a parameter on the device in `dtype`, tensor by tensor: the number of the first one, and their values."""
    for tensor in tensors:
        width = tensor.shape[-1]
        start, stop = max(rows[0], tensor.start // width), min(rows[1], tensor.stop // width)
        if start < stop:
            info = found[tensor.name]
            array = read_span(info, start * width - tensor.start, stop * width - tensor.start)
            array = as_dtype(array, info.dtype, DTYPE_NAMES[dtype]).reshape(-1, width)
            yield start, tensor_from(array, dtype)


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
