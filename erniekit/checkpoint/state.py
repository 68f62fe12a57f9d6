"""Training checkpoints, written atomically.

A checkpoint is written as `.checkpoint-000123.tmp`, synced to disk and renamed to `checkpoint-000123`, where 123 is the
number of optimizer steps. Its files:

- the weights: shards and index in the Hub's layout beside `config.json`, tokenizer and processor files, so
  that the directory is a complete model; or `adapter_config.json` and `adapter_model.safetensors` in PEFT's
  form;
- `optimizer.safetensors`: moments by parameter name;
- `trainer_state.json`: everything else, and the size of every file, which reveals an incomplete copy.

The state of random generators is not stored: the randomness of a row depends only on the seed of the run and the number
of rows drawn, both in `trainer_state.json`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from erniekit.checkpoint.hub import TensorInfo, read_header, weight_files, write_safetensors
from erniekit.errors import CheckpointError
from erniekit.local_files import placeholder_problem
from erniekit.models.specs import TensorSpec

STATE_FILE = "trainer_state.json"
OPTIMIZER_FILE = "optimizer.safetensors"
FORMAT = 1
_NAME = re.compile(r"checkpoint-(\d{6,})")
_SIDE_SUFFIXES = {".json", ".jinja", ".model", ".py", ".ttf", ".txt"}
_NOT_SIDE_FILES = re.compile(r"\.index\.json$|^adapter_config\.json$|^trainer_state\.json$")
_FINGERPRINT_BYTES = 1 << 20


@dataclass(frozen=True)
class TrainerState:
    """The progress of a run.

    `step`, `rows`, `tokens`, `loss_tokens`: optimizer steps, packed rows, tokens and loss tokens so far. `loader`: the
    position in the data. `window`: metrics not yet logged. `identity`: config keys and values that must not change when
    the run is resumed. `config`: the resolved configuration, and `schedule`: the inputs of the learning rate, both to
    report changes. `base_model`: directory of the base model, or its repository on the hub. `best`: the best evaluation
    so far, empty in checkpoints of versions before it existed.
    """

    step: int
    rows: int
    tokens: int
    loss_tokens: int
    seed: int
    loader: dict[str, Any]
    window: dict[str, Any]
    schedule: dict[str, Any]
    identity: dict[str, Any]
    config: dict[str, Any]
    base_model: str
    erniekit_version: str
    best: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class FoundCheckpoint:
    """A checkpoint directory. `problem` says why it is incomplete; None if it is complete."""

    path: Path
    step: int
    problem: str | None


def checkpoint_name(step: int) -> str:
    """The directory name of the checkpoint after `step` steps."""
    return f"checkpoint-{step:06d}"


def write_checkpoint(
    run: Path,
    state: TrainerState,
    *,
    write_weights: Callable[[Path], None],
    optimizer_specs: Sequence[TensorSpec],
    optimizer_array: Callable[[str], np.ndarray],
) -> Path:
    """Write one checkpoint into the run directory and return its path.

    `write_weights` writes the model files into a directory. The checkpoint gets its final name once it is complete on
    disk. Raises CheckpointError if writing fails; earlier checkpoints are untouched.
    """
    final = run / checkpoint_name(state.step)
    aside = run / f".{final.name}.tmp"
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        write_weights(aside)
        write_safetensors(aside / OPTIMIZER_FILE, optimizer_specs, optimizer_array)
        files = {str(f.relative_to(aside)): f.stat().st_size for f in sorted(aside.rglob("*")) if f.is_file()}
        content = {"format": FORMAT, **asdict(state), "files": files}
        (aside / STATE_FILE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        for file in [*files, STATE_FILE]:
            _sync(aside / file)
        _sync(aside)
        if final.exists():
            shutil.rmtree(final)
        aside.rename(final)
        _sync(run)
    except OSError as error:
        raise CheckpointError(f"{aside}: the checkpoint cannot be written: {error.strerror}") from error
    return final


def find_checkpoints(run: Path) -> list[FoundCheckpoint]:
    """All checkpoints of a run, newest first, without unfinished `.tmp` directories."""
    if not run.is_dir():
        return []
    found = []
    for path in run.iterdir():
        match = _NAME.fullmatch(path.name)
        if match and path.is_dir():
            found.append(FoundCheckpoint(path, int(match[1]), _problem(path)))
    return sorted(found, key=lambda checkpoint: checkpoint.step, reverse=True)


def newest_checkpoint(run: Path) -> Path | None:
    """The newest complete checkpoint of a run, or None."""
    return next((found.path for found in find_checkpoints(run) if found.problem is None), None)


def prune_checkpoints(run: Path, keep: int, spare: Collection[int] = ()) -> None:
    """Remove all but the `keep` newest complete checkpoints, and unfinished `.tmp` directories.

    spare: steps of further checkpoints to keep.
    """
    found = find_checkpoints(run)
    complete = [checkpoint for checkpoint in found if checkpoint.problem is None][:keep]
    if not complete:
        return
    for checkpoint in found:
        kept = checkpoint in complete or checkpoint.step in spare
        if not kept and checkpoint.step < complete[0].step:
            shutil.rmtree(checkpoint.path)
    for aside in run.glob(".checkpoint-*.tmp"):
        shutil.rmtree(aside)


def read_state(checkpoint: Path) -> TrainerState:
    """Read `trainer_state.json`. Raises CheckpointError if it is missing, damaged, or of another format version."""
    problem = _problem(checkpoint)
    if problem is not None:
        raise CheckpointError(f"{checkpoint}: not a complete training checkpoint: {problem}")
    content = json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
    if content.pop("format", None) != FORMAT:
        raise CheckpointError(
            f"{checkpoint / STATE_FILE}: written by another version of erniekit; use that version"
        )
    del content["files"]
    try:
        return TrainerState(**content)
    except TypeError as error:
        raise CheckpointError(f"{checkpoint / STATE_FILE}: not a trainer state: {error}") from None


def read_optimizer(checkpoint: Path) -> dict[str, TensorInfo]:
    """The place of each float32 tensor of `optimizer.safetensors`, by name."""
    return read_header(checkpoint / OPTIMIZER_FILE)


def check_identity(saved: dict[str, Any], current: dict[str, Any], where: Path) -> None:
    """Raise CheckpointError with the configuration keys that changed since the checkpoint."""
    lines = []
    for key in sorted(set(saved) | set(current)):
        before, now = saved.get(key), current.get(key)
        if before == now:
            continue
        change = f"was {_short(before)}, is now {_short(now)}"
        if isinstance(now, dict) or isinstance(before, dict):
            change = "the content has changed since the run began"
        lines.append(f"  {key}: {change}")
    if lines:
        raise CheckpointError(
            f"{where}: cannot be resumed with this configuration:\n" + "\n".join(lines) + "\n"
            "Use the settings of the run (config.yaml in its directory), or a new train.output_dir."
        )


def fingerprint(parts: Iterable[bytes | memoryview]) -> dict[str, Any]:
    """A digest for `TrainerState.identity`."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return {"digest": digest.hexdigest()}


def model_fingerprint(directory: Path) -> dict[str, Any]:
    """Digest of a model directory: its `config.json`, and the size, head and tail of each weight file.

    Reads at most 2 MiB per file, so it is fast for the largest models.
    """

    def parts() -> Iterable[bytes]:
        yield (directory / "config.json").read_bytes()
        for file in weight_files(directory):
            size = file.stat().st_size
            yield f"{file.name} {size}".encode()
            with file.open("rb") as stream:
                yield stream.read(_FINGERPRINT_BYTES)
                stream.seek(max(0, size - _FINGERPRINT_BYTES))
                yield stream.read()

    return fingerprint(parts())


def copy_side_files(source: Path, target: Path) -> None:
    """Copy the files of a model besides its weights: config, tokenizer, templates, processor files, font."""
    for file in sorted(source.iterdir()):
        if file.is_file() and file.suffix in _SIDE_SUFFIXES and not _NOT_SIDE_FILES.search(file.name):
            shutil.copyfile(file, target / file.name)


def _problem(checkpoint: Path) -> str | None:
    try:
        content = json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
        files = dict(content["files"])
    except FileNotFoundError:
        return f"{STATE_FILE} is missing"
    except (OSError, ValueError, KeyError, TypeError):
        return f"{STATE_FILE} is damaged"
    for name, size in files.items():
        file = checkpoint / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            pointer = placeholder_problem(file)
            return f"{name} {pointer or f'has {file.stat().st_size} bytes instead of {size}'}"
    return None


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 120 else text[:117] + "..."


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
