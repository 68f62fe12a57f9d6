"""A random sample of a stream of unknown length."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import numpy as np

Item = TypeVar("Item")


def reservoir_sample(items: Iterable[Item], count: int, seed: int) -> list[Item]:
    """A uniform random sample of `count` items, in their original order; all items if there are fewer.

    Keeps `count` items in memory: algorithm R of Vitter 1985, "Random Sampling with a Reservoir".
    """
    generator = np.random.default_rng(seed)
    drawn: list[tuple[int, Item]] = []
    for number, item in enumerate(items):
        place = number if number < count else int(generator.integers(number + 1))
        if place < count:
            drawn[place : place + 1] = [(number, item)]
    return [item for _, item in sorted(drawn, key=lambda entry: entry[0])]
