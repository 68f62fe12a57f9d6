"""Digests of data files, cached by size and times so that an unchanged file is not read again.

The cache directory has one JSON file for each directory with data files: {file name: [stamp, digest]}.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from erniekit.errors import DataError
from erniekit.local_files import open_regular, replacing

# File systems store times in steps of up to 2 s. If a file was written within the last step, it may be written again
# without a change of its times.
_TICK = 2_000_000_000  # ns


def stamp(path: Path) -> list[int]:
    """[size, mtime, ctime] of a file, times in ns. Raises DataError.

    ctime reveals a change if a tool has reset mtime.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        raise _unreadable(path, error) from error
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def stamp_text(path: Path) -> str:
    """The stamp of a file as text, used instead of a digest if contents are not read. Raises DataError."""
    return json.dumps(stamp(path))


def differ(before: Any, now: str) -> bool:
    """Whether a file has changed between two digests or stamps; False for one of each, which say nothing.

    before: of a checkpoint, which may be damaged.
    """
    return before != now and str(before).startswith("[") == now.startswith("[")


def content_digests(places: Sequence[Path], directory: Path) -> list[str]:
    """The digest of each file's content. A file is only read if its stamp differs from the one cached in `directory`.

    places: resolved paths. Raises DataError for a file that cannot be read.
    """
    groups: dict[Path, list[Path]] = {}
    for place in dict.fromkeys(places):
        groups.setdefault(place.parent, []).append(place)
    found: dict[Path, str] = {}
    for parent, group in groups.items():
        found |= _of_directory(parent, group, directory)
    return [found[place] for place in places]


def _of_directory(parent: Path, files: Sequence[Path], directory: Path) -> dict[Path, str]:
    index = directory / f"{hashlib.blake2b(os.fsencode(parent), digest_size=16).hexdigest()}.json"
    known = _read(index)
    found: dict[Path, str] = {}
    new: dict[str, Any] = {}
    for path in files:
        now, own = time.time_ns(), stamp(path)
        entry = known.get(path.name)
        if entry is not None and entry[0] == own:
            found[path] = entry[1]
            continue
        found[path] = _digest(path)
        if own[2] + _TICK <= now and stamp(path) == own:
            new[path.name] = [own, found[path]]
    if new:
        _write(index, {name: entry for name, entry in known.items() if (parent / name).exists()} | new)
    return found


def _digest(path: Path) -> str:
    try:
        with open_regular(path) as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except OSError as error:
        raise _unreadable(path, error) from error


def _read(index: Path) -> dict[str, Any]:
    """The cached entries; empty if they cannot be read."""
    try:
        known: dict[str, Any] = json.loads(index.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known


def _write(index: Path, known: dict[str, Any]) -> None:
    # A shared cache may be read-only. Then the files are read again next time.
    with suppress(OSError), replacing(index) as file:
        file.write(json.dumps(known))


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"{path}: cannot read the data file: {error.strerror or error}")
