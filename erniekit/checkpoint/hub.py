"""Safetensors in the Hub's layout, read and written one tensor at a time.

Apart from the model, only one tensor is in memory at any time, for checkpoints of any size: the JSON header of the
format (https://huggingface.co/docs/safetensors) holds all names, shapes and offsets. Arrays keep the element type
of the file; bfloat16, which numpy lacks, is represented as uint16.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from erniekit.checkpoint.element_types import is_finite
from erniekit.checkpoint.header import NUMPY_TYPES, Columns, TensorInfo, read_header
from erniekit.checkpoint.manifest import FileRecord, RecordedFile
from erniekit.display.text import clipped, listed
from erniekit.errors import CheckpointError
from erniekit.local_files import read_json_object, unfinished_downloads
from erniekit.models.specs import TensorSpec

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
DEFAULT_SHARD_BYTES = 5 << 30
_SHARD_NAME = re.compile(r"model-\d+-of-(\d{1,5})\.safetensors")
# A file name without directories, no longer than file systems allow.
_FILE_NAME = re.compile(r"\w[\w.+-]{0,62}")
# Weights in other formats: pickles, Paddle's, formats of engines.
_OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".pdparams", ".gguf", ".h5", ".msgpack", ".onnx")
_FLOATS = ("F64", "F32", "F16", "BF16")
_LINE = 200  # characters of a tensor in a list
_BLOCK = 1 << 20
# Rows that are transposed at a time. Rows that are multiples of 2 KiB long share two sets of a first-level cache, which
# hold 16 of their lines.
_TRANSPOSED_ROWS = 16
# Tensors of the multi-token-prediction head, which neither fine-tuning nor inference uses.
_NOT_TRAINED = re.compile(r"(^|\.)mtp_")


def weight_files(directory: Path) -> list[Path]:
    """The shards of a checkpoint directory: the files named by its index, or its single safetensors file.

    Raises CheckpointError where there are none, and for an index beside a single file that it does not name.
    """
    if (directory / INDEX_FILE).is_file():
        names = sorted(set(_weight_map(directory).values()))
        if SINGLE_FILE not in names and (directory / SINGLE_FILE).is_file():
            raise CheckpointError(
                f"{directory}: there are {SINGLE_FILE} and {INDEX_FILE}, which does not name it. transformers loads "
                "the first, other engines the files of the index: remove what is out of date"
            )
        _refuse_missing(directory, names, "the index names shards that are not there")
        return [directory / name for name in names]
    if (directory / SINGLE_FILE).is_file():
        return [directory / SINGLE_FILE]
    shards = sorted(directory.glob("model-*.safetensors"))
    if not shards:
        raise CheckpointError(
            f"{directory}: holds no weights ({INDEX_FILE} or {SINGLE_FILE}){_download_hint(directory)}"
        )
    # Without an index (it is downloaded last, or not at all) the names of the shards give their number.
    counts = {match[1] for shard in shards if (match := _SHARD_NAME.fullmatch(shard.name))}
    for count in counts:
        wanted = [f"model-{number:05d}-of-{count}.safetensors" for number in range(1, int(count) + 1)]
        _refuse_missing(directory, wanted, "shards are not there")
    return shards


def weights_problem(directory: Path) -> str | None:
    """Why engines would load other weights of a directory than those that are read here, or none; None if they do not.

    transformers needs `model.safetensors` or an index; converters take every file with such a name.
    """
    read = weight_files(directory)
    stray = sorted(file.name for file in directory.glob("model*.safetensors") if file not in read)
    if stray:
        return f"the index does not name {stray[0]}, which engines may load instead; remove it"
    if not (directory / INDEX_FILE).is_file() and read != [directory / SINGLE_FILE]:
        return f"there is no {INDEX_FILE}, without which engines do not find {read[0].name}; export or convert it again"
    return None


def _weight_map(directory: Path) -> dict[str, str]:
    """Name of a tensor -> name of its shard. Raises CheckpointError if the index is damaged.

    A shard is a file in the directory itself: an index must not lead a reader to other files.
    """
    index = directory / INDEX_FILE
    found = read_json_object(index).get("weight_map")
    if not isinstance(found, dict):
        raise CheckpointError(f"{index}: not a valid index of shards: weight_map must be an object")
    for tensor, name in found.items():
        if not isinstance(name, str) or not _FILE_NAME.fullmatch(name):
            raise CheckpointError(
                f"{index}: not a valid index of shards: {clipped(tensor)} is in {clipped(str(name))}, which is not "
                "the name of a file in its directory"
            )
    return found


def _refuse_missing(directory: Path, names: Sequence[str], what: str) -> None:
    missing = [name for name in names if not (directory / name).is_file()]
    if missing:
        raise CheckpointError(f"{directory}: {what}: {listed(missing, 8)}{_download_hint(directory)}")


def _download_hint(directory: Path) -> str:
    """A hint for a directory without weights: what is in it, and what to do."""
    unfinished = unfinished_downloads(directory)
    if unfinished:
        return f"; a download has not ended ({unfinished[0]}): finish it, or download the model again"
    others = sorted(file.name for file in directory.glob("*") if file.name.endswith(_OTHER_WEIGHTS))
    if others:
        return f"; {others[0]} is of another format, which is not read: download the safetensors files of the model"
    return "; download the model again" if directory.is_dir() else ""


def read_index(directory: str | Path) -> dict[str, TensorInfo]:
    """Name -> place of every tensor of a checkpoint directory, from the headers of its shards.

    Raises CheckpointError for missing or damaged files, and for an index that does not agree with them.
    """
    directory = Path(directory)
    tensors: dict[str, TensorInfo] = {}
    for file in weight_files(directory):
        header = read_header(file)
        twice = sorted(set(header) & set(tensors))
        if twice:
            raise CheckpointError(f"{file}: {clipped(twice[0])} is also in {tensors[twice[0]].file.name}")
        tensors.update(header)
    if (directory / INDEX_FILE).is_file():
        weight_map = _weight_map(directory)
        absent = set(weight_map) - set(tensors)
        if absent:
            raise CheckpointError(
                f"{directory}: the index lists tensors that no shard holds:\n" + _name_list(absent)
            )
        moved = [name for name, shard in weight_map.items() if tensors[name].file.name != shard]
        if moved:
            shard = weight_map[moved[0]]
            raise CheckpointError(
                f"{directory}: the index lists {clipped(moved[0])} in {shard}, and it is in "
                f"{tensors[moved[0]].file.name}; download the model again"
            )
    return tensors


def read_array(info: TensorInfo, *, finite: bool = True) -> np.ndarray:
    """Read one tensor, in the element type of the file (BF16 as uint16).

    Raises CheckpointError, also for NaN and infinity unless `finite` is False.
    """
    if info.parts:
        return np.concatenate([read_array(part, finite=finite) for part in info.parts])
    if info.columns is not None:
        array = _read_columns(info, info.columns, 0, info.shape[0])
    else:
        array = np.empty(info.shape, NUMPY_TYPES[info.dtype])
        _read_into(array, info, info.offset)
    if finite:
        _refuse_not_finite(array, info)
    return array


def read_span(info: TensorInfo, start: int, stop: int) -> np.ndarray:
    """Elements `start` to `stop` of a tensor in row-major order, 1-D, in the element type of the file.

    Raises CheckpointError, also for NaN and infinity.
    """
    if info.parts:
        return read_array(info).reshape(-1)[start:stop]
    if info.columns is not None:
        inner = info.shape[1]
        first = start // inner
        rows = _read_columns(info, info.columns, first, -(-stop // inner))
        array = rows.reshape(-1)[start - first * inner : stop - first * inner]
    else:
        array = np.empty(stop - start, NUMPY_TYPES[info.dtype])
        _read_into(array, info, info.offset + start * array.itemsize)
    _refuse_not_finite(array, info)
    return array


def transpose_into(target: np.ndarray, source: np.ndarray) -> None:
    """Copy the transpose of `source` [m, n] into `target` [n, m], in blocks that stay in the processor's cache."""
    for start in range(0, len(source), _TRANSPOSED_ROWS):
        block = source[start : start + _TRANSPOSED_ROWS]
        target[:, start : start + len(block)] = block.T


def _read_columns(info: TensorInfo, columns: Columns, start: int, stop: int) -> np.ndarray:
    """Rows `start` to `stop` of a tensor that consists of columns of a stored matrix, which is read block by block."""
    array = np.empty((stop - start, info.shape[1]), NUMPY_TYPES[info.dtype])
    row_bytes = columns.width * array.itemsize
    # Rows and columns of the stored matrix.
    first, last = (0, info.shape[1]) if columns.transposed else (start, stop)
    wanted = slice(start, stop) if columns.transposed else slice(0, info.shape[1])
    most = max(_TRANSPOSED_ROWS, _BLOCK // max(row_bytes, 1) // _TRANSPOSED_ROWS * _TRANSPOSED_ROWS)
    for row in range(first, last, most):
        block = np.empty((min(most, last - row), columns.width), array.dtype)
        _read_into(block, info, info.offset + row * row_bytes)
        part = block[:, columns.first :: columns.step][:, wanted]
        if columns.transposed:
            transpose_into(array[:, row : row + len(block)], part)
        else:
            array[row - first : row - first + len(block)] = part
    return array


def _refuse_not_finite(array: np.ndarray, info: TensorInfo) -> None:
    if not is_finite(array, info.dtype):
        raise CheckpointError(
            f"{info.file}: {clipped(info.name)} holds NaN or infinity: use an older checkpoint of the run, or download "
            "the model again"
        )


def _read_into(array: np.ndarray, info: TensorInfo, offset: int) -> None:
    try:
        with info.file.open("rb", buffering=0) as stream:
            stream.seek(offset)
            # A 0-d array has no buffer view until it is reshaped.
            view = array.reshape(-1).data.cast("B")
            read = 0
            # One call reads less than 2 GiB on Linux.
            while read < array.nbytes and (count := stream.readinto(view[read:])):
                read += count
    except OSError as error:
        raise CheckpointError(f"{info.file}: cannot be read: {error.strerror or error}") from None
    if read != array.nbytes:
        raise CheckpointError(f"{info.file}: cut off inside {info.name}; download it again")


def check_against(
    found: dict[str, TensorInfo], wanted: Iterable[TensorSpec], where: str, *, partial: bool = False
) -> None:
    """Compare names and shapes. Raises one CheckpointError that lists all missing, unexpected and misshapen tensors,
    and those that are not floating-point numbers.

    Tensors of the multi-token-prediction head are ignored. A tied `lm_head.weight`, which some tools write, is
    accepted, see `erniekit.checkpoint.model_files`. `partial` accepts missing names.
    """
    shapes = {spec.name: spec.shape for spec in wanted}
    extra = {n for n in set(found) - set(shapes) if not _NOT_TRAINED.search(n) and n != "lm_head.weight"}
    missing = set() if partial else set(shapes) - set(found)
    wrong = [n for n in sorted(set(shapes) & set(found)) if found[n].shape != shapes[n]]
    problems = []
    if missing:
        lines = _name_list(f"{name} {list(shapes[name])}" for name in missing)
        if missing == {"lm_head.weight"}:
            lines += '\n  set "tie_word_embeddings": true in config.json if the embedding is the output matrix as well'
        problems.append(f"{len(missing)} tensors are missing:\n{lines}")
    if extra:
        lines = _name_list(f"{name} {list(found[name].shape)}" for name in extra)
        problems.append(f"{len(extra)} tensors do not belong to this architecture:\n{lines}")
    if wrong:
        lines = _name_list(
            f"{n} is {list(found[n].shape)}, config.json wants {list(shapes[n])}" for n in wrong
        )
        problems.append(f"{len(wrong)} tensors have another shape:\n{lines}")
    quantized = [n for n in sorted(set(shapes) & set(found)) if found[n].dtype not in _FLOATS]
    if quantized:
        lines = _name_list(f"{n} is {found[n].dtype}" for n in quantized)
        problems.append(f"{len(quantized)} tensors are not floating-point numbers:\n{lines}")
    if problems:
        raise CheckpointError(f"{where}: the weights do not fit config.json\n" + "\n".join(problems))


def _name_list(names: Iterable[str], limit: int = 12) -> str:
    ordered = sorted(names)
    shown = [f"  {clipped(name, _LINE)}" for name in ordered[:limit]]
    if len(ordered) > limit:
        shown.append(f"  ... and {len(ordered) - limit} more")
    return "\n".join(shown)


def write_safetensors(
    file: Path,
    specs: Sequence[TensorSpec],
    get: Callable[[str], np.ndarray],
    metadata: dict[str, str] | None = None,
) -> FileRecord:
    """Write one safetensors file, calling `get(name)` for one array at a time, in the order of `specs`.

    Each array must have the shape of its spec and the numpy type of its element type. Returns size and checksum.
    """
    header: dict[str, Any] = {"__metadata__": metadata or {"format": "pt"}}
    offset = 0
    for spec in specs:
        end = offset + spec_bytes(spec)
        header[spec.name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with RecordedFile(file) as output:
        output.write(len(encoded).to_bytes(8, "little"))
        output.write(encoded)
        for spec in specs:
            array = get(spec.name)
            if array.shape != spec.shape or array.dtype != NUMPY_TYPES[spec.dtype]:
                raise ValueError(
                    f"{spec.name}: got {array.dtype} {list(array.shape)} for {spec.dtype} {list(spec.shape)}"
                )
            output.write(np.ascontiguousarray(array).reshape(-1).data.cast("B"))
            # Frees its memory before `get` makes the next one.
            del array
    return output.record


def write_shards(
    directory: str | Path,
    specs: Sequence[TensorSpec],
    get: Callable[[str], np.ndarray],
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    metadata: dict[str, str] | None = None,
) -> dict[str, FileRecord]:
    """Write `model-0000i-of-0000n.safetensors` and their index, streaming; returns the shards by name.

    metadata: of each file, None: {"format": "pt"}.
    """
    directory = Path(directory)
    shards = split_shards(specs, max_shard_bytes)
    files, weight_map = {}, {}
    for number, shard in enumerate(shards):
        name = shard_name(number, len(shards))
        files[name] = write_safetensors(directory / name, shard, get, metadata)
        weight_map.update({spec.name: name for spec in shard})
    write_index(directory, weight_map, sum(spec_bytes(spec) for spec in specs))
    return files


def split_shards(
    specs: Iterable[TensorSpec], max_shard_bytes: int = DEFAULT_SHARD_BYTES
) -> list[list[TensorSpec]]:
    """The tensors of each shard, in order.

    No shard exceeds `max_shard_bytes`, except for a larger tensor, which gets a separate shard.
    """
    shards: list[list[TensorSpec]] = []
    filled = 0
    for spec in specs:
        if not shards or filled + spec_bytes(spec) > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(spec)
        filled += spec_bytes(spec)
    return shards


def shard_name(number: int, count: int) -> str:
    """The file name of a shard. number: from 0."""
    return f"model-{number + 1:05d}-of-{count:05d}.safetensors"


def write_index(directory: Path, weight_map: Mapping[str, str], total_bytes: int) -> None:
    """Write the index of shards. weight_map: name of a tensor -> name of its shard."""
    index = {"metadata": {"total_size": total_bytes}, "weight_map": dict(sorted(weight_map.items()))}
    (directory / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def spec_bytes(spec: TensorSpec) -> int:
    """Size of a tensor on disk, in bytes."""
    return spec.size * np.dtype(NUMPY_TYPES[spec.dtype]).itemsize
