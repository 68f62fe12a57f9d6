"""The Hub's names of the parameters in memory. Experts are stacked in memory; on the Hub each has its own tensors.

Every tensor of the Hub is a range of one parameter in row-major order, and most are the whole parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from paddle import Tensor, nn

from erniekit.checkpoint.element_types import as_dtype
from erniekit.checkpoint.hub import NUMPY_TYPES
from erniekit.layers import QuantizedParameter
from erniekit.models.specs import is_expert_tensor
from erniekit.moe.experts import StackedLinear

_PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
_STACK = ".experts."
# (tensor, start, stop) -> elements of the tensor, counted from its own first one, and their element type
ReadHub = Callable[["HubTensor", int, int], tuple[np.ndarray, str]]


@dataclass(frozen=True)
class HubTensor:
    """A tensor of the Hub: the elements from `start` on, in row-major order, of a parameter in memory."""

    name: str
    parameter: str
    start: int
    shape: tuple[int, ...]

    @property
    def stop(self) -> int:
        """The end of its elements in the parameter."""
        return self.start + int(np.prod(self.shape, dtype=np.int64))


def hub_tensors(model: nn.Layer) -> list[HubTensor]:
    """Every tensor of the Hub in the parameters of a model, in the order of the files.

    Inside a layer, experts follow each other; each has gate, up and down, with their adapters. Ranges of a quantized
    parameter count its elements before quantization.
    """
    stacks = {path: layer for path, layer in model.named_sublayers() if isinstance(layer, StackedLinear)}
    found: list[HubTensor] = []
    for experts, named in groupby(named_weights(model), key=lambda item: experts_path(item[0])):
        tensors = [tensor for name, parameter in named for tensor in _tensors(name, parameter, stacks)]
        found += sorted(tensors, key=lambda tensor: _order(tensor.name)) if experts else tensors
    return found


def named_weights(model: nn.Layer) -> Iterator[tuple[str, Tensor | QuantizedParameter]]:
    """The parameters of a model by name; codes and scales of a quantized one together, under the name of the weight."""
    quantized = {
        path: layer for path, layer in model.named_sublayers() if isinstance(layer, QuantizedParameter)
    }
    for name, parameter in model.named_parameters():
        path, _, half = name.rpartition(".")
        if path not in quantized:
            yield name, parameter
        elif half == "codes":
            yield path, quantized[path]


def stacks_of(model: nn.Layer) -> dict[str, tuple[str, StackedLinear]]:
    """Each of the Hub's linear layers that is stacked in memory -> the path of its stack, and the stack."""
    return {
        f"{experts_path(path)}.{module}": (path, layer)
        for path, layer in model.named_sublayers()
        if isinstance(layer, StackedLinear)
        for module in layer.modules
    }


def by_parameter(tensors: Iterable[HubTensor]) -> dict[str, list[HubTensor]]:
    """The tensors of the Hub in each parameter, in the order of its elements."""
    grouped: dict[str, list[HubTensor]] = {}
    for tensor in tensors:
        grouped.setdefault(tensor.parameter, []).append(tensor)
    return {name: sorted(parts, key=lambda part: part.start) for name, parts in grouped.items()}


def take(parameter: Tensor, tensor: HubTensor) -> Tensor:
    """The values of a tensor of the Hub, from the complete parameter that holds it."""
    if tuple(parameter.shape) == tensor.shape:
        return parameter
    rows, width = parameter.shape[1:]
    number, offset = divmod(tensor.start, rows * width)
    first = offset // width
    return parameter[number, first : first + tensor.shape[0]]


def assemble(tensors: Sequence[HubTensor], read: ReadHub, dtype: str, span: tuple[int, int]) -> np.ndarray:
    """The elements `span` of a parameter, 1-D in the element type `dtype`, from the tensors of the Hub in it."""
    start, stop = span
    values = np.empty(stop - start, NUMPY_TYPES[dtype])
    for tensor in tensors:
        first, last = max(start, tensor.start), min(stop, tensor.stop)
        if first < last:
            part, source = read(tensor, first - tensor.start, last - tensor.start)
            values[first - start : last - start] = as_dtype(part.reshape(-1), source, dtype)
    return values


def experts_path(name: str) -> str:
    """The path of the experts that a parameter or a stack belongs to, "" if it belongs to none."""
    before, stacked, _ = name.partition(_STACK)
    return before + _STACK[:-1] if stacked and is_expert_tensor(name) else ""


def _tensors(
    name: str, parameter: Tensor | QuantizedParameter, stacks: Mapping[str, StackedLinear]
) -> list[HubTensor]:
    stack = stacks.get(name.removesuffix(".weight"))
    if stack is None:
        return [HubTensor(name, name, 0, tuple(parameter.shape))]
    experts, rows, width = parameter.shape
    shape = (experts * rows // len(stack.modules), width)
    return [
        HubTensor(f"{experts_path(name)}.{module}.weight", name, number * shape[0] * shape[1], shape)
        for number, module in enumerate(stack.modules)
    ]


def _order(name: str) -> tuple[int, int, str]:
    """Number of the expert, its projection, and what of it: lora_A, lora_B, weight."""
    number, projection, rest = name.rpartition(_STACK)[2].split(".", 2)
    return int(number), _PROJECTIONS.index(projection), "" if rest == "weight" else rest
