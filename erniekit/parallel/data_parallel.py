"""What becomes of the gradients of a step where several processes train one model.

A gradient of an expert is added up over the processes that hold the expert (its owner has already seen the tokens of
its whole expert group), any other over all. Losses are divided by counts of the whole step, so a sum is what is
wanted, never a mean. Gradients of a layer leave as soon as the backward pass has done with it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np
import paddle
from paddle import Tensor, _C_ops

from erniekit.distributed.collectives import all_reduce_host, start_all_reduce
from erniekit.distributed.mesh import Mesh
from erniekit.models.layer_runner import LayerHooks, NoHooks
from erniekit.models.specs import is_expert_tensor
from erniekit.parallel.flat_shard import TensorShard, buckets

Named = Sequence[tuple[str, Tensor]]
_LAYER = re.compile(r"model\.layers\.(\d+)\.")
REST = -1
"""In the place of a layer's number: what belongs to none."""


class Gradients(Protocol):
    """Where gradients of a step come together: `erniekit.optim.adamw.AdamW`."""

    def collect_gradients(self, names: Iterable[str] | None = None) -> None:
        """Move what is not float32 into float32 sums."""

    def named_gradients(self, names: Iterable[str] | None = None) -> list[tuple[str, Tensor]]:
        """In float32, to be changed in place."""

    def add_gradient(self, name: str, gradient: Tensor) -> None:
        """Add to one, and keep the tensor that is given."""


class GradientReducer(Protocol):
    """One step: for every row `begin_row`, the backward pass with these events, `end_row`; then the others.

    All processes call the same, with models of the same form.
    """

    hooks: LayerHooks
    parameters: Named
    shapes: Mapping[str, Sequence[int]]

    def begin_row(self, optimizer: Gradients, *, last: bool) -> None:
        """Before the backward pass of a row; `last`: of the step."""
        ...

    def end_row(self) -> None:
        """After it."""
        ...

    def reduce(self) -> None:
        """After the last row: put the sums over all processes into the optimizer."""
        ...

    def norm(self) -> float:
        """L2 norm over the gradients of the whole model, each parameter counted once."""
        ...

    def all_gather_params(self) -> None:
        """After the optimizer's step: bring what it has changed to all."""
        ...

    def shard_of(self, name: str) -> TensorShard | None:
        """How the optimizer's state of a parameter is spread. None: it is whole."""
        ...


class DataParallelReducer:
    """Every process has all gradients and the optimizer's whole state (of its own experts).

    parameters: what the optimizer updates, with the shapes of the whole tensors; here the trained parameters.
    """

    def __init__(self, mesh: Mesh, trained: Named) -> None:
        self.parameters: Named = trained
        self.shapes: Mapping[str, Sequence[int]] = {name: parameter.shape for name, parameter in trained}
        self.hooks: LayerHooks = BackwardHook(self._layer_done)
        self._mesh = mesh
        self._layers = by_layer(name for name, _ in trained)
        self._coming: list[Callable[[], None]] = []
        self._optimizer: Gradients | None = None
        self._last = False

    def begin_row(self, optimizer: Gradients, *, last: bool) -> None:
        self._optimizer, self._last = optimizer, last

    def end_row(self) -> None:
        assert self._optimizer is not None
        self._optimizer.collect_gradients()

    @paddle.no_grad()
    def reduce(self) -> None:
        self._reduce(self._layers.get(REST, ()))
        self._wait()

    @paddle.no_grad()
    def norm(self) -> float:
        assert self._optimizer is not None
        dense, experts = _apart(self._optimizer.named_gradients())
        # Experts of the other processes of the group are the rest of the model's.
        all_experts = all_reduce_host(np.array([squared_norm([g for _, g in experts])]), self._mesh.expert)
        return math.sqrt(squared_norm([g for _, g in dense]) + float(all_experts[0]))

    def all_gather_params(self) -> None:
        """Nothing: every process has made the same step."""

    def shard_of(self, name: str) -> TensorShard | None:
        """None."""
        return None

    @paddle.no_grad()
    def _layer_done(self, number: int) -> None:
        if self._last:
            self._reduce(self._layers.get(number, ()))

    def _reduce(self, names: Collection[str]) -> None:
        """Send gradients off, once those that were sent before are here: their buffers are as large."""
        assert self._optimizer is not None
        self._wait()
        self._optimizer.collect_gradients(names)
        self._coming.append(reduce_gradients(self._mesh, self._optimizer.named_gradients(names)))

    def _wait(self) -> None:
        for wait in self._coming:
            wait()
        self._coming.clear()


class BackwardHook(NoHooks):
    """Calls a function when the backward pass of a layer is done; what surrounds a layer is left to `around`."""

    def __init__(self, function: Callable[[int], None], around: LayerHooks | None = None) -> None:
        self._function, self._around = function, around or NoHooks()

    def enter(self, number: int, *, backward: bool) -> None:
        self._around.enter(number, backward=backward)

    def leave(self, number: int) -> None:
        self._around.leave(number)

    def done(self, number: int) -> None:
        self._function(number)


def by_layer(names: Iterable[str]) -> dict[int, list[str]]:
    """Names of parameters by the number of their decoder layer, REST for others."""
    found: dict[int, list[str]] = {}
    for name in names:
        match = _LAYER.match(name)
        found.setdefault(int(match[1]) if match else REST, []).append(name)
    return found


def reduce_gradients(mesh: Mesh, gradients: Named) -> Callable[[], None]:
    """Begin to add gradients up in place over the processes that have a copy of their parameter.

    All processes give gradients of the same names and shapes, in the same order; an expert's are those of its
    replicas. What is returned waits for them.
    """
    coming = []
    dense, experts = _apart(gradients)
    for group, members in ((mesh.world, dense), (mesh.replicas, experts)):
        if group.size > 1:
            for bucket in buckets(members):
                tensors = list(bucket.values())
                # A large tensor stands alone, and is sent as it is.
                alone = len(tensors) == 1
                flat = tensors[0] if alone else paddle.concat([tensor.reshape([-1]) for tensor in tensors])
                coming.append((start_all_reduce(flat, group), [] if alone else tensors))

    def wait() -> None:
        for under_way, tensors in coming:
            flat, begin = under_way.wait(), 0
            for tensor in tensors:
                paddle.assign(flat[begin : begin + tensor.size].reshape(tensor.shape), output=tensor)
                begin += int(tensor.size)

    return wait


def squared_norm(tensors: Sequence[Tensor]) -> float:
    """Sum of squares over float32 tensors, 0 where there are none."""
    squares = [_C_ops.squared_l2_norm(tensor) for tensor in tensors if tensor.size]
    return float(paddle.stack(squares).sum().item()) if squares else 0.0


def _apart(gradients: Named) -> tuple[list[tuple[str, Tensor]], list[tuple[str, Tensor]]]:
    """Gradients of parameters that every process has, and those of experts."""
    dense = [(name, tensor) for name, tensor in gradients if not is_expert_tensor(name)]
    experts = [(name, tensor) for name, tensor in gradients if is_expert_tensor(name)]
    return dense, experts
