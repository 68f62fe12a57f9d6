"""Totals of a step: known to every row before its forward pass, and summed over processes."""

from dataclasses import replace
from typing import Any

import numpy as np
import paddle

from erniekit.objectives.totals import StepTotals
from erniekit.optim.adamw import AdamW
from erniekit.train.progress import TrainerProgress
from erniekit.train.trainer import Hook
from tests.unit.train.toy_trainer import ROWS, Before, Plain, Row, make, run


def test_totals_of_the_step_are_known_to_every_row() -> None:
    trainer, _, _ = make(Plain(), rows_per_step=3)
    seen: list[StepTotals | None] = []
    trainer.objective = Before(trainer.objective, seen.append)
    metrics = trainer.train_step()
    assert seen == [StepTotals(loss_tokens=6, positions=24, modality_tokens=(6, 6))] * 3
    assert metrics.modality_tokens == {"text": 6, "vision": 6}
    assert metrics.positions == 24
    assert metrics.expert_counts["layer_1/text"].tolist() == [6, 0]
    assert metrics.router_sums == {"z_loss/text": 3.0}


def test_the_next_row_is_asked_for_before_anything_waits() -> None:
    """Rows are uploaded before the backward pass of the row before, the next step's first row is read before losses."""
    trainer, _, _ = make(Plain(), rows_per_step=2, total_steps=2)
    order: list[str] = []

    class Watched(Before):
        def upload(self, row: Any, upload: Any) -> Any:
            order.append(f"upload {row.name}")
            return row

    class Routing:
        def expert_counts(self) -> dict[str, np.ndarray]:
            order.append("read")
            return {}

        def router_sums(self) -> dict[str, float]:
            return {}

    def computed(row: Any, totals: StepTotals | None = None) -> Any:
        output = objective(row, totals)
        output.total.register_hook(lambda _: order.append(f"backward {row.name}"))
        return replace(output, routing=Routing())

    objective = trainer.objective
    trainer.objective = Watched(computed, lambda totals: None)
    trainer.rows.prefetch = lambda: order.append("prefetch")  # type: ignore[method-assign]
    trainer.train_step()
    first, second = (row.name for row in ROWS[:2])
    assert order == [
        *(f"upload {first}", f"upload {second}", f"backward {first}", f"backward {second}"),
        *("prefetch", "read", "read"),
    ]
    order.clear()
    trainer.train_step()
    assert "prefetch" not in order, "there is no next step"


def test_a_filler_row_counts_nowhere() -> None:
    alone, beside = Plain(), Plain()
    expected = make(alone, ROWS[:1], rows_per_step=1, max_length=16)[0].train_step()
    trainer, _, _ = make(beside, [ROWS[0], Row((), "")], max_length=16)
    found = trainer.train_step()
    assert (found.tokens, found.loss_tokens, found.positions) == (6, 3, 16)
    assert found.loss_sum == expected.loss_sum
    assert found.gradient_norm == expected.gradient_norm
    assert alone.weight.item() == beside.weight.item() != 1.0
    assert trainer.progress == TrainerProgress(step=1, rows=1, tokens=6, loss_tokens=3)


def test_totals_and_metrics_are_added_up_over_processes() -> None:
    """Another process with the very same rows: this one's gradients are half of the whole."""
    arrays: list[np.ndarray] = []

    class Twice:
        rank, size, part, counts = 0, 1, 0, True

        def all_reduce(self, array: np.ndarray) -> np.ndarray:
            arrays.append(array)
            return array * 2

    trainer, _, _ = make(Plain(), dist=Twice())
    metrics = trainer.train_step()
    assert (metrics.loss_tokens, metrics.tokens, metrics.positions) == (8, 16, 32)
    assert metrics.loss_sum == 32.0
    assert metrics.gradient_norm == 2.0
    assert metrics.expert_counts["layer_1/text"].tolist() == [8, 0]
    assert metrics.router_sums == {"z_loss/text": 4.0}
    assert trainer.progress == TrainerProgress(step=1, rows=4, tokens=16, loss_tokens=8)
    assert [str(array.dtype) for array in arrays] == ["int64", "int64", "float64"]


def test_hooks_are_called_before_and_after_the_update() -> None:
    order: list[Any] = []

    class Routers(Hook):
        def before_optimizer_step(self, optimizer: AdamW) -> dict[str, float]:
            optimizer.add_gradient("weight", paddle.full([1, 1], 4.0))
            return {"orthogonal_loss/text": 2.0}

        def after_optimizer_step(self, optimizer: AdamW, rate: float, counts: Any) -> dict[str, float]:
            order.append((optimizer.steps_done, rate, counts["layer_1/text"].tolist()))
            return {"orthogonal_loss/vision": 3.0}

        def scalars(self) -> dict[str, float]:
            return {"router/mean_cosine/layer_1/text": 0.25}

    trainer, log, _ = make(Plain(), hooks=[Routers()], total_steps=1)
    run(trainer)
    assert order == [(1, 0.1, [4, 0])]
    line = log.written[0][1]
    assert line["train/gradient_norm"] == 8.0
    assert line["router/orthogonal_loss/text"] == 2.0
    assert line["router/orthogonal_loss/vision"] == 3.0
    assert line["router/mean_cosine/text/max"] == 0.25
    assert "router/mean_cosine/layer_1/text" not in line
    assert line["router/z_loss/text"] == 0.5
