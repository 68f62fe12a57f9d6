"""Steps that are not finite, of several processes: what they say and save together."""

import math
from dataclasses import replace
from pathlib import Path

import paddle
import pytest

from erniekit.errors import ErnieKitError
from erniekit.optim.adamw import AdamW
from erniekit.train.nonfinite import NonFinitePolicy, StepNumbers
from erniekit.train.saved_rows import load_rows
from tests.unit.objectives.rows import make_row


class Processes:
    """Stands in for a DistributedContext of rank 1: `others` answers for the other process, call by call."""

    class mesh:
        rank = 1

    def __init__(self, *others: list[str]) -> None:
        self.others = list(others)

    def all_gather_object(self, value: list[str]) -> list[list[str]]:
        return [self.others.pop(0), value]


def optimizer(*, bad: bool = False) -> AdamW:
    weights = [paddle.ones([2]) for _ in range(2)]
    for weight in weights:
        weight.stop_gradient = False
    (weights[0].sum() + weights[1].sum() * (math.nan if bad else 1.0)).backward()
    return AdamW([("first", weights[0]), ("second", weights[1])])


def numbers(loss: float, norm: float, total: float | None = None) -> StepNumbers:
    row = replace(make_row([3, 4]), media_names=((), ()))
    return StepNumbers(12, [row], [loss], loss if total is None else total, norm)


def test_a_process_without_a_bad_row_says_what_the_others_say(tmp_path: Path) -> None:
    policy = NonFinitePolicy("stop", tmp_path, dist=Processes(["b.jsonl:9"], [""]))
    with pytest.raises(
        ErnieKitError, match=r"step 12: the loss is not a finite number in the samples b\.jsonl:9\."
    ):
        policy.accepts(numbers(1.0, math.nan, math.nan), optimizer(), 0)
    assert not list(tmp_path.iterdir())


def test_gradients_of_all_processes_are_named_and_all_rows_saved(tmp_path: Path) -> None:
    policy = NonFinitePolicy("stop", tmp_path, dist=Processes(["zeroth"], ["b.jsonl:9"], [""]))
    message = (
        r"the gradient norm is nan, in the gradients of zeroth, second, with the samples b\.jsonl:9, a:0, a:1"
    )
    with pytest.raises(ErnieKitError, match=message):
        policy.accepts(numbers(1.0, math.nan), optimizer(bad=True), 0)
    saved = load_rows(tmp_path / "step-000012")
    assert saved.step == 12 and len(saved.rows) == 1
    assert saved.rows[0].sample_ids[:2] == ("a:0", "a:1")


def test_rows_that_cannot_be_saved_hide_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    policy = NonFinitePolicy("stop", tmp_path / "file")
    with pytest.raises(
        ErnieKitError, match=r"(?s)step 12: the loss is .*rows cannot be saved: Not a directory"
    ):
        policy.accepts(numbers(math.nan, math.nan), optimizer(), 0)


def test_so_many_steps_are_saved_and_no_more(tmp_path: Path) -> None:
    lines: list[str] = []
    policy = NonFinitePolicy("skip", tmp_path, lines.append)
    for step in range(1, 13):
        assert not policy.accepts(replace(numbers(math.inf, 1.0), step=step), optimizer(), 0)
    assert len(list(tmp_path.iterdir())) == 10
    assert "erniekit replay" in lines[9] and "erniekit replay" not in lines[10]
