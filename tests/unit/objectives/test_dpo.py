"""The objective over packed pairs: the same in every form, and the reference is left alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle
import pytest

from erniekit.data.encode.document import IGNORE
from erniekit.data.load.batch import PackedBatch
from erniekit.models.config import ErnieConfig
from erniekit.models.ernie import ErnieModel
from erniekit.models.factory import build_model
from erniekit.objectives.device_batch import DeviceBatch, row_inputs
from erniekit.objectives.dpo import DpoObjective, branch_logps
from erniekit.objectives.pairs import pair_means
from erniekit.objectives.preference import PreferenceSettings
from erniekit.objectives.routing import RouterWeights
from erniekit.objectives.totals import StepTotals, count_pairs, count_rows
from tests.closeness import MODEL, assert_all_close, assert_close
from tests.model_configs import DENSE
from tests.unit.objectives.pairs import answer_row, make_answers, pair_row
from tests.unit.objectives.rows import ROOM, filler, gradients_of, make_model


def dense_model() -> ErnieModel:
    model = build_model(ErnieConfig.from_json(DENSE))
    rng = np.random.default_rng(1)
    for parameter in model.parameters():
        values = rng.standard_normal(parameter.shape) * 0.3 + (parameter.ndim == 1)
        parameter.set_value(paddle.to_tensor(values.astype(np.float32)))
    model.train()
    return model


def totals_of(rows: list[PackedBatch]) -> StepTotals:
    _, loss_tokens, text, vision = count_rows(rows).tolist()
    return StepTotals(loss_tokens, ROOM, (text, vision), *count_pairs(rows).tolist())


def reference_of(seed: int) -> Any:
    """Log-probabilities that depend on the pair's tokens alone."""

    def reference(row: PackedBatch | DeviceBatch) -> paddle.Tensor:
        batch, values = row.batch if isinstance(row, DeviceBatch) else row, []
        for end, (chosen, rejected) in zip(batch.cu_seqlens[1:], batch.branches, strict=True):
            for first, last in ((chosen, rejected), (rejected, end)):
                labels = batch.labels[first:last]
                values.append(-float((labels[labels != IGNORE] * (seed + 1) % 7).sum()))
        return paddle.to_tensor(np.array(values, np.float32))

    return reference


def plain_logps(model: ErnieModel, row: PackedBatch) -> paddle.Tensor:
    """Log-probability of every answer of ordinary documents, by the whole softmax."""
    logits = model.logits(model(row_inputs(row)).hidden)
    logps = paddle.nn.functional.log_softmax(logits, axis=-1)
    positions = np.flatnonzero(row.labels != IGNORE)
    labels = paddle.to_tensor(row.labels[positions]).unsqueeze(-1)
    found = paddle.index_sample(paddle.index_select(logps, paddle.to_tensor(positions)), labels).squeeze(-1)
    counts = np.diff(np.searchsorted(positions, row.cu_seqlens))
    return paddle.stack([part.sum() for part in paddle.split(found, counts.tolist())])


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("family", ["dense", "vl"])
def test_a_pair_in_one_document_is_two_rows(family: str, share: bool) -> None:
    model = dense_model() if family == "dense" else make_model()
    answers = make_answers(5, images=family == "vl")
    weights = paddle.to_tensor(np.linspace(-1, 1.5, 10).astype(np.float32))
    expected = plain_logps(model, answer_row(answers))
    (expected * weights).sum().backward()
    gradients = gradients_of(model)
    row = pair_row(answers, share=share)
    if share:
        assert len(row.input_ids) < len(answer_row(answers).input_ids)
        assert len(row.grid_thw) == (3 if family == "vl" else 0)
    logps, _ = branch_logps(model, row, chunk_tokens=4)
    assert_close(logps, expected, MODEL)
    (logps * weights).sum().backward()
    assert_all_close(gradients_of(model), gradients)


def test_the_rejected_answer_does_not_see_the_chosen_one() -> None:
    model = dense_model()
    row = pair_row(make_answers(2, seed=3), share=True)
    before = branch_logps(model, row, 64)[0].numpy()
    chosen, rejected = row.branches[0]
    row.input_ids[chosen + 1 : rejected] = 25
    after = branch_logps(model, row, 64)[0].numpy()
    assert abs(after[0] - before[0]) > 1e-3
    assert_close(after[1:], before[1:])


@pytest.mark.parametrize("loss", ["sigmoid", "ipo", "orpo", "dpop"])
def test_packing_changes_nothing(loss: Any) -> None:
    model = make_model()
    answers = make_answers(5, seed=2, images=True)
    reference = None if loss == "orpo" else reference_of(2)
    objective = DpoObjective(model, PreferenceSettings(loss), reference, 16, sft_weight=0.3)
    results = []
    for groups in ([answers], [answers[:1], answers[1:3], answers[3:]]):
        rows = [pair_row(group, share=True) for group in groups]
        outputs = [objective(row, totals_of(rows)) for row in rows]
        for output in outputs:
            output.total.backward()
        sums: dict[str, float] = {}
        for output in outputs:
            for name, value in output.pairs.sums().items():
                sums[name] = sums.get(name, 0.0) + value
        results.append((sum(float(o.loss_sum) for o in outputs), pair_means(sums), gradients_of(model)))
    (loss_sum, means, gradients), (other_sum, other_means, other_gradients) = results
    assert_close(other_sum, loss_sum)
    assert other_means.keys() == means.keys()
    for name, mean in means.items():
        # Margins are small differences of what all tokens of an answer add up to.
        assert_close(other_means[name], mean, scale=abs(means["logps/chosen"]), what=name)
    assert ("logps/kl" in means) == (loss != "orpo")
    assert_close(loss_sum / 5, means["loss/preference"] + 0.3 * means["loss/sft"])
    assert_all_close(other_gradients, gradients)


def test_figures_are_those_of_the_pairs() -> None:
    model = dense_model()
    row = pair_row(make_answers(4, seed=5), share=True)
    reference = reference_of(1)
    output = DpoObjective(model, PreferenceSettings(beta=0.5), reference)(row)
    logps = branch_logps(model, row, 64)[0].numpy().reshape(-1, 2).astype(np.float64)
    frozen = reference(row).numpy().reshape(-1, 2)
    rewards = 0.5 * (logps - frozen)
    means = pair_means(output.pairs.sums())
    # These are differences of log-probabilities.
    scale = np.abs(logps).mean()
    assert_close(means["rewards/chosen"], rewards[:, 0].mean(), scale=scale)
    assert_close(means["rewards/margin"], (rewards[:, 0] - rewards[:, 1]).mean(), scale=scale)
    assert means["rewards/accuracy"] == (rewards[:, 0] > rewards[:, 1]).mean()
    assert_close(means["logps/rejected"], logps[:, 1].mean())
    tokens = np.count_nonzero(row.labels != IGNORE)
    assert_close(means["logps/kl"], (logps - frozen).sum() / tokens, scale=scale)
    assert output.num_loss_tokens == tokens


def test_lengths_are_normalised_where_asked() -> None:
    model = dense_model()
    row = pair_row(make_answers(4, seed=6), share=True)
    logps = branch_logps(model, row, 64)[0].numpy().reshape(-1, 2).astype(np.float64)
    ends = np.stack([row.branches[:, 1], row.cu_seqlens[1:]], 1)
    tokens = ends - row.branches - 1
    ratios = (logps - reference_of(1)(row).numpy().reshape(-1, 2)) / tokens
    expected = np.log1p(np.exp(-0.1 * (ratios[:, 0] - ratios[:, 1]))).sum()
    settings = PreferenceSettings(length_normalize=True)
    output = DpoObjective(model, settings, reference_of(1))(row)
    assert_close(output.pairs.sums()["loss/preference"], expected)


def test_a_filler_adds_nothing_and_has_gradients() -> None:
    model = make_model()
    row = pair_row(make_answers(2, seed=1), share=True)
    objective = DpoObjective(
        model, PreferenceSettings(), lambda row: paddle.zeros([2 * len(row.batch.branches)])
    )
    full = objective(row, totals_of([row, filler()]))
    empty = objective(filler(), totals_of([row, filler()]))
    assert float(empty.total) == float(empty.loss_sum) == 0.0
    assert empty.pairs.sums().keys() == full.pairs.sums().keys()
    assert not any(empty.pairs.sums().values())
    empty.total.backward()
    assert gradients_of(model)
    assert totals_of([row, filler()]).pairs == 2


def test_router_losses_are_added_to_gradients_only() -> None:
    model = make_model()
    row = pair_row(make_answers(3, images=True), share=True)
    totals = totals_of([row])
    plain = DpoObjective(model, PreferenceSettings(), reference_of(1))(row, totals)
    weights = RouterWeights(balance=0.1, z=0.1)
    added = DpoObjective(model, PreferenceSettings(), reference_of(1), router_weights=weights)(row, totals)
    assert_close(added.loss_sum, plain.loss_sum)
    assert float(added.total) > float(plain.total)
    assert added.routing is not None and plain.routing is not None
