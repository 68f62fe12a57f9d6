"""What the rehearsal and Paddle both compute: small models over the same rows, with the same weights.

`main` is run in a process in which an adapter is in the place of Paddle.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle.nn.functional.flash_attention import flash_attn_unpadded

from erniekit.checkpoint.names import named_weights
from erniekit.data.load.batch import PackedBatch
from erniekit.kernels.choice import FORMS, use_forms
from erniekit.kernels.quantize import quantize
from erniekit.layers import QuantizedParameter
from erniekit.lora.targets import add_adapters
from erniekit.models.attention import Attend, DocumentAttention
from erniekit.models.branches import BranchAttention
from erniekit.models.config import ErnieConfig
from erniekit.models.ernie import ErnieModel
from erniekit.models.factory import build_model
from erniekit.models.layer_runner import CheckpointedLayers
from erniekit.models.quantize import quantize_layers
from erniekit.objectives.dpo import DpoObjective
from erniekit.objectives.preference import PreferenceSettings
from erniekit.objectives.routing import RouterWeights
from erniekit.objectives.sft import SftObjective
from erniekit.objectives.totals import StepTotals, count_pairs, count_rows
from erniekit.optim.adamw import AdamW
from erniekit.optim.clip import clip_scale, gradient_norm

DENSE: dict[str, Any] = dict(
    model_type="ernie4_5",
    vocab_size=96,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
)
MOE = DENSE | dict(
    model_type="ernie4_5_moe",
    moe_num_experts=4,
    moe_k=2,
    moe_intermediate_size=16,
    moe_num_shared_experts=1,
    moe_layer_start_index=1,
    tie_word_embeddings=False,
)
VL = MOE | dict(
    model_type="ernie4_5_moe_vl",
    moe_num_experts=[4, 4],
    moe_intermediate_size=[16, 8],
    moe_layer_start_index=[1, 1],
    moe_layer_end_index=[2, 2],
    rope_scaling={"type": "default", "mrope_section": [1, 1, 2]},
    **dict(im_patch_id=9, image_start_token_id=14, image_end_token_id=15),
    **dict(video_start_token_id=16, video_end_token_id=17),
    vision_config=dict(
        **dict(depth=2, hidden_size=16, mlp_ratio=2, num_heads=2, patch_size=14, in_channels=3),
        spatial_merge_size=2,
    ),
)
# For Triton's interpreter, which takes seconds for a layer.
SMALL = VL | dict(
    num_hidden_layers=2, moe_layer_end_index=[1, 1], vision_config=VL["vision_config"] | dict(depth=1)
)
LORA = dict(rank=3, alpha=6.0, dropout=0.0, seed=0, expert_rank=2)
ROUTERS = RouterWeights(balance=0.1, z=0.01)
BOUNDS, BRANCHES = np.array([0, 11, 29], np.int32), np.array([[7, 9], [22, 24]], np.int32)


def row(*, pictures: bool, pairs: bool = False) -> PackedBatch:
    """Three documents, or two pairs of answers with shared prompts."""
    if pairs:
        batch = _row(BOUNDS, [], [])
        batch.labels[:7] = batch.labels[11:22] = -100
        batch.labels[BRANCHES] = 33
        reference = np.array([[-9.0, -8.0], [-7.0, -9.5]], np.float32)
        return dataclasses.replace(batch, branches=BRANCHES, reference=reference)
    grids, places = ([[1, 4, 4], [2, 2, 4]], [3, 4, 5, 6, 20, 21]) if pictures else ([], [])
    return _row(np.array([0, 11, 28, 36], np.int32), grids, places)


def short_row() -> PackedBatch:
    """Two documents and a picture of one token."""
    return _row(np.array([0, 5, 8], np.int32), [[1, 2, 2]], [2])


def _row(bounds: np.ndarray, grids: list[list[int]], places: list[int]) -> PackedBatch:
    """grids: frames, height and width in patches; places: the tokens that take their features."""
    rng = np.random.default_rng(1)
    ids = rng.integers(20, 90, bounds[-1])
    labels = np.where(rng.random(len(ids)) < 0.6, rng.integers(20, 90, len(ids)), -100)
    labels[bounds[1:] - 1] = -100
    ids[places] = 9
    modality = np.zeros(len(ids), np.int8)
    modality[places] = 1
    positions = np.concatenate([np.arange(length) for length in np.diff(bounds)])
    return PackedBatch(
        input_ids=ids,
        labels=labels,
        position_ids=np.stack([positions, positions + modality, positions]),
        modality=modality,
        cu_seqlens=bounds,
        patches=rng.integers(0, 256, (sum(map(math.prod, grids)), 588)).astype(np.uint8),
        grid_thw=np.array(grids, np.int32).reshape(-1, 3),
        media_positions=np.array(places, np.int64),
        sample_ids=tuple(f"a:{number}" for number in range(len(bounds) - 1)),
    )


def model_of(
    raw: dict[str, Any], *, adapters: Sequence[str] = (), recompute: bool = False, bits: int = 32
) -> ErnieModel:
    """Weights by the order of the parameters, large enough that routing is clear. bits: 8 or 4 for a quantized base."""
    model = build_model(ErnieConfig.from_json(raw))
    if bits < 32:
        quantize_layers(model, bits)
    if adapters:
        add_adapters(model, adapters, **LORA)
    rng = np.random.default_rng(0)
    for name, parameter in named_weights(model):
        shift = 1.0 if len(parameter.shape) == 1 and name.endswith("weight") else 0.0
        values = paddle.to_tensor((rng.standard_normal(parameter.shape) * 0.2 + shift).astype(np.float32))
        if isinstance(parameter, QuantizedParameter):
            quantized = quantize(values, bits)
            parameter.codes.set_value(quantized.codes)
            parameter.scales.set_value(quantized.scales)
        else:
            parameter.set_value(values)
    model.train()
    if recompute:
        model.model.layer_runner = CheckpointedLayers(recompute=range(9))
        model.vision_model.layer_runner = CheckpointedLayers(recompute=range(9))
    return model


def sft(model: ErnieModel, batch: PackedBatch) -> Iterator[tuple[str, np.ndarray]]:
    """Logits, loss, statistics of routers, gradients, and the weights after a step of AdamW."""
    with paddle.no_grad():
        objective = SftObjective(model)
        yield "logits", model.logits(model(objective.upload(batch).row).hidden).numpy()
    _, loss_tokens, text, vision = count_rows([batch]).tolist()
    objective = SftObjective(model, chunk_tokens=8, router_weights=ROUTERS)
    output = objective(batch, StepTotals(loss_tokens, 64, (text, vision)))
    yield "loss", output.loss_sum.numpy()
    if output.routing is not None:
        yield "counts", output.routing.counts.numpy()
        for name, value in output.routing.router_sums().items():
            yield name, np.array(value)
    yield from step(model, output.total)


def dpo(model: ErnieModel, batch: PackedBatch) -> Iterator[tuple[str, np.ndarray]]:
    objective = DpoObjective(model, PreferenceSettings(), lambda found: found.reference, sft_weight=0.3)
    _, loss_tokens, text, vision = count_rows([batch]).tolist()
    pairs, chosen = count_pairs([batch]).tolist()
    output = objective(batch, StepTotals(loss_tokens, 64, (text, vision), pairs, chosen))
    for name, value in output.pairs.sums().items():
        yield name, np.array(value)
    yield from step(model, output.total)


def step(model: ErnieModel, total: paddle.Tensor) -> Iterator[tuple[str, np.ndarray]]:
    total.backward()
    yield "total", total.detach().numpy()
    trained = [
        (name, parameter) for name, parameter in model.named_parameters() if not parameter.stop_gradient
    ]
    for name, parameter in trained:
        if parameter.grad is not None:
            yield f"gradient of {name}", parameter.grad.numpy().copy()
    # A large epsilon, so that the first step is more than the signs of gradients, which may be rounding alone.
    optimizer = AdamW(trained, router_ratio=0.5, epsilon=0.1)
    norm = gradient_norm(optimizer.gradients())
    yield "norm", np.array(norm)
    optimizer.step(0.1, clip_scale(norm, 1.0))
    for name, parameter in trained:
        yield f"step of {name}", parameter.numpy().copy()


def documents(attends: dict[str, Attend]) -> Iterator[tuple[str, np.ndarray]]:
    """Outputs and gradients of attention over a row."""
    rng = np.random.default_rng(2)
    shapes = [29, 4, 8], [29, 2, 8], [29, 2, 8], [29, 4, 8]
    *inputs, upstream = (paddle.to_tensor(rng.standard_normal(shape).astype(np.float32)) for shape in shapes)
    for name, attend in attends.items():
        copies = [tensor.detach() for tensor in inputs]
        for tensor in copies:
            tensor.stop_gradient = False
            tensor.clear_gradient(False)
        output = attend(0, *copies)
        (output * upstream).sum().backward()
        case, _, form = name.partition(" | ")
        found = output, *(x.grad for x in copies)
        for what, tensor in zip(("output", "dq", "dk", "dv"), found, strict=True):
            yield f"{case}, {what}" + (f" | {form}" if form else ""), tensor.detach().numpy()


def plain_attention() -> dict[str, Attend]:
    """By the forms for CPUs."""
    return {
        "causal": DocumentAttention(BOUNDS, causal=True, heads=4),
        "frames": DocumentAttention(BOUNDS, causal=False, heads=4),
        "branches": BranchAttention(BOUNDS, BRANCHES, 4),
    }


def fused_attention() -> dict[str, Attend]:
    """By Paddle's kernels, which it has for GPUs only."""
    ends, starts = np.repeat(BOUNDS[1:], np.diff(BOUNDS)), np.repeat(BOUNDS[:-1], np.diff(BOUNDS))
    branched = ends.copy()
    for first, second in BRANCHES:
        branched[first:second] = second
    return {
        "causal | unpadded": _unpadded(causal=True),
        "causal | flashmask": _flashmask(ends[:, None], causal=True),
        "frames | unpadded": _unpadded(causal=False),
        "frames | flashmask": _flashmask(np.stack([ends, starts], 1), causal=False),
        "branches | flashmask": _flashmask(branched[:, None], causal=True),
    }


def _unpadded(*, causal: bool) -> Attend:
    bounds, longest = paddle.to_tensor(BOUNDS), int(np.diff(BOUNDS).max())

    def attend(_: int, q: paddle.Tensor, k: paddle.Tensor, v: paddle.Tensor) -> paddle.Tensor:
        scale = q.shape[-1] ** -0.5
        return flash_attn_unpadded(q, k, v, bounds, bounds, longest, longest, scale, causal=causal)[0]

    return attend


def _flashmask(bounds: np.ndarray, *, causal: bool) -> Attend:
    columns = paddle.to_tensor(bounds.astype(np.int32)[None, None])

    def attend(_: int, *rows: paddle.Tensor) -> paddle.Tensor:
        batched = (x.unsqueeze(0) for x in rows)
        return F.flashmask_attention(*batched, columns, causal=causal).squeeze(0)

    return attend


def results(*, adapter: bool) -> dict[str, np.ndarray]:
    """Every case. With the adapter also " | form": the same by other forms, and by the fused attention."""
    text, mixed, short = row(pictures=False), row(pictures=True), short_row()
    pairs = row(pictures=False, pairs=True)
    targets = [
        f"model.layers.{layer}.mlp.experts.{expert}.{half}_proj"
        for layer in (1, 2)
        for expert in range(8)
        for half in ("gate", "up", "down")
    ]
    targets += ["model.layers.0.self_attn.q_proj", "model.layers.2.mlp.shared_experts.up_proj"]
    cases = {
        "dense": lambda: sft(model_of(DENSE), text),
        "moe": lambda: sft(model_of(MOE), text),
        "vl": lambda: sft(model_of(VL), mixed),
        "vl, text": lambda: sft(model_of(VL), text),
        "vl, recompute": lambda: sft(model_of(VL, recompute=True), mixed),
        "vl, lora": lambda: sft(model_of(VL, adapters=targets), mixed),
        "vl, lora, recompute": lambda: sft(model_of(VL, adapters=targets, recompute=True), mixed),
        "vl, int8, lora": lambda: sft(model_of(VL, adapters=targets, bits=8), mixed),
        "vl, int4, lora, recompute": lambda: sft(
            model_of(VL, adapters=targets, bits=4, recompute=True), mixed
        ),
        "moe, pairs": lambda: dpo(model_of(MOE), pairs),
        "vl, pairs": lambda: dpo(model_of(VL, adapters=targets), pairs),
        "small": lambda: sft(model_of(SMALL, recompute=True), short),
        "small, lora": lambda: sft(model_of(SMALL, adapters=targets), short),
        "attention": lambda: documents(plain_attention()),
    }
    found = {f"{case}: {name}": value for case, run in cases.items() for name, value in run()}
    if not adapter:
        return found
    found |= {f"attention: {name}": value for name, value in documents(fused_attention())}
    forms = {
        "plain": list(cases),
        "paddle": ["vl, recompute", "vl, lora"],
        "triton": ["small", "small, lora"],
    }
    for form, chosen in forms.items():
        with use_forms(**{kernel: form for kernel, names in FORMS.items() if form in names}):
            for case in chosen:
                found |= {f"{case}: {name} | {form}": value for name, value in cases[case]()}
    return found


def main(file: str) -> None:
    """Write all results of the adapter."""
    np.savez(file, **results(adapter=True))


if __name__ == "__main__":
    main(sys.argv[1])
