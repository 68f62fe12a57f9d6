"""What the tests of expert parallelism run in each process."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import numpy as np
import paddle
import paddle.distributed as dist
from paddle import Tensor

from erniekit.distributed.collectives import all_reduce_, barrier, start_all_to_all
from erniekit.distributed.mesh import Mesh, connect
from erniekit.distributed.parallel_dims import ParallelDims
from erniekit.distributed.process_group import ProcessGroup
from erniekit.distributed.transport import GlooCollectives
from erniekit.distributed.watchdog import Collective
from erniekit.moe.config import MoeConfig
from erniekit.moe.layer import MoeLayer
from erniekit.moe.router import ModalityIndex
from erniekit.parallel.expert_parallel import ExpertParallelDispatcher
from tests.closeness import assert_all_close, assert_close
from tests.distributed.checks import PATIENCE

HIDDEN = 8
MOE = MoeConfig(
    num_experts=4,
    top_k=2,
    intermediate_sizes=(6, 4),
    num_shared_experts=1,
    norm_min=1e-12,
    sparse_layers=(0,),
)
# Tokens of each rank by modality (0 text, 1 vision), and the correction bias that decides where they go.
CASES: dict[str, tuple[Any, dict[int, float]]] = {
    "mixed": (lambda rank: [0, 1, 1, 0, 1, 0, 0][: 4 + rank % 4], {}),
    "all to two experts of one rank": (lambda rank: [0] * (3 + rank), {0: 9.0, 1: 9.0}),
    "none to the first rank": (lambda rank: [0, 1, 0, 1], {2: 9.0, 3: 9.0, 6: 9.0, 7: 9.0}),
    "one token each": (lambda rank: [0], {}),
    "pictures on one rank": (lambda rank: [0, 1, 1] if rank == 1 else [0, 0], {}),
    "nothing but pictures": (lambda rank: [1] * (2 + rank), {}),
}


def dispatch_checks(world: int) -> dict[str, Any]:
    """Outputs, counts and all gradients of a layer whose experts are spread equal those of the whole layer."""
    mesh = connect(ParallelDims(world, expert=world))
    for name, (tokens, bias) in CASES.items():
        _check(mesh, name, np.asarray(tokens(mesh.rank), np.int8), bias)
    return {"cases": len(CASES)}


def overlap_checks(world: int) -> dict[str, Any]:
    """The same where exchanges are under way until they are waited for, as on NCCL; and what happened when."""
    mesh = connect(ParallelDims(world, expert=world))
    # Without a rendezvous a group takes the path of NCCL.
    native = replace(mesh.expert, rendezvous=None)
    beside = Beside(mesh.expert, [])
    with mock.patch.object(dist.stream, "alltoall_single", beside.alltoall_single):
        for name, (tokens, bias) in CASES.items():
            beside.hooks.clear()
            modality = np.asarray(tokens(mesh.rank), np.int8)
            _check(replace(mesh, expert=native), name, modality, bias, beside.hooks)
            # The last two are the backward pass of the first two.
            assert beside.hooks == ["start", "shared", "wait", "start", "wait"], (name, beside.hooks)
    assert native.tracker is not None
    assert native.tracker.oldest_pending() is None
    return {"cases": len(CASES)}


@dataclass
class Beside:
    """NCCL's all-to-all over gloo: what is started brings nothing before it is waited for."""

    group: ProcessGroup
    hooks: list[str]

    def alltoall_single(
        self, out: Tensor, x: Tensor, recv: list[int], send: list[int], *, group: Any, sync_op: bool = True
    ) -> Task:
        assert group is self.group.handle
        task = Task(self, out, x, recv, send)
        if sync_op:
            task.bring()
        else:
            self.hooks.append("start")
            paddle.assign(paddle.full_like(out, np.nan), out)
        return task


@dataclass
class Task:
    """See `erniekit.distributed.watchdog.Task`."""

    beside: Beside
    out: Tensor
    x: Tensor
    recv: list[int]
    send: list[int]
    done: bool = False

    def bring(self) -> None:
        call = Collective("", 0, 0.0)
        paddle.assign(
            GlooCollectives().all_to_all(self.x, self.send, self.recv, self.beside.group, call), self.out
        )
        self.done = True

    def wait(self) -> None:
        self.beside.hooks.append("wait")
        self.bring()

    def is_completed(self) -> bool:
        return self.done


class Stuck:
    """A task that is never done; waiting for it ends when somebody ends the process."""

    def wait(self) -> None:
        time.sleep(1000)

    def is_completed(self) -> bool:
        return False


class Broken(Stuck):
    """A task whose connection has gone."""

    def wait(self) -> None:
        raise RuntimeError(
            "NCCL error: remote process exited or there was a network error: Connection closed"
        )


def never_arrives(world: int) -> None:
    """Rank 1 does not come to an exchange that rank 0 has started and waits for."""
    mesh = connect(ParallelDims(world, expert=world), timeout=PATIENCE)
    barrier(mesh.expert)
    if mesh.rank == 1:
        time.sleep(1000)
    _reducer(mesh, Stuck())


def breaks_on_the_way(world: int) -> None:
    """The connection breaks while an exchange is waited for."""
    mesh = connect(ParallelDims(world, expert=world))
    _reducer(mesh, Broken())


def _reducer(mesh: Mesh, task: Stuck) -> None:
    with mock.patch.object(dist.stream, "alltoall_single", lambda *arguments, **options: task):
        group = replace(mesh.expert, rendezvous=None)
        start_all_to_all(paddle.ones([2, 3]), [1, 1], [1, 1], group).wait()


def _layers(mesh: Mesh, bias: dict[int, float]) -> tuple[MoeLayer, MoeLayer]:
    whole = MoeLayer(HIDDEN, MOE, "float32")
    generator = np.random.default_rng(0)
    for _, parameter in whole.named_parameters():
        parameter.set_value(paddle.to_tensor(generator.normal(0, 0.5, parameter.shape).astype(np.float32)))
    correction = np.zeros(8, np.float32)
    for expert, value in bias.items():
        correction[expert] = value
    whole.moe_statics.e_score_correction_bias.set_value(paddle.to_tensor(correction.reshape(2, 4)))
    moe = replace(MOE, expert_rank=mesh.expert.rank, expert_ranks=mesh.expert.size)
    part = MoeLayer(HIDDEN, moe, "float32")
    values = dict(whole.named_parameters())
    for name, parameter in part.named_parameters():
        parameter.set_value(_own_experts(mesh, name, values[name]))
    part.dispatcher = ExpertParallelDispatcher(mesh.expert, moe)
    return whole, part


def _own_experts(mesh: Mesh, name: str, stacked: paddle.Tensor) -> paddle.Tensor:
    """The experts of this rank among all that a parameter stacks; any other parameter as it is."""
    if not name.startswith("experts."):
        return stacked
    share = stacked.shape[0] // mesh.expert.size
    return stacked[mesh.expert.rank * share : (mesh.expert.rank + 1) * share]


def _check(
    mesh: Mesh, case: str, modality: np.ndarray, bias: dict[int, float], hooks: list[str] | None = None
) -> None:
    whole, part = _layers(mesh, bias)
    if hooks is not None:
        part.shared_experts.register_forward_pre_hook(lambda *_: hooks.append("shared"))
    values = np.random.default_rng(mesh.rank + 1).normal(size=(len(modality), HIDDEN)).astype(np.float32)
    results = []
    for layer in (whole, part):
        x = paddle.to_tensor(values, stop_gradient=False)
        output, router = layer(x, ModalityIndex(modality))
        (output * paddle.to_tensor(np.cos(values))).sum().backward()
        results.append((output.numpy(), router.counts.numpy(), x.grad.numpy()))
    for expected, found in zip(*results, strict=True):
        assert_close(found, expected, what=case)
    own, gradients, parts = dict(part.named_parameters()), {}, {}
    for name, parameter in whole.named_parameters():
        if parameter.stop_gradient:
            continue
        gradient = paddle.zeros_like(parameter) if parameter.grad is None else parameter.grad
        if name.startswith("experts."):
            # An expert has seen the tokens of all ranks; here each rank has only shown it its own.
            all_reduce_(gradient, mesh.world)
        there = own[name].grad
        gradients[name] = _own_experts(mesh, name, gradient)
        parts[name] = np.zeros(own[name].shape, np.float32) if there is None else there
    assert_all_close(parts, gradients, what=case)
