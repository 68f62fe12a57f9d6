"""Which evaluation is the best, and when patience runs out."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from erniekit.config.choices import ANSWER_METRICS, EVAL_LOSS, PAIR_METRICS
from erniekit.errors import CheckpointError
from erniekit.objectives.pairs import METRIC_DIVISORS
from erniekit.train.hooks.early_stopping import EarlyStoppingHook
from erniekit.train.progress import BestTracker, restored
from tests.unit.train.toy_trainer import Plain, make, run


def seen(hook: EarlyStoppingHook, *values: float) -> tuple[list[int], list[int], BestTracker]:
    """The steps that were the best when they came, those at which patience had run out, and what is known."""
    best = BestTracker()
    improved, over = [], []
    for step, value in enumerate(values, 1):
        if hook.observe(best, step, {hook.metric: value, "eval/other": -value}):
            improved.append(step)
        if hook.is_over(best):
            over.append(step)
    return improved, over, best


def test_a_loss_is_better_when_smaller_and_a_metric_when_larger() -> None:
    values = (0.5, 0.7, 0.5, 0.4, 0.9)
    improved, _, best = seen(EarlyStoppingHook(EVAL_LOSS), *values)
    assert improved == [1, 4] and (best.metric, best.step, best.value) == (EVAL_LOSS, 4, 0.4)
    for name in (*ANSWER_METRICS, *PAIR_METRICS):
        improved, _, best = seen(EarlyStoppingHook(name), *values)
        assert improved == [1, 2, 5] and (best.step, best.value) == (5, 0.9)


def test_patience_counts_evaluations_without_an_improvement() -> None:
    assert seen(EarlyStoppingHook(EVAL_LOSS, 2), 0.5, 0.6, 0.4, 0.4, 0.5, 0.3)[:2] == ([1, 3, 6], [5])
    assert seen(EarlyStoppingHook(EVAL_LOSS), *[0.5] * 50)[1] == []


def test_small_improvements_add_up_to_one_that_counts() -> None:
    """Every one of them is the best; patience begins anew where they are more than min_delta together."""
    improved, over, best = seen(EarlyStoppingHook(EVAL_LOSS, 3, 0.25), 1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.46)
    assert improved == [1, 2, 3, 4, 5, 6, 7]
    assert over == [7] and (best.mark, best.waited) == (0.7, 3)
    assert seen(EarlyStoppingHook(EVAL_LOSS, 1, 0.5), 1.0, 0.5)[1] == [2], "as much as min_delta is not more"


@pytest.mark.parametrize("metric", [EVAL_LOSS, "eval/exact_match"])
def test_what_is_not_finite_is_never_the_best(metric: str) -> None:
    improved, over, best = seen(EarlyStoppingHook(metric, 2), math.nan, math.inf, 0.5, -math.inf, math.nan)
    assert (improved, over, best.step) == ([3], [2, 5], 3)


def test_it_goes_through_a_checkpoint_and_is_described() -> None:
    hook = EarlyStoppingHook(EVAL_LOSS, 3)
    best = seen(hook, 1 / 3, 0.9, 0.8)[2]
    assert BestTracker(**best.as_dict()) == best
    assert hook.describe_wait(best) == "eval/loss has not improved on 0.3333 for 2 evaluations"
    hook = EarlyStoppingHook(EVAL_LOSS, 3, 0.5)
    text = hook.describe_wait(seen(hook, 1 / 3, 0.1)[2])
    assert text == "eval/loss has not improved on 0.3333 by more than 0.5 for 1 evaluation"


def test_the_names_of_the_configuration_are_those_of_what_is_computed() -> None:
    assert {name.removeprefix("eval/") for name in PAIR_METRICS} <= set(METRIC_DIVISORS)


def test_training_ends_with_a_log_line_and_the_best_step_is_saved() -> None:
    """Evaluations after steps 2, 4 and 6 do not improve after the first; lines are due every 5 steps."""
    trainer, log, saved = make(
        Plain(),
        hooks=[EarlyStoppingHook(EVAL_LOSS, 2)],
        total_steps=9,
        log_every=5,
        eval_every=2,
        evaluate=lambda step, is_stopping: {EVAL_LOSS: 1.0},
    )
    run(trainer)
    lines = [(step, "train" if "train/loss" in line else "eval") for step, line in log.written]
    assert lines == [(2, "eval"), (4, "eval"), (5, "train"), (6, "eval"), (6, "train")]
    assert trainer.stop_reason == "eval/loss has not improved on 1.0000 for 2 evaluations"
    assert trainer.is_finished and trainer.progress.step == 6
    assert saved == [2, 6]
    assert trainer.progress.window.steps == 0

    # A resumed run that had ended does nothing.
    again, log, saved = make(
        Plain(), hooks=[EarlyStoppingHook(EVAL_LOSS, 2)], total_steps=9, progress=trainer.progress
    )
    run(again)
    assert (again.progress.step, log.written, saved) == (6, [], [])


def test_the_best_of_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    assert restored(BestTracker, BestTracker(EVAL_LOSS, step=2).as_dict(), tmp_path).step == 2
    with pytest.raises(CheckpointError, match="its best is not valid"):
        restored(BestTracker, {"step": "2"}, tmp_path)
