"""Encoded documents on disk: written once, read by position, never all in memory.

A store is a directory with `ids.bin` and `labels.bin` (int32, document after document), `blobs.bin` (images that are
embedded in samples), `media.bin` (one JSON object per document) and `index.npz` (the offsets of each document).
`store.json` is written last: a directory without it is not a store.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import stat
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from erniekit.data.encode.document import Document
from erniekit.data.media.item import Media
from erniekit.errors import DataError

_FILES = ("ids.bin", "labels.bin", "blobs.bin", "media.bin")
_TOKEN = np.dtype(np.int32)  # ids and labels
_SUMMARY = "store.json"
_DRAFT = ".draft"
_ABANDONED_SECONDS = 24 * 3600


class StoreWriter:
    """Writes a store to a temporary directory, and renames it in `finish`. A context manager.

    An exception inside the `with` block leaves nothing behind. Raises DataError if the disk cannot be written.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        # Not the process's id: several containers may share the cache, and have the same ids.
        self._draft = directory.with_name(f"{directory.name}.{secrets.token_hex(4)}{_DRAFT}")
        try:
            self._draft.mkdir(parents=True)
            _remove_abandoned(directory.parent, self._draft.stat().st_mtime)
            self._files: dict[str, BinaryIO] = {name: (self._draft / name).open("wb") for name in _FILES}
        except OSError as error:
            raise self._failed(error) from error
        self._offsets = {name: [0] for name in _FILES}
        self._patches: list[int] = []
        self._digest = hashlib.blake2b(digest_size=16)

    def add(self, document: Document) -> None:
        """Append one document."""
        try:
            media = [self._media(item) for item in document.media]
            branches = {} if document.branches is None else {"branches": document.branches}
            described = {"id": document.sample_id, "media": media, **branches}
            record = json.dumps(described, ensure_ascii=False).encode()
            for name, data in (
                ("ids.bin", document.input_ids.astype(_TOKEN, copy=False).tobytes()),
                ("labels.bin", document.labels.astype(_TOKEN, copy=False).tobytes()),
                ("media.bin", record),
            ):
                self._write(name, data)
        except OSError as error:
            raise self._failed(error) from error
        self._patches.append(document.num_patches)
        self._digest.update(document_digest(document))

    def finish(self, summary: dict[str, Any]) -> None:
        """Complete the store. summary: JSON values to store with the documents."""
        try:
            for file in self._files.values():
                file.flush()
                # Without it, a machine that loses power may keep the store and lose what is in it.
                os.fsync(file.fileno())
                file.close()
            ids, media = (np.asarray(self._offsets[name], np.int64) for name in ("ids.bin", "media.bin"))
            patches = np.asarray(self._patches, np.int64)
            np.savez(self._draft / "index.npz", ids=ids, media=media, patches=patches)
            sizes = {name: (self._draft / name).stat().st_size for name in _FILES}
            described = {
                "fingerprint": self._digest.hexdigest(),
                "id": secrets.token_hex(8),
                "sizes": sizes,
                **summary,
            }
            (self._draft / _SUMMARY).write_text(json.dumps(described, ensure_ascii=False), encoding="utf-8")
            try:
                self._draft.rename(self.directory)
            except OSError:
                if not (self.directory / _SUMMARY).is_file():
                    raise
                # Another run has written the same store meanwhile.
                shutil.rmtree(self._draft, ignore_errors=True)
        except OSError as error:
            raise self._failed(error) from error

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files.values():
            # After `finish` the files are closed. Before it, flushing may fail, and the store is deleted anyway.
            with suppress(OSError):
                file.close()
        if kind is not None:
            shutil.rmtree(self._draft, ignore_errors=True)

    def _media(self, item: Media) -> dict[str, Any]:
        record = {
            "source": self._source(item.source),
            "grid_thw": list(item.grid_thw),
            "start": item.start,
            "tokens": item.tokens,
            "merge_size": item.merge_size,
            "frames": list(item.frames),
        }
        more = {"min_pixels": item.min_pixels, "max_pixels": item.max_pixels, "times": list(item.times)}
        return record | {key: value for key, value in more.items() if value}

    def _source(self, source: str | bytes | tuple[str | bytes, ...]) -> Any:
        """JSON for a source: a path with the stamp of its file, the offset of bytes in blobs.bin, or a list of both."""
        if isinstance(source, tuple):
            return [self._source(frame) for frame in source]
        if isinstance(source, str):
            return {"path": source, "stamp": _stamp(source)}
        start = self._offsets["blobs.bin"][-1]
        self._write("blobs.bin", source)
        return {"start": start, "bytes": len(source)}

    def _write(self, name: str, data: bytes) -> None:
        self._files[name].write(data)
        # The media records hold the offsets of blobs, so only their end is needed here.
        ends = self._offsets[name]
        end = ends[-1] + len(data)
        if name == "blobs.bin":
            ends[-1] = end
        else:
            ends.append(end)

    def _failed(self, error: OSError) -> DataError:
        reason = error.strerror or str(error)
        where = self.directory.parent
        return DataError(
            f"{where}: the encoded samples cannot be written: {reason}; "
            "set data.cache_dir to a directory with free space"
        )


class DocumentStore:
    """The documents of a store, by position. Only the documents that are read take memory.

    lengths int64 [D]: tokens of each document; patches int64 [D]: patches of its images and videos; summary: the
    argument of `StoreWriter.finish`, with "id" and "fingerprint", a digest of tokens, labels and media names.
    references float32 [D, 2]: `Document.reference`, set by a run (`erniekit.data.store.references`).
    """

    references: npt.NDArray[np.float32] | None = None

    def __init__(self, directory: Path) -> None:
        try:
            self.summary: dict[str, Any] = json.loads((directory / _SUMMARY).read_text(encoding="utf-8"))
            with np.load(directory / "index.npz") as index:
                self._tokens: npt.NDArray[np.int64] = index["ids"]
                self._records: npt.NDArray[np.int64] = index["media"]
                self.patches: npt.NDArray[np.int64] = index["patches"]
            self._descriptors = {name: os.open(directory / name, os.O_RDONLY) for name in _FILES}
        except OSError as error:
            raise DataError(f"{directory}: the encoded samples cannot be read: {error.strerror}") from error
        except (ValueError, KeyError, BadZipFile) as error:
            raise DataError(f"{directory}: not a store of encoded samples: {error}; remove it") from error
        # Stores of versions before it existed have none.
        for name, size in self.summary.get("sizes", {}).items():
            found = os.fstat(self._descriptors[name]).st_size
            if found != size:
                raise DataError(
                    f"{directory / name}: has {found} bytes instead of {size}; remove {directory}"
                )
        self.directory = directory
        self.lengths: npt.NDArray[np.int64] = np.diff(self._tokens) // _TOKEN.itemsize

    @classmethod
    def find(cls, directory: Path) -> DocumentStore | None:
        """Open the store in a directory; None if there is none."""
        return cls(directory) if (directory / _SUMMARY).is_file() else None

    @property
    def id(self) -> str:
        """Random. Shows whether two processes see the same store, or different stores at the same path."""
        return str(self.summary.get("id", ""))

    @property
    def fingerprint(self) -> str:
        """Digest of all tokens, labels and media names."""
        return str(self.summary["fingerprint"])

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Document:
        first, last = int(self._tokens[index]), int(self._tokens[index + 1])
        record = self._record(index)
        return Document(
            np.frombuffer(self._read("ids.bin", first, last), _TOKEN),
            np.frombuffer(self._read("labels.bin", first, last), _TOKEN),
            tuple(self._media(item) for item in record["media"]),
            record["id"],
            tuple(record["branches"]) if "branches" in record else None,
            None if self.references is None else tuple(self.references[index].tolist()),
        )

    def changed_media(self, *, may_be_gone: bool = False) -> str | None:
        """The path of an image or video that has changed since it was encoded; None if there is none.

        may_be_gone: a deleted file does not count as changed.
        """
        for index in np.flatnonzero(self.patches):
            for item in self._record(int(index))["media"]:
                sources = item["source"] if isinstance(item["source"], list) else [item["source"]]
                for source in sources:
                    if "path" not in source:
                        continue
                    stamp = _stamp(source["path"])
                    if stamp != source["stamp"] and not (may_be_gone and stamp is None):
                        return str(source["path"])
        return None

    def close(self) -> None:
        """Close its files."""
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors = {}

    def _record(self, index: int) -> dict[str, Any]:
        data = self._read("media.bin", int(self._records[index]), int(self._records[index + 1]))
        record: dict[str, Any] = json.loads(data)
        return record

    def _media(self, item: dict[str, Any]) -> Media:
        t, h, w = item["grid_thw"]
        source, frames = self._source(item["source"]), tuple(item["frames"])
        return Media(
            *(source, (t, h, w), item["start"], item["tokens"], item["merge_size"], frames),
            min_pixels=item.get("min_pixels"),
            max_pixels=item.get("max_pixels"),
            times=tuple(item.get("times", ())),
        )

    def _source(self, source: Any) -> Any:
        if isinstance(source, list):
            return tuple(self._source(frame) for frame in source)
        if "path" in source:
            return source["path"]
        return self._read("blobs.bin", source["start"], source["start"] + source["bytes"])

    def _read(self, name: str, start: int, end: int) -> bytes:
        # pread, not a memory map: the pages of a map count as memory of the process, which would grow with the data.
        try:
            data = os.pread(self._descriptors[name], end - start, start)
        except OSError as error:
            raise DataError(f"{self.directory / name}: cannot be read: {error.strerror}") from error
        if len(data) != end - start:
            raise DataError(f"{self.directory / name}: was cut off during the run; remove {self.directory}")
        return data


def _remove_abandoned(cache: Path, now: float) -> None:
    """Remove drafts of processes that were killed: nothing was written to them for a day.

    now: by the clock of the disk, which may be another one than this machine's.
    """
    for draft in cache.glob(f"*{_DRAFT}"):
        with suppress(OSError):
            newest = max(path.stat().st_mtime for path in (draft, *draft.iterdir()))
            if newest < now - _ABANDONED_SECONDS:
                shutil.rmtree(draft)


def _stamp(path: str) -> list[int] | None:
    """[size, mtime in ns] of a file, or of all files in a directory; None if there is no such file, as for a URL."""
    try:
        found = [os.stat(path)]
        if stat.S_ISDIR(found[0].st_mode):
            with os.scandir(path) as entries:
                found += [entry.stat() for entry in entries]
    except OSError:
        return None
    return [sum(item.st_size for item in found), max(item.st_mtime_ns for item in found)]


def document_digest(document: Document) -> bytes:
    """A digest of tokens, labels, and the sizes and names of images and videos; not of the pixels of their files."""
    digest = hashlib.blake2b(np.int64(len(document)).tobytes(), digest_size=16)
    digest.update(document.input_ids.tobytes())
    digest.update(document.labels.tobytes())
    if document.branches is not None:
        digest.update(np.asarray(document.branches, np.int64).tobytes())
    for item in document.media:
        digest.update(np.asarray([*item.grid_thw, item.start, *item.frames], np.int64).tobytes())
        if item.times:
            digest.update(np.asarray(item.times).tobytes())
        for source in item.source if isinstance(item.source, tuple) else (item.source,):
            # Without the directory, so that a dataset may be moved.
            digest.update(Path(source).name.encode() if isinstance(source, str) else source)
    return digest.digest()
