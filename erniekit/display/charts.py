"""Computes line charts as SVG paths, for HTML pages without scripts. The page's template draws them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 520, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 12, 28
_MOST_POINTS = 240  # of a line; more are averaged
_MOST_DOTS = 40  # a line with more points has no dots
_TICKS = 5
_LOG_RATIO = 50.0  # between largest and smallest value, from which a logarithmic axis shows more

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """A named line. points: (x, y) in ascending order of x; points that are not finite are left out."""

    name: str
    points: Sequence[Point]


@dataclass(frozen=True)
class Line:
    """A line in SVG coordinates. band: the area between minimum and maximum where points are averaged, else empty.

    dots: the points, of a short line. last: the last value.
    """

    name: str
    path: str
    band: str
    dots: list[Point]
    last: str


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: its SVG coordinate and label."""

    at: float
    label: str


@dataclass(frozen=True)
class LineChart:
    """A chart of WIDTH x HEIGHT. left, right, top, bottom: the edges of the plot."""

    title: str
    unit: str
    lines: list[Line]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    left: int = _LEFT
    right: int = WIDTH - _RIGHT
    top: int = _TOP
    bottom: int = HEIGHT - _BOTTOM
    width: int = WIDTH
    height: int = HEIGHT


def line_chart(
    title: str, unit: str, series: Sequence[Series], *, may_be_log: bool = False
) -> LineChart | None:
    """A chart of the series that have a point; None if there are none.

    may_be_log: values of several orders of magnitude get a logarithmic axis, which is noted in the unit.
    """
    finite = [Series(one.name, [point for point in one.points if math.isfinite(point[1])]) for one in series]
    shown = [one for one in finite if one.points]
    if not shown:
        return None
    xs = [x for one in shown for x, _ in one.points]
    ys = [y for one in shown for _, y in one.points]
    is_log = may_be_log and min(ys) > 0 and max(ys) / min(ys) >= _LOG_RATIO
    x_ticks = _nice(min(xs), max(xs), whole=True)
    y_ticks = _powers(min(ys), max(ys)) if is_log else _nice(min(ys), max(ys))
    x_span = (min(xs), max(xs)) if min(xs) < max(xs) else (x_ticks[0], x_ticks[-1])
    y_span = (min(y_ticks[0], *ys), max(y_ticks[-1], *ys))

    def x_at(value: float) -> float:
        share = (value - x_span[0]) / (x_span[1] - x_span[0])
        return round(_LEFT + share * (WIDTH - _RIGHT - _LEFT), 1)

    def y_at(value: float) -> float:
        if is_log:
            share = math.log(value / y_span[0]) / math.log(y_span[1] / y_span[0])
        else:
            share = (value - y_span[0]) / (y_span[1] - y_span[0])
        return round(HEIGHT - _BOTTOM - share * (HEIGHT - _BOTTOM - _TOP), 1)

    lines = []
    for one in shown:
        means, lows, highs = _averaged(one.points)
        placed = [(x_at(x), y_at(y)) for x, y in means]
        edge = [(x_at(x), y_at(y)) for x, y in highs] + [(x_at(x), y_at(y)) for x, y in reversed(lows)]
        averaged = len(means) < len(one.points)
        dots = placed if len(placed) <= _MOST_DOTS else []
        lines.append(
            Line(
                one.name, _path(placed), _path(edge) + "Z" if averaged else "", dots, short(one.points[-1][1])
            )
        )
    inside = [tick for tick in x_ticks if x_span[0] <= tick <= x_span[1]]
    return LineChart(
        title,
        ", ".join(part for part in (unit, "logarithmic" if is_log else "") if part),
        lines,
        [Tick(x_at(tick), short(tick)) for tick in inside],
        [Tick(y_at(tick), short(tick)) for tick in y_ticks],
    )


def short(value: float) -> str:
    """A number in a few characters, such as "1.25", "3.2e-05" and "12.5k"."""
    if 1e6 <= abs(value) < 1e9:
        return f"{value / 1e6:.4g}M"
    if 1e4 <= abs(value) < 1e6:
        return f"{value / 1e3:.4g}k"
    return f"{value:.4g}"


def _averaged(points: Sequence[Point]) -> tuple[list[Point], list[Point], list[Point]]:
    """Mean, minimum and maximum over groups of neighbors, at most _MOST_POINTS of them."""
    size = -(-len(points) // _MOST_POINTS)
    means, lows, highs = [], [], []
    for start in range(0, len(points), size):
        group = points[start : start + size]
        x = sum(x for x, _ in group) / len(group)
        values = [y for _, y in group]
        means.append((x, sum(values) / len(values)))
        lows.append((x, min(values)))
        highs.append((x, max(values)))
    return means, lows, highs


def _nice(low: float, high: float, *, whole: bool = False) -> list[float]:
    """Round numbers from at most `low` to at least `high`, in steps of 1, 2 or 5 times a power of ten."""
    if low == high:
        margin = 1.0 if whole else abs(low) * 0.1 or 1.0
        # Counts and shares are never below 0.
        low, high = max(low - margin, min(low, 0.0)), high + margin
    raw = (high - low) / _TICKS
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    if whole:
        step = max(1.0, step)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def _powers(low: float, high: float) -> list[float]:
    """Powers of ten from at most `low` to at least `high`; for few of them also twice and five times them."""
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    factors = (1, 2, 5) if last - first <= 2 else (1,)
    step = 1 + (last - first) // 8
    powers = [factor * 10.0**power for power in range(first, last + step, step) for factor in factors]
    start = max(index for index, value in enumerate(powers) if value <= low * (1 + 1e-9))
    end = min(index for index, value in enumerate(powers) if value >= high * (1 - 1e-9))
    return powers[start : end + 1]


def _path(points: Sequence[Point]) -> str:
    return "M" + "L".join(f"{x:g},{y:g}" for x, y in points)
