"""What the memory plan says of the shipped configurations when their layouts change."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from erniekit.config import Config, load_config
from erniekit.create.shapes import released_architecture
from erniekit.distributed.parallel_dims import ParallelDims
from erniekit.errors import ConfigError
from erniekit.models.config import ErnieConfig
from erniekit.train.activations import ActivationPlan, full_row
from erniekit.train.distributed import fit_parallel_dims
from erniekit.train.memory import MemoryPlan, plan_training
from erniekit.train.recompute import backward_plan
from erniekit.train.selection import select_parameters

pytestmark = pytest.mark.slow
EXAMPLES = Path(__file__).resolve().parents[3] / "examples" / "configs"
GIB = 2**30
CARD = 80 * GIB


def released(family: str) -> ErnieConfig:
    found = released_architecture(family)
    assert found is not None
    return found


def plan(config: Config, family: str, *processes: int) -> list[MemoryPlan]:
    """The memory of each process, for each number of processes."""
    architecture = released(family)
    selected = select_parameters(config, architecture, "bfloat16")
    layouts = [ParallelDims(world, config.parallel.expert, config.parallel.context) for world in processes]
    return [plan_training(config, architecture, "bfloat16", selected, dims, CARD).memory for dims in layouts]


def test_rows_that_do_not_divide_are_refused_with_those_that_do() -> None:
    config = load_config(EXAMPLES / "ERNIE-4.5-0.3B" / "sft" / "run_sft_8k.yaml", ["train.rows_per_step=4"])
    with pytest.raises(
        ConfigError, match=r"rows_per_step is 4, .* multiple of 8, the number of processes .* use 8, 16"
    ):
        fit_parallel_dims(config, released("ERNIE-4.5-0.3B"), 8)
    with pytest.raises(ConfigError, match=r"not a multiple of 3, .* use 3, 6 or another multiple of 3"):
        fit_parallel_dims(config, released("ERNIE-4.5-0.3B"), 3)


def test_without_a_layout_the_large_ones_do_not_fit() -> None:
    """What the plan is for: all of these were shipped once."""
    text, images = "ERNIE-4.5-21B-A3B", "ERNIE-4.5-VL-28B-A3B"
    alone = ["parallel.shard=none", "parallel.expert=1"]
    for family, task in ((text, "sft"), (images, "sft"), (text, "dpo"), (images, "dpo")):
        config = load_config(EXAMPLES / family / task / f"run_{task}_8k.yaml", alone)
        assert plan(config, family, 8)[0].total_bytes > 350 * 2**30
    copied = load_config(EXAMPLES / images / "dpo" / "run_dpo_8k.yaml", ["dpo.reference=copy"])
    assert not plan(copied, images, 8)[0].fits(CARD)
    lora = load_config(EXAMPLES / images / "sft" / "run_sft_lora_8k.yaml", ["parallel.expert=1"])
    assert not plan(lora, images, 1)[0].fits(CARD)


def test_a_quantized_base_fits_smaller_cards() -> None:
    """VL-28B with adapters of rank 32 on every expert and the resampler, packed sequences of 8,192 tokens, one card."""
    family = "ERNIE-4.5-VL-28B-A3B"
    file = EXAMPLES / family / "sft" / "run_sft_lora_8k.yaml"

    def found(quantize: str, *overrides: str) -> MemoryPlan:
        settings = ["parallel.expert=1", f"model.quantize={quantize}", *overrides]
        return plan(load_config(file, settings), family, 1)[0]

    none, int8, int4 = (found(choice) for choice in ("none", "int8", "int4"))
    assert none.trained == int4.trained == pytest.approx(1.22e9, rel=0.01)
    assert [round(p.weight_bytes / GIB, 1) for p in (none, int8, int4)] == [57.1, 31.1, 18.3]
    assert [round(p.total_bytes / GIB) for p in (none, int8, int4)] == [79, 54, 41]
    assert not none.fits(CARD) and int8.fits(CARD) and int4.fits(48 * GIB)
    page = (EXAMPLES.parents[1] / "docs" / "lora.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| (none|int8|int4) \| (\w+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", page, re.M
    )
    assert len(rows) == 5
    for quantize, rank, *stated in rows:
        p = found(quantize, f"lora.expert_rank={rank}")
        trained = p.gradient_bytes + p.optimizer_bytes
        parts = p.weight_bytes, trained, p.activation_bytes + p.dequantized_bytes, p.total_bytes
        assert list(map(float, stated)) == [round(part / GIB, 1) for part in parts], (quantize, rank)
    assert round(found("int4", "train.rows_per_step=1").total_bytes / GIB, 1) == 37.6
    # 64 experts have 2 x 1536 rows of 2560 columns, in bfloat16.
    assert int4.dequantized_bytes == 64 * 2 * 1536 * 2560 * 2 and none.dequantized_bytes == 0
    # Gradients and optimizer take more than the base; half the rank of experts fits a card of 40 GiB.
    assert int4.gradient_bytes + int4.optimizer_bytes > int4.weight_bytes
    assert not int4.fits(40 * GIB) and found("int4", "lora.expert_rank=16").fits(40 * GIB)


def test_activations_follow_what_decides_them() -> None:
    architecture = released("ERNIE-4.5-VL-28B-A3B")
    path = EXAMPLES / "ERNIE-4.5-VL-28B-A3B" / "sft" / "run_sft_8k.yaml"

    def found(
        *overrides: str, trained: tuple[str, ...] = ("model.layers.0.mlp.gate.weight",), recomputed: int = 99
    ) -> float:
        backward = replace(backward_plan(architecture, trained), num_recomputed=recomputed)
        config = load_config(path, overrides)
        plan = ActivationPlan(architecture, config, trained, full_row(config, architecture), 2)
        return max(moment.activations for moment in plan.moments(backward)) / 2**30

    usual = found()
    tokens = 8192
    # A hidden state of each layer at the least, and far less than all that 28 layers of 2 GiB keep.
    assert 28 * tokens * 2560 * 2 / 2**30 < usual < 8
    assert found(recomputed=0) > usual + 27
    # Half of the layers keep everything until the other half is computed again.
    assert 0.45 * found(recomputed=0) < found(recomputed=14) < 0.55 * found(recomputed=0)
    # Composed kernels keep inputs in float32, and dropout of adapters further rows of the experts.
    width, top_k = 2560 + 1536, 6
    composed = 28 * tokens * (4 * 2560 + 2 * (20 + 4) * 128) * 4 / 2**30
    assert found("kernels.backend=plain", recomputed=0) - found(recomputed=0) == pytest.approx(composed)
    dropped = found("lora.enabled=true", "lora.dropout=0.1", recomputed=0) - found(recomputed=0)
    assert dropped == pytest.approx(27 * tokens * top_k * 2 * (2 * width + 1536) / 2**30)
    # Layers without a backward pass keep nothing.
    assert found(trained=("model.layers.20.mlp.gate.weight",), recomputed=0) < 0.33 * found(recomputed=0)
    assert found(trained=("model.norm.weight",), recomputed=0) < found()
    assert found("data.max_length=16384") > 1.8 * usual
    assert found("parallel.context=4") < 0.6 * usual
    plain = "kernels.backend=plain"
    assert found("loss.chunk_tokens=8192", plain) > found(plain) + 2
    tower = ("vision_model.patch_embed.proj.weight",)
    assert found(trained=tower, recomputed=0) > found(recomputed=0) + 45
    assert usual < found(trained=tower) < usual + 8
    # The gradient in float32, and rounded.
    head = 103424 * 2560 * (4 + 2) / 2**30
    assert found(trained=("model.embed_tokens.weight",)) == pytest.approx(usual + head, rel=0.05)
