"""Parts of a model by name."""

import pytest

from erniekit.errors import ConfigError
from erniekit.train.parameters import check_experts, check_routers, frozen_names, part_of, trained_names

NAMES = [
    "vision_model.blocks.0.attn.qkv.weight",
    "vision_model.ln.bias",
    "model.resampler_model.mlp.weight",
    "model.embed_tokens.weight",
    "model.layers.0.mlp.gate_proj.weight",
    "model.layers.1.self_attn.q_proj.weight",
    "model.layers.1.self_attn.q_proj.lora_A.weight",
    "model.layers.1.mlp.gate.weight",
    "model.layers.1.mlp.gate.weight_1",
    "model.layers.1.mlp.moe_statics.e_score_correction_bias",
    "model.layers.1.mlp.experts.0.gate_proj.weight",
    "model.norm.weight",
    "lm_head.weight",
]


def test_every_parameter_has_one_part() -> None:
    parts = [part_of(name) for name in NAMES]
    assert parts == ["vision"] * 2 + ["resampler"] + ["language"] * 4 + ["router"] * 2 + ["language"] * 4


def test_parts_and_patterns_are_frozen() -> None:
    assert frozen_names(NAMES, []) == set()
    assert frozen_names(NAMES, ["vision", "resampler"]) == set(NAMES[:3])
    assert frozen_names(NAMES, ["router"]) == {NAMES[7], NAMES[8]}
    assert NAMES[7] not in frozen_names(NAMES, ["language"])
    assert frozen_names(NAMES, ["model.layers.0.*", "lm_head.weight"]) == {NAMES[4], NAMES[12]}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("visoin", r"'visoin' is neither a part \(vision, resampler.*similar names: vision"),
        ("model.layer.*", "neither a part"),
        ("model.embed_token.weight", "similar names: model.embed_tokens.weight"),
    ],
)
def test_an_entry_that_covers_nothing_is_an_error(entry: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        frozen_names(NAMES, ["language", entry])


def test_a_part_that_a_model_lacks_is_an_error() -> None:
    with pytest.raises(
        ConfigError, match=r"'vision' is not a part of this model, which has: language, router"
    ):
        frozen_names(NAMES[3:], ["vision"])


def test_full_training_takes_all_but_the_correction_bias() -> None:
    assert trained_names(NAMES, freeze=[]) == NAMES[:9] + NAMES[10:]
    assert trained_names(NAMES, freeze=["language"]) == NAMES[:3] + NAMES[7:9]


def test_adapters_are_trained_alone_or_with_the_routers() -> None:
    assert trained_names(NAMES, freeze=[], adapters=True) == [NAMES[6]]
    assert trained_names(NAMES, freeze=[], adapters=True, train_router=True) == NAMES[6:9]
    with pytest.raises(ConfigError, match=r"lora\.train_router: this model has no router"):
        trained_names(NAMES[:7], freeze=[], adapters=True, train_router=True)


def test_nothing_to_train_is_an_error() -> None:
    with pytest.raises(ConfigError, match="nothing to train"):
        trained_names(NAMES, freeze=["language"], adapters=True)


def test_settings_of_routers_need_one_that_is_trained() -> None:
    settings = ["loss.z_weight", "loss.balance_weight"]
    check_routers(NAMES, NAMES[8:9], settings)
    check_routers(NAMES[:7], NAMES[:7], [])
    with pytest.raises(ConfigError, match=r"loss\.z_weight: this model has no experts and no router"):
        check_routers(NAMES[:7], NAMES[:7], settings)
    with pytest.raises(ConfigError, match=r"loss\.z_weight: has no effect, since model\.freeze covers every"):
        check_routers(NAMES, NAMES[:7], settings)


def test_experts_of_a_layer_are_trained_together() -> None:
    path, projections = "model.layers.1.mlp.experts", ("gate", "up", "down")
    names = [f"{path}.{number}.{kind}_proj.weight" for number in range(4) for kind in projections]
    check_experts(names, names, 2)
    check_experts(names, [], 2)
    # The experts of one modality, and one of the two products.
    check_experts(names, names[:6], 2)
    check_experts(names, [name for name in names if "down" in name], 2)
    for trained in (names[3:], names[:9], [name for name in names if "up" not in name]):
        with pytest.raises(ConfigError, match=r"model\.freeze covers .*experts\.\d.* but not .*experts\.\d"):
            check_experts(names, trained, 2)
    # Adapters are stacked apart from the weights; only those that exist count.
    adapters = [f"{path}.{number}.up_proj.lora_A.weight" for number in (0, 1)]
    check_experts(names + adapters, adapters, 2)
    with pytest.raises(ConfigError, match="lora_A"):
        check_experts(names + adapters, adapters[:1], 2)
