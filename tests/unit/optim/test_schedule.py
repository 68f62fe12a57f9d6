"""Exact values of every schedule, by hand."""

import math

import pytest

from erniekit.optim.schedule import Schedule, warmup_steps


def rates(**settings: object) -> list[float]:
    schedule = Schedule(**{"peak": 1.0, "minimum": 0.0, **settings})  # type: ignore[arg-type]
    return [schedule.learning_rate(step) for step in range(schedule.total_steps)]


def test_warmup_rises_in_equal_parts_to_the_peak_then_decays() -> None:
    assert rates(type="linear", total_steps=8, warmup_steps=4) == [0.25, 0.5, 0.75, 1.0, 1.0, 0.75, 0.5, 0.25]


def test_linear_without_warmup() -> None:
    assert rates(type="linear", total_steps=4) == [1.0, 0.75, 0.5, 0.25]


def test_linear_towards_a_minimum() -> None:
    assert rates(type="linear", total_steps=4, peak=2.0, minimum=1.0) == [2.0, 1.75, 1.5, 1.25]


def test_cosine() -> None:
    expected = [1.0, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]
    assert rates(type="cosine", total_steps=4) == pytest.approx(expected, abs=1e-15)
    floor = rates(type="cosine", total_steps=4, minimum=0.2)
    assert floor == pytest.approx([0.2 + 0.8 * value for value in expected], abs=1e-15)


def test_constant_ignores_the_minimum() -> None:
    assert rates(type="constant", total_steps=3, warmup_steps=1, minimum=0.5) == [1.0, 1.0, 1.0]


def test_wsd_is_stable_then_decays_by_one_minus_square_root() -> None:
    values = rates(type="wsd", total_steps=10, warmup_steps=2, decay_ratio=0.4)
    assert values[:7] == [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert values[7:] == pytest.approx([1 - math.sqrt(k / 4) for k in (1, 2, 3)], abs=1e-15)


def test_wsd_without_decay_stays_at_the_peak() -> None:
    assert rates(type="wsd", total_steps=3, decay_ratio=0.0) == [1.0, 1.0, 1.0]


def test_no_step_has_a_rate_of_zero() -> None:
    for kind in ("cosine", "linear", "constant", "wsd"):
        for total in (1, 2, 7):
            for warmup in (0, 1, 9):
                assert min(rates(type=kind, total_steps=total, warmup_steps=warmup)) > 0


def test_warmup_longer_than_the_run_only_rises() -> None:
    assert rates(type="cosine", total_steps=2, warmup_steps=4) == [0.25, 0.5]


def test_warmup_steps_win_over_the_ratio_and_the_ratio_rounds_up() -> None:
    assert warmup_steps(100, 7, 0.5) == 7
    assert warmup_steps(101, 0, 0.1) == 11
    assert warmup_steps(30, 0, 0.1) == 3
    assert warmup_steps(100, 0, 0.0) == 0


def test_as_dict_rebuilds_the_schedule() -> None:
    schedule = Schedule("wsd", 1e-4, 1e-6, 50, 5, 0.2)
    assert Schedule(**schedule.as_dict()) == schedule
