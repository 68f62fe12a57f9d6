from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from erniekit.evaluation.metrics.boxes import MOST_BOXES, best_pairs, box_iou, box_iou_50, find_boxes, iou

UNIT, HALF, FAR = "[0, 0, 10, 10]", "[0, 0, 10, 5]", "[50, 50, 60, 60]"


@pytest.mark.parametrize(
    ("text", "boxes"),
    [
        ("the cat is at [1, 2, 3.5, 4].", [(1, 2, 3.5, 4)]),
        ('[{"bbox_2d": [10,20, 30,40], "label": "猫"}, {"bbox_2d": [0, 0, 5, 5]}]', [(10, 20, 30, 40), (0, 0, 5, 5)]),
        ("[[1, 2, 3, 4], [5, 6, 7, 8]]", [(1, 2, 3, 4), (5, 6, 7, 8)]),
        ("[30, 40, 10, 20]", [(10, 20, 30, 40)]),
        ("[-1, 0, 1, 2]", [(-1, 0, 1, 2)]),
        ("<|LOC_1|><|LOC_2|><|LOC_30|><|LOC_40|>", [(1, 2, 30, 40)]),
        ("<|LOC_BEGIN|><|LOC_1|><|LOC_2|><|LOC_SEP|><|LOC_3|><|LOC_4|><|LOC_END|>", [(1, 2, 3, 4)]),
        ("cat <|LOC_1|><|LOC_2|><|LOC_9|><|LOC_2|><|LOC_9|><|LOC_8|><|LOC_1|><|LOC_8|>", [(1, 2, 9, 8)]),
        (
            "a <|LOC_1|><|LOC_2|><|LOC_3|><|LOC_4|> b <|LOC_5|> <|LOC_6|><|LOC_7|><|LOC_8|>",
            [(1, 2, 3, 4), (5, 6, 7, 8)],
        ),
        ("".join(f"<|LOC_{n}|>" for n in range(12)), [(0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 10, 11)]),
        ("<|LOC_1|><|LOC_2|><|LOC_3|>", []),
        ("[1, 2, 3]", []),
        ("[1, 2, 3, 4, 5]", []),
        ("", []),
    ],
)  # fmt: skip
def test_find_boxes(text: str, boxes: list[tuple[float, ...]]) -> None:
    assert find_boxes(text) == boxes


def test_iou() -> None:
    assert iou((0, 0, 10, 10), (0, 0, 10, 10)) == 1
    assert iou((0, 0, 10, 10), (5, 5, 15, 15)) == pytest.approx(25 / 175)
    assert iou((0, 0, 10, 10), (10, 0, 20, 10)) == 0
    assert iou((0, 0, 10, 10), (20, 20, 30, 30)) == 0
    assert iou((3, 3, 3, 3), (3, 3, 3, 3)) == 1
    assert iou((3, 3, 3, 3), (0, 0, 9, 9)) == 0


@pytest.mark.parametrize(
    ("answer", "reference", "mean", "share"),
    [
        (UNIT, UNIT, 1, 1),
        (HALF, UNIT, 0.5, 1),
        (FAR, UNIT, 0, 0),
        ("", UNIT, 0, 0),
        # The order does not count; missing and extra boxes do.
        (f"{FAR} {UNIT}", f"{UNIT} {FAR}", 1, 1),
        (UNIT, f"{UNIT} {FAR}", 0.5, 0.5),
        (f"{UNIT} {FAR} {FAR}", UNIT, 1 / 3, 1 / 3),
        (UNIT, "no box", None, None),
    ],
)
def test_boxes_are_paired(answer: str, reference: str, mean: float | None, share: float | None) -> None:
    assert box_iou(answer, reference) == (None if mean is None else pytest.approx(mean))
    assert box_iou_50(answer, reference) == (None if share is None else pytest.approx(share))


def test_the_best_pairs_are_taken_not_the_nearest_first() -> None:
    gains = np.array([[0.9, 0.8], [0.8, 0.0]])
    assert sorted(best_pairs(gains)) == [0.8, 0.8]
    rng = np.random.default_rng(5)
    for _ in range(300):
        rows = int(rng.integers(1, 5))
        gains = rng.random((rows, int(rng.integers(rows, 6)))) * (rng.random((rows, 1)) > 0.2)
        columns = permutations(range(gains.shape[1]), rows)
        most = max(sum(gains[row, column] for row, column in enumerate(choice)) for choice in columns)
        pairs = best_pairs(gains)
        assert len(pairs) == rows and sum(pairs) == pytest.approx(most)


def test_very_many_boxes_end() -> None:
    answer = " ".join(f"[{n}, 0, {n + 1}, 1]" for n in range(3 * MOST_BOXES))
    found = box_iou(answer, answer)
    assert found == pytest.approx(1 / 3)
