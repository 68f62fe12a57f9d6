"""What the tests of context parallelism run in each process."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import paddle
from paddle.base import core

from erniekit.data.encode.document import IGNORE, Document
from erniekit.data.load.batch import PackedBatch, filler, pack
from erniekit.data.media.item import Media
from erniekit.distributed.collectives import all_reduce_, all_reduce_host
from erniekit.distributed.mesh import Mesh, connect
from erniekit.distributed.parallel_dims import ParallelDims
from erniekit.errors import ErnieKitError
from erniekit.models.config import ErnieConfig
from erniekit.models.ernie import ErnieModel
from erniekit.models.factory import build_model
from erniekit.models.layer_runner import CheckpointedLayers, DirectLayers
from erniekit.models.sequence_sharding import NoSharding
from erniekit.objectives.dpo import DpoObjective
from erniekit.objectives.preference import PreferenceSettings
from erniekit.objectives.routing import RouterWeights
from erniekit.objectives.sft import SftObjective
from erniekit.objectives.totals import StepTotals, count_pairs, count_rows
from erniekit.parallel.context_parallel import ContextParallel
from tests.closeness import assert_all_close, assert_close
from tests.model_configs import FLAT
from tests.unit.objectives.pairs import make_answers, pair_row
from tests.unit.objectives.rows import END, PLACEHOLDER, START

WEIGHTS = RouterWeights(balance=0.5, z=0.1)
# (length of each document, its images and videos as (start, grid)); spans of 2 processes meet at the middle.
ROWS: dict[str, list[tuple[int, list[tuple[int, tuple[int, int, int]]]]]] = {
    "text": [(9, []), (4, []), (6, [])],
    "one token": [(1, [])],
    "three tokens": [(2, []), (1, [])],
    "a boundary where spans meet": [(6, []), (6, [])],
    "pictures in the first span": [(12, [(1, (1, 4, 4)), (8, (1, 2, 2))]), (12, [])],
    "pictures in the last span": [(14, []), (12, [(2, (1, 4, 4)), (8, (1, 2, 2))])],
    "a picture over all spans": [(18, [(1, (1, 8, 8))])],
    "a video and a picture": [(24, [(1, (8, 4, 2)), (15, (1, 4, 4))]), (5, [])],
    "one picture and its markers": [(3, [(1, (1, 2, 2))])],
}


def make_row(documents: list[tuple[int, list[tuple[int, tuple[int, int, int]]]]], seed: int) -> PackedBatch:
    """A row of documents with random tokens and pixels; two of three positions have a label."""
    rng = np.random.default_rng(seed)
    made, patches = [], []
    for number, (length, media) in enumerate(documents):
        ids = rng.integers(20, 60, length).astype(np.int32)
        items = []
        for start, (frames, height, width) in media:
            tokens = max(1, frames // 2) * height * width // 4
            ids[start - 1], ids[start : start + tokens], ids[start + tokens] = START, PLACEHOLDER, END
            items.append(Media("", (frames, height, width), start, tokens, 2))
            patches.append(rng.integers(0, 256, (frames * height * width, 588)).astype(np.uint8))
        labels = np.where(rng.random(length) < 0.67, rng.integers(20, 60, length), IGNORE).astype(np.int32)
        made.append(Document(ids, labels, tuple(items), f"a:{number}"))
    return pack(made, patches)


def make_model(kv_heads: int) -> ErnieModel:
    """A VL model of three layers and four heads with random weights, all but the correction bias trained."""
    sizes = {"num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": kv_heads}
    model = build_model(ErnieConfig.from_json(FLAT | sizes))
    rng = np.random.default_rng(0)
    for name, parameter in model.named_parameters():
        shift = 1.0 if parameter.ndim == 1 and name.endswith("weight") else 0.0
        values = rng.standard_normal(parameter.shape) * 0.3 + shift
        parameter.set_value(paddle.to_tensor(values.astype(np.float32)))
    model.train()
    return model


def totals_of(row: PackedBatch) -> StepTotals:
    """As if the row were its step; a filler is one of a step of others."""
    _, loss_tokens, text, vision = count_rows([row]).tolist()
    pairs, chosen = count_pairs([row]).tolist()
    return StepTotals(max(1, loss_tokens), 32, (text, vision), max(1, pairs), max(1, chosen))


def row_checks(world: int) -> dict[str, Any]:
    """Loss, figures and all gradients of rows that are shared equal those of the same rows on one process."""
    mesh = connect(ParallelDims(world, context=world))
    checks = 0
    _check_refusal(mesh)
    # Heads of keys that go to several processes, to one each, or several to one.
    for kv_heads in (1, 4) if world == 2 else (2,):
        model = make_model(kv_heads)
        sft = SftObjective(model, 4, router_weights=WEIGHTS)
        rows = {name: make_row(documents, seed) for seed, (name, documents) in enumerate(ROWS.items())}
        for name, row in (rows | {"filler": filler()}).items():
            _check(mesh, model, sft, row, f"{name}, {kv_heads} heads of keys")
            checks += 1
            if kv_heads == 1:
                model.model.layer_runner = CheckpointedLayers(recompute=range(9))
                _check(mesh, model, sft, row, f"{name}, recomputed")
                model.model.layer_runner = DirectLayers()
        preference = PreferenceSettings(beta=0.3)
        reference = lambda row: paddle.linspace(-9, -3, 2 * len(row.batch.branches))  # noqa: E731
        dpo = DpoObjective(model, preference, reference, 4, sft_weight=0.5, router_weights=WEIGHTS)
        for pairs, share in ((1, True), (3, True), (3, False)):
            row = pair_row(make_answers(pairs, seed=pairs, images=True), share=share)
            _check(mesh, model, dpo, row, f"{pairs} pairs, share {share}")
            checks += 1
        _check(mesh, model, dpo, filler(), "filler of pairs")
    _check_frozen(mesh)
    mesh.close()
    return {"checks": checks}


def _check(mesh: Mesh, model: ErnieModel, objective: Any, row: PackedBatch, case: str) -> None:
    """The main process compares the sums over all processes with what it computes alone."""
    model.sharding = ContextParallel(mesh.context, 2)
    found, parts = _figures(model, objective, row)
    with paddle.no_grad():
        evaluated = float(objective(row).loss_sum)
    model.sharding = NoSharding()
    total = all_reduce_host(np.array([*found.values(), evaluated]), mesh.world)
    whole = dict(zip([*found, "evaluated"], total.tolist(), strict=True))
    flat = paddle.to_tensor(np.concatenate([part.reshape(-1) for part in parts.values()]))
    all_reduce_(flat, mesh.world)
    if not mesh.is_main:
        return
    expected, gradients = _figures(model, objective, row)
    expected["evaluated"] = expected["loss_sum"]
    assert whole.keys() == expected.keys(), case
    # Figures of pairs are made from differences of log-probabilities.
    scale = abs(expected.get("logps/chosen", 0.0))
    for name, value in expected.items():
        assert_close(whole[name], value, scale=scale, what=f"{case}: {name}")
    assert parts.keys() == gradients.keys(), case
    sums = np.split(flat.numpy(), np.cumsum([part.size for part in parts.values()])[:-1])
    shaped = {
        name: part.reshape(gradient.shape)
        for part, (name, gradient) in zip(sums, gradients.items(), strict=True)
    }
    assert_all_close(shaped, gradients, what=case)


def _figures(
    model: ErnieModel, objective: Any, row: PackedBatch
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    output = objective(row, totals_of(row))
    output.total.backward()
    figures = {"loss_sum": float(output.loss_sum)}
    figures |= output.routing.router_sums()
    for name, counts in output.routing.expert_counts().items():
        figures |= {f"{name}/{number}": float(count) for number, count in enumerate(counts)}
    if output.pairs is not None:
        figures |= output.pairs.sums()
    else:
        figures["loss_tokens"] = float(output.num_loss_tokens)
    found = {
        name: np.zeros(parameter.shape, np.float32) if parameter.grad is None else parameter.grad.numpy()
        for name, parameter in model.named_parameters()
        if not parameter.stop_gradient
    }
    for parameter in model.parameters():
        parameter.clear_gradient(False)
    return figures, {name: gradient.copy() for name, gradient in found.items()}


def _check_refusal(mesh: Mesh) -> None:
    """Processes that have read different rows say so."""
    model = make_model(2)
    model.sharding = ContextParallel(mesh.context, 2)
    for number, rank_row in enumerate((make_row([(9, [])], mesh.rank), make_row([(9 + mesh.rank, [])], 0))):
        try:
            SftObjective(model)(rank_row)
        except ErnieKitError as error:
            assert "have read different ones" in str(error)
            continue
        raise AssertionError(f"row {number} was not refused")


def _check_frozen(mesh: Mesh) -> None:
    """Whatever is frozen, all processes agree on which collectives the backward pass has."""
    is_vision = lambda name: "vision" in name or "resampler" in name  # noqa: E731
    trained: dict[str, Callable[[str], bool]] = {
        "vision alone": is_vision,
        "all but vision": lambda name: not is_vision(name),
        "the last layer": lambda name: "layers.2" in name,
    }
    for name, chosen in trained.items():
        model = make_model(2)
        for parameter, value in model.named_parameters():
            value.stop_gradient = not chosen(parameter) or "bias" in parameter.split(".")[-1]
        objective = SftObjective(model, 4, router_weights=WEIGHTS)
        for kind in ("pictures in the last span", "one picture and its markers"):
            _check(mesh, model, objective, make_row(ROWS[kind], 1), f"trained: {name}, {kind}")


def memory_checks(world: int, length: int) -> dict[str, float]:
    """Bytes that the forward and backward pass of a row of 4,096 tokens takes at its peak, shared and whole."""
    mesh = connect(ParallelDims(world, context=world))
    model = build_model(ErnieConfig.from_json(FLAT | {"hidden_size": 64, "num_hidden_layers": 3}))
    model.train()
    objective = SftObjective(model, 256, router_weights=WEIGHTS)
    row = make_row([(length, [])] * (4096 // length), 0)
    found = {}
    for name in ("shared", "whole"):
        model.sharding = ContextParallel(mesh.context, 2) if name == "shared" else NoSharding()
        core.host_memory_stat_reset_peak_value("Allocated", 0)
        before = core.host_memory_stat_current_value("Allocated", 0)
        begun = time.monotonic()
        output = objective(row, totals_of(row))
        output.total.backward()
        found[f"{name}_s"] = time.monotonic() - begun
        found[name] = core.host_memory_stat_peak_value("Allocated", 0) - before
        del output
        for parameter in model.parameters():
            parameter.clear_gradient(False)
    mesh.close()
    return found
