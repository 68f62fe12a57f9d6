"""Memory of training, by hand."""

from dataclasses import replace
from pathlib import Path

import pytest

from erniekit.config.choices import SHARDS
from erniekit.models.specs import TensorSpec
from erniekit.train.build_dpo import keeps_reference_copy
from erniekit.train.describe import describe_model
from erniekit.train.memory import ShardingPlan, plan_model
from tests.unit.train.plans import config

SPECS = [TensorSpec("a", "BF16", (10, 10)), TensorSpec("b", "BF16", (50,)), TensorSpec("router", "F32", (5,))]


@pytest.mark.parametrize(("rows", "gradients"), [(1, 200 + 20), (2, 200 + 400 + 20)])
def test_memory(rows: int, gradients: int) -> None:
    plan = plan_model(SPECS, ["a", "router"], rows=rows)
    assert (plan.parameters, plan.trained) == (155, 105)
    assert plan.weight_bytes == 200 + 100 + 20
    assert plan.gradient_bytes == gradients
    assert plan.optimizer_bytes == 100 * 12 + 5 * 8
    assert describe_model(plan)[0] == "parameters: 155, trained 105 (67.74%)"
    assert plan.reference_bytes == 0 and "reference" not in describe_model(plan)[1]
    assert plan.communication_bytes == 0 and plan.total_bytes == 320 + gradients + 1240


def test_gradients_of_a_row_wait_for_the_sum_of_their_layer_only() -> None:
    """By hand: the head and the larger one of two layers, 2 bytes each, beside 4 of all."""
    sizes = {
        "model.layers.0.mlp.up_proj.weight": 30,
        "model.layers.1.mlp.up_proj.weight": 50,
        "lm_head.weight": 7,
    }
    specs = [TensorSpec(name, "BF16", (size,)) for name, size in sizes.items()]
    assert plan_model(specs, list(sizes), rows=1).gradient_bytes == 2 * (30 + 50 + 7)
    assert plan_model(specs, list(sizes), rows=2).gradient_bytes == 4 * (30 + 50 + 7) + 2 * (7 + 50)


def test_a_frozen_copy_for_the_reference_is_counted() -> None:
    adapter = TensorSpec("a.lora_A.weight", "F32", (25,))
    plan = plan_model([*SPECS, adapter], [adapter.name], rows=1, reference=True)
    assert plan.reference_bytes == 200 + 100 + 20 == plan.weight_bytes - 100
    assert describe_model(plan)[1:] == [
        "memory: weights 420 B, reference model 320 B, gradients 100 B, optimizer 200 B; "
        "about 1.0 KiB at the peak"
    ]


def test_a_cached_reference_is_computed_with_the_whole_model_before_training() -> None:
    plan = plan_model(SPECS, ["b"], rows=1, cached=True, activations=50)
    training = plan.gradient_bytes + plan.optimizer_bytes
    assert (plan.cached_bytes, training) == (320, 100 + 600)
    assert plan.total_bytes == 320 + 50 + training
    assert "the whole model, 320 B, while it computes the reference" in describe_model(plan)[2]
    # Little is trained: then the model beside the model is the peak.
    assert plan_model(SPECS, ["router"], rows=1, cached=True).total_bytes == 640
    assert plan.fits(10_000) and not plan.fits(1_000)


def test_quantized_weights_are_counted_as_they_are_stored() -> None:
    """int4: half a byte each, and a scale in bfloat16 for 64 columns; only linear layers of decoder layers."""
    specs = [
        TensorSpec("model.layers.0.self_attn.q_proj.weight", "BF16", (10, 96)),
        TensorSpec("model.layers.0.mlp.experts.0.up_proj.weight", "BF16", (20, 64)),
        TensorSpec("model.layers.0.mlp.gate.weight", "F32", (5, 96)),
        TensorSpec("model.layers.0.self_attn.q_proj.lora_A.weight", "BF16", (2, 96)),
        TensorSpec("lm_head.weight", "BF16", (100,)),
    ]
    adapter = specs[3].name
    dense, expert = 10 * (48 + 2 * 2), 20 * (32 + 2)
    others = 5 * 96 * 4 + 100 * 2
    plan = plan_model(specs, [adapter], rows=1, reference=True, quantize="int4")
    assert plan.weight_bytes == dense + expert + others + 2 * 96 * 2
    assert plan.reference_bytes == dense + expert + others
    assert plan.parameters == 10 * 96 + 20 * 64 + 5 * 96 + 2 * 96 + 100
    assert plan_model(specs, [adapter], rows=1, cached=True, quantize="int4").cached_bytes == (
        dense + expert + others
    )
    eight = plan_model(specs, [adapter], rows=1, quantize="int8").weight_bytes
    assert eight == 10 * (96 + 2) + 20 * (64 + 2) + others + 2 * 96 * 2
    # Fully sharded over two processes, each gathers two whole layers.
    spread = ShardingPlan(1, 2, 2, "parameters")
    shards = plan_model(specs, [adapter], rows=1, sharding=spread, quantize="int4")
    assert shards.weight_bytes == (dense + expert) / 2 + others + 2 * 96 * 2
    assert shards.communication_bytes == 2 * (dense + expert) + 2 * 96 * (2 + 4)
    dequantized = replace(plan, dequantized_bytes=1000)
    assert dequantized.total_bytes == plan.total_bytes + 1000
    assert "dequantized weights 1000 B" in describe_model(dequantized)[1]


def test_what_processes_send_each_other_is_counted() -> None:
    """Of a layer of 100 trained parameters and an expert of 60: by hand."""
    specs = [
        TensorSpec("model.layers.0.self_attn.q_proj.weight", "BF16", (10, 10)),
        TensorSpec("model.layers.0.mlp.experts.0.up_proj.weight", "BF16", (60,)),
        TensorSpec("model.layers.1.self_attn.q_proj.weight", "BF16", (10,)),
        TensorSpec("lm_head.weight", "BF16", (1000,)),
    ]
    names = [spec.name for spec in specs]

    def exchanged(spread: ShardingPlan, trained: list[str]) -> int:
        return plan_model(specs, trained, rows=4, sharding=spread).communication_bytes

    assert exchanged(ShardingPlan(), names) == 0
    assert exchanged(ShardingPlan(2, 4, 2, "gradients"), names) == 6 * 100 + 6 * 30
    assert exchanged(ShardingPlan(4, 4, 1, "gradients"), names) == 6 * 100
    assert exchanged(ShardingPlan(2, 4, 2, "parameters"), names) == 6 * 130 + 2 * 2 * 130
    assert exchanged(ShardingPlan(2, 4, 2, "parameters"), ["lm_head.weight"]) == 2 * 2 * 130


@pytest.mark.parametrize(
    ("settings", "copied"),
    [
        (["task=sft"], False),
        (["task=dpo"], True),
        (["task=dpo", "lora.enabled=true"], False),
        (["task=dpo", "lora.enabled=true", "dpo.reference=copy"], True),
        (["task=dpo", "dpo.reference=cached"], False),
        (["task=dpo", "dpo.loss=simpo"], False),
    ],
)
def test_which_runs_hold_a_frozen_copy(tmp_path: Path, settings: list[str], copied: bool) -> None:
    assert keeps_reference_copy(config(tmp_path, *settings)) is copied


def test_memory_of_processes_that_share_a_model() -> None:
    """By hand: a layer's weight, an expert's, a router's, an adapter's and the head's, of 240 elements each."""
    names = [
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.0.mlp.experts.0.up_proj.weight",
        "model.layers.0.mlp.gate.weight",
        "model.layers.0.self_attn.o_proj.lora_A.weight",
        "lm_head.weight",
    ]
    specs = [TensorSpec(name, "F32", (240,)) for name in names]
    found = []
    for shard in SHARDS:
        # Of 4 processes 2 share the experts, so that 2 have the same ones.
        plan = plan_model(specs, names, rows=2, sharding=ShardingPlan(2, 4, 2, shard))
        # A copy is spread as the model is.
        copied = plan_model(specs, names, rows=2, sharding=ShardingPlan(2, 4, 2, shard), reference=True)
        assert copied.reference_bytes == plan.weight_bytes - 240 * 4  # the adapter's, which is whole
        found.append((plan.weight_bytes / 4, plan.gradient_bytes / 4, plan.optimizer_bytes / 4))
        assert (plan.parameters, plan.trained) == (1200, 1200)
    whole = 240 + 120 + 240 + 240 + 240
    parts = 60 + 60 + 240 + 60 + 60
    assert found[0] == (whole, whole, 2 * whole)
    assert found[1] == (whole, whole, 3 * parts - 240)
    assert found[2] == (whole, parts, 3 * parts - 240)
    assert found[3] == (60 + 60 + 240 + 240 + 240, parts, 2 * parts + 60 + 60)


def test_experts_of_one_process_alone_are_not_spread() -> None:
    """Nobody else has them: parallel.shard changes nothing."""
    spec = TensorSpec("model.layers.0.mlp.experts.0.up_proj.weight", "BF16", (240,))
    plans = [
        plan_model([spec], [spec.name], rows=1, sharding=ShardingPlan(2, 2, 1, shard)) for shard in SHARDS
    ]
    assert plans == [plans[0]] * 4
