"""Digests of data files, remembered by size and times: a file that has not changed is not read to know it.

Below a cache directory, one JSON file a directory of data files: the name of each with its stamp and its digest.
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
from erniekit.local_files import open_regular

# A file system's clock ticks in steps (2 s on the coarsest): of a file that was just written, the times do not tell
# whether it is written again in the same step.
_TICK = 2_000_000_000  # ns


def stamp(path: Path) -> list[int]:
    """Size, and times of change of the content and of the entry in ns. Raises DataError.

    The last also changes where a tool sets the first back.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        raise _unreadable(path, error) from error
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def content_digests(places: Sequence[Path], directory: Path) -> list[str]:
    """A digest of the content of each file, which is read only where its stamp is not the one in `directory`.

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
    """What is remembered; nothing where it cannot be read: then the files are."""
    try:
        known: dict[str, Any] = json.loads(index.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known


def _write(index: Path, known: dict[str, Any]) -> None:
    part = index.with_name(f"{index.name}.{os.getpid()}.part")
    # A cache that is shared may be read-only. It costs the time to read the files again.
    with suppress(OSError):
        index.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(known), encoding="utf-8")
        part.replace(index)


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"{path}: cannot read the data file: {error.strerror or error}")
