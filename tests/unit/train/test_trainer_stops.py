"""How the trainer ends early: interrupts, errors, and losses or gradients that are not finite."""

import math
import os
import signal
from typing import Any

import pytest

from erniekit.errors import DataError, ErnieKitError
from erniekit.evaluation.evaluator import EvaluationStopped
from erniekit.interrupt import InterruptGuard
from erniekit.objectives.totals import StepTotals
from erniekit.train.nonfinite import NonFinitePolicy
from erniekit.train.progress import TrainerProgress
from erniekit.train.trainer import Hook
from tests.unit.train.toy_trainer import ROWS, Before, Plain, Row, make, run


def test_a_signal_ends_the_run_after_the_step_with_a_checkpoint() -> None:
    trainer, _, saved = make(
        Plain(), evaluate=lambda step, is_stopping: pytest.fail("no evaluation after an interrupt")
    )

    def interrupt(totals: StepTotals | None) -> None:
        if trainer.progress.step == 1 and guard.requested is None:
            os.kill(os.getpid(), signal.SIGTERM)

    trainer.objective = Before(trainer.objective, interrupt)
    with InterruptGuard() as guard:
        trainer.train(guard)
    assert trainer.progress.step == 2
    assert saved == [2]
    assert guard.exit_status == 143
    assert not trainer.is_finished


def test_a_second_signal_stops_within_the_step_and_saves_nothing() -> None:
    trainer, log, saved = make(Plain())

    def interrupt(totals: StepTotals | None) -> None:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("the second signal must stop here")

    trainer.objective = Before(trainer.objective, interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(trainer)
    assert saved == []
    assert log.ended == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_before_the_update(bad: float) -> None:
    model = Plain()
    trainer, log, saved = make(model, [ROWS[0], Row((1.0, bad), "bad.jsonl:7")])
    with pytest.raises(ErnieKitError, match=r"step 1: the loss is not a finite number.*bad\.jsonl:7\."):
        run(trainer)
    assert model.weight.item() == 1.0
    assert saved == []
    assert log.ended == 1


def test_a_gradient_that_is_not_finite_stops_before_the_update() -> None:
    model = Plain()
    trainer, _, saved = make(model)
    model.weight.register_hook(lambda gradient: gradient * math.inf)
    message = r"step 1: the gradient norm is inf, in the gradients of weight, with the samples a:1, a:2\."
    with pytest.raises(ErnieKitError, match=message):
        run(trainer)
    assert model.weight.item() == 1.0
    assert saved == []


def test_a_step_that_is_not_finite_is_skipped() -> None:
    """Weight and optimizer are those of the other steps alone; the schedule and the rows go on."""
    bad = Row((1.0, math.nan), "bad.jsonl:7")
    lines: list[str] = []
    skipping, log, _ = make(
        Plain(),
        [ROWS[0], ROWS[1], bad, ROWS[2], ROWS[2], ROWS[0]],
        total_steps=3,
        nonfinite=NonFinitePolicy("skip", log=lines.append),
    )
    run(skipping)
    without, expected, _ = make(Plain(), [ROWS[0], ROWS[1], ROWS[2], ROWS[0]], total_steps=2)
    run(without)
    for trainer in (skipping, without):
        assert trainer.optimizer.steps_done == 2
    states = [trainer.optimizer.state_tensors() for trainer in (skipping, without)]
    assert all(states[0][name].item() == states[1][name].item() for name in states[1])
    assert skipping.model.weight.item() == without.model.weight.item() != 1.0
    progress = skipping.progress
    assert (progress.step, progress.rows, progress.skipped_steps, progress.skipped_in_row) == (3, 6, 1, 0)
    assert lines == ["step 2 is skipped: the loss is not a finite number in the samples bad.jsonl:7"]
    first, second, third = (line for _, line in log.written)
    assert "train/loss" not in second and second["train/skipped_steps"] == third["train/skipped_steps"] == 1
    same = ("train/loss", "train/gradient_norm")
    assert [[line[key] for key in same] for line in (first, third)] == [
        [line[key] for key in same] for _, line in expected.written
    ]


def test_infinities_of_both_signs_are_not_finite() -> None:
    trainer, _, _ = make(Plain(), [Row((math.inf,), "a:1"), Row((-math.inf,), "a:2")])
    with pytest.raises(ErnieKitError, match="not a finite number in the samples a:1, a:2"):
        trainer.train_step()


def test_hooks_do_not_see_the_update_of_a_skipped_step() -> None:
    class Updates(Hook):
        number = 0

        def after_optimizer_step(self, *arguments: object) -> dict[str, float]:
            self.number += 1
            return {}

    updates = Updates()
    rows = [ROWS[0], Row((math.inf,), "bad.jsonl:7"), ROWS[1]]
    policy = NonFinitePolicy("skip", log=lambda line: None)
    trainer, _, _ = make(
        Plain(), rows, hooks=[updates], rows_per_step=1, total_steps=3, log_every=3, nonfinite=policy
    )
    run(trainer)
    assert updates.number == 2


def test_a_run_that_does_not_recover_stops() -> None:
    lines: list[str] = []
    policy = NonFinitePolicy("skip", log=lines.append)
    rows = [ROWS[0], *[Row((math.nan,), f"bad.jsonl:{number}") for number in range(20)]]
    trainer, _, saved = make(Plain(), rows, rows_per_step=1, total_steps=20, nonfinite=policy)
    with pytest.raises(
        ErnieKitError, match=r"step 11: .*bad\.jsonl:9.*it is step 10 in a row that is not finite"
    ):
        run(trainer)
    assert len(lines) == 9 and saved == []
    assert trainer.optimizer.steps_done == 1


def test_many_samples_are_named_in_part() -> None:
    rows = [Row((math.nan,), f"f:{number}") for number in range(20)]
    trainer, _, _ = make(Plain(), rows, rows_per_step=20)
    with pytest.raises(ErnieKitError, match="f:0, f:1, f:2, f:3, f:4, f:5, f:6, f:7 and 12 more"):
        trainer.train_step()


@pytest.mark.parametrize("place", ["rows", "forward", "hook", "update"])
def test_an_error_ends_the_run_with_a_checkpoint_of_the_last_whole_step(place: str) -> None:
    """And the rows of the step that failed are the next ones; not where the update may be applied in part."""
    model = Plain()
    trainer, _, saved = make(model, total_steps=9)
    step = trainer.train_step

    def fail(*arguments: Any, **options: Any) -> Any:
        raise DataError("cannot be read")

    def train_step() -> Any:
        if trainer.progress.step == 2 and place == "rows":
            next_row = trainer.rows.next_row
            trainer.rows.next_row = lambda: (next_row(), setattr(trainer.rows, "next_row", fail))[0]  # type: ignore
        if trainer.progress.step == 2 and place == "forward":
            trainer.objective = Before(model, fail)
        if trainer.progress.step == 2 and place == "update":
            trainer.optimizer.step = fail  # type: ignore[method-assign]
        metrics = step()
        if trainer.progress.step == 2 and place == "hook":
            fail()
        return metrics

    trainer.train_step = train_step  # type: ignore[method-assign]
    with pytest.raises(DataError, match="cannot be read"):
        run(trainer)
    assert saved == ([] if place == "update" else [2])
    assert place == "update" or trainer.rows.state_dict() == {"drawn": 4}


def test_an_error_before_the_first_step_saves_nothing() -> None:
    trainer, _, saved = make(Plain(), [])
    with pytest.raises(ZeroDivisionError):
        run(trainer)
    assert saved == []


def test_a_resumed_run_that_fails_at_its_start_writes_no_checkpoint_again() -> None:
    def fail(step: int, is_stopping: Any) -> dict[str, float]:
        raise DataError("cannot be read")

    progress = TrainerProgress(step=2, pending_evaluation=True)
    trainer, _, saved = make(Plain(), total_steps=5, eval_every=2, evaluate=fail, progress=progress)
    with pytest.raises(DataError):
        run(trainer)
    assert saved == []


def test_an_evaluation_that_is_interrupted_is_left_for_the_resumed_run() -> None:
    def stopped(step: int, is_stopping: Any) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGTERM)
        assert is_stopping()
        raise EvaluationStopped

    trainer, log, saved = make(Plain(), total_steps=5, eval_every=2, evaluate=stopped)
    run(trainer)
    assert (trainer.progress.step, saved, trainer.progress.pending_evaluation) == (2, [2], True)
    assert log.lines == ["step 2: the evaluation is left for the resumed run"]
    steps = []

    def evaluate(step: int, is_stopping: Any) -> dict[str, float]:
        steps.append(step)
        return {"eval/loss": 1.0}

    again, _, _ = make(Plain(), total_steps=5, eval_every=2, evaluate=evaluate, progress=trainer.progress)
    run(again)
    assert steps == [2, 4, 5]
    assert not again.progress.pending_evaluation
