import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erniekit.config.choices import Mix, Stop
from erniekit.data.load.mixture import Mixture, next_source, permutation
from erniekit.data.load.packing import plan_rows

SIZES = st.lists(st.integers(1, 60), min_size=1, max_size=5)


def mixture(
    mix: Mix, weights: list[float], stop: Stop = "first_exhausted", shuffle: bool = True, seed: int = 7
) -> Mixture:
    return Mixture(mix, stop, tuple(weights), shuffle, seed)


def by_source(order: np.ndarray, sizes: list[int]) -> list[list[int]]:
    ends = np.cumsum(sizes)
    source = np.searchsorted(ends, order, side="right")
    return [(order[source == s] - (ends[s] - sizes[s])).tolist() for s in range(len(sizes))]


@settings(max_examples=60, deadline=None)
@given(sizes=SIZES, epoch=st.integers(0, 4), shuffle=st.booleans())
def test_concat_has_every_sample_once(sizes: list[int], epoch: int, shuffle: bool) -> None:
    order = mixture("concat", [1.0] * len(sizes), shuffle=shuffle).order(sizes, epoch)
    assert sorted(order.tolist()) == list(range(sum(sizes)))
    if not shuffle:
        assert order.tolist() == list(range(sum(sizes)))


@pytest.mark.parametrize(("stop", "rounds"), [("first_exhausted", 3), ("all_exhausted", 5)])
@pytest.mark.parametrize("shuffle", [True, False])
def test_interleave_takes_a_sample_of_each_in_turn(stop: Stop, rounds: int, shuffle: bool) -> None:
    sizes = [3, 5]
    order = mixture("interleave", [1, 1], stop, shuffle).order(sizes, 0)
    assert len(order) == 2 * rounds
    assert [int(index >= 3) for index in order] == [0, 1] * rounds
    first, second = by_source(order, sizes)
    assert len(set(first[:3])) == 3 and len(set(second)) == len(second)


def test_what_one_epoch_leaves_the_next_takes() -> None:
    sizes, mix = [3, 5], mixture("interleave", [1, 1])
    drawn = [by_source(mix.order(sizes, epoch), sizes)[1] for epoch in range(5)]
    # 5 epochs of 3 draws are 3 passes over 5 samples.
    straight = [number for part in drawn for number in part]
    assert sorted(straight) == sorted([0, 1, 2, 3, 4] * 3)
    assert sorted(straight[:5]) == [0, 1, 2, 3, 4]


@settings(max_examples=60, deadline=None)
@given(sizes=SIZES, data=st.data())
def test_weighted_draws_are_exact_over_epochs(sizes: list[int], data: st.DataObject) -> None:
    weights = data.draw(st.lists(st.floats(0.1, 9), min_size=len(sizes), max_size=len(sizes)))
    mix = mixture("weighted", weights)
    counts = np.zeros(len(sizes))
    for epoch in range(4):
        parts = by_source(mix.order(sizes, epoch), sizes)
        counts += [len(part) for part in parts]
        for size, part in zip(sizes, parts, strict=True):
            # No sample comes again before the others of its source have come.
            assert max(np.bincount(part, minlength=size)) <= len(part) // size + 2 if part else True
    expected = np.asarray(weights) / sum(weights) * sum(sizes) * 4
    assert np.all(np.abs(counts - expected) <= 0.5 + 1e-9)


def test_weighted_without_shuffling_spreads_sources_evenly() -> None:
    order = mixture("weighted", [1, 3], shuffle=False).order([4, 4], 0)
    assert order.tolist() == [4, 0, 5, 6, 7, 1, 4, 5]


def test_epochs_and_seeds_differ_and_repeat() -> None:
    orders = {
        (seed, epoch): mixture("weighted", [1, 2], seed=seed).order([30, 30], epoch).tolist()
        for seed in (1, 2)
        for epoch in (0, 1)
    }
    assert len({tuple(order) for order in orders.values()}) == 4
    assert mixture("weighted", [1, 2], seed=1).order([30, 30], 1).tolist() == orders[1, 1]


def test_the_order_is_the_same_on_every_machine_and_version() -> None:
    assert permutation(8, 42, 1).tolist() == [7, 3, 4, 2, 5, 6, 0, 1]


def test_a_weighted_stream_keeps_its_shares() -> None:
    drawn = [0, 0, 0]
    for _ in range(1000):
        drawn[next_source([1, 2, 5], drawn)] += 1
    assert drawn == [125, 250, 625]


def test_rows_of_an_epoch_do_not_go_from_long_documents_to_short_ones() -> None:
    lengths = np.tile([30, 35, 40], 160)
    mix = mixture("concat", [1])
    packed = plan_rows(mix.order([480], 0), lengths, np.ones(480, np.int64), 200)
    ordered = mix.order_rows(packed, 0)
    assert sorted(ordered) == sorted(packed)
    means = [[lengths[list(row)].mean() for row in rows] for rows in (packed, ordered)]
    trends = [np.corrcoef(np.arange(len(packed)), values)[0, 1] for values in means]
    assert trends[0] < -0.8 and abs(trends[1]) < 0.3
    assert mix.order_rows(packed, 0) == ordered != mix.order_rows(packed, 1)
    assert mixture("concat", [1], shuffle=False).order_rows(packed, 0) == packed
