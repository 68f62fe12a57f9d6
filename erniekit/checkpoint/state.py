"""Training checkpoints, written atomically.

All processes write files to `.checkpoint-000123.tmp` and sync them to disk; 123 is the number of optimizer steps. When
all are written, the main process adds the rest and renames the directory to `checkpoint-000123`. Its files:

- the weights: shards and index in the Hub's layout with `config.json`, tokenizer and processor files, so that the
  directory is a complete model; or `adapter_config.json` and `adapter_model.safetensors` in PEFT's form;
- `optimizer-00001-of-00002.safetensors`, ...: moments by the Hub's names, see `erniekit.checkpoint.optimizer_state`;
- `trainer_state.json`: everything else, and size and checksum of every file, which reveal missing and damaged files.

The state of random generators is not stored: the randomness of a row depends only on the seed of the run and the number
of rows drawn, both in `trainer_state.json`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from erniekit.checkpoint.hub import weight_files
from erniekit.checkpoint.manifest import (
    FileRecord,
    checksum_problems,
    read_record,
    records_from,
    size_problem,
)
from erniekit.checkpoint.parts import part_files
from erniekit.config import Config
from erniekit.display.text import clipped
from erniekit.errors import CheckpointError
from erniekit.local_files import read_json_object

STATE_FILE = "trainer_state.json"
FORMAT = 2
# Format 1 has the optimizer's state in one file, and no checksums.
_READABLE = (1, FORMAT)
CHECKPOINT_NAME = re.compile(r"checkpoint-(\d{6,})")
SET_ASIDE = ".damaged"
_SIDE_FILE = re.compile(r"\.(json|jinja|model|py|ttf|txt)$|^(LICEN[CS]E|NOTICE)")
_NOT_SIDE_FILES = re.compile(r"\.index\.json$|^adapter_config\.json$|^trainer_state\.json$")
_FINGERPRINT_BYTES = 1 << 20


@dataclass(frozen=True)
class TrainerState:
    """The progress of a run.

    `step`, `rows`, `tokens`, `loss_tokens`: optimizer steps, packed rows, tokens and loss tokens so far. `loader`: the
    position in the data. `window`: metrics not yet logged. `identity`: config keys and values that must not change when
    the run is resumed. `config`: the resolved configuration, and `schedule`: the inputs of the learning rate, both to
    report changes. `base_model`: directory of the base model, or its repository on the Hub. `best`: the best evaluation
    so far, empty in checkpoints of versions before it existed. `skipped_steps`, `skipped_in_row`, `losses`,
    `pending_evaluation`: as in `TrainerProgress`.
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
    skipped_steps: int = 0
    skipped_in_row: int = 0
    losses: list[float] = field(default_factory=list)
    pending_evaluation: bool = False


_EXAMPLE = asdict(TrainerState(0, 0, 0, 0, 0, {}, {}, {}, {}, {}, "", ""))


@dataclass(frozen=True)
class FoundCheckpoint:
    """A checkpoint directory. `problem` says why it is incomplete; None if it is complete."""

    path: Path
    step: int
    problem: str | None


def checkpoint_name(step: int) -> str:
    """The directory name of the checkpoint after `step` steps."""
    return f"checkpoint-{step:06d}"


def checkpoint_step(name: str) -> int:
    """The number of steps in the directory name of a checkpoint."""
    return int(name.rpartition("-")[2])


def unfinished_name(step: int) -> str:
    """The directory name of a checkpoint that is being written."""
    return f".{checkpoint_name(step)}.tmp"


def finish_checkpoint(aside: Path, state: TrainerState, files: Mapping[str, FileRecord]) -> Path:
    """Write `trainer_state.json` into a directory with all other files, and give it the name of a checkpoint.

    files: records of the files that processes wrote; records of other files in the directory are added. Raises OSError.
    """
    run, final = aside.parent, aside.parent / checkpoint_name(state.step)
    records, parts = dict(files), part_files(aside)
    for file in sorted(aside.rglob("*")):
        if file.is_file() and file.name not in records and file not in parts:
            records[str(file.relative_to(aside))] = read_record(file)
            _sync(file)
    content = {"format": FORMAT, **asdict(state), "files": records}
    content["checksum"] = _checksum(json.loads(json.dumps(content)))
    (aside / STATE_FILE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    _sync(aside / STATE_FILE)
    _sync(aside)
    replaced = None
    if final.exists():
        # Removing it takes long: a run that is killed meanwhile has the new one.
        replaced = final.rename(run / f".{final.name}.replaced.tmp")
    aside.rename(final)
    _sync(run)
    if replaced is not None:
        remove_checkpoint(replaced)
    # Last: a launcher that ends the run waits for the locks on them.
    for file in part_files(final):
        file.unlink()
    return final


def find_checkpoints(run: Path) -> list[FoundCheckpoint]:
    """All checkpoints of a run, newest first, without unfinished `.tmp` directories."""
    if not run.is_dir():
        return []
    found = []
    for path in run.iterdir():
        match = CHECKPOINT_NAME.fullmatch(path.name)
        if match and path.is_dir():
            found.append(FoundCheckpoint(path, int(match[1]), _problem(path)))
    return sorted(found, key=lambda checkpoint: checkpoint.step, reverse=True)


def newest_checkpoint(run: Path) -> Path | None:
    """The newest complete checkpoint of a run, or None."""
    return next((found.path for found in find_checkpoints(run) if found.problem is None), None)


def set_aside_newer(run: Path, step: int) -> list[Path]:
    """Rename the checkpoints of later steps than `step`, the one that a run is resumed at.

    Otherwise they would be newer than the checkpoints that the run writes before it reaches their steps again.
    Returns the new paths. Raises OSError.
    """
    renamed = []
    for found in find_checkpoints(run):
        if found.step > step:
            target = found.path.with_name(f"{found.path.name}{SET_ASIDE}")
            if target.exists():
                remove_checkpoint(target)
            renamed.append(found.path.rename(target))
    return renamed


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint; of a link to one that was moved to another place, the link. Raises OSError."""
    if path.is_symlink():
        path.unlink()
    else:
        shutil.rmtree(path)


def read_state(checkpoint: Path) -> TrainerState:
    """Read `trainer_state.json`. Raises CheckpointError if it is missing, damaged, or of another format version."""
    problem = _problem(checkpoint)
    if problem is not None:
        raise CheckpointError(f"{checkpoint}: not a complete training checkpoint: {problem}")
    content = read_json_object(checkpoint / STATE_FILE)
    if content.pop("format", None) not in _READABLE:
        raise CheckpointError(
            f"{checkpoint / STATE_FILE}: written by another version of erniekit; use that version"
        )
    del content["files"]
    content.pop("checksum", None)
    try:
        state = TrainerState(**content)
    except TypeError as error:
        raise CheckpointError(
            f"{checkpoint / STATE_FILE}: not a trainer state: {clipped(str(error))}"
        ) from None
    problem = _type_problem(state)
    if problem is not None:
        raise CheckpointError(f"{checkpoint / STATE_FILE}: not a trainer state: {problem}")
    return state


def file_records(checkpoint: Path) -> dict[str, FileRecord]:
    """Size and checksum of the files of a complete checkpoint, by name."""
    return records_from(read_json_object(checkpoint / STATE_FILE)["files"])


def check_weights(checkpoint: Path) -> None:
    """Raise CheckpointError if a run wrote other weights into this directory. Reads them all.

    Directories that no run wrote have no checksums, and are not read.
    """
    if not (checkpoint / STATE_FILE).is_file():
        return
    read_state(checkpoint)
    records = file_records(checkpoint).items()
    problems = checksum_problems(
        checkpoint, [item for item in records if not item[0].startswith("optimizer")]
    )
    if problems:
        raise CheckpointError(
            f"{checkpoint}: {problems[0]}; restore it, or use an older checkpoint of the run"
        )


def check_identity(
    saved: dict[str, Any], current: dict[str, Any], where: Path, changes: Mapping[str, str] | None = None
) -> None:
    """Raise CheckpointError with the configuration keys that changed since the checkpoint.

    changes: what of some contents has changed, in words, by key.
    """
    lines = []
    for key in sorted(set(saved) | set(current)):
        before, now = saved.get(key), current.get(key)
        if before == now:
            continue
        change = f"was {_short(before)}, is now {_short(now)}"
        if isinstance(now, dict) or isinstance(before, dict):
            change = (changes or {}).get(key, "the content has changed since the run began")
        lines.append(f"  {clipped(key)}: {change}")
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


def is_side_file(name: str) -> bool:
    """Whether a file is by its name a configuration, tokenizer, template, font, code or licence of a model."""
    return _SIDE_FILE.search(name) is not None


def read_side_files(source: Path) -> dict[str, bytes]:
    """The files of a model other than its weights, by name: config, tokenizer, templates, processor, font, licence.

    Raises CheckpointError.
    """
    try:
        return {
            file.name: file.read_bytes()
            for file in sorted(source.iterdir())
            if file.is_file() and is_side_file(file.name) and not _NOT_SIDE_FILES.search(file.name)
        }
    except OSError as error:
        raise CheckpointError(f"{error.filename or source}: cannot be read: {error.strerror}") from error


def write_side_files(files: Mapping[str, bytes], target: Path) -> None:
    """Write the files of `read_side_files` into a checkpoint. Raises OSError."""
    for name, content in files.items():
        (target / name).write_bytes(content)


def _problem(checkpoint: Path) -> str | None:
    """Why a checkpoint is not complete; None if it is."""
    try:
        return _find_problem(checkpoint)
    except OSError as error:
        # Such as of a checkpoint that a run removes meanwhile.
        return f"it cannot be read: {error.strerror}"


def _find_problem(checkpoint: Path) -> str | None:
    file = checkpoint / STATE_FILE
    if not file.exists():
        return f"{STATE_FILE} is missing"
    try:
        content = read_json_object(file)
        records = records_from(content["files"])
    except (CheckpointError, ValueError, KeyError, TypeError, IndexError, OverflowError):
        return f"{STATE_FILE} is damaged"
    # Checkpoints of versions before it existed have none.
    if content.get("checksum", _checksum(content)) != _checksum(content):
        return f"{STATE_FILE} is damaged, or was edited: its checksum differs from the one that was written"
    match = CHECKPOINT_NAME.fullmatch(checkpoint.name)
    if match and content.get("step") != int(match[1]):
        return f"{STATE_FILE} is of another checkpoint: it says step {clipped(repr(content.get('step')))}"
    unlisted = [path.name for path in checkpoint.glob("*.safetensors") if path.name not in records]
    if unlisted or not records:
        return f"{STATE_FILE} lacks {min(unlisted, default='the files of the checkpoint')}"
    problems = (
        size_problem(checkpoint / name, record) for name, record in records.items() if _is_inside(name)
    )
    outside = next(
        (f"{STATE_FILE} names {clipped(repr(name))}" for name in records if not _is_inside(name)), None
    )
    return outside or next((problem for problem in problems if problem is not None), None)


def _is_inside(name: str) -> bool:
    """Whether a name is of a file inside the directory."""
    parts = Path(name).parts
    return 0 < len(name) < 256 and "\0" not in name and not Path(name).is_absolute() and ".." not in parts


def _checksum(content: Mapping[str, Any]) -> str:
    """XXH3 of a trainer state as JSON, without the checksum itself."""
    values = {key: value for key, value in content.items() if key != "checksum"}
    return xxhash.xxh3_128(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _type_problem(state: TrainerState) -> str | None:
    """The first value of another type than `TrainerState` says, a negative count, or a section that is not one."""
    for name, value in asdict(state).items():
        wanted = type(_EXAMPLE[name])
        if type(value) is not wanted:
            return f"{name} is {clipped(repr(value))}, expected {wanted.__name__}"
        if wanted is int and not 0 <= value < 1 << 62:
            return f"{name} is {clipped(repr(value))}"
    sections = (
        name for name, field in Config.model_fields.items() if hasattr(field.annotation, "model_fields")
    )
    bad = next((name for name in sections if not isinstance(state.config.get(name, {}), dict)), None)
    return None if bad is None else f"config.{bad} is not a section"


def _short(value: Any) -> str:
    return clipped(json.dumps(value), 120)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
