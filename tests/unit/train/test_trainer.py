"""The trainer and its hooks, on a model of one weight: totals, intervals, rows and resuming."""

from pathlib import Path
from typing import Any

import paddle
import pytest

from erniekit.errors import DataError
from erniekit.evaluation.evaluator import evaluate_loss
from erniekit.train.progress import TrainerProgress
from erniekit.train.trainer import seed_row
from tests.unit.train.toy_trainer import ROWS, Model, Plain, Row, make, run


def test_the_loss_is_normalised_over_all_tokens_of_the_step() -> None:
    trainer, _, _ = make(Plain())
    metrics = trainer.train_step()
    # Rows of 3 and 1 tokens: (1 + 2 + 3 + 10) / 4, not the mean of the rows' means.
    assert metrics.loss_sum == 16.0
    assert metrics.loss_tokens == 4
    assert metrics.tokens == 8
    assert metrics.gradient_norm == 4.0
    assert trainer.progress == TrainerProgress(step=1, rows=2, tokens=8, loss_tokens=4)


def test_one_row_or_several_give_the_same_update() -> None:
    together, apart = Plain(), Plain()
    make(together, [Row((1.0, 2.0, 3.0, 10.0), "x")], rows_per_step=1)[0].train_step()
    make(apart)[0].train_step()
    assert together.weight.item() == apart.weight.item() != 1.0


def test_gradients_are_clipped_and_the_norm_is_that_before() -> None:
    trainer, _, _ = make(Plain(), max_grad_norm=0.5)
    scales = []
    step = trainer.optimizer.step
    trainer.optimizer.step = lambda rate, scale: (scales.append(scale), step(rate, scale))  # type: ignore
    assert trainer.train_step().gradient_norm == 4.0
    assert scales == [0.5 / 4.0]
    assert trainer.optimizer.state_tensors()["weight.moment1"].item() == pytest.approx(0.05)
    assert trainer.model.weight.grad is None


def test_mfu_is_the_share_of_the_peak() -> None:
    trainer, log, _ = make(
        Plain(),
        [*ROWS, Row((1.0,), "")],
        rows_per_step=4,
        count_flops=lambda row: 1e9 * len(row.values),
        peak_flops=1e12,
        log_every=2,
    )
    run(trainer)
    # The row without a sample is not counted.
    assert [line["train/mfu"] for _, line in log.written] == [
        pytest.approx(6e9 / 1e12 / line["train/step_seconds"]) for _, line in log.written
    ]
    trainer, log, _ = make(Plain())
    run(trainer)
    assert not any("train/mfu" in line for _, line in log.written)


def test_epochs_end_the_run_with_a_shorter_step() -> None:
    trainer, log, saved = make(Plain(), epochs=1, total_steps=2)
    run(trainer)
    assert (trainer.progress.step, trainer.progress.rows) == (2, 3)
    assert [line["train/loss_tokens"] for _, line in log.written] == [4.0, 2.0]
    assert saved == [2]


def test_without_epochs_every_step_is_full() -> None:
    trainer, _, saved = make(Plain(), total_steps=3)
    run(trainer)
    assert (trainer.progress.step, trainer.progress.rows) == (3, 6)
    assert saved == [3]
    assert trainer.is_finished


def test_fewer_rows_than_planned_end_the_run_early() -> None:
    trainer, log, saved = make(Plain(), epochs=1, total_steps=5, log_every=4)
    run(trainer)
    assert trainer.progress.step == 2
    assert saved == [2]
    assert [step for step, _ in log.written] == [2]


def test_when_things_happen() -> None:
    evaluations: list[int] = []

    def evaluate(step: int, is_stopping: Any) -> dict[str, float]:
        evaluations.append(step)
        return {"eval/loss": 1.5}

    trainer, log, saved = make(
        Plain(), total_steps=7, log_every=3, eval_every=2, save_every=3, evaluate=evaluate, epoch=lambda: 0.25
    )
    run(trainer)
    assert [step for step, line in log.written if "train/loss" in line] == [3, 6, 7]
    assert evaluations == [2, 4, 6, 7]
    assert [step for step, line in log.written if "eval/loss" in line] == evaluations
    assert saved == [3, 6, 7]
    assert log.written[1][1]["epoch"] == 0.25
    assert log.ended == 1
    assert "step 7: eval/loss 1.5000  (0.0 s)" in log.lines


def test_the_last_step_is_saved_and_evaluated_once() -> None:
    evaluations: list[dict[str, float]] = []

    def evaluate(step: int, is_stopping: Any) -> dict[str, float]:
        evaluations.append({"eval/loss": 0.0})
        return evaluations[-1]

    trainer, _, saved = make(Plain(), eval_every=4, save_every=4, evaluate=evaluate)
    run(trainer)
    assert saved == [4]
    assert len(evaluations) == 1


def test_a_step_without_loss_is_passed_over() -> None:
    empty = Row((), "")
    trainer, _, _ = make(Plain(), [*ROWS[:2], empty, empty, *ROWS[:2]], total_steps=2)
    assert [trainer.train_step().loss_tokens for _ in range(2)] == [4, 4]
    assert trainer.rows.drawn == 6
    assert trainer.progress == TrainerProgress(step=2, rows=4, tokens=16, loss_tokens=8)


def test_rows_without_loss_alone_are_an_error() -> None:
    trainer, _, _ = make(Plain(), [Row((), "")])
    with pytest.raises(DataError, match="none of the last 1000 steps has a trained token"):
        trainer.train_step()


def test_dropout_depends_on_the_row_number_alone() -> None:
    rows = [Row(tuple(float(k) for k in range(1, 40)), "a")] * 3
    whole, _, _ = make(Model(), rows, total_steps=6)
    losses = [whole.train_step().loss_sum for _ in range(6)]
    assert len(set(losses)) == 6

    first, _, _ = make(Model(), rows)
    assert [first.train_step().loss_sum for _ in range(3)] == losses[:3]
    state = {name: tensor.numpy().copy() for name, tensor in first.optimizer.state_tensors().items()}
    paddle.seed(12345)
    model = Model()
    model.weight.set_value(first.model.weight.numpy())
    second, _, _ = make(model, rows, progress=first.progress)
    second.optimizer.load_state(3, state, state.__getitem__)
    assert [second.train_step().loss_sum for _ in range(3)] == losses[3:]


def test_row_seeds_differ_and_repeat() -> None:
    def draw(seed: int, row: int, part: int) -> float:
        seed_row(seed, row, part)
        return float(paddle.rand([1]).item())

    keys = [(seed, row, part) for seed in (0, 1) for row in (0, 1, 2) for part in (0, 1)]
    drawn = {key: draw(*key) for key in keys}
    assert len(set(drawn.values())) == 12
    assert all(draw(*key) == value for key, value in drawn.items())


def test_evaluation_is_without_dropout_and_leaves_training_on() -> None:
    model = Model()
    model.train()
    assert evaluate_loss(model, model, ROWS) == pytest.approx(24 / 6)  # type: ignore[arg-type]
    assert model.training
    assert model.weight.grad is None


def test_resuming_a_finished_run_does_nothing(tmp_path: Path) -> None:
    trainer, log, saved = make(Plain(), total_steps=2, progress=TrainerProgress(step=2, rows=4))
    run(trainer)
    assert saved == []
    assert log.written == []
