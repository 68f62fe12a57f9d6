"""FLOPs of a row, by hand for a dense, a MoE and a vision-language model, and the peaks of devices."""

from dataclasses import replace

import numpy as np
import pytest

from erniekit.data.load.batch import PackedBatch
from erniekit.models.config import ErnieConfig, VisionConfig
from erniekit.models.specs import TensorSpec, parameter_specs
from erniekit.moe.config import MoeConfig
from erniekit.train.flops import (
    RowCounts,
    count_row,
    device_peak_flops,
    flop_rates,
    make_flop_counter,
)
from erniekit.train.planner.gpus import known_gpu

DENSE = ErnieConfig(
    family="dense",
    vocab_size=10,
    hidden_size=8,
    intermediate_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=4,
    rms_norm_eps=1e-5,
    rope_theta=1e4,
    mrope_section=None,
    tie_word_embeddings=True,
    use_bias=False,
    max_position_embeddings=64,
)
MOE = replace(
    DENSE,
    family="moe",
    tie_word_embeddings=False,
    moe=MoeConfig(4, 2, (4,), num_shared_experts=1, norm_min=1e-12, sparse_layers=(1,)),
)
VL = replace(
    DENSE,
    family="vl",
    moe=MoeConfig(4, 2, (4, 2), num_shared_experts=1, norm_min=1e-12, sparse_layers=(0, 1)),
    vision=VisionConfig(
        depth=1,
        hidden_size=4,
        intermediate_size=8,
        num_heads=1,
        patch_size=2,
        in_channels=3,
        spatial_merge_size=2,
        temporal_merge_size=2,
    ),
)
# Query and output 8 x 8, key and value 4 x 8.
ATTENTION = 2 * 64 + 2 * 32
TOWER = 4 * 12 + 12 * 4 + 4 * 4 + 2 * 4 * 8
SPATIAL, TEMPORAL = 2 * 16 * 16, 16 * 32 + 16 * 16 + 8 * 16


def row(
    *lengths: int,
    loss: int = 0,
    vision: int = 0,
    grids: tuple[tuple[int, int, int], ...] = (),
    media: int = 0,
    branches: tuple[tuple[int, int], ...] = (),
) -> PackedBatch:
    tokens = sum(lengths)
    return PackedBatch(
        input_ids=np.zeros(tokens, np.int64),
        labels=np.where(np.arange(tokens) < loss, 1, -100),
        position_ids=np.zeros((3, tokens), np.int64),
        modality=(np.arange(tokens) < vision).astype(np.int8),
        cu_seqlens=np.cumsum([0, *lengths]).astype(np.int32),
        patches=np.zeros((0, 12), np.uint8),
        grid_thw=np.array(grids, np.int32).reshape(-1, 3),
        media_positions=np.arange(media),
        sample_ids=("a",) * len(lengths),
        branches=np.array(branches, np.int32).reshape(-1, 2),
    )


def flops(config: ErnieConfig, batch: PackedBatch, trained: list[str] | None = None) -> float:
    specs = parameter_specs(config)
    names = [spec.name for spec in specs] if trained is None else trained
    return make_flop_counter(config, specs, names)(batch)


def test_a_dense_model() -> None:
    layers = 2 * (ATTENTION + 3 * 8 * 16)
    # Causal pairs in documents of 3 and 5 tokens: 6 and 15. The head runs over 4 of 8 tokens.
    expected = 6 * layers * 8 + 6 * 80 * 4 + 12 * (6 + 15) * 8 * 2
    assert flops(DENSE, row(3, 5, loss=4)) == expected


def test_only_the_top_k_experts_of_a_token_are_active() -> None:
    expert, router, dense = 3 * 8 * 4, 4 * 8, 3 * 8 * 16
    active = 2 * ATTENTION + dense + router + 2 * expert + expert
    expected = 6 * active * 8 + 6 * 80 * 4 + 12 * 36 * 8 * 2
    assert flops(MOE, row(8, loss=4)) == expected
    # 6 FLOPs for each active parameter but those of norms.
    norms = 5 * 8
    specs = parameter_specs(MOE)
    inactive = 2 * expert + 80  # the embedding is a lookup
    total = sum(spec.size for spec in specs if not spec.name.endswith("correction_bias"))
    assert active + 80 == total - norms - inactive


def test_each_part_of_a_vision_language_model_has_its_own_tokens() -> None:
    # An image of 2 x 4 patches, and a video of 2 frames of 2 x 2 patches, which give 2 tokens and 1.
    batch = row(10, loss=3, vision=5, grids=((1, 2, 4), (2, 2, 2)), media=3)
    assert count_row(batch) == RowCounts(
        text=5, vision=5, loss=3, pairs=55, patches=16, patch_pairs=64 + 2 * 16, media=3
    )
    layer = ATTENTION + 4 * 8 + 3 * 8 * 4
    decoder = 10 * 2 * layer + 5 * 2 * 2 * (3 * 8 * 4) + 5 * 2 * 2 * (3 * 8 * 2)
    images = 16 * TOWER + 4 * SPATIAL + 3 * TEMPORAL
    attention = 12 * 55 * 8 * 2 + 12 * 96 * 4
    assert flops(VL, batch) == 6 * (decoder + images + 3 * 80) + attention


def test_a_frozen_weight_has_no_gradient_of_its_own() -> None:
    names = [spec.name for spec in parameter_specs(MOE)]
    batch = row(8, loss=4)
    frozen = [name for name in names if ".mlp.experts." not in name]
    assert flops(MOE, batch) - flops(MOE, batch, frozen) == 2 * 8 * 2 * (3 * 8 * 4)
    frozen = [name for name in names if name != "lm_head.weight"]
    assert flops(MOE, batch) - flops(MOE, batch, frozen) == 2 * 4 * 80


def test_parts_before_the_first_trained_one_have_no_backward_pass() -> None:
    specs = parameter_specs(VL)
    adapter = TensorSpec("model.layers.0.self_attn.q_proj.lora_A.weight", "F32", (2, 8))
    rates = flop_rates(VL, [*specs, adapter], [adapter.name])
    layer = ATTENTION + 4 * 8 + 3 * 8 * 4
    assert rates.patches == 2 * (TOWER + SPATIAL / 4)
    assert rates.patch_pairs == 4 * 4
    assert rates.media == 2 * TEMPORAL
    assert rates.text == 4 * 2 * (layer + 2 * 3 * 8 * 4) + 6 * 16
    assert rates.vision == 4 * 2 * (layer + 2 * 3 * 8 * 2) + 6 * 16
    assert rates.pairs == 12 * 8 * 2
    assert rates.loss == 4 * 80
    upper = replace(adapter, name="model.layers.1.self_attn.q_proj.lora_A.weight")
    higher = flop_rates(VL, [*specs, upper], [upper.name])
    # The lower layer has no backward pass either.
    assert rates.text - higher.text == 2 * (layer + 2 * 3 * 8 * 4)
    assert rates.pairs - higher.pairs == 8 * 8
    tower = [spec.name for spec in specs if spec.name.startswith("vision_model.")]
    rates = flop_rates(VL, specs, tower)
    assert rates.patches == 6 * TOWER + 4 * SPATIAL / 4
    assert (rates.patch_pairs, rates.media) == (12 * 4, 4 * TEMPORAL)


def test_answers_that_share_a_prompt_do_not_attend_to_each_other() -> None:
    # 4 tokens of prompt, 3 of the chosen and 3 of the rejected answer, twice in a row.
    pairs = 28 + 3 * 4 + 6
    assert count_row(row(10, branches=((4, 7),))).pairs == pairs
    assert count_row(row(10, 10, branches=((4, 7), (14, 17)))).pairs == 2 * pairs
    # Without a shared prompt they are two documents.
    assert count_row(row(10, branches=((0, 7),))).pairs == count_row(row(7, 3)).pairs


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA H20", 148),
        ("NVIDIA B200", 2250),
        ("NVIDIA L40S", 362),
        ("NVIDIA GeForce RTX 4090", 165),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("NVIDIA T4", None),
    ],
)
def test_peaks_of_known_devices(name: str, peak: float | None) -> None:
    found = known_gpu(name)
    assert (None if found is None else found.tflops) == peak


def test_the_configured_peak_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    assert device_peak_flops("float32", None, "cpu") == (None, "CPU")
    assert device_peak_flops("float32", 0.5, "cpu") == (0.5e12, "CPU")
    monkeypatch.setattr("paddle.device.cuda.get_device_name", lambda: "NVIDIA H200")
    assert device_peak_flops("bfloat16", None, "gpu") == (989e12, "NVIDIA H200")
    assert device_peak_flops("bfloat16", 500, "gpu") == (500e12, "NVIDIA H200")
    # The table is for bfloat16.
    assert device_peak_flops("float32", None, "gpu") == (None, "NVIDIA H200")
