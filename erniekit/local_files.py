"""Local files: JSON objects, placeholders of files that were not downloaded, and atomic replacement."""

from __future__ import annotations

import errno
import json
import os
import secrets
import shlex
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import Any, TextIO

from erniekit.display.text import clipped, listed
from erniekit.errors import CheckpointError

# https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md; hawser was the name before the first release.
_POINTER_HEADS = (b"version https://git-lfs.github.com/spec/", b"version https://hawser.github.com/spec/")
_POINTER_BYTES = 1024
_WEB_PAGE_HEADS = (b"<!doctype html", b"<html")
_MANY = 4
_JSON_BYTES = 256 << 20  # of a JSON file of a model: tokenizers have tens of MB
_JSON_DEPTH = 100
_JSON_VALUES = 10_000_000
_LINE_BYTES = 64 << 20  # of a log or of the answers of an evaluation
# Files of huggingface_hub, aria2, wget-like tools and browsers during a download.
_UNFINISHED = ("*.incomplete", "*.aria2", "*.part", "*.partial", "*.crdownload", "*.tmp")


def most_values(text: bytes | str) -> int:
    """An upper bound of the number of values in JSON; a value of two bytes takes a hundred in memory.

    Counts commas and brackets, including those in strings, which have few.
    """
    if isinstance(text, bytes):
        return sum(text.count(mark) for mark in (b",", b"[", b"{"))
    return sum(text.count(mark) for mark in (",", "[", "{"))


def parse_json(content: bytes) -> Any:
    """Parses untrusted JSON: UTF-8 without duplicate keys, half surrogate pairs, deep nesting or too many values.

    Raises ValueError in words; a syntax error is a JSONDecodeError, with its line.
    """
    check_json_values(content)
    try:
        found = json.loads(content.decode("utf-8-sig"), object_pairs_hook=_unique_keys)
        if b"\\u" in content:
            json.dumps(found, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text (byte {error.start + 1})") from None
    except UnicodeEncodeError:
        raise ValueError("a string has half a surrogate pair") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    level = [found]
    for _ in range(_JSON_DEPTH):
        level = [inner for value in level for inner in _inner(value)]
        if not level:
            return found
    raise ValueError(f"nested more than {_JSON_DEPTH} levels")


def check_json_values(text: bytes | str) -> None:
    """Raise ValueError for JSON with too many values for the memory, before it is parsed."""
    if most_values(text) > _JSON_VALUES:
        raise ValueError(f"more than {_JSON_VALUES:,} values")


def _inner(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        key = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {clipped(key)} is there twice")
    return found


def open_regular(file: Path) -> BufferedReader:
    """Open a file for reading. Raises OSError for a pipe, a device or a socket, which may never end."""
    # O_NONBLOCK: otherwise, opening a pipe waits for a writer.
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, "it is a directory")
        raise OSError(errno.EINVAL, "it is a pipe or a device, not a regular file")
    return os.fdopen(descriptor, "rb")


def is_lfs_pointer(content: bytes) -> bool:
    """Whether bytes (at least the first 1025 of a longer file) are a Git LFS pointer instead of the file."""
    return len(content) <= _POINTER_BYTES and content.lstrip(b"\xef\xbb\xbf \r\n").startswith(_POINTER_HEADS)


def is_web_page(content: bytes) -> bool:
    """Whether bytes start like HTML, such as the Hub's page about a file or an error."""
    return content.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(_WEB_PAGE_HEADS)


def placeholder_problem(file: Path) -> str | None:
    """The placeholder in place of a file, and what to do; None for a file without one, or a missing file."""
    try:
        with open_regular(file) as stream:
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
    names = listed(list(found), _MANY)
    raise CheckpointError(f"{directory}: {len(found)} files were not downloaded ({names}): {name} {problem}")


def unfinished_downloads(directory: Path) -> list[str]:
    """Names of files that show an unfinished download into a directory."""
    places = (directory, directory / ".cache" / "huggingface" / "download")
    return sorted({file.name for place in places for pattern in _UNFINISHED for file in place.glob(pattern)})


def read_json_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises CheckpointError with the file and the line of a syntax error."""
    try:
        with open_regular(file) as stream:
            # Not read(limit), which allocates the limit.
            size = os.fstat(stream.fileno()).st_size
            content = stream.read() if size <= _JSON_BYTES else b""
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror or error}") from None
    if size > _JSON_BYTES:
        raise CheckpointError(
            f"{file}: has more than {_JSON_BYTES:,} bytes, the limit for JSON files of a model"
        )
    problem = _problem_of(content, file)
    if problem is not None:
        raise CheckpointError(f"{file}: {problem}")
    if not content.strip(b"\0 \t\r\n"):
        raise CheckpointError(f"{file}: the file is empty: download it again")
    try:
        found = parse_json(content)
    except json.JSONDecodeError as error:
        raise CheckpointError(
            f"{file}:{error.lineno}: not valid JSON: {error.msg} (column {error.colno})"
        ) from None
    except ValueError as error:
        raise CheckpointError(f"{file}: not valid JSON: {error}") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{file}: must contain one JSON object")
    return found


def read_json_lines(file: Path) -> Iterator[dict[str, Any]]:
    """The JSON objects in the lines of a file that a run writes, without lines that a crash or a full disk cut off.

    Raises OSError.
    """
    with open_regular(file) as stream:
        # Zeros of a crash may be one line of gigabytes: its pieces are no JSON either.
        for line in iter(lambda: stream.readline(_LINE_BYTES), b""):
            try:
                found = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(found, dict):
                yield found


def require_model(directory: Path) -> None:
    """Raise a CheckpointError, in words of `missing_model`, for a directory without a config.json."""
    if not (directory / "config.json").is_file():
        raise CheckpointError(missing_model(directory))


def missing_model(path: Path) -> str:
    """Why a path without a config.json is not a directory of a model, and what to do."""
    export = f"export it first:\n  {shlex.join(['erniekit', 'export', str(path), '--output', 'DIR'])}"
    if path.suffix == ".gguf" or any(path.glob("*.gguf")):
        return (
            f"{path}: is GGUF for llama.cpp, which erniekit writes and does not read: name the model that it was "
            "written from. `erniekit verify` with --engine llama.cpp compares that in llama.cpp"
        )
    if path.is_file():
        return f"{path}: is a file, not the directory of a model"
    if (path / "adapter_config.json").is_file():
        return f"{path}: holds an adapter, not a model; {export}"
    if (path / "lora_config.json").is_file():
        return (
            f"{path}: holds an adapter for Baidu's tools, which erniekit writes and does not read: name the run that "
            "it was exported from"
        )
    # RUN/best is not a directory: best.json has the name of the checkpoint.
    run = path.parent if path.name == "best" and not path.exists() else path
    if any(run.glob("checkpoint-*")):
        return f"{path}: is a run, not a model; {export}"
    if not path.is_dir():
        return f"{path}: no such directory"
    return f"{path}/config.json: not found; a model directory holds config.json beside its weights"


@contextmanager
def replacing(target: Path) -> Iterator[TextIO]:
    """A text file that becomes `target` when the block ends without an error; otherwise it is removed.

    Until then `target` is unchanged, also on a full disk. Creates the directory. Raises OSError.
    """
    # Hidden: a process that is killed leaves it, and a run's directory may contain any hidden files. Random: processes
    # of several containers may have the same id.
    part = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with part.open("w", encoding="utf-8", newline="\n") as file:
            yield file
            file.flush()
            # Without it, a power failure may keep the new name but not the content.
            os.fsync(file.fileno())
        part.replace(target)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise
