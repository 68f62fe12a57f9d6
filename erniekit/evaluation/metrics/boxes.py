"""Intersection over union of the boxes in an answer and its reference (grounding)."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

Box = tuple[float, float, float, float]  # left, top, right, bottom, in the unit of the data

_NUMBER = r"\s*(-?\d+(?:\.\d+)?)\s*"
_LIST = rf"\[{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}\]"
_LOCATIONS = r"(?:<\|LOC_\d+\|>(?:\s|<\|LOC_SEP\|>)*)+"
_BOXES = re.compile(f"{_LIST}|({_LOCATIONS})")
_LOCATION = re.compile(r"<\|LOC_(\d+)\|>")
_CORNERS = 8  # numbers of a quadrilateral
# More are not compared: the time is cubic.
MOST_BOXES = 200


def find_boxes(text: str) -> list[Box]:
    """The boxes in a text, in order: lists [x1, y1, x2, y2] in JSON or between words, and ERNIE's location tokens.

    Adjacent <|LOC_n|> tokens in multiples of eight are the corners of quadrilaterals (as in PaddleOCR-VL), and give
    their bounding boxes; any other number of tokens is read as boxes of four. <|LOC_SEP|> between tokens and
    <|LOC_BEGIN|> and <|LOC_END|> around them are ignored.
    """
    found: list[Box] = []
    for match in _BOXES.finditer(text):
        if match[5] is None:
            found.append(_upright([float(match[place]) for place in range(1, 5)]))
            continue
        numbers = [float(number) for number in _LOCATION.findall(match[5])]
        size = 4 if len(numbers) % _CORNERS else _CORNERS
        for start in range(0, len(numbers) - size + 1, size):
            found.append(_upright(numbers[start : start + size]))
    return found


def _upright(numbers: Sequence[float]) -> Box:
    """The bounding box of points given as x, y, x, y, ..."""
    return min(numbers[::2]), min(numbers[1::2]), max(numbers[::2]), max(numbers[1::2])


def iou(first: Box, second: Box) -> float:
    """Area of the intersection over area of the union (Jaccard index); 1 for equal boxes without area."""
    if first == second:
        return 1.0
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    if width <= 0 or height <= 0:
        return 0.0
    common = width * height
    return common / (_area(first) + _area(second) - common)


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def box_ious(answer: str, reference: str) -> list[float] | None:
    """The IoU of each pair of boxes; None if the reference has no box.

    Boxes of reference and answer are paired so that the sum of IoUs is largest. Unpaired boxes of either count as 0, so
    that extra boxes do not help.
    """
    wanted = find_boxes(reference)[:MOST_BOXES]
    if not wanted:
        return None
    found = find_boxes(answer)
    few, many = sorted((wanted, found[:MOST_BOXES]), key=len)
    paired = best_pairs(np.array([[iou(one, other) for other in many] for one in few])) if few else []
    return [*paired, *[0.0] * (max(len(wanted), len(found)) - len(paired))]


def box_iou(answer: str, reference: str) -> float | None:
    """The mean of `box_ious`."""
    found = box_ious(answer, reference)
    return None if found is None else sum(found) / len(found)


def box_iou_50(answer: str, reference: str) -> float | None:
    """The share of `box_ious` that are at least 0.5: with one box each, accuracy at 0.5 (Mao et al. 2016, RefCOCOg)."""
    found = box_ious(answer, reference)
    return None if found is None else sum(value >= 0.5 for value in found) / len(found)


def best_pairs(gains: np.ndarray) -> list[float]:
    """Pairs each row with a different column so that the sum of gains is largest; returns the gains of the pairs.

    gains: float64 [rows, columns], at least as many columns as rows. The assignment problem, row by row along
    shortest augmenting paths: Jonker and Volgenant 1987.
    """
    rows, columns = gains.shape
    row_of = np.full(columns, -1)
    price = np.zeros(columns)
    for new in range(rows):
        distance, before = np.full(columns, np.inf), np.full(columns, -1)
        is_open = np.ones(columns, bool)
        row, column, start = new, -1, 0.0
        while row >= 0:
            path = start - gains[row] - price
            nearer = is_open & (path < distance)
            distance[nearer], before[nearer] = path[nearer], column
            column = int(np.argmin(np.where(is_open, distance, np.inf)))
            is_open[column] = False
            row = int(row_of[column])
            # Dissolving a pair refunds its cost.
            start = distance[column] + gains[row, column] + price[column]
        reached = ~is_open
        price[reached] += distance[reached] - distance[column]
        while column >= 0:
            row_of[column] = new if before[column] < 0 else row_of[before[column]]
            column = int(before[column])
    return [float(gains[row, column]) for column, row in enumerate(row_of.tolist()) if row >= 0]
