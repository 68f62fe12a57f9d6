"""Routing of a row with what it adds up on the way: by modality, with and without gradient, and for no tokens."""

from __future__ import annotations

import dataclasses

import numpy as np
import paddle
import pytest

from erniekit.moe.config import MoeConfig
from erniekit.moe.layer import MoeLayer
from erniekit.moe.router import ModalityIndex, RouterLossFlags, selection_margins
from tests.closeness import assert_close
from tests.unit.moe import oracle

HIDDEN, EXPERTS, TOP_K = 6, 4, 2
VL = MoeConfig(EXPERTS, TOP_K, (5, 3), 0, 1e-12, (0,))
TEXT = MoeConfig(EXPERTS, TOP_K, (5,), 1, 1e-12, (0,))
ALL = RouterLossFlags(balance=True, z=True, entropy=True)
MODALITY = np.array([0, 1, 1, 0, 0, 1, 0, 0, 1], np.int8)


def make_layer(moe: MoeConfig = VL) -> MoeLayer:
    layer = MoeLayer(HIDDEN, moe, "float32")
    rng = np.random.default_rng(4)
    for parameter in layer.parameters():
        parameter.set_value(paddle.to_tensor(rng.standard_normal(parameter.shape).astype(np.float32)))
    # A bias that decides the choice, as it may after a long training.
    layer.moe_statics.e_score_correction_bias.set_value(
        paddle.to_tensor(np.array([[0, 0, 0, 5], [5, 0, 0, 0]], np.float32)[: moe.num_modalities])
    )
    return layer


def make_x(tokens: int = len(MODALITY)) -> np.ndarray:
    return np.random.default_rng(5).standard_normal((tokens, HIDDEN)).astype(np.float32)


def gate_logits(layer: MoeLayer, x: np.ndarray, modality: int) -> np.ndarray:
    weight = layer.gate.of(modality).numpy().astype(np.float64)
    return x.astype(np.float64) @ (weight.T if layer.gate.transposed else weight)


@pytest.mark.parametrize("moe", [VL, TEXT], ids=["vl", "text"])
def test_sums_by_modality(moe: MoeConfig) -> None:
    layer, x = make_layer(moe), make_x()
    modality = MODALITY if moe is VL else np.zeros_like(MODALITY)
    _, router = layer(paddle.to_tensor(x), ModalityIndex(modality), ALL)
    for kind in range(moe.num_modalities):
        logits = gate_logits(layer, x[modality == kind], kind)
        tokens = len(logits)
        # The bias sends every token to one expert; the loss counts what the router would have chosen.
        counts = oracle.choices(logits, TOP_K)
        assert_close(router.sums.balance[kind], tokens * oracle.balance(logits, counts))
        assert_close(router.sums.z[kind], tokens * oracle.z(logits))
        assert_close(router.sums.entropy[kind], tokens * oracle.entropy(logits))
        bias = layer.moe_statics.e_score_correction_bias.numpy()[kind]
        used = router.counts.numpy().reshape([moe.num_modalities, EXPERTS])[kind]
        assert used.tolist() == oracle.choices(oracle.softmax(logits) + bias, TOP_K).tolist()
        assert used.tolist() != counts.tolist()


def test_gradients_reach_weights_and_tokens() -> None:
    layer, x = make_layer(), make_x()
    tensor = paddle.to_tensor(x, stop_gradient=False)
    _, router = layer(tensor, ModalityIndex(MODALITY), ALL)
    (router.sums.balance.sum() + 0.1 * router.sums.z.sum()).backward()
    for kind, parameter in enumerate((layer.gate.weight, layer.gate.weight_1)):
        rows = x[kind == MODALITY].astype(np.float64)
        weight = parameter.numpy().astype(np.float64)
        counts = oracle.choices(rows @ weight, TOP_K)

        def loss(logits: np.ndarray, counts: np.ndarray = counts) -> float:
            return len(logits) * (oracle.balance(logits, counts) + 0.1 * oracle.z(logits))

        expected = oracle.numerical_gradient(lambda w, rows=rows: loss(rows @ w), weight)
        assert_close(parameter.grad, expected)
        expected = oracle.numerical_gradient(lambda r, weight=weight: loss(r @ weight), rows)
        assert_close(tensor.grad.numpy()[kind == MODALITY], expected)
    assert layer.moe_statics.e_score_correction_bias.grad is None


def test_terms_change_neither_outputs_nor_what_was_not_asked_for() -> None:
    layer, x = make_layer(), paddle.to_tensor(make_x())
    index = ModalityIndex(MODALITY)
    plain, nothing = layer(x, index)
    assert nothing.sums == (None, None, None)
    output, router = layer(x, index, RouterLossFlags(z=True))
    assert np.array_equal(output.numpy(), plain.numpy())
    assert np.array_equal(router.counts.numpy(), nothing.counts.numpy())
    assert (router.sums.balance, router.sums.entropy) == (None, None)


@pytest.mark.parametrize("kind", [0, 1])
def test_a_modality_that_is_absent_adds_nothing(kind: int) -> None:
    layer, x = make_layer(), make_x(3)
    _, router = layer(paddle.to_tensor(x), ModalityIndex(np.full(3, kind, np.int8)), ALL)
    for sums in router.sums:
        assert float(sums[1 - kind]) == 0.0
        assert float(sums[kind]) != 0.0


def test_how_far_the_last_chosen_expert_is_ahead() -> None:
    layer, x, index = make_layer(), make_x(), ModalityIndex(MODALITY)
    bias = layer.moe_statics.e_score_correction_bias
    margins = selection_margins(paddle.to_tensor(x), index, layer.gate, bias, VL).numpy()
    for number, modality in enumerate(MODALITY):
        logits = gate_logits(layer, x[number : number + 1], modality)[0]
        scores = np.sort(np.exp(logits) / np.exp(logits).sum() + bias.numpy()[modality].astype(np.float64))
        last, following = scores[-TOP_K], scores[-TOP_K - 1]
        assert_close(margins[number], (last - following) / last, scale=1.0)
    all_chosen = dataclasses.replace(VL, top_k=EXPERTS)
    assert (selection_margins(paddle.to_tensor(x), index, layer.gate, bias, all_chosen).numpy() == 1).all()


def test_a_frozen_router_has_statistics_and_no_loss() -> None:
    layer = make_layer()
    layer.gate.weight_1.stop_gradient = True
    x = paddle.to_tensor(make_x(), stop_gradient=False)
    _, router = layer(x, ModalityIndex(MODALITY), ALL)
    assert [float(sums[1]) > 0 for sums in router.sums] == [False, False, True]
    (router.sums.balance.sum() + router.sums.z.sum()).backward()
    assert not x.grad.numpy()[MODALITY == 1].any()
    assert x.grad.numpy()[MODALITY == 0].any()


def test_a_row_that_is_not_valid_is_computed_and_not_counted() -> None:
    layer, x = make_layer(), paddle.to_tensor(make_x())
    valid, _ = layer(x, ModalityIndex(MODALITY), ALL)
    output, router = layer(x, ModalityIndex(MODALITY, valid=False), ALL)
    assert np.array_equal(output.numpy(), valid.numpy())
    assert router.counts.shape == [2 * EXPERTS]
    assert not router.counts.numpy().any()
    assert all(sums.shape == [2] and not sums.numpy().any() for sums in router.sums)
