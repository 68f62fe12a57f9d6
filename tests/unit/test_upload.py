"""Uploads to a GPU, with stand-ins for its memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle
import pytest

from erniekit.upload import AsyncUpload


def test_arrays_keep_their_values_and_types() -> None:
    upload = AsyncUpload()
    for dtype in (np.int64, np.int32, np.uint8, np.float32):
        array = np.arange(6, dtype=dtype).reshape(2, 3)
        for part in (array, array[:, 1:], array[:0]):
            found = upload(part).numpy()
            assert found.dtype == dtype
            np.testing.assert_array_equal(found, part)


def test_on_a_gpu_pinned_memory_is_kept_and_nothing_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[np.ndarray] = []

    class Pinned:
        def __init__(self, array: np.ndarray, place: str) -> None:
            assert place == "pinned"
            self.array = array
            alive.append(array)

        def __del__(self) -> None:
            alive[:] = [other for other in alive if other is not self.array]

        def cuda(self, *, blocking: bool) -> Any:
            assert not blocking
            return ("device", self.array)

    monkeypatch.setattr(paddle, "get_device", lambda: "gpu:1")
    monkeypatch.setattr(paddle, "CUDAPinnedPlace", lambda: "pinned")
    monkeypatch.setattr(paddle, "to_tensor", Pinned)
    upload, arrays = AsyncUpload(), [np.arange(3), np.ones(2)]
    for array in arrays:
        assert upload(array) == ("device", array)
    assert len(alive) == 2
    # Nothing to copy.
    assert upload(np.zeros([0, 588], np.uint8)).shape == [0, 588]
    assert len(alive) == 2
    del upload
    assert not alive
