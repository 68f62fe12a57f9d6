"""Steps and schedule of a run."""

from pathlib import Path

import pytest

from erniekit.errors import ConfigError
from erniekit.optim.schedule import Schedule
from erniekit.train.plan import plan_run
from tests.unit.train.plans import Rows, config


def test_steps_of_all_epochs_are_rounded_up(tmp_path: Path) -> None:
    settings = config(tmp_path, "train.epochs=3", "train.rows_per_step=4", "schedule.warmup_ratio=0.5")
    plan = plan_run(settings, Rows(3, 2, 4))
    assert (plan.total_steps, plan.epochs, plan.rows, plan.tokens) == (3, 3, 3, 180)
    assert plan.schedule == Schedule("cosine", 1e-5, 0.0, 3, 2, 0.1)


def test_max_steps_wins(tmp_path: Path) -> None:
    plan = plan_run(config(tmp_path, "train.max_steps=7", "train.epochs=3"), Rows(3, 2, 4))
    assert (plan.total_steps, plan.epochs) == (7, None)


@pytest.mark.parametrize(
    ("epochs", "rows", "steps"),
    [
        ("1.5", (3, 4), 5),  # 3 rows, and 2 of 4
        ("0.5", (3,), 2),
        ("2.0", (3, 4), 7),
        ("1.1", (10, 10), 11),  # 0.1 * 10 is above 1 in floats
        ("2.3", (10, 10, 10), 23),
        ("0.001", (10,), 1),
    ],
)
def test_a_part_of_an_epoch_is_its_first_rows(
    tmp_path: Path, epochs: str, rows: tuple[int, ...], steps: int
) -> None:
    plan = plan_run(config(tmp_path, f"train.epochs={epochs}"), Rows(*rows))
    assert (plan.total_steps, plan.epochs) == (steps, float(epochs))


def test_warmup_that_the_data_is_too_short_for(tmp_path: Path) -> None:
    settings = config(tmp_path, "schedule.warmup_steps=100", "train.rows_per_step=2")
    with pytest.raises(
        ConfigError, match=r"schedule\.warmup_steps is 100, .* 18 steps, .*\.warmup_steps: 1,"
    ):
        plan_run(settings, Rows(36))
    with pytest.raises(ConfigError, match=r"a run of 90 steps, .* Set schedule\.warmup_steps: 9,"):
        plan_run(settings, Rows(180))
    assert plan_run(settings, Rows(200)).schedule.warmup_steps == 100
    share = config(tmp_path, "schedule.warmup_ratio=0.1", "train.rows_per_step=2")
    assert plan_run(share, Rows(36)).schedule.warmup_steps == 2


def test_warmup_and_decay_that_overlap(tmp_path: Path) -> None:
    settings = ["schedule.type=wsd", "schedule.decay_ratio=0.5"]
    with pytest.raises(
        ConfigError, match=r"schedule\.decay_ratio is 0\.5, which gives 5 steps .* 6 steps of warm-up"
    ):
        plan_run(config(tmp_path, *settings, "schedule.warmup_steps=6"), Rows(10))
    plan_run(config(tmp_path, *settings, "schedule.warmup_steps=5"), Rows(10))
