"""Writing the weight files of a layout."""

from __future__ import annotations

import threading
import weakref
from pathlib import Path

import numpy as np
import pytest

from erniekit.checkpoint.hub import read_array, read_index
from erniekit.checkpoint.tensor_layouts import StoredTensor
from erniekit.errors import CheckpointError
from erniekit.export import writer
from erniekit.export.writer import WeightsWriter
from erniekit.models.specs import TensorSpec

_NAMES = [f"tensor{number}" for number in range(12)]


def _writer() -> WeightsWriter:
    specs = [TensorSpec(name, "F32", (256,)) for name in _NAMES]
    return WeightsWriter("hub", [StoredTensor(spec, (spec,), False) for spec in specs], 4096)


def test_tensors_that_are_read_ahead_are_written_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Room for three tensors.
    monkeypatch.setattr(writer, "_AHEAD_BYTES", 3 * 1024)
    held, most, lock = set[str](), 0, threading.RLock()

    def get(name: str) -> np.ndarray:
        nonlocal most
        array = np.full(256, float(name.removeprefix("tensor")), np.float32)
        with lock:
            held.add(name)
            most = max(most, len(held))
        weakref.finalize(array, free, name)
        return array

    def free(name: str) -> None:
        with lock:
            held.discard(name)

    _writer().write(tmp_path, get, ahead=True)
    found = read_index(tmp_path)
    assert [float(read_array(found[name])[0]) for name in _NAMES] == list(range(12))
    assert 1 < most <= 3


def test_an_error_of_a_tensor_ends_the_reading(tmp_path: Path) -> None:
    def get(name: str) -> np.ndarray:
        if name == _NAMES[3]:
            raise CheckpointError("a damaged file")
        return np.zeros(256, np.float32)

    with pytest.raises(CheckpointError, match="a damaged file"):
        _writer().write(tmp_path, get, ahead=True)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read")]


def test_a_tensor_that_is_larger_than_all_that_is_read_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "_AHEAD_BYTES", 1)
    _writer().write(tmp_path, lambda _: np.ones(256, np.float32), ahead=True)
    assert len(read_index(tmp_path)) == 12
