"""Local files: JSON objects, placeholders of files that were not downloaded, and atomic replacement."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from erniekit.errors import CheckpointError

# https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md; hawser was the name before the first release.
_POINTER_HEADS = (b"version https://git-lfs.github.com/spec/", b"version https://hawser.github.com/spec/")
_POINTER_BYTES = 1024
_WEB_PAGE_HEADS = (b"<!doctype html", b"<html")
_MANY = 4
# Left by huggingface_hub, aria2, wget-like tools and browsers during a download.
_UNFINISHED = ("*.incomplete", "*.aria2", "*.part", "*.partial", "*.crdownload", "*.tmp")


def is_lfs_pointer(content: bytes) -> bool:
    """Whether bytes (at least the first 1025 of a longer file) are a Git LFS pointer instead of the file."""
    return len(content) <= _POINTER_BYTES and content.lstrip(b"\xef\xbb\xbf \r\n").startswith(_POINTER_HEADS)


def is_web_page(content: bytes) -> bool:
    """Whether bytes start like HTML, such as the Hub's page about a file or an error."""
    return content.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(_WEB_PAGE_HEADS)


def placeholder_problem(file: Path) -> str | None:
    """The placeholder in place of a file, and what to do; None for a file without one, or a missing file."""
    try:
        with file.open("rb") as stream:
            return _problem_of(stream.read(_POINTER_BYTES + 1), file)
    except OSError:
        return None


def _problem_of(head: bytes, file: Path) -> str | None:
    if is_lfs_pointer(head):
        return (
            f"is a Git LFS pointer, not the file: run `git lfs pull` in {file.parent}, or download it again"
        )
    if is_web_page(head):
        return "is a web page, not the file: download it again"
    return None


def refuse_placeholders(directory: Path, suffixes: Iterable[str]) -> None:
    """Raise a CheckpointError that names the files with these suffixes that were not downloaded."""
    found: dict[str, str] = {}
    for file in sorted(directory.iterdir()) if directory.is_dir() else ():
        problem = placeholder_problem(file) if file.suffix in tuple(suffixes) else None
        if problem is not None:
            found[file.name] = problem
    if not found:
        return
    (name, problem), *others = found.items()
    if not others:
        raise CheckpointError(f"{directory / name}: {problem}")
    names = ", ".join(list(found)[:_MANY]) + (f" and {len(found) - _MANY} more" if len(found) > _MANY else "")
    raise CheckpointError(f"{directory}: {len(found)} files were not downloaded ({names}): {name} {problem}")


def unfinished_downloads(directory: Path) -> list[str]:
    """Names of files that show an unfinished download into a directory."""
    places = (directory, directory / ".cache" / "huggingface" / "download")
    return sorted({file.name for place in places for pattern in _UNFINISHED for file in place.glob(pattern)})


def read_json_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises CheckpointError with the file and the line of a syntax error."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror or error}") from None
    problem = _problem_of(content, file)
    if problem is not None:
        raise CheckpointError(f"{file}: {problem}")
    if not content.strip(b"\0 \t\r\n"):
        raise CheckpointError(f"{file}: the file is empty: download it again")
    try:
        found = json.loads(content.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        raise CheckpointError(
            f"{file}:{error.lineno}: not valid JSON: {error.msg} (column {error.colno})"
        ) from None
    except UnicodeDecodeError:
        raise CheckpointError(f"{file}: not UTF-8 text: download it again") from None
    except RecursionError:
        raise CheckpointError(f"{file}: JSON is nested too deeply") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{file}: must contain one JSON object")
    return found


@contextmanager
def replacing(target: Path) -> Iterator[TextIO]:
    """A text file that becomes `target` when the block ends without an error; otherwise it is removed.

    Creates the directory. Raises OSError.
    """
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with part.open("w", encoding="utf-8", newline="\n") as file:
            yield file
        part.replace(target)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise
