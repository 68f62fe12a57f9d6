"""What becomes of each key of config.json: those of released models are known, other computations are refused."""

from __future__ import annotations

from typing import Any

import pytest

from erniekit.errors import CheckpointError
from erniekit.models.config import ErnieConfig
from erniekit.models.config_keys import (
    ROPE_KEYS,
    Keys,
    decoder_keys,
    outer_keys,
    unknown_keys_message,
    vision_keys,
)

IDS = dict(image_start_token_id=101304, image_end_token_id=101305)
IDS |= dict(video_start_token_id=101306, video_end_token_id=101307)
# ERNIE-4.5-0.3B-PT.
DENSE: dict[str, Any] = dict(
    architectures=["Ernie4_5_ForCausalLM"],
    auto_map={"AutoConfig": "configuration_ernie4_5.Ernie4_5_Config"},
    model_type="ernie4_5",
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
    hidden_act="silu",
    hidden_size=1024,
    intermediate_size=3072,
    max_position_embeddings=131072,
    num_attention_heads=16,
    num_key_value_heads=2,
    head_dim=128,
    num_hidden_layers=18,
    rms_norm_eps=1e-5,
    use_cache=False,
    vocab_size=103424,
    rope_theta=500000,
    use_bias=False,
    tie_word_embeddings=True,
    torch_dtype="bfloat16",
)
# ERNIE-4.5-21B-A3B-PT and -Thinking.
MOE = {key: value for key, value in DENSE.items() if key != "head_dim"} | dict(
    architectures=["Ernie4_5_MoeForCausalLM"],
    _attn_implementation="eager",
    model_type="ernie4_5_moe",
    hidden_size=2560,
    intermediate_size=12288,
    num_attention_heads=20,
    num_key_value_heads=4,
    num_hidden_layers=28,
    moe_num_experts=64,
    moe_num_shared_experts=2,
    moe_layer_start_index=1,
    moe_layer_end_index=27,
    moe_layer_interval=1,
    moe_intermediate_size=1536,
    moe_capacity=[64, 64, 64],
    moe_gate="topk",
    moe_k=6,
    moe_use_aux_free=True,
    num_nextn_predict_layers=1,
    use_rmsnorm=True,
)
# ERNIE-4.5-VL-28B-A3B-PT and -Thinking.
FLAT = {key: value for key, value in MOE.items() if key != "num_nextn_predict_layers"} | dict(
    architectures=["Ernie4_5_VLMoeForConditionalGeneration"],
    model_type="ernie4_5_moe_vl",
    im_patch_id=100295,
    **IDS,
    moe_capacity=[128, 128, 128],
    moe_intermediate_size=[1536, 512],
    moe_layer_start_index=[1, 1],
    moe_layer_end_index=[29, 28],
    moe_multimodal_dispatch_use_allgather="v2-alltoall-unpad-text",
    moe_num_experts=[64, 64],
    pixel_hidden_size=1280,
    rope_3d=True,
    rope_scaling={"type": "default", "mrope_section": [22, 22, 20]},
    spatial_conv_size=2,
    temporal_conv_size=2,
    vision_config=dict(
        attn_implementation="eager",
        depth=32,
        embed_dim=1280,
        hidden_act="quick_gelu",
        hidden_size=1280,
        in_channels=3,
        in_chans=3,
        mlp_ratio=4,
        num_heads=16,
        patch_size=14,
        spatial_merge_size=2,
        spatial_patch_size=14,
        vit_first_fwd_bsz=128,
        attn_sep=True,
    ),
)
# What the remote code of ERNIE-4.5-VL-424B-A47B-PT writes of itself, with every setting that it has.
FALSE = """add_tail_layers cachekv_quant disable_ffn_model_parallel fuse_gate_detach_matmul fuse_linear fuse_ln
fuse_rms_norm fuse_rope fuse_softmax_mask fuse_swiglu global_aux_loss modality_detach moe_fuse_experts moe_group_experts
moe_layer_feed_fake_token moe_num_attn_experts moe_reverse_token_drop moe_use_size_all2all moe_use_token_type_bias
output_attentions recompute recompute_use_reentrant resampler_fuse_rms_norm token_balance_loss token_balance_seqlen
use_ep_comm_overlap use_fast_ln use_fused_head_and_loss_fn use_recompute_lm_head use_recompute_loss_fn use_recompute_moe
use_recompute_resampler use_sparse_head_and_loss_fn use_var_len_flash_attn using_precision_check"""
TRUE = """enable_delay_scale_loss fuse_attn_ffn moe_group_orthogonal_loss moe_norm_gate_logits moe_use_hard_gate
sinkhorn_2gate use_flash_attention use_sparse_flash_attn use_temporal_conv weight_share_add_bias"""
NULL = "dpo_config max_sequence_length max_text_id transformers_version"
WRITTEN = (
    FLAT
    | dict.fromkeys(FALSE.split(), False)
    | dict.fromkeys(TRUE.split(), True)
    | dict.fromkeys(NULL.split(), None)
    | dict(attention_probs_dropout_prob=0.0, hidden_dropout_prob=0.0, compression_ratio=1.0)
    | dict(freq_allocation=20, ignored_index=-100, initializer_range=0.02, loss_subbatch_seqlen=8192)
    | dict(micro_batch_size=-1, mm_vocab_size=0, moe_all_to_all_dropout=0.0, moe_aux_loss_lambda=0.01)
    | dict(moe_dense_experts_token_type_id=3, moe_dropout_prob=0.0, moe_gate_act="softmax", moe_group="world")
    | dict(moe_orthogonal_loss_lambda=0.01, moe_z_loss_lambda=0.0001, num_acc_steps=1, sinkhorn_temp=0.03)
    | dict(pp_seg_method="layer:ErnieDecoderLayer|EmptyLayer", recompute_granularity="core_attn")
    | dict(refined_recompute={}, skip_recompute_ops={}, tensor_parallel_degree=1)
    | dict(moe_layer_start_index=3, moe_layer_end_index=53, tie_word_embeddings=False)
)
WRITTEN["vision_config"] = FLAT["vision_config"] | dict(
    model_type="DFNRope_vision_transformer",
    pp_data_balance=False,
    recompute=False,
    vit_num_recompute_layers=10000,
)


def nested(**text: Any) -> dict[str, Any]:
    """A file of transformers 5 for the vision-language model."""
    keys = "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads moe_k"
    inner = {key: FLAT[key] for key in (*keys.split(), "moe_num_shared_experts", "moe_intermediate_size")}
    inner |= dict(moe_num_experts=64, mlp_layer_types=["dense"] + ["sparse"] * 27, use_bias=False)
    rope = {"rope_type": "default", "rope_theta": 500000.0, "mrope_section": [22, 22, 20]}
    inner |= dict(rope_parameters=rope, model_type="ernie4_5_vl_moe_text", tie_word_embeddings=True)
    vision: dict[str, Any] = dict(depth=32, hidden_size=1280, num_heads=16, in_channels=3, patch_size=14)
    vision |= dict(intermediate_size=5120, spatial_merge_size=2, temporal_merge_size=2, rms_norm_eps=1e-6)
    vision |= dict(hidden_act="quick_gelu", rope_parameters={"rope_theta": 10000.0, "rope_type": "axial"})
    outer = dict(model_type="ernie4_5_vl_moe", dtype="bfloat16", transformers_version="5.23.0", **IDS)
    outer |= dict(image_token_id=100295, video_token_id=103367, tie_word_embeddings=True)
    return outer | dict(text_config=inner | text, vision_config=vision)


FORMS = {"dense": DENSE, "moe": MOE, "flat": FLAT, "written by remote code": WRITTEN, "nested": nested()}


@pytest.mark.parametrize("form", FORMS)
def test_every_key_of_the_released_files_is_known(form: str) -> None:
    assert ErnieConfig.from_json(FORMS[form]).unknown == ()


@pytest.mark.parametrize("name", ["Ernie4_5Config", "Ernie4_5_MoeConfig", "Ernie4_5_VLMoeConfig"])
def test_every_key_that_transformers_writes_is_known(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    written = getattr(transformers, name)().to_dict()
    if name == "Ernie4_5_VLMoeConfig":
        written["text_config"]["rope_parameters"]["mrope_section"] = [22, 22, 20]
    config = ErnieConfig.from_json(written)
    assert config.unknown == ()
    assert config.num_hidden_layers == (18 if name == "Ernie4_5Config" else 28)


def fixed_and_free(keys: Keys) -> tuple[list[str], list[str]]:
    fixed = [name for name, key in keys.items() if key.effect == "fixed"]
    return fixed, [name for name, key in keys.items() if key.effect == "none"]


@pytest.mark.parametrize("form", ["dense", "moe", "flat"])
def test_every_other_value_of_a_fixed_key_is_refused(form: str) -> None:
    family: Any = {"flat": "vl"}.get(form, form)
    keys, raw = decoder_keys(family), FORMS[form]
    fixed, free = fixed_and_free(keys)
    assert {"hidden_act", "use_bias", "rope_3d", "sliding_window", "quantization_config"} <= set(fixed)
    for name in fixed:
        for value in keys[name].values:
            assert ErnieConfig.from_json(raw | {name: value}) == ErnieConfig.from_json(raw)
        assert ErnieConfig.from_json(raw | {name: None}) == ErnieConfig.from_json(raw)
        with pytest.raises(CheckpointError, match=rf'config\.json: {name} is "another", which is not supp'):
            ErnieConfig.from_json(raw | {name: "another"})
    for name in free:
        assert ErnieConfig.from_json(raw | {name: "anything"}) == ErnieConfig.from_json(raw), name


def test_vision_keys_are_fixed_or_free_too() -> None:
    fixed, free = fixed_and_free(vision_keys())
    assert {"hidden_act", "temporal_merge_size", "layer_norm_eps"} <= set(fixed)
    for raw in (FLAT, nested()):
        for name in fixed:
            with pytest.raises(CheckpointError, match=rf"vision_config\.{name} is"):
                ErnieConfig.from_json(raw | dict(vision_config=raw["vision_config"] | {name: "another"}))
        for name in free:
            changed = raw | dict(vision_config=raw["vision_config"] | {name: "anything"})
            assert ErnieConfig.from_json(changed) == ErnieConfig.from_json(raw)


def test_unknown_keys_are_named_with_their_place() -> None:
    raw = nested(logit_scale=2) | dict(extra=1)
    raw["vision_config"] = raw["vision_config"] | dict(window_size=112)
    raw["text_config"]["rope_parameters"] = raw["text_config"]["rope_parameters"] | dict(beta_fast=32)
    unknown = ErnieConfig.from_json(raw).unknown
    assert set(unknown) == {
        *("extra", "text_config.logit_scale", "vision_config.window_size", "rope_parameters.beta_fast"),
    }
    assert ErnieConfig.from_json(DENSE | dict(scale_emb=12)).unknown == ("scale_emb",)
    assert "hidden_size" not in outer_keys()
    assert ErnieConfig.from_json(nested() | dict(hidden_size=1)).unknown == ("hidden_size",)
    message = unknown_keys_message(("a", "b"), "m/config.json")
    assert message is not None and message.startswith("m/config.json: these keys are not known: a, b.")
    assert unknown_keys_message((), "m/config.json") is None


DEFAULT_ROPES: list[dict[str, Any]] = [
    {},
    dict(rope_scaling=None),
    dict(rope_scaling={}),
    dict(rope_scaling={"type": "default"}),
    dict(rope_scaling={"rope_type": "default"}),
    dict(rope_scaling={"rope_type": "default", "type": "default"}),
    dict(rope_scaling={"type": "linear", "factor": 1.0}),
    dict(rope_scaling={"rope_type": None}),
    dict(rope_parameters=None),
    dict(rope_parameters={"rope_type": "default", "rope_theta": 500000.0}),
    dict(rope_parameters={"rope_theta": 500000}, rope_theta=500000.0),
    dict(rope_parameters={"rope_theta": 500000}, rope_theta=None),
    dict(rope_parameters={"rope_type": "default", "partial_rotary_factor": 1.0, "rope_theta": 500000}),
    dict(rope_parameters={"rope_theta": 500000}, rope_scaling={"type": "default"}),
]


@pytest.mark.parametrize("rope", DEFAULT_ROPES)
def test_the_default_rotary_embedding_in_all_its_spellings(rope: dict[str, Any]) -> None:
    config = ErnieConfig.from_json(DENSE | rope)
    assert config == ErnieConfig.from_json(DENSE) and config.unknown == ()


@pytest.mark.parametrize(
    ("rope", "words"),
    [
        (dict(rope_scaling={"type": "linear", "factor": 2.0}), r"rope_scaling\.factor is 2\.0"),
        (dict(rope_scaling={"rope_type": "dynamic", "factor": 4.0}), "rope_scaling is .*dynamic"),
        (
            dict(rope_scaling={"rope_type": "yarn", "factor": 4.0}),
            "rope_scaling is .*yarn.*remove rope_scaling",
        ),
        (dict(rope_parameters={"rope_type": "llama3", "factor": 8.0}), "rope_parameters is .*llama3"),
        (dict(rope_parameters={"rope_type": "default", "factor": 8.0}), r"rope_parameters\.factor is 8\.0"),
        (
            dict(rope_parameters={"partial_rotary_factor": 0.5}),
            r"rope_parameters\.partial_rotary_factor is 0\.5",
        ),
        (dict(rope_parameters={"rope_theta": 10000.0}), "rope_theta is 500000, and 10000"),
        (
            dict(rope_parameters={"full_attention": {"rope_theta": 1.0}}),
            "rope_parameters has different settings",
        ),
        (dict(rope_scaling="linear"), "rope_scaling must be an object"),
        (dict(rope_theta=0), "rope_theta must be a number above 0"),
        (dict(rope_theta="big"), "rope_theta must be a number above 0"),
        (
            dict(rope_parameters={"rope_theta": 1.0}, rope_scaling={"rope_theta": 2.0}, rope_theta=None),
            "different rope_theta",
        ),
    ],
)
def test_other_rotary_embeddings_are_refused(rope: dict[str, Any], words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        ErnieConfig.from_json(DENSE | rope)
    text = {key: value for key, value in rope.items() if key != "rope_theta"}
    if "rope_parameters" not in rope and text:
        with pytest.raises(CheckpointError, match=words):
            ErnieConfig.from_json(nested(**text))


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (FLAT | dict(freq_allocation=16), "freq_allocation is 16, mrope_section gives time 20"),
        (FLAT | dict(pixel_hidden_size=1024), "pixel_hidden_size is 1024, vision_config.hidden_size is 1280"),
        (
            FLAT | dict(spatial_conv_size=4),
            "spatial_conv_size is 4, vision_config.spatial_merge_size is 2",
        ),
        (FLAT | dict(moe_layer_end_index=[29, 20]), "text and vision experts in different layers"),
        (FLAT | dict(moe_layer_start_index=[1, 3]), "text and vision experts in different layers"),
        (FLAT | dict(rope_scaling={"mrope_section": "22"}), "mrope_section must be three whole numbers"),
        (nested(mlp_layer_types=["sparse"]), "mlp_layer_types must be"),
        (nested(mlp_layer_types=["moe"] * 28), "mlp_layer_types must be"),
        (nested(tie_word_embeddings=False), "text_config.tie_word_embeddings is false"),
        (DENSE | dict(tie_word_embeddings="false"), "tie_word_embeddings must be true or false"),
        (DENSE | dict(hidden_size="1024"), "hidden_size must be a whole number"),
        (DENSE | dict(num_hidden_layers=0), "num_hidden_layers must be a whole number from 1 to 1,000"),
        (DENSE | dict(vocab_size=float("inf")), "vocab_size must be a whole number"),
        (DENSE | dict(hidden_size=1024.5), "hidden_size must be a whole number"),
        (DENSE | dict(rms_norm_eps=float("nan")), "rms_norm_eps must be a number above 0"),
        (DENSE | dict(rope_theta=float("inf")), "rope_theta must be a number above 0"),
        (DENSE | dict(head_dim=127), "head_dim 127"),
        (DENSE | dict(n_layer=4), "num_hidden_layers is 18, n_layer is 4: they are the same key"),
        (DENSE | dict(moe_num_experts=8), "moe_num_experts is 8, which is not supported"),
        (DENSE | dict(layer_types=["full_attention", "sliding_attention"]), "layer_types is"),
        (MOE | dict(num_experts_per_tok=8), "moe_k is 6, num_experts_per_tok is 8"),
        (nested() | dict(text_config=[1]), "text_config must be an object"),
        (FLAT | dict(vision_config=None), "key 'vision_config' is missing"),
    ],
)
def test_values_that_disagree_or_cannot_be(raw: dict[str, Any], words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        ErnieConfig.from_json(raw)


def test_other_names_and_nulls_of_keys() -> None:
    renamed = {key: value for key, value in MOE.items() if key not in ("moe_k", "moe_num_experts")}
    same = renamed | dict(num_experts=64, num_experts_per_tok=6, head_dim=None, rms_norm_eps=None)
    assert ErnieConfig.from_json(same) == ErnieConfig.from_json(MOE)
    nulls = dict.fromkeys(("moe_layer_end_index", "moe_norm_min", "max_position_embeddings"))
    assert ErnieConfig.from_json(MOE | nulls | dict(num_key_value_heads=None)).num_key_value_heads == 20
    vision = {k: v for k, v in FLAT["vision_config"].items() if k not in ("num_heads", "depth")}
    vision |= dict(num_attention_heads=16, num_hidden_layers=32)
    assert ErnieConfig.from_json(FLAT | dict(vision_config=vision)) == ErnieConfig.from_json(FLAT)
    full = DENSE | dict(layer_types=["full_attention"] * 18, use_bias=0, hidden_act="swish")
    assert ErnieConfig.from_json(full) == ErnieConfig.from_json(DENSE)


def test_a_paddle_release_needs_no_token_ids() -> None:
    """They are those of the released tokenizer, unless the vocabulary is another one."""
    raw = {
        key: value for key, value in FLAT.items() if not key.endswith("_token_id") and key != "im_patch_id"
    }
    raw = {key: value for key, value in raw.items() if key != "torch_dtype"} | {"dtype": "bfloat16"}
    media = ErnieConfig.from_json(raw | {"vocab_size": 103424}).media
    assert media is not None and (media.image_placeholder, media.video_end) == (100295, 101307)
    with pytest.raises(CheckpointError, match=r"token ids im_patch_id"):
        ErnieConfig.from_json(raw | {"vocab_size": 400})
    with pytest.raises(CheckpointError, match=r"token ids image_start_token_id"):
        ErnieConfig.from_json(raw | {"vocab_size": 103424, "im_patch_id": 9})
    del raw["num_attention_heads"]
    with pytest.raises(CheckpointError, match=r"'num_attention_heads' is missing; .*-Paddle.* -PT release"):
        ErnieConfig.from_json(raw)


def test_rope_keys_are_all_in_use() -> None:
    assert {name for name, key in ROPE_KEYS.items() if key.effect == "used"} == {
        "rope_theta",
        "mrope_section",
    }
