import errno
import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

from erniekit.data.encode.document import Document
from erniekit.data.media.item import Media
from erniekit.data.store.store import DocumentStore, StoreWriter
from erniekit.errors import DataError


def document(name: str, length: int, *media: Media) -> Document:
    ids = np.arange(length, dtype=np.int32) + length
    return Document(ids, np.where(ids % 2, ids, -100).astype(np.int32), media, name)


def image(source: str | bytes | tuple[str | bytes, ...], frames: tuple[int, ...] = ()) -> Media:
    return Media(source, (max(1, len(frames)), 4, 6), 2, 6, 2, frames)


def write(directory: Path, documents: list[Document]) -> DocumentStore:
    with StoreWriter(directory) as writer:
        for item in documents:
            writer.add(item)
        writer.finish({"stats": {"samples": len(documents)}})
    return DocumentStore(directory)


def test_documents_come_back(tmp_path: Path) -> None:
    photograph = tmp_path / "é.png"
    photograph.write_bytes(b"x")
    documents = [
        document("a:1", 5),
        document("a:2 中", 9, image(b"\x00\xff"), image(str(photograph)), image(b"second")),
        document("b:1", 1),
        document("b:2", 4, image((str(photograph), b"frame"), (0, 7))),
    ]
    store = write(tmp_path / "store", documents)
    assert len(store) == 4
    assert store.lengths.tolist() == [5, 9, 1, 4]
    assert store.patches.tolist() == [0, 72, 0, 48]
    assert store.summary["stats"] == {"samples": 4}
    for index in (3, 0, 2, 1):
        found, expected = store[index], documents[index]
        assert (found.sample_id, found.media) == (expected.sample_id, expected.media)
        np.testing.assert_array_equal(found.input_ids, expected.input_ids)
        np.testing.assert_array_equal(found.labels, expected.labels)
    store.close()


def test_the_fingerprint_follows_the_content_but_not_the_place(tmp_path: Path) -> None:
    def fingerprint(name: str, *documents: Document) -> str:
        return write(tmp_path / name, list(documents)).fingerprint

    base = fingerprint("a", document("x", 5), document("y", 6))
    assert fingerprint("b", document("moved/x", 5), document("y", 6)) == base
    assert fingerprint("c", document("x", 6), document("y", 5)) != base
    assert fingerprint("d", document("x", 5)) != base
    there = fingerprint("e", document("x", 5, image("one/p.png")))
    assert fingerprint("f", document("x", 5, image("two/p.png"))) == there
    assert fingerprint("g", document("x", 5, image("two/q.png"))) != there


def test_a_draft_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), StoreWriter(tmp_path / "store") as writer:
        writer.add(document("a", 3))
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    assert DocumentStore.find(tmp_path / "store") is None


def test_containers_with_the_same_process_id_may_write_the_same_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getpid", lambda: 1)
    documents = [document(name, length) for name, length in (("a", 5), ("b", 9), ("c", 3))]
    first = StoreWriter(tmp_path / "store")
    first.add(documents[0])
    with StoreWriter(tmp_path / "store") as second:
        second.add(documents[0])
        with first:
            for item in documents[1:]:
                first.add(item)
            first.finish({})
        store = DocumentStore(tmp_path / "store")
        assert store[2].input_ids.tolist() == documents[2].input_ids.tolist()
        for item in documents[1:]:
            second.add(item)
        second.finish({})
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_two_runs_may_write_the_same_store(tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "store") as writer:
        writer.add(document("a", 3))
        write(tmp_path / "store.other", [document("a", 3)])
        os.rename(tmp_path / "store.other", tmp_path / "store")
        writer.finish({})
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    assert len(DocumentStore(tmp_path / "store")) == 1


def test_a_changed_image_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "p.png"
    file.write_bytes(b"first")
    store = write(tmp_path / "store", [document("a", 4), document("b", 4, image((b"", str(file)), (0, 1)))])
    assert store.changed_media() is None
    file.write_bytes(b"another")
    assert store.changed_media() == str(file)
    file.unlink()
    assert store.changed_media() == str(file)


def test_a_damaged_store_is_named(tmp_path: Path) -> None:
    directory = tmp_path / "store"
    write(directory, [document("a", 4)])
    (directory / "index.npz").write_bytes(b"nonsense")
    with pytest.raises(DataError, match=f"{directory}: not a store of encoded samples.*remove it"):
        DocumentStore(directory)
    (directory / "store.json").write_text(json.dumps([]))
    with pytest.raises(DataError, match="not a store"):
        DocumentStore(directory)


def test_a_disk_that_does_not_take_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot be written: .*set data\.cache_dir"):
        StoreWriter(tmp_path / "file" / "store")


def test_a_file_that_was_cut_off_is_an_error(tmp_path: Path) -> None:
    store = write(tmp_path / "store", [document("a", 5), document("b", 9)])
    store.close()
    file = store.directory / "labels.bin"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(DataError, match=r"labels\.bin: has 52 bytes instead of 56; remove .*store"):
        DocumentStore(store.directory)


def test_a_file_that_is_cut_off_or_fails_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = write(tmp_path / "store", [document("a", 5), document("b", 9)])
    os.truncate(store.directory / "labels.bin", 30)
    assert len(store[0]) == 5
    with pytest.raises(DataError, match=r"labels\.bin: was cut off during the run; remove .*store"):
        store[1]

    def fail(*arguments: int) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pread", fail)
    with pytest.raises(DataError, match=r"media\.bin: cannot be read: Input/output error"):
        store[0]


@pytest.mark.parametrize("wrong_by", [0.0, -1e6, 1e6])
def test_drafts_of_processes_that_were_killed_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong_by: float
) -> None:
    """The clock of the disk decides, not this machine's, which may be wrong."""
    for name, hours in (("a.1.draft", 25), ("b.2.draft", 23)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "ids.bin").write_bytes(b"half")
        then = time.time() - hours * 3600
        for path in (tmp_path / name / "ids.bin", tmp_path / name):
            os.utime(path, (then, then))
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + wrong_by)
    write(tmp_path / "c", [document("a", 5)]).close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.2.draft", "c"]
