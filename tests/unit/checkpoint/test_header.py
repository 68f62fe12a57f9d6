"""Headers and indexes of safetensors files that others wrote: what is wrong is named, with its file and tensor."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from erniekit.checkpoint.header import read_header, read_metadata
from erniekit.checkpoint.hub import INDEX_FILE, check_against, read_index, write_shards
from erniekit.errors import CheckpointError
from erniekit.models.specs import TensorSpec


def entry(begin: Any, end: Any, shape: Any = (2,), dtype: Any = "F32") -> dict[str, Any]:
    shape = list(shape) if isinstance(shape, tuple) else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def written(directory: Path, header: object, data: int = 16) -> Path:
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    file = directory / "model.safetensors"
    file.write_bytes(len(content).to_bytes(8, "little") + content + bytes(data))
    return file


GOOD = {"a": entry(0, 8), "b": entry(8, 16)}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"a": entry(-8, 0), "b": entry(0, 16, (4,))}, r"a has the data_offsets \[-8, 0\]"),
        ({"a": entry(0, 8), "b": entry(4, 12)}, "b overlaps a"),
        ({"a": entry(0, 8), "b": entry(0, 8)}, "b overlaps a"),
        ({"a": entry(4, 12), "b": entry(12, 20)}, "a leaves a gap after the header"),
        ({"a": entry(0, 4, (1,)), "b": entry(8, 16)}, "b leaves a gap after a"),
        ({"a": entry(0, 8)}, "8 bytes at its end belong to no tensor"),
        ({"a": entry(0, 8), "b": entry(8, 24, (4,))}, "cut off: b ends at byte"),
        ({"a": entry(0, 16)}, r"a is F32 \[2\], 8 bytes, and its data_offsets give 16"),
        ({"a": entry(8, 0)}, r"a has the data_offsets \[8, 0\]"),
        ({"a": entry(0.0, 8)}, r"a has the data_offsets \[0.0, 8\]"),
        ({"a": entry(False, 8)}, r"a has the data_offsets \[false, 8\]"),
        ({"a": entry(0, 8, (2.0,))}, r"a has the shape \[2.0\]"),
        ({"a": entry(0, 8, (-2, -1))}, r"a has the shape \[-2, -1\]"),
        ({"a": entry(0, 8, 2)}, "a has the shape 2"),
        ({"a": entry(0, 0, (0, 1 << 50, 1 << 50))}, r"a has the shape \[0, "),
        ({"a": entry(0, 8, (1,) * 70)}, r"a has the shape \[1, "),
        ({"a": entry(0, 8, dtype="F8_E4M3")}, "a has the element type F8_E4M3, which is not supported"),
        ({"a": entry(0, 8, dtype=["F32"])}, "a has the element type"),
        ({"a": {"dtype": "F32", "shape": [2]}}, "a has the data_offsets null"),
        ({"a": 1}, "the entry of a is not an object"),
        ({"__metadata__": {"format": 1}, **GOOD}, "__metadata__ must be an object of strings"),
        ({"__metadata__": ["pt"], **GOOD}, "__metadata__ must be an object of strings"),
        ([GOOD], "is not a JSON object"),
        (b'{"a": %b, "a": %b}' % ((json.dumps(GOOD["a"]).encode(),) * 2), "the key a is there twice"),
        (b'{"\\ud800": 1}', "half a surrogate pair"),
        (b'{"a\n": 1}', "damaged: .*control character"),
        (b'{"a": ' + b"[" * 100_000, "nested too deeply"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "damaged: .*digits"),
        (b"\xff\xfe{}", "not UTF-8"),
        ({"a\r" + "x" * 500: 1}, r"the entry of a.x{50,90}\.\.\. is not an object"),
    ],
)
def test_bad_headers(tmp_path: Path, header: object, message: str) -> None:
    with pytest.raises(CheckpointError, match=r"model\.safetensors: .*" + message) as caught:
        read_header(written(tmp_path, header))
    assert str(caught.value).isprintable()


def test_a_good_header_in_any_order(tmp_path: Path) -> None:
    found = read_header(written(tmp_path, {"__metadata__": {"format": "pt"}, "b": GOOD["b"], "a": GOOD["a"]}))
    assert [(info.name, info.shape, info.nbytes) for info in found.values()] == [
        ("b", (2,), 8),
        ("a", (2,), 8),
    ]
    assert found["b"].offset == found["a"].offset + 8
    assert read_metadata(tmp_path / "model.safetensors") == {"format": "pt"}


@pytest.mark.parametrize("length", [1 << 63, 101 << 20, 9])
def test_an_absurd_length(tmp_path: Path, length: int) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(length.to_bytes(8, "little") + b"{}")
    with pytest.raises(CheckpointError, match="not a safetensors file, or cut off"):
        read_header(file)


def test_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="it is a pipe or a device"):
        read_header(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        (
            {"a": "../other/model.safetensors"},
            r"a is in \.\./other/model.safetensors, which is not the name of a file",
        ),
        ({"a": "/etc/passwd"}, "a is in /etc/passwd, which is not the name of a file"),
        ({"a": ".."}, "a is in .., which is not the name of a file"),
        ({"a": ""}, "a is in , which is not the name of a file"),
        ({"a": "x\0"}, "which is not the name of a file"),
        ({"a": "x" * 300}, "which is not the name of a file"),
        ({"a": ["x"]}, "which is not the name of a file"),
        (["a"], "weight_map must be an object"),
        (None, "weight_map must be an object"),
        ({"a": "none.safetensors"}, r"shards that are not there: none\.safetensors"),
        ({"z": "model-00001-of-00002.safetensors"}, "the index lists tensors that no shard holds:\n  z"),
        (
            {"a": "model-00002-of-00002.safetensors", "b": "model-00001-of-00002.safetensors"},
            "lists a in model-00002-of-00002.safetensors, and it is in model-00001-of-00002",
        ),
    ],
)
def test_bad_indexes(tmp_path: Path, weight_map: object, message: str) -> None:
    specs = [TensorSpec(name, "F32", (2,)) for name in "ab"]
    write_shards(tmp_path, specs, lambda _: np.zeros(2, np.float32), max_shard_bytes=8)
    (tmp_path / INDEX_FILE).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match=message):
        read_index(tmp_path)


def test_quantized_weights_are_not_read_as_numbers(tmp_path: Path) -> None:
    save_file({"a": np.zeros(2, np.int8)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="1 tensors are not floating-point numbers:\n  a is I8"):
        check_against(read_index(tmp_path), [TensorSpec("a", "F32", (2,))], "here")


def test_an_absurd_number_of_shards(tmp_path: Path) -> None:
    save_file({"a": np.zeros(2, np.float32)}, tmp_path / f"model-1-of-{'9' * 12}.safetensors")
    assert set(read_index(tmp_path)) == {"a"}
