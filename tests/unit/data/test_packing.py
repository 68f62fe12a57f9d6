import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erniekit.data.packing import plan_epoch

LENGTHS = st.lists(st.integers(1, 64), max_size=600)


@settings(max_examples=150, deadline=None)
@given(
    lengths=LENGTHS,
    room=st.integers(64, 300),
    shuffle=st.booleans(),
    seed=st.integers(0, 2**32),
    epoch=st.integers(0, 9),
)
def test_every_document_once_and_no_row_over_its_budget(
    lengths: list[int], room: int, shuffle: bool, seed: int, epoch: int
) -> None:
    rows = plan_epoch(lengths, max_length=room, shuffle=shuffle, seed=seed, epoch=epoch)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(row and sum(lengths[index] for index in row) <= room for row in rows)
    assert rows == plan_epoch(lengths, max_length=room, shuffle=shuffle, seed=seed, epoch=epoch)


@settings(max_examples=100, deadline=None)
@given(lengths=LENGTHS, room=st.integers(64, 300))
def test_no_row_but_the_last_is_half_empty(lengths: list[int], room: int) -> None:
    rows = plan_epoch(lengths, max_length=room, shuffle=True, seed=1, epoch=0)
    # What a later row begins with was waiting, or came later and was as short: it did not fit.
    for row in rows[:-1]:
        assert sum(lengths[index] for index in row) > room - 64


def test_the_order_depends_on_seed_and_epoch() -> None:
    plans = [
        plan_epoch([8] * 100, max_length=32, shuffle=True, seed=seed, epoch=epoch)
        for seed, epoch in ((1, 0), (1, 1), (2, 0), (2, 1))
    ]
    assert len({tuple(plan) for plan in plans}) == 4


def test_without_shuffling_rows_begin_in_the_order_of_the_file() -> None:
    rows = plan_epoch([5, 9, 3, 2, 6, 4], max_length=10, shuffle=False, seed=0, epoch=3)
    # 5, then of what fits the longest; 9 next, as it has waited longest.
    assert rows == [(0, 5), (1,), (2, 4), (3,)]


def test_the_order_is_the_same_on_every_machine_and_version() -> None:
    assert plan_epoch([1] * 8, max_length=3, shuffle=True, seed=42, epoch=1) == [(7, 3, 4), (2, 5, 6), (0, 1)]


def test_rows_are_nearly_full() -> None:
    generator = np.random.default_rng(0)
    lengths = np.clip(generator.lognormal(5.5, 0.9, 5000), 8, 2048).astype(int).tolist()
    rows = plan_epoch(lengths, max_length=2048, shuffle=True, seed=0, epoch=0)
    assert sum(lengths) / (len(rows) * 2048) > 0.99


def test_nothing_and_too_much() -> None:
    assert plan_epoch([], max_length=8, shuffle=True, seed=0, epoch=0) == []
    with pytest.raises(ValueError, match="a document of 9 tokens does not fit in a row of 8"):
        plan_epoch([3, 9], max_length=8, shuffle=True, seed=0, epoch=0)
