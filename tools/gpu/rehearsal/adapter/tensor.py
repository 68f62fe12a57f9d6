"""Paddle's tensor: an object of its own around one of torch's, so that none of torch's methods is used by mistake."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from .device import Place, dtype_of, gpu_number


class Tensor:
    """Offers what erniekit uses, with Paddle's names and meaning. `raw` is the tensor of torch."""

    __slots__ = ("__weakref__", "raw")
    # numpy's numbers leave operators to this class.
    __array_ufunc__ = None

    def __init__(self, raw: torch.Tensor) -> None:
        self.raw = raw

    def __repr__(self) -> str:
        return f"Tensor(shape={self.shape}, dtype={self.dtype}, place={self.place}, {self.raw.detach()})"

    @property
    def shape(self) -> list[int]:
        return list(self.raw.shape)

    @property
    def ndim(self) -> int:
        return self.raw.ndim

    @property
    def size(self) -> int:
        return self.raw.numel()

    @property
    def dtype(self) -> torch.dtype:
        return self.raw.dtype

    @property
    def place(self) -> Place:
        pinned = self.raw.device.type == "cpu" and torch.cuda.is_available() and self.raw.is_pinned()
        return Place(self.raw.device, pinned=pinned)

    @property
    def device(self) -> torch.device:
        """Triton asks for it, and for `data`."""
        return self.raw.device

    @property
    def data(self) -> Tensor:
        return self.detach()

    @property
    def stop_gradient(self) -> bool:
        return not self.raw.requires_grad

    @stop_gradient.setter
    def stop_gradient(self, value: bool) -> None:
        self.raw.requires_grad_(not value)

    @property
    def grad(self) -> Tensor | None:
        return None if self.raw.grad is None else Tensor(self.raw.grad)

    def backward(self, grad_tensor: Tensor | None = None) -> None:
        self.raw.backward(unwrap(grad_tensor))

    def clear_gradient(self, set_to_zero: bool = True) -> None:
        if not set_to_zero:
            self.raw.grad = None
        elif self.raw.grad is not None:
            self.raw.grad.zero_()

    def detach(self) -> Tensor:
        return Tensor(self.raw.detach())

    def clone(self) -> Tensor:
        return Tensor(self.raw.clone())

    def set_value(self, value: Tensor | np.ndarray) -> None:
        source = value.raw if isinstance(value, Tensor) else torch.tensor(value)
        if source.shape != self.raw.shape or source.dtype != self.raw.dtype:
            raise ValueError(f"{source.dtype} {source.shape} for a tensor {self.dtype} {self.shape}")
        with torch.no_grad():
            self.raw.copy_(source)

    # To the host.

    def numpy(self) -> np.ndarray:
        values = self.raw.detach().cpu()
        return (values.view(torch.uint16) if values.dtype == torch.bfloat16 else values).numpy()

    def pin_memory(self, blocking: bool = True) -> Tensor:
        if not torch.cuda.is_available():
            return self.clone()
        copy = torch.empty(self.raw.shape, dtype=self.raw.dtype, pin_memory=True)
        return Tensor(copy.copy_(self.raw.detach(), non_blocking=not blocking))

    def item(self) -> float | int | bool:
        return self.raw.item()

    def tolist(self) -> Any:
        return self.raw.tolist()

    def __float__(self) -> float:
        return float(self.raw)

    def __int__(self) -> int:
        return int(self.raw)

    def __bool__(self) -> bool:
        return bool(self.raw)

    def __len__(self) -> int:
        return len(self.raw)

    def __iter__(self) -> Iterator[Tensor]:
        return (Tensor(part) for part in self.raw.unbind(0))

    def __hash__(self) -> int:
        return id(self)

    # Memory.

    def __dlpack__(self, **options: Any) -> Any:
        return self.raw.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.raw.__dlpack_device__()

    def data_ptr(self) -> int:
        return self.raw.data_ptr()

    def element_size(self) -> int:
        return self.raw.element_size()

    def is_contiguous(self) -> bool:
        return self.raw.is_contiguous()

    def contiguous(self) -> Tensor:
        return self if self.raw.is_contiguous() else Tensor(self.raw.contiguous())

    def is_floating_point(self) -> bool:
        return self.raw.is_floating_point()

    def cuda(self, device_id: int | None = None, blocking: bool = True) -> Tensor:
        return Tensor(self.raw.to(gpu_number(device_id), non_blocking=not blocking))

    def astype(self, dtype: str | torch.dtype) -> Tensor:
        wanted = dtype_of(dtype)
        return self if self.raw.dtype == wanted else Tensor(self.raw.to(wanted))

    def view(self, dtype: torch.dtype) -> Tensor:
        return Tensor(self.raw.view(dtype))

    def __getitem__(self, index: Any) -> Tensor:
        if isinstance(index, tuple):
            return Tensor(self.raw[tuple(unwrap(part) for part in index)])
        return Tensor(self.raw[unwrap(index)])

    # Arithmetic.

    def __neg__(self) -> Tensor:
        return Tensor(-self.raw)

    def __add__(self, other: Any) -> Tensor:
        return Tensor(self.raw + _operand(other))

    def __radd__(self, other: Any) -> Tensor:
        return Tensor(_operand(other) + self.raw)

    def __sub__(self, other: Any) -> Tensor:
        return Tensor(self.raw - _operand(other))

    def __rsub__(self, other: Any) -> Tensor:
        return Tensor(_operand(other) - self.raw)

    def __mul__(self, other: Any) -> Tensor:
        return Tensor(self.raw * _operand(other))

    def __rmul__(self, other: Any) -> Tensor:
        return Tensor(_operand(other) * self.raw)

    def __truediv__(self, other: Any) -> Tensor:
        return Tensor(self.raw / _operand(other))

    def __rtruediv__(self, other: Any) -> Tensor:
        return Tensor(_operand(other) / self.raw)

    def __floordiv__(self, other: Any) -> Tensor:
        return Tensor(self.raw // _operand(other))

    def __eq__(self, other: object) -> Tensor:  # type: ignore[override]
        return Tensor(self.raw == _operand(other))

    def __ne__(self, other: object) -> Tensor:  # type: ignore[override]
        return Tensor(self.raw != _operand(other))

    def __lt__(self, other: Any) -> Tensor:
        return Tensor(self.raw < _operand(other))

    def __le__(self, other: Any) -> Tensor:
        return Tensor(self.raw <= _operand(other))

    def __gt__(self, other: Any) -> Tensor:
        return Tensor(self.raw > _operand(other))

    def __ge__(self, other: Any) -> Tensor:
        return Tensor(self.raw >= _operand(other))

    def add_(self, other: Any) -> Tensor:
        self.raw.add_(_operand(other))
        return self

    def subtract_(self, other: Any) -> Tensor:
        self.raw.sub_(_operand(other))
        return self

    def multiply_(self, other: Any) -> Tensor:
        self.raw.mul_(_operand(other))
        return self

    def divide_(self, other: Any) -> Tensor:
        self.raw.div_(_operand(other))
        return self

    def exp_(self) -> Tensor:
        self.raw.exp_()
        return self

    def scale_(self, scale: float) -> Tensor:
        self.raw.mul_(scale)
        return self


class Parameter(Tensor):
    """A tensor that layers list."""

    __slots__ = ()


def unwrap(value: Any) -> Any:
    """The tensor of torch, or what is no tensor as it is."""
    return value.raw if isinstance(value, Tensor) else value


def _operand(value: Any) -> Any:
    """Numbers of numpy are numbers of Python to Paddle: they change no element type."""
    if isinstance(value, Tensor):
        return value.raw
    return value.item() if isinstance(value, np.generic) else value
