"""`paddle.nn`: layers, their names and their order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch

from .device import current_device, dtype_of
from .tensor import Parameter


class Constant:
    """The initializer of that name."""

    def __init__(self, value: float = 0.0) -> None:
        self.value = value


class Layer:
    """Parameters and layers that are assigned to attributes are listed under their names."""

    training: bool

    def __init__(self) -> None:
        self.__dict__.update(training=True, _parameters={}, _sub_layers={})

    def __setattr__(self, name: str, value: Any) -> None:
        own = self._table_of(value)
        for table in (self._parameters, self._sub_layers, self.__dict__):
            if table is not own:
                table.pop(name, None)
        own[name] = value

    def __getattr__(self, name: str) -> Any:
        for table in ("_parameters", "_sub_layers"):
            if name in self.__dict__.get(table, ()):
                return self.__dict__[table][name]
        raise AttributeError(f"{type(self).__name__} has no attribute {name}")

    def __delattr__(self, name: str) -> None:
        for table in (self._parameters, self._sub_layers, self.__dict__):
            if name in table:
                del table[name]
                return
        raise AttributeError(f"{type(self).__name__} has no attribute {name}")

    def _table_of(self, value: Any) -> dict[str, Any]:
        if isinstance(value, Parameter):
            return self._parameters
        return self._sub_layers if isinstance(value, Layer) else self.__dict__

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self.forward(*arguments, **options)

    def create_parameter(
        self, shape: Sequence[int], *, dtype: str, default_initializer: Constant
    ) -> Parameter:
        raw = torch.full(
            tuple(shape), default_initializer.value, dtype=dtype_of(dtype), device=current_device()
        )
        return Parameter(raw.requires_grad_(raw.is_floating_point()))

    def add_sublayer(self, name: str, sublayer: Layer) -> Layer:
        self._sub_layers[name] = sublayer
        return sublayer

    def sublayers(self, include_self: bool = False) -> list[Layer]:
        return [layer for _, layer in self.named_sublayers(include_self=include_self)]

    def children(self) -> Iterator[Layer]:
        return iter(self._sub_layers.values())

    def named_sublayers(
        self, prefix: str = "", include_self: bool = False, _seen: set[int] | None = None
    ) -> Iterator[tuple[str, Layer]]:
        seen = set() if _seen is None else _seen
        if id(self) in seen:
            return
        if include_self:
            seen.add(id(self))
            yield prefix, self
        for name, layer in self._sub_layers.items():
            path = f"{prefix}.{name}" if prefix else name
            yield from layer.named_sublayers(path, True, seen)

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Each once, under the first of its names."""
        seen = set()
        for path, layer in self.named_sublayers(include_self=True):
            for name, parameter in layer._parameters.items():
                if id(parameter) not in seen:
                    seen.add(id(parameter))
                    yield f"{path}.{name}" if path else name, parameter

    def parameters(self) -> list[Parameter]:
        return [parameter for _, parameter in self.named_parameters()]

    def train(self) -> None:
        self._set_training(True)

    def eval(self) -> None:
        self._set_training(False)

    def _set_training(self, training: bool) -> None:
        for _, layer in self.named_sublayers(include_self=True):
            layer.training = training


class LayerList(Layer):
    """Layers under the names 0, 1, ..."""

    def __init__(self, sublayers: Iterable[Layer]) -> None:
        super().__init__()
        for number, layer in enumerate(sublayers):
            self.add_sublayer(str(number), layer)

    def __len__(self) -> int:
        return len(self._sub_layers)

    def __iter__(self) -> Iterator[Layer]:
        return self.children()

    def __getitem__(self, index: int) -> Layer:
        return list(self._sub_layers.values())[index]


class LayerDict(Layer):
    """Layers under the keys of a dictionary."""

    def __init__(self, sublayers: Mapping[str, Layer]) -> None:
        super().__init__()
        for name, layer in sublayers.items():
            self.add_sublayer(name, layer)

    def __getitem__(self, key: str) -> Layer:
        return self._sub_layers[key]
