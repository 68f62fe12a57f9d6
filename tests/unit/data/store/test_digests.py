"""Data files are read to know their content only where size and times do not tell it."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest

from erniekit.data.encode.encoder import Encoder
from erniekit.data.store import digests
from erniekit.data.store.dataset import Dataset
from erniekit.data.store.digests import content_digests
from erniekit.errors import DataError
from tests.unit.data.helpers import qa, write_lines
from tests.unit.data.loading import load


class Reads:
    """Which files were read to know them, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.files: list[str] = []
        original = digests._digest

        def reading(path: Path) -> str:
            self.files.append(path.name)
            return original(path)

        monkeypatch.setattr(digests, "_digest", reading)

    def take(self) -> list[str]:
        """Those since the last call."""
        found, self.files = self.files, []
        return found


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    """With files that count as written long ago."""
    monkeypatch.setattr(digests, "_TICK", -3_600_000_000_000)
    return Reads(monkeypatch)


def test_a_file_that_has_not_changed_is_read_once(tmp_path: Path, reads: Reads) -> None:
    (tmp_path / "sub").mkdir()
    files = [tmp_path / "b.jsonl", tmp_path / "a.jsonl", tmp_path / "sub" / "a.jsonl"]
    for number, path in enumerate(files):
        path.write_text(str(number))
    index = tmp_path / "index"
    first = content_digests(files, index)
    assert len(set(first)) == 3
    assert sorted(reads.take()) == ["a.jsonl", "a.jsonl", "b.jsonl"]
    assert content_digests(files, index) == first
    assert content_digests(files[::-1] + files[:1], index) == [*first[::-1], first[0]]
    assert reads.take() == []


def test_only_what_has_changed_is_read_again(tmp_path: Path, reads: Reads) -> None:
    files = [tmp_path / name for name in ("a", "b", "c")]
    for path in files:
        path.write_text(path.name)
    index = tmp_path / "index"
    first = content_digests(files, index)
    reads.take()
    os.utime(files[0])  # touched: another time, the same content
    assert content_digests(files, index) == first
    assert reads.take() == ["a"]
    files[1].write_text("x")  # as many bytes, and its old time
    os.utime(files[1], ns=(0, 0))
    changed = content_digests(files, index)
    assert reads.take() == ["b"]
    assert [one == other for one, other in zip(first, changed, strict=True)] == [True, False, True]
    status = files[2].stat()
    files[2].write_text("y")
    os.utime(files[2], ns=(status.st_atime_ns, status.st_mtime_ns))  # by rsync, or by who knows how
    assert content_digests(files, index)[2] != first[2]
    files[0].unlink()
    new = tmp_path / "d"
    new.write_text("d")
    content_digests([*files[1:], new], index)
    (kept,) = index.iterdir()
    assert sorted(json.loads(kept.read_text())) == ["b", "c", "d"]


def test_a_file_that_was_written_just_now_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second write within a tick of the file system's clock leaves size and times as they are."""
    monkeypatch.setattr(digests, "_TICK", 3_600_000_000_000)
    reads = Reads(monkeypatch)
    path = tmp_path / "a"
    path.write_text("x")
    for _ in range(2):
        content_digests([path], tmp_path / "index")
    assert reads.take() == ["a", "a"]
    assert not (tmp_path / "index").exists()


def test_what_is_not_remembered_is_read(tmp_path: Path, reads: Reads) -> None:
    """A damaged index, and a place that cannot be written."""
    path = tmp_path / "a"
    path.write_text("x")
    index = tmp_path / "index"
    first = content_digests([path], index)
    (file,) = index.iterdir()
    file.write_text("{")
    assert content_digests([path], index) == first
    (tmp_path / "file").write_text("")
    assert content_digests([path], tmp_path / "file") == first
    assert reads.take() == ["a", "a", "a"]
    with pytest.raises(DataError, match=r"none: cannot read the data file: No such file"):
        content_digests([tmp_path / "none"], index)


def cached(dataset: Dataset) -> list[bool]:
    return [source.cached for source in dataset.sources]


def test_encoded_samples_are_found_by_times_and_then_by_content(
    text_encoder: Encoder, tmp_path: Path, reads: Reads
) -> None:
    path = write_lines(tmp_path / "a.jsonl", [qa(f"q{number}") for number in range(9)])
    options = {"cache": tmp_path / "cache", "max_length": 100}
    first = load(text_encoder, path, **options)  # type: ignore[arg-type]
    assert (cached(first), reads.take()) == ([False], ["a.jsonl"])
    assert cached(load(text_encoder, path, **options)) == [True]  # type: ignore[arg-type]
    assert reads.take() == []
    # Put there again, with another time: read, and found.
    shutil.copyfile(path, tmp_path / "copy")
    path.unlink()
    shutil.move(tmp_path / "copy", path)
    os.utime(path, ns=(time.time_ns(), 10**18))
    assert cached(load(text_encoder, path, **options)) == [True]  # type: ignore[arg-type]
    assert reads.take() == ["a.jsonl"]
    write_lines(path, [qa(f"r{number}") for number in range(9)])
    other = load(text_encoder, path, **options)  # type: ignore[arg-type]
    assert (cached(other), reads.take()) == ([False], ["a.jsonl"])
    assert other.fingerprint != first.fingerprint
