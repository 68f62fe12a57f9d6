"""Charts have round ticks, lines inside their axes, and no more points than one can see."""

import math
import re

import pytest

from erniekit.display.charts import Series, line_chart, short


def points(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"([-\d.e]+),([-\d.e]+)", path)]


@pytest.mark.parametrize(
    "values",
    [[1.0, 0.5, 0.25], [3.0], [0.0, 0.0], [-2e-7, 5e-7], [1e12, 3.0], [5.0, math.nan, math.inf, 4.0]],
)
def test_lines_lie_inside_the_axes(values: list[float]) -> None:
    chart = line_chart("loss", "nats", [Series("a", list(enumerate(values, 1)))])
    assert chart is not None
    (line,) = chart.lines
    placed = points(line.path)
    assert len(placed) == sum(map(math.isfinite, values)) == len(line.dots)
    assert all(chart.left <= x <= chart.right and chart.top <= y <= chart.bottom for x, y in placed)
    assert 2 <= len(chart.y_ticks) <= 8
    assert all(chart.top - 1 <= tick.at <= chart.bottom + 1 for tick in chart.y_ticks)
    assert all(chart.left - 1 <= tick.at <= chart.right + 1 for tick in chart.x_ticks)


def test_ticks_are_round_and_larger_values_are_higher() -> None:
    chart = line_chart("", "", [Series("a", [(10, 0.13), (40, 0.88)]), Series("b", [(20, 0.5)])])
    assert chart is not None
    assert [tick.label for tick in chart.y_ticks] == ["0", "0.2", "0.4", "0.6", "0.8", "1"]
    assert [tick.label for tick in chart.x_ticks] == ["10", "20", "30", "40"]
    (_, low), (_, high) = points(chart.lines[0].path)
    assert high < low
    assert [(line.name, line.last) for line in chart.lines] == [("a", "0.88"), ("b", "0.5")]


@pytest.mark.parametrize(("value", "lowest"), [(0.0, "0"), (3.0, "2.6"), (-2.0, "-2")])
def test_an_axis_of_one_value_goes_no_lower_than_0_without_need(value: float, lowest: str) -> None:
    chart = line_chart("", "", [Series("a", [(1, value), (2, value)])])
    assert chart is not None and chart.y_ticks[0].label == lowest


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([8.0, 0.1], ["0.1", "0.2", "0.5", "1", "2", "5", "10"]),
        ([3000.0, 0.003], ["0.001", "0.01", "0.1", "1", "10", "100", "1000", "10k"]),
        ([8.0, 0.2], ["0", "2", "4", "6", "8"]),  # less than a factor of 50
        ([8.0, 0.0], ["0", "2", "4", "6", "8"]),
    ],
)
def test_values_of_several_orders_of_magnitude_have_a_logarithmic_axis(
    values: list[float], labels: list[str]
) -> None:
    chart = line_chart("", "nats", [Series("a", list(enumerate(values)))], may_be_log=True)
    assert chart is not None
    assert [tick.label for tick in chart.y_ticks] == labels
    assert (chart.unit == "nats, logarithmic") == (labels[0] != "0")
    marks = [tick.at for tick in chart.y_ticks]
    assert marks == sorted(marks, reverse=True)
    (_, high), (_, low) = points(chart.lines[0].path)
    assert marks[-1] <= high < low <= marks[0]


def test_many_points_are_averaged_in_a_band_of_their_range() -> None:
    series = Series("a", [(step, step % 2) for step in range(1, 10_001)])
    chart = line_chart("", "", [series])
    assert chart is not None
    (line,) = chart.lines
    assert len(points(line.path)) <= 240 and not line.dots
    heights = {y for _, y in points(line.path)}
    middle = (chart.top + chart.bottom) / 2
    assert all(abs(y - middle) < 3 for y in heights)
    assert {y for _, y in points(line.band)} == {float(chart.top), float(chart.bottom)}


def test_nothing_to_draw_is_no_chart() -> None:
    assert line_chart("", "", []) is None
    assert line_chart("", "", [Series("a", []), Series("b", [(1, math.nan)])]) is None


def test_short_numbers() -> None:
    values = (0, 0.25, 2.447e-05, 1234.5, 12_345, 1_234_567, 2e9, -20_000)
    assert [short(value) for value in values] == [
        *("0", "0.25", "2.447e-05", "1234", "12.35k", "1.235M", "2e+09", "-20k"),
    ]
