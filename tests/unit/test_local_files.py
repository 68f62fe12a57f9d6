"""Git LFS pointers are recognized wherever files are read."""

from __future__ import annotations

import errno
import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest

from erniekit import local_files
from erniekit.checkpoint.header import read_header
from erniekit.data.files.reader import read_records
from erniekit.errors import CheckpointError, DataError, ErnieKitError, VerifyError
from erniekit.export.reference import compare_with_reference
from erniekit.local_files import (
    is_lfs_pointer,
    is_web_page,
    most_values,
    read_json_lines,
    read_json_object,
    replacing,
    unfinished_downloads,
)
from erniekit.lora.adapters import read_adapter_config, read_adapter_index

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 12345\n"
WORDS = "is a Git LFS pointer, not the file: run `git lfs pull` in"


def pointer(directory: Path, name: str) -> Path:
    file = directory / name
    file.write_bytes(POINTER)
    return file


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.parquet", "a.csv", "a.txt", "a.jsonl.gz", "a"])
def test_data_files(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=rf"{name}: {WORDS} {tmp_path}"):
        list(read_records(pointer(tmp_path, name)))


def test_text_about_pointers_is_text(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(POINTER * 20)
    assert len(list(read_records(file))) == 1
    packed = tmp_path / "b.jsonl.gz"
    packed.write_bytes(gzip.compress(b'{"text": "version https://git-lfs.github.com/spec/v1"}\n'))
    assert len(list(read_records(packed))) == 1


def test_adapters_and_references(tmp_path: Path) -> None:
    pointer(tmp_path, "adapter_config.json")
    pointer(tmp_path, "adapter_model.safetensors")
    for read in (read_adapter_config, read_adapter_index):
        with pytest.raises(CheckpointError, match=WORDS):
            read(tmp_path)
    with pytest.raises(VerifyError, match=WORDS):
        compare_with_reference(tmp_path, pointer(tmp_path, "reference.npz"))


def test_what_is_no_pointer() -> None:
    assert is_lfs_pointer(POINTER) and is_lfs_pointer(b"\xef\xbb\xbf" + POINTER)
    for content in (
        b"",
        b"version 2",
        b'{"version https://git-lfs.github.com/spec/v1": 1}',
        POINTER + b"x" * 1024,
    ):
        assert not is_lfs_pointer(content)
    assert is_web_page(b" <HTML lang=en>") and not is_web_page(b"a <html>")


@pytest.mark.parametrize("content", [b"[1]", b'"a"', b"null", b"", b'{"a": 1', b"\x80", b"[" * 100000])
def test_json_that_is_no_object(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "x.json"
    file.write_bytes(content)
    with pytest.raises(ErnieKitError, match=r"x\.json"):
        read_json_object(file)
    file.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json_object(file) == {"a": 1}
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_json_object(tmp_path)


def test_downloads_that_have_not_ended(tmp_path: Path) -> None:
    assert unfinished_downloads(tmp_path) == []
    np.savez(tmp_path / "done.npz")
    (tmp_path / "model.safetensors.aria2").touch()
    (tmp_path / "b.part").touch()
    assert unfinished_downloads(tmp_path) == ["b.part", "model.safetensors.aria2"]


def test_json_with_a_key_twice(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_text('{"a": {"b": 1, "b": 2}}')
    with pytest.raises(CheckpointError, match=r"x\.json: not valid JSON: the key b is there twice"):
        read_json_object(file)


def test_json_of_many_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_files, "_JSON_VALUES", 1000)
    file = tmp_path / "x.json"
    file.write_text('{"a": [' + "[]," * 600 + "[]]}")
    with pytest.raises(CheckpointError, match=r"x\.json: not valid JSON: more than 1,000 values"):
        read_json_object(file)
    with pytest.raises(CheckpointError, match="damaged: more than 1,000 values"):
        read_header(write_header(tmp_path / "x.safetensors", file.read_bytes()))


def write_header(file: Path, header: bytes) -> Path:
    file.write_bytes(len(header).to_bytes(8, "little") + header)
    return file


@pytest.mark.parametrize("text", ["{}", '{"a": 1}', "[1, 2, 3]", '[[], {}, {"a": [1]}]', '"a, b"'])
def test_most_values_is_an_upper_bound(text: str) -> None:
    def values(value: object) -> int:
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        return 1 + sum(map(values, inner))

    assert most_values(text) == most_values(text.encode())
    assert values(json.loads(text)) <= most_values(text) + 1  # the outermost


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "new" / "config.yaml"
    with replacing(target) as file:
        file.write("before")
    with pytest.raises(OSError, match="full"), replacing(target) as file:
        file.write("af")
        assert target.read_text() == "before"
        raise OSError(errno.ENOSPC, "full")
    assert target.read_text() == "before"
    assert [path.name for path in target.parent.iterdir()] == ["config.yaml"]


def test_lines_that_were_cut_off_are_left_out(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    file.write_bytes(b'{"step": 1}\n{"st{"step": 2}\n3\n\0\0\xff\n{"step": 4, "x": NaN}\n{"step": 5')
    assert [line["step"] for line in read_json_lines(file)] == [1, 4]


def test_lines_that_nothing_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_files, "_LINE_BYTES", 1000)
    file = tmp_path / "log.jsonl"
    file.write_bytes(b'{"step": 1}\n' + b'{"a":' * 100_000 + b"\n" + b"\0" * 10_000 + b'\n{"step": 2}\n')
    assert [line["step"] for line in read_json_lines(file)] == [1, 2]
    monkeypatch.setattr(local_files, "_LINE_BYTES", 1 << 20)
    assert [line["step"] for line in read_json_lines(file)] == [1, 2]
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="a pipe or a device"):
        list(read_json_lines(tmp_path / "pipe"))
