"""What the tests of spread tensors run in each process."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import paddle

from erniekit.checkpoint.weights import load_fully_sharded, load_model
from erniekit.distributed.collectives import all_reduce_
from erniekit.distributed.mesh import Mesh, connect
from erniekit.distributed.parallel_dims import ParallelDims
from erniekit.models.layer_runner import CheckpointedLayers
from erniekit.objectives.sft import SftObjective
from erniekit.optim.adamw import AdamW
from erniekit.parallel.flat_shard import FlatShard
from erniekit.parallel.zero import ZeroReducer
from tests.closeness import BFLOAT16, assert_all_close, assert_close
from tests.unit.objectives.rows import make_row, totals_of

SHAPES = {"weight": [5, 3], "bias": [2], "scale": [1], "table": [7]}
RATE = 1e-2


def shard_checks(world: int) -> dict[str, Any]:
    """Tensors come together as they were, and of sums every rank gets its part; also of fewer elements than ranks."""
    mesh = connect(ParallelDims(world))
    for dtype in ("float32", "bfloat16"):
        for names in (["weight", "bias", "scale", "table"], ["scale"], ["bias", "table"]):
            _check_shards(mesh, {name: SHAPES[name] for name in names}, dtype)
    for dtype in ("int8", "uint8"):
        codes = {name: paddle.arange(10 * n, dtype="int32").astype(dtype) for n, name in enumerate("abc", 1)}
        for name, tensor in FlatShard.of(mesh.world, codes).all_gather().items():
            np.testing.assert_array_equal(tensor.numpy(), codes[name].numpy(), strict=True)
    _check_bfloat16(mesh)
    mesh.close()
    return {}


def _values(name: str, shape: list[int], scale: int) -> np.ndarray:
    """Small integers: exact in bfloat16."""
    first = len(name)
    return (scale * (first + np.arange(np.prod(shape)))).reshape(shape).astype(np.float32)


def _check_shards(mesh: Mesh, shapes: dict[str, list[int]], dtype: str) -> None:
    whole = {name: paddle.to_tensor(_values(name, shape, 1)).astype(dtype) for name, shape in shapes.items()}
    shards = FlatShard.of(mesh.world, whole)
    assert max(map(len, shards.parts.values())) <= shards.spec.length
    for name, tensor in shards.all_gather().items():
        assert tensor.dtype == whole[name].dtype
        np.testing.assert_array_equal(tensor.astype("float32").numpy(), _values(name, shapes[name], 1))
    gradients = {
        name: paddle.to_tensor(_values(name, shape, mesh.rank + 1)).astype(dtype)
        for name, shape in shapes.items()
    }
    absent = "table" in gradients and mesh.rank == 1
    sums = shards.start_reduce_scatter(gradients | ({"table": None} if absent else {}))()
    for span in shards.spec.spans(mesh.rank):
        ranks = [r + 1 for r in range(mesh.world.size) if not (span.name == "table" and r == 1)]
        expected = sum(_values(span.name, shapes[span.name], scale) for scale in ranks)
        assert sums[span.name].dtype == paddle.float32
        np.testing.assert_array_equal(
            sums[span.name].numpy(), expected.reshape(-1)[span.start : span.stop], err_msg=span.name
        )


def _check_bfloat16(mesh: Mesh) -> None:
    """Gradients of bfloat16 weights are summed in float32, over rows and ranks, and the masters are spread."""
    start = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)
    layer = "model.layers.0.self_attn.q_proj.weight"
    for shard, name in (
        ("optimizer", "lm_head.weight"),
        ("optimizer", layer),
        ("gradients", "lm_head.weight"),
    ):
        weight = paddle.to_tensor(start).astype("bfloat16")
        weight.stop_gradient = False
        reducer = ZeroReducer(mesh, [(name, weight)], shard)
        optimizer = AdamW(reducer.parameters, weight_decay=0.0, shapes=reducer.shapes)
        # 256 + 1 is 256 in bfloat16, whose sums of these rows would forget every 1.
        for row, value in enumerate([256.0, 1.0, 1.0]):
            reducer.begin_row(optimizer, last=row == 2)
            (weight * paddle.to_tensor(value, dtype="bfloat16")).sum().backward()
            reducer.hooks.done(0)
            # Nothing of a layer is kept in its own dtype.
            assert (weight.grad is None) == (name == layer)
            reducer.end_row()
        reducer.reduce()
        ((_, part),) = optimizer.named_gradients()
        np.testing.assert_array_equal(part.numpy(), np.full(part.shape, mesh.world.size * 258.0))
        assert_close(reducer.norm(), mesh.world.size * 258.0 * 12**0.5)
        optimizer.step(RATE)
        reducer.all_gather_params()
        expected = paddle.to_tensor(start).astype("bfloat16").astype("float32").numpy() - RATE
        found = weight.astype("float32").numpy()
        assert_close(found, expected, BFLOAT16)
        assert {t.dtype for t in optimizer.state_tensors().values()} == {paddle.float32}


def stored_checks(world: int, directory: str) -> dict[str, Any]:
    """Layers that are spread: the loss and all gradients of the whole model, and nothing whole outlives its layer."""
    mesh = connect(ParallelDims(world))
    row = make_row([9, 6, 4], images=1, seed=mesh.rank)
    totals = totals_of([make_row([9, 6, 4], images=1, seed=rank) for rank in range(world)])
    whole = load_model(directory)
    expected = SftObjective(whole)(row, totals)
    expected.total.backward()

    model, fully_sharded = load_fully_sharded(Path(directory), "float32", mesh)
    trained = [(name, p) for name, p in model.named_parameters() if not p.stop_gradient]
    reducer = ZeroReducer(mesh, trained, "parameters", fully_sharded)
    optimizer = AdamW(reducer.parameters, shapes=reducer.shapes)
    model.model.layer_runner = CheckpointedLayers(reducer.hooks, recompute=range(9))
    seen: list[weakref.ref[Any]] = []
    most: list[int] = []
    start_all_gather = FlatShard.start_all_gather

    def watched(self: FlatShard) -> Callable[[], dict[str, paddle.Tensor]]:
        found = start_all_gather(self)()
        seen.extend(weakref.ref(tensor) for tensor in found.values())
        most.append(sum(int(t.size) for ref in seen if (t := ref()) is not None))
        return lambda: found

    with mock.patch.object(FlatShard, "start_all_gather", watched):
        reducer.begin_row(optimizer, last=True)
        output = SftObjective(model)(row, totals)
        assert_close(output.total, expected.total)
        output.total.backward()
        del output
        reducer.end_row()
    reducer.reduce()
    gc.collect()
    assert seen and all(ref() is None for ref in seen)
    own, all_parts = dict(whole.named_parameters()), sum(p.size for p in fully_sharded.parts.values())
    complete = sum(own[name].size for name in fully_sharded.names)
    assert all_parts <= complete / world + 64
    found, gradients = dict(optimizer.named_gradients()), {}
    for name, _ in trained:
        gradient = own[name].grad
        gradient = paddle.zeros(own[name].shape) if gradient is None else gradient.clone()
        all_reduce_(gradient, mesh.world)
        values, shard = gradient.numpy(), reducer.shard_of(name)
        if shard is not None:
            values = values.reshape(-1)[shard.span.start : shard.span.stop]
        gradients[name] = values
    assert_all_close(found, gradients)
    mesh.close()
    return {"layers": len(model.model.layers), "most": max(most), "complete": int(complete)}
