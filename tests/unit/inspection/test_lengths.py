"""Percentiles and histograms of lengths, compared with their definitions."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from erniekit.inspection.lengths import Lengths, edges_for


def lengths(*values: int) -> Lengths:
    found = Lengths()
    for value in values:
        found.add(value)
    return found


@pytest.mark.parametrize(
    ("percent", "expected"), [(50, 50), (90, 90), (99, 99), (100, 100)], ids=["p50", "p90", "p99", "max"]
)
def test_percentiles_of_one_to_a_hundred(percent: int, expected: int) -> None:
    assert lengths(*range(1, 101)).percentile(percent) == expected


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=60), st.integers(1, 100))
def test_a_percentile_is_a_value_that_its_share_does_not_exceed(values: list[int], percent: int) -> None:
    expected = sorted(values)[math.ceil(len(values) * percent / 100) - 1]
    assert lengths(*values).percentile(percent) == expected


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=60))
def test_buckets_hold_each_length_once(values: list[int]) -> None:
    found = lengths(*values)
    lower = -1
    for bucket in found.buckets(edges_for(found.longest())):
        assert bucket.documents == sum(lower < value <= bucket.up_to for value in values)
        lower = bucket.up_to
    assert lower >= max(values)


def test_edges_double_and_reach_the_longest() -> None:
    assert edges_for(0) == [16]
    assert edges_for(16) == [16]
    assert edges_for(17) == [16, 32]
    assert edges_for(8192)[-2:] == [4096, 8192]


def test_of_nothing_everything_is_zero() -> None:
    nothing = lengths()
    assert (nothing.percentile(50), nothing.longest(), nothing.total(), nothing.over(0)) == (0, 0, 0, 0)


def test_over_counts_only_what_exceeds() -> None:
    assert lengths(7, 8, 9, 9).over(8) == 2
