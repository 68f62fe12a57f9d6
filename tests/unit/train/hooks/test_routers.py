"""The orthogonal loss of routers in both modes, their correction biases, and their scalars."""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle
import pytest

from erniekit.config.choices import OrthogonalMode
from erniekit.models.config import ErnieConfig
from erniekit.models.ernie import ErnieModel
from erniekit.models.factory import build_model
from erniekit.optim.adamw import AdamW, GroupRule
from erniekit.train.hooks.routers import RouterHook
from tests.closeness import assert_close
from tests.model_configs import FLAT, MOE
from tests.unit.moe import oracle
from tests.unit.objectives.rows import make_model

MODES: list[OrthogonalMode] = ["loss", "decoupled"]
NO_COUNTS: dict[str, np.ndarray] = {}


def gates(model: ErnieModel) -> dict[str, paddle.Tensor]:
    return {name: p for name, p in model.named_parameters() if ".mlp.gate." in name}


def value(model: ErnieModel, suffix: str, *, transposed: bool = False) -> float:
    """The orthogonal loss of all layers of one modality, by its definition."""
    found = [p.numpy().astype(np.float64) for name, p in gates(model).items() if name.endswith(suffix)]
    return sum(oracle.orthogonal(weight if transposed else weight.T) for weight in found)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [FLAT, MOE], ids=["vl", "text"])
def test_the_orthogonal_loss_falls_when_trained_alone(mode: OrthogonalMode, shape: dict[str, Any]) -> None:
    model = build_model(ErnieConfig.from_json(shape))
    rng = np.random.default_rng(0)
    for weight in gates(model).values():
        # Rows that are nearly the same.
        weight.set_value(paddle.to_tensor((1 + 0.3 * rng.standard_normal(weight.shape)).astype(np.float32)))
    optimizer = AdamW(list(gates(model).items()), weight_decay=0.0)
    routers = RouterHook(model, orthogonal_weight=1.0 if mode == "loss" else 50.0, orthogonal_mode=mode)
    history = []
    for _ in range(80):
        losses = routers.before_optimizer_step(optimizer)
        optimizer.step(0.02)
        optimizer.clear_gradients()
        losses |= routers.after_optimizer_step(optimizer, 0.02, NO_COUNTS)
        history.append(losses)
    assert set(history[0]) == {"orthogonal_loss/text"} | (
        {"orthogonal_loss/vision"} if shape is FLAT else set()
    )
    for name in history[0]:
        assert history[0][name] > 1.0
        assert history[-1][name] < 0.05 * history[0][name]
    assert history[-1]["orthogonal_loss/text"] >= value(model, "gate.weight", transposed=shape is MOE)


def test_the_loss_mode_adds_the_weighted_gradient_to_that_of_the_rows() -> None:
    model = make_model()
    optimizer = AdamW(list(gates(model).items()))
    first = next(iter(gates(model).values()))
    first.sum().backward()
    losses = RouterHook(model, orthogonal_weight=0.5).before_optimizer_step(optimizer)
    assert_close(losses["orthogonal_loss/text"], value(model, "gate.weight"))
    assert_close(losses["orthogonal_loss/vision"], value(model, "gate.weight_1"))
    found = dict(zip(gates(model), optimizer.gradients(), strict=True))
    for name, parameter in gates(model).items():
        rows = parameter.numpy().astype(np.float64).T
        expected = 0.5 * oracle.numerical_gradient(oracle.orthogonal, rows).T + (parameter is first)
        assert_close(found[name], expected, what=name)
    assert RouterHook(model, orthogonal_weight=0.5).after_optimizer_step(optimizer, 0.1, NO_COUNTS) == {}


def test_the_decoupled_mode_moves_weights_and_leaves_the_moments_alone() -> None:
    plain, decoupled = make_model(), make_model()
    states, rules = [], [GroupRule("*.gate.weight_1", learning_rate_ratio=0.5)]
    for model, weight in ((plain, 0.0), (decoupled, 0.25)):
        optimizer = AdamW(list(gates(model).items()), rules=rules, router_ratio=0.5)
        routers = RouterHook(model, orthogonal_weight=weight, orthogonal_mode="decoupled")
        for parameter in gates(model).values():
            parameter.square().sum().backward()
        assert routers.before_optimizer_step(optimizer) == {}
        norms = [float(gradient.norm()) for gradient in optimizer.gradients()]
        optimizer.step(0.1)
        before = {name: p.numpy().copy() for name, p in gates(model).items()}
        routers.after_optimizer_step(optimizer, 0.1, NO_COUNTS)
        moments = {name: tensor.numpy().copy() for name, tensor in optimizer.state_tensors().items()}
        states.append((norms, moments))
    assert states[0][0] == states[1][0]
    for name, moments in states[0][1].items():
        assert np.array_equal(moments, states[1][1][name]), name
    for name, parameter in gates(decoupled).items():
        assert np.array_equal(before[name], gates(plain)[name].numpy())
        gradient = oracle.numerical_gradient(oracle.orthogonal, before[name].astype(np.float64).T).T
        ratio = 0.25 if name.endswith("weight_1") else 0.5
        expected = before[name] - 0.1 * ratio * 0.25 * gradient
        assert_close(parameter, expected, what=name)


@pytest.mark.parametrize("mode", MODES)
def test_frozen_routers_stay_and_are_not_in_the_loss(mode: OrthogonalMode) -> None:
    model = make_model()
    for name, parameter in gates(model).items():
        parameter.stop_gradient = not name.endswith("weight_1")
    frozen = {name: p.numpy().copy() for name, p in gates(model).items() if p.stop_gradient}
    optimizer = AdamW([(name, p) for name, p in gates(model).items() if not p.stop_gradient])
    routers = RouterHook(model, orthogonal_weight=1.0, orthogonal_mode=mode)
    losses = routers.before_optimizer_step(optimizer)
    optimizer.step(0.1)
    losses |= routers.after_optimizer_step(optimizer, 0.1, NO_COUNTS)
    assert set(losses) == {"orthogonal_loss/vision"}
    assert all(np.array_equal(gates(model)[name].numpy(), values) for name, values in frozen.items())


def test_the_correction_bias_follows_the_counts_of_the_step() -> None:
    model = make_model()
    gates(model)["model.layers.2.mlp.gate.weight_1"].stop_gradient = True
    biases = {
        n: layer.mlp.moe_statics.e_score_correction_bias for n, layer in enumerate(model.model.layers) if n
    }
    before = {number: bias.numpy().copy() for number, bias in biases.items()}
    counts = {
        f"layer_{number}/{kind}": np.array([5, 2, 2]) if kind == "text" else np.array([0, 0, number])
        for number in biases
        for kind in ("text", "vision")
    }
    optimizer = AdamW(list(gates(model).items()))
    RouterHook(model).after_optimizer_step(optimizer, 0.1, counts)
    assert all(np.array_equal(bias.numpy(), before[number]) for number, bias in biases.items())
    RouterHook(model, bias_update_rate=0.5).after_optimizer_step(optimizer, 0.1, counts)
    for number, bias in biases.items():
        vision = [0, 0, 0] if number == 2 else [1, 1, -1]
        expected = before[number] + 0.5 * np.array([[-1, 1, 1], vision], np.float32)
        np.testing.assert_array_equal(bias.numpy(), expected)


def test_statistics_are_of_the_weights() -> None:
    model = make_model()
    statistics = RouterHook(model).scalars()
    places = [f"layer_{layer}/{kind}" for layer in (1, 2, 3) for kind in ("text", "vision")]
    assert list(statistics) == [f"router/mean_cosine/{place}" for place in places]
    rows = gates(model)["model.layers.2.mlp.gate.weight_1"].numpy().astype(np.float64).T
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    gram = unit @ unit.T
    expected = gram[~np.eye(3, dtype=bool)].mean()
    assert_close(statistics["router/mean_cosine/layer_2/vision"], expected, scale=1.0)


def test_a_model_without_experts_has_no_routers() -> None:
    dense = {key: value for key, value in MOE.items() if not key.startswith("moe_")}
    model = build_model(ErnieConfig.from_json(dense | {"model_type": "ernie4_5"}))
    assert RouterHook(model).scalars() == {}
