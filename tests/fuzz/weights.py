"""Mutated headers and indexes of safetensors files."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import safetensors
from safetensors.numpy import save

from erniekit.checkpoint.header import read_header
from erniekit.checkpoint.hub import INDEX_FILE, read_array, read_index
from tests.fuzz.driver import mutated_bytes, mutated_value, put

_ARRAYS = {
    "a.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "b.bias": np.array([1.5, -2.0], np.float16),
    "c": np.array(7.0, np.float64),
    "empty": np.zeros((0, 4), np.float32),
}
_FILE = save(_ARRAYS, {"format": "pt"})
_LENGTH = int.from_bytes(_FILE[:8], "little")
_HEADER = json.loads(_FILE[8 : 8 + _LENGTH])
_DATA = _FILE[8 + _LENGTH :]
_SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def safetensors_header(rng: random.Random, directory: Path) -> None:
    """What is accepted is a file that the safetensors library accepts too, with the same bytes for each tensor."""
    file = directory / "model.safetensors"
    content = _mutated_file(rng)
    put(file, content)
    arrays = {name: read_array(info) for name, info in read_header(file).items()}
    try:
        library = dict(safetensors.deserialize(content))
    except safetensors.SafetensorError as error:
        raise AssertionError(f"accepted, and the library says: {error}") from error
    assert set(arrays) == set(library)
    for name, array in arrays.items():
        assert list(array.shape) == library[name]["shape"]
        assert array.tobytes() == bytes(library[name]["data"])


def _mutated_file(rng: random.Random) -> bytes:
    kind = rng.randrange(3)
    if kind == 0:
        return mutated_bytes(rng, _FILE)
    header = json.dumps(_HEADER).encode()
    if kind == 1:
        header = mutated_bytes(rng, header)
    else:
        value: object = _HEADER
        for _ in range(rng.randint(1, 3)):
            value = mutated_value(rng, value)
        header = json.dumps(value).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + _DATA


def safetensors_index(rng: random.Random, directory: Path) -> None:
    """What is accepted leads to files in the directory only."""
    for shard, names in zip(_SHARDS, (["a.weight"], ["b.bias", "c"]), strict=True):
        if not (directory / shard).exists():
            (directory / shard).write_bytes(save({name: _ARRAYS[name] for name in names}))
    index: object = {
        "metadata": {"total_size": 60},
        "weight_map": {"a.weight": _SHARDS[0], "b.bias": _SHARDS[1], "c": _SHARDS[1]},
    }
    if rng.random() < 0.5:
        content = mutated_bytes(rng, json.dumps(index).encode())
    else:
        for _ in range(rng.randint(1, 3)):
            index = mutated_value(rng, index)
        content = json.dumps(index).encode()
    put(directory / INDEX_FILE, content)
    found = read_index(directory)
    if any(info.file.resolve().parent != directory.resolve() for info in found.values()):
        raise AssertionError("a file outside the directory")
