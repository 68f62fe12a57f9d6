"""Data parallelism: the gradients of a step are summed over the processes that train one model.

The gradient of an expert is summed over the replicas of the expert (its holder has already seen the tokens of the
whole expert group), any other gradient over all processes. Losses are divided by counts of the whole step, so the
result is a sum, never a mean. The all-reduce of a layer's gradients starts when its backward pass is done.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np
import paddle
from paddle import Tensor

from erniekit.distributed.collectives import all_reduce_host, start_all_reduce
from erniekit.distributed.mesh import Mesh
from erniekit.kernels.adamw import squared_norm
from erniekit.models.layer_runner import LayerHooks, NoHooks
from erniekit.models.specs import is_expert_tensor
from erniekit.parallel.flat_shard import TensorShard, buckets

Named = Sequence[tuple[str, Tensor]]
_LAYER = re.compile(r"model\.layers\.(\d+)\.")
REST = -1
"""The layer number of parameters outside of the decoder layers."""


class Gradients(Protocol):
    """Accumulates the gradients of a step: `erniekit.optim.adamw.AdamW`."""

    def collect_gradients(self, names: Iterable[str] | None = None) -> None:
        """Add gradients that are not float32 to float32 sums."""

    def named_gradients(self, names: Iterable[str] | None = None) -> list[tuple[str, Tensor]]:
        """The float32 gradients, which may be changed in place."""

    def add_gradient(self, name: str, gradient: Tensor) -> None:
        """Add a gradient; the tensor may be kept."""


class GradientReducer(Protocol):
    """Reduces the gradients of a step over processes.

    For every row: `begin_row`, the backward pass with `hooks`, `end_row`. After the last row: `reduce`, `norm`, the
    optimizer's step, `all_gather_params`. All processes make the same calls, with models of the same architecture.
    """

    hooks: LayerHooks
    parameters: Named
    shapes: Mapping[str, Sequence[int]]

    def begin_row(self, optimizer: Gradients, *, last: bool) -> None:
        """Call before the backward pass of a row. last: it is the last row of the step."""
        ...

    def end_row(self) -> None:
        """Call after the backward pass of a row."""
        ...

    def reduce(self) -> None:
        """Finish the reduction after the last row; the optimizer then has the sums over all processes."""
        ...

    def norm(self) -> float:
        """L2 norm of the gradients of the whole model, with each parameter counted once."""
        ...

    def all_gather_params(self) -> None:
        """Send the parameters that the optimizer has updated to all processes that need them."""
        ...

    def shard_of(self, name: str) -> TensorShard | None:
        """The sharding of the optimizer state of a parameter; None if it is not sharded."""
        ...


class DataParallelReducer:
    """Plain data parallelism: every process holds all gradients and optimizer state, except for other ranks' experts.

    parameters: the tensors that the optimizer updates, here the trained parameters; shapes: their shapes.
    """

    def __init__(self, mesh: Mesh, trained: Named) -> None:
        self.parameters: Named = trained
        self.shapes: Mapping[str, Sequence[int]] = {name: parameter.shape for name, parameter in trained}
        self.hooks: LayerHooks = BackwardHook(self._layer_done)
        self._mesh = mesh
        self._layers = by_layer(name for name, _ in trained)
        self._pending: list[Callable[[], None]] = []
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
        dense, experts = _split_experts(self._optimizer.named_gradients())
        # The other processes of the expert group hold the rest of the model's experts.
        all_experts = all_reduce_host(np.array([squared_norm([g for _, g in experts])]), self._mesh.expert)
        return math.sqrt(squared_norm([g for _, g in dense]) + float(all_experts[0]))

    def all_gather_params(self) -> None:
        """Does nothing: every process has made the same update."""

    def shard_of(self, name: str) -> TensorShard | None:
        """None."""
        return None

    @paddle.no_grad()
    def _layer_done(self, number: int) -> None:
        names = self._layers.get(number, ())
        if self._last:
            self._reduce(names)
        else:
            assert self._optimizer is not None
            self._optimizer.collect_gradients(names)

    def _reduce(self, names: Collection[str]) -> None:
        """Start the all-reduce of gradients, after the previous one is complete: its buffers take as much memory."""
        assert self._optimizer is not None
        self._wait()
        self._optimizer.collect_gradients(names)
        self._pending.append(reduce_gradients(self._mesh, self._optimizer.named_gradients(names)))

    def _wait(self) -> None:
        for wait in self._pending:
            wait()
        self._pending.clear()


class BackwardHook(NoHooks):
    """Calls a function when the backward pass of a layer is done; passes the other hooks on to `inner`."""

    def __init__(self, function: Callable[[int], None], inner: LayerHooks | None = None) -> None:
        self._function, self._inner = function, inner or NoHooks()

    def enter(self, number: int, *, backward: bool) -> None:
        self._inner.enter(number, backward=backward)

    def leave(self, number: int) -> None:
        self._inner.leave(number)

    def done(self, number: int) -> None:
        self._function(number)


def collect_by_layer(optimizer: Gradients, trained: Iterable[str]) -> LayerHooks:
    """On one process: adds the gradients of a layer to the step's sums right after its backward pass, instead of all
    gradients after the row."""
    layers = by_layer(trained)
    return BackwardHook(lambda number: optimizer.collect_gradients(layers.get(number, ())))


def by_layer(names: Iterable[str]) -> dict[int, list[str]]:
    """Names of parameters by the number of their decoder layer, REST for others."""
    layers: dict[int, list[str]] = {}
    for name in names:
        layers.setdefault(layer_number(name), []).append(name)
    return layers


def layer_number(name: str) -> int:
    """The number of a parameter's decoder layer; REST for others."""
    match = _LAYER.match(name)
    return int(match[1]) if match else REST


def reduce_gradients(mesh: Mesh, gradients: Named) -> Callable[[], None]:
    """Start the all-reduce (sum) of gradients in place, over the processes that hold a copy of the parameter.

    All processes pass gradients of the same names and shapes in the same order; for experts, all replicas do. The
    returned function waits for the sums.
    """
    works = []
    dense, experts = _split_experts(gradients)
    for group, members in ((mesh.world, dense), (mesh.replicas, experts)):
        if group.size > 1:
            for bucket in buckets(members):
                tensors = list(bucket.values())
                # A single large tensor is reduced without a copy.
                single = len(tensors) == 1
                flat = tensors[0] if single else paddle.concat([tensor.reshape([-1]) for tensor in tensors])
                works.append((start_all_reduce(flat, group), [] if single else tensors))

    def wait() -> None:
        for work, tensors in works:
            flat, offset = work.wait(), 0
            for tensor in tensors:
                paddle.assign(flat[offset : offset + tensor.size].reshape(tensor.shape), output=tensor)
                offset += int(tensor.size)

    return wait


def _split_experts(gradients: Named) -> tuple[list[tuple[str, Tensor]], list[tuple[str, Tensor]]]:
    """Gradients of parameters that every process holds, and gradients of experts."""
    dense = [(name, tensor) for name, tensor in gradients if not is_expert_tensor(name)]
    experts = [(name, tensor) for name, tensor in gradients if is_expert_tensor(name)]
    return dense, experts
