"""A step of several processes, put together as a run does. Imported after the adapter is installed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import paddle
import torch.distributed as dist

from erniekit.checkpoint.names import hub_tensors
from erniekit.distributed.mesh import Mesh
from erniekit.distributed.parallel_dims import ParallelDims
from erniekit.distributed.process_group import ProcessGroup
from erniekit.distributed.watchdog import Collective, CollectiveTracker
from erniekit.lora.targets import add_adapters
from erniekit.models.config import ErnieConfig
from erniekit.models.ernie import ErnieModel
from erniekit.models.factory import build_model
from erniekit.models.specs import is_expert_tensor
from erniekit.objectives.sft import SftObjective, SftOutput
from erniekit.objectives.totals import StepTotals, count_rows
from erniekit.optim.adamw import AdamW
from erniekit.optim.clip import clip_scale
from erniekit.parallel.data_parallel import DataParallelReducer, GradientReducer
from erniekit.parallel.expert_parallel import apply_expert_parallel
from erniekit.parallel.flat_shard import ShardSpan, slice_span
from erniekit.parallel.fully_sharded import FullyShardedLayers
from erniekit.parallel.zero import ZeroReducer
from erniekit.train.recompute import backward_plan
from erniekit.upload import AsyncUpload

from .adapter.tensor import unwrap
from .cases import ALPHA, RANK, Case, Sizes, architecture
from .ours import adapted_modules, make_batch
from .weights import values

_RATE = 1e-6


class ParallelStep:
    """A whole step of this process's row. layout: expert, or a stage of parallel.shard."""

    def __init__(self, layout: str, case: Case, layers: int, sizes: Sizes, rank: int, world: int) -> None:
        self.mesh = _mesh(ParallelDims(world, world if layout == "expert" else 1), rank)
        self.model = _model(case, layers, sizes, self.mesh)
        self.fully_sharded = _fully_sharded(self.model, self.mesh) if layout == "parameters" else None
        trained = [(name, p) for name, p in self.model.named_parameters() if not p.stop_gradient]
        self.reducer: GradientReducer = (
            DataParallelReducer(self.mesh, trained)
            if layout == "expert"
            else ZeroReducer(self.mesh, trained, layout, self.fully_sharded)  # type: ignore[arg-type]
        )
        wanted = {name for name, _ in trained}
        tensors = [t.name for t in hub_tensors(self.model) if t.parameter in wanted]
        plan = backward_plan(self.model.config, tensors)
        if self.fully_sharded is not None:
            self.fully_sharded.lowest = plan.layers.start
        plan = replace(plan, num_recomputed=plan.size if case.recompute else 0)
        plan.apply(self.model, self.reducer.hooks)
        self.optimizer = AdamW(self.reducer.parameters, shapes=self.reducer.shapes)
        self._batch = make_batch(case, sizes, seed=rank)
        _, loss_tokens, text, vision = (world * count_rows([self._batch])).tolist()
        self._objective = SftObjective(self.model)
        self._totals = StepTotals(loss_tokens, world * len(self._batch.labels), (text, vision))

    def compute(self) -> SftOutput:
        """The losses; their gradients are reduced."""
        upload = AsyncUpload()
        output = self._objective(self._objective.upload(self._batch, upload), self._totals)
        self.reducer.begin_row(self.optimizer, last=True)
        output.total.backward()
        self.reducer.end_row()
        self.reducer.reduce()
        return output

    def update(self) -> None:
        """Apply the gradients."""
        self.optimizer.step(_RATE, clip_scale(self.reducer.norm(), 1.0))
        self.optimizer.clear_gradients()
        self.reducer.all_gather_params()

    def __call__(self) -> float:
        """A step; returns the loss of this process's row."""
        output = self.compute()
        self.update()
        return float(output.loss_sum.item()) / output.num_loss_tokens


class _Tracker(CollectiveTracker):
    """Forgets each call at once: there is no watchdog that drops what is complete, and a task of torch's keeps its
    tensors."""

    def exit(self, call: Collective) -> None:
        self._pending.pop()


def _mesh(dims: ParallelDims, rank: int) -> Mesh:
    """As `erniekit.distributed.mesh.Communicator` makes it, without its store and its watchdog."""
    groups: dict[tuple[int, ...], ProcessGroup] = {}
    for of_rank in map(dims.group_ranks, range(dims.world)):
        for ranks in of_rank.values():
            if ranks not in groups:
                handle: Any = dist.new_group(list(ranks)) if len(ranks) > 1 else None
                place = ranks.index(rank) if rank in ranks else 0
                tracker = _Tracker(ranks) if handle is not None else None
                groups[ranks] = ProcessGroup(ranks, place, handle, tracker)
    return Mesh(dims, rank, **{name: groups[ranks] for name, ranks in dims.group_ranks(rank).items()})


def _model(case: Case, layers: int, sizes: Sizes, mesh: Mesh) -> ErnieModel:
    config = ErnieConfig.from_json(architecture(case, layers, sizes))
    assert config.moe is not None
    moe = replace(config.moe, expert_rank=mesh.expert.rank, expert_ranks=mesh.expert.size)
    config = replace(config, moe=moe)
    model = build_model(config, "bfloat16")
    with paddle.no_grad():
        for name, parameter in model.named_parameters():
            tensor = unwrap(parameter)
            shape = list(tensor.shape)
            if is_expert_tensor(name):
                shape[0] *= mesh.expert.size
            whole = values(name, tuple(shape), tensor.device, tensor.dtype)
            tensor.copy_(whole.chunk(mesh.expert.size)[mesh.expert.rank] if is_expert_tensor(name) else whole)
    if case.method != "full":
        modules = adapted_modules(model, case.method)
        add_adapters(model, modules, rank=RANK, alpha=ALPHA, dropout=0.0, seed=0, expert_rank=RANK)
    apply_expert_parallel(model, mesh.expert)
    model.train()
    return model


def _fully_sharded(model: ErnieModel, mesh: Mesh) -> FullyShardedLayers:
    """The values of the model are its shards; the whole ones stay in memory, which a run never has."""
    named = dict(model.named_parameters())

    def read(span: ShardSpan) -> paddle.Tensor:
        return slice_span(named[span.name].detach(), span).clone()

    return FullyShardedLayers(model, mesh, read)
