"""The loop's totals: what rows are told before their forward pass, and what comes of them over processes."""

from typing import Any

import numpy as np
import paddle

from erniekit.objectives.totals import StepTotals
from erniekit.optim.adamw import AdamW
from erniekit.train.loop import Progress
from tests.unit.train.test_loop import ROWS, Plain, Row, make, run


def test_totals_of_the_step_are_known_to_every_row() -> None:
    loop, _, _ = make(Plain(), rows_per_step=3)
    objective, seen = loop.objective, []
    loop.objective = lambda row, totals=None: (seen.append(totals), objective(row, totals))[1]
    figures = loop.step()
    assert seen == [StepTotals(loss_tokens=6, positions=24, modality_tokens=(6, 6))] * 3
    assert figures.modality_tokens == {"text": 6, "vision": 6}
    assert figures.positions == 24
    assert figures.expert_counts["layer_1/text"].tolist() == [6, 0]
    assert figures.router_sums == {"z_loss/text": 3.0}


def test_a_filler_row_counts_nowhere() -> None:
    alone, beside = Plain(), Plain()
    expected = make(alone, ROWS[:1], rows_per_step=1, max_length=16)[0].step()
    loop, _, _ = make(beside, [ROWS[0], Row((), "")], max_length=16)
    found = loop.step()
    assert (found.tokens, found.loss_tokens, found.positions) == (6, 3, 16)
    assert found.loss_sum == expected.loss_sum
    assert found.gradient_norm == expected.gradient_norm
    assert alone.weight.item() == beside.weight.item() != 1.0
    assert loop.progress == Progress(step=1, rows=1, tokens=6, loss_tokens=3)


def test_totals_and_figures_are_added_up_over_processes() -> None:
    """Another process with the very same rows: this one's gradients are half of the whole."""
    arrays: list[np.ndarray] = []

    def twice(array: np.ndarray) -> np.ndarray:
        arrays.append(array)
        return array * 2

    loop, _, _ = make(Plain(), reduce_totals=twice)
    figures = loop.step()
    assert (figures.loss_tokens, figures.tokens, figures.positions) == (8, 16, 32)
    assert figures.loss_sum == 32.0
    assert figures.gradient_norm == 2.0
    assert figures.expert_counts["layer_1/text"].tolist() == [8, 0]
    assert figures.router_sums == {"z_loss/text": 4.0}
    assert loop.progress == Progress(step=1, rows=4, tokens=16, loss_tokens=8)
    assert [str(array.dtype) for array in arrays] == ["int64", "int64", "float64"]


def test_routers_are_told_before_and_after_the_step() -> None:
    order: list[Any] = []

    class Routers:
        def before_step(self, optimizer: AdamW) -> dict[str, float]:
            optimizer.add_gradient("weight", paddle.full([1, 1], 4.0))
            return {"orthogonal_loss/text": 2.0}

        def after_step(self, optimizer: AdamW, rate: float, counts: Any) -> dict[str, float]:
            order.append((optimizer.steps_done, rate, counts["layer_1/text"].tolist()))
            return {"orthogonal_loss/vision": 3.0}

        def statistics(self) -> dict[str, float]:
            return {"router/mean_cosine/layer_1/text": 0.25}

    loop, log, _ = make(Plain(), routers=Routers(), total_steps=1)
    run(loop)
    assert order == [(1, 0.1, [4, 0])]
    line = log.written[0][1]
    assert line["train/gradient_norm"] == 8.0
    assert line["router/orthogonal_loss/text"] == 2.0
    assert line["router/orthogonal_loss/vision"] == 3.0
    assert line["router/mean_cosine/layer_1/text"] == 0.25
    assert line["router/z_loss/text"] == 0.5
