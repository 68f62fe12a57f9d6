"""Copies that training does not change, in memory that is used again."""

from __future__ import annotations

import numpy as np

from erniekit.checkpoint.host_copy import HostCopy


def test_a_copy_keeps_its_values_and_the_next_one_uses_its_memory() -> None:
    shapes = [((3, 4), np.float32), ((), np.float32), ((0, 2), np.uint16), ((5,), np.uint16)]
    arrays = [np.full(shape, number, dtype) for number, (shape, dtype) in enumerate(shapes)]
    memory = HostCopy()
    first = memory.copy(iter(arrays))
    size = memory.nbytes
    assert size == sum(array.nbytes for array in arrays)
    for array in arrays:
        array += 10
    for number, (copy, (shape, dtype)) in enumerate(zip(first, shapes, strict=True)):
        np.testing.assert_array_equal(copy, np.full(shape, number, dtype))
        assert copy.dtype == dtype
    second = memory.copy(iter(arrays))
    assert memory.nbytes == size
    for one, other, array in zip(first, second, arrays, strict=True):
        np.testing.assert_array_equal(other, array)
        assert not one.size or np.shares_memory(one, other)
    third = memory.copy([np.ones(7), *arrays[1:], np.ones(2)])
    assert [copy.size for copy in third] == [7, 1, 0, 5, 2]
