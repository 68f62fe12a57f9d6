"""The loss of a row: what it is divided by, what routers add to it, and that neither depends on the rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import paddle
import pytest

from erniekit.config.choices import Normalization
from erniekit.data.load.batch import PackedBatch
from erniekit.models.layer_runner import CheckpointedLayers
from erniekit.objectives.routing import RouterWeights
from erniekit.objectives.sft import SftObjective
from erniekit.objectives.totals import StepTotals, count_rows
from tests.closeness import FLOAT32, assert_all_close, assert_close
from tests.unit.objectives.rows import (
    filler,
    gradients_of,
    make_model,
    make_row,
    split_row,
    totals_of,
)

ALL = RouterWeights(balance=0.1, z=0.01)
ROW = make_row([9, 6, 4], images=1)


def run(
    objective: SftObjective, rows: Sequence[PackedBatch], totals: StepTotals | None = None
) -> tuple[float, dict[str, float], dict[str, np.ndarray]]:
    """Backward of all rows: the sum of their totals, sums of routers, and gradients."""
    total, sums = 0.0, dict[str, float]()
    for row in rows:
        output = objective(row, totals or totals_of(rows))
        output.total.backward()
        total += float(output.total)
        assert output.routing is not None
        for name, value in output.routing.router_sums().items():
            sums[name] = sums.get(name, 0.0) + value
    return total, sums, gradients_of(objective.model)


def test_rows_are_counted_without_fillers() -> None:
    assert count_rows([ROW, filler()]).tolist() == [1, ROW.num_loss_tokens, 16, 3]
    assert totals_of([ROW, ROW]).modality_tokens == (32, 6)


def test_normalization_scales_gradients_and_not_the_logged_loss() -> None:
    model = make_model()
    # A power of two times the loss tokens, so that the ratio of the gradients is exact.
    totals = replace(totals_of([ROW]), positions=4 * ROW.num_loss_tokens)
    tokens = run(SftObjective(model), [ROW], totals)
    balanced = run(SftObjective(model, normalization="token_balanced"), [ROW], totals)
    assert balanced[0] == tokens[0] / 4
    for name, gradient in tokens[2].items():
        assert np.array_equal(balanced[2][name] * 4, gradient), name
    assert tokens[2]["model.embed_tokens.weight"].any()
    forms: tuple[Normalization, ...] = ("tokens", "token_balanced")
    logged = [SftObjective(model, normalization=form)(ROW, totals).loss_sum for form in forms]
    assert float(logged[0]) == float(logged[1])


def test_router_terms_are_in_the_total_and_not_in_the_loss() -> None:
    model = make_model()
    plain = SftObjective(model)(ROW, totals_of([ROW]))
    output = SftObjective(model, router_weights=ALL)(ROW, totals_of([ROW]))
    assert output.routing is not None
    sums, tokens = output.routing.router_sums(), {"text": 16, "vision": 3}
    added = sum(
        weight * sums[f"{name}/{kind}"] / tokens[kind]
        for name, weight in (("balance_loss", 0.1), ("z_loss", 0.01))
        for kind in tokens
    )
    assert float(output.loss_sum) == float(plain.loss_sum)
    assert output.loss_sum.stop_gradient
    assert_close(output.total - plain.total, added, scale=float(plain.total))


def test_losses_are_sums_over_layers_and_names_say_what_is_there() -> None:
    output = SftObjective(make_model(), router_weights=RouterWeights(z=1.0))(ROW, totals_of([ROW]))
    assert output.routing is not None
    sums = output.routing.router_sums()
    places = {f"layer_{layer}/{kind}" for layer in (1, 2, 3) for kind in ("text", "vision")}
    assert set(sums) == {"z_loss/text", "z_loss/vision"} | {f"entropy/{place}" for place in places}
    counts = output.routing.expert_counts()
    assert set(counts) == places
    assert all(counts[f"layer_{layer}/text"].sum() == 16 * 2 for layer in (1, 2, 3))
    assert all(counts[f"layer_{layer}/vision"].sum() == 3 * 2 for layer in (1, 2, 3))


def test_splitting_the_documents_over_rows_changes_neither_token_nor_z_loss() -> None:
    objective = SftObjective(make_model(), router_weights=RouterWeights(z=0.05))
    together = run(objective, [ROW])
    apart = run(objective, split_row(ROW))
    assert_close(apart[0], together[0])
    assert_all_close(apart[1], together[1], FLOAT32)
    assert_all_close(apart[2], together[2])


def test_balance_is_a_mean_of_rows_by_their_tokens() -> None:
    objective = SftObjective(make_model(), router_weights=RouterWeights(balance=1.0))
    rows = [make_row([12], seed=1), make_row([5], seed=2)]
    alone = []
    for row in rows:
        output = objective(row, totals_of([row]))
        plain = SftObjective(objective.model)(row, totals_of([row]))
        alone.append(float(output.total) - float(plain.total))
    step = sum(float(objective(row, totals_of(rows)).total) for row in rows)
    plain_step = sum(float(SftObjective(objective.model)(row, totals_of(rows)).total) for row in rows)
    assert_close(step - plain_step, (12 * alone[0] + 5 * alone[1]) / 17, scale=plain_step)


def test_a_frozen_router_of_one_modality_is_left_out() -> None:
    model = make_model()
    for layer in (1, 2, 3):
        model.model.layers[layer].mlp.gate.weight.stop_gradient = True
    _, sums, _ = run(SftObjective(model, router_weights=ALL), [ROW])
    assert {name for name in sums if "loss" in name} == {"balance_loss/vision", "z_loss/vision"}


@pytest.mark.parametrize("weights", [RouterWeights(), ALL], ids=["plain", "all"])
def test_recompute_changes_no_gradient(weights: RouterWeights) -> None:
    model = make_model()
    objective = SftObjective(model, router_weights=weights)
    kept = run(objective, [ROW])
    model.model.layer_runner = CheckpointedLayers(recompute=range(9))
    again = run(objective, [ROW])
    assert again[:2] == kept[:2]
    assert_all_close(again[2], kept[2])


def test_a_filler_row_leaves_everything_as_it_is() -> None:
    objective = SftObjective(make_model(), router_weights=ALL)
    alone = run(objective, [ROW])
    beside = run(objective, [ROW, filler()])
    assert beside[0] == alone[0]
    assert beside[1] == alone[1]
    for name, gradient in alone[2].items():
        assert np.array_equal(beside[2][name], gradient), name
    output = objective(filler(), totals_of([ROW, filler()]))
    assert (float(output.total), output.num_loss_tokens) == (0.0, 0)
    assert output.routing is not None
    assert not any(counts.any() for counts in output.routing.expert_counts().values())
    assert not any(output.routing.router_sums().values())
    # The names are those of every row, so that processes can add them up.
    assert output.routing.router_sums().keys() == alone[1].keys()


def test_a_filler_row_still_goes_backward_through_every_layer() -> None:
    objective = SftObjective(make_model())
    objective(filler(), totals_of([ROW])).total.backward()
    gradients = gradients_of(objective.model)
    assert all(not gradient.any() for gradient in gradients.values())
    assert {f"model.layers.{layer}.self_attn.q_proj.weight" for layer in range(4)} <= set(gradients)


def test_evaluation_is_the_pure_loss() -> None:
    objective = SftObjective(make_model(), router_weights=ALL, normalization="token_balanced")
    with paddle.no_grad():
        output = objective(ROW)
    assert float(output.total) == float(output.loss_sum)
    assert float(output.loss_sum) == float(SftObjective(objective.model)(ROW, totals_of([ROW])).loss_sum)
    assert output.routing is None
