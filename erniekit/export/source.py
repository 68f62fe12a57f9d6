"""What an export is made from: weights, an adapter on top, and the model that training started from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from erniekit.checkpoint.download import cached_model, model_directory, names_repository
from erniekit.checkpoint.model_files import refuse_undownloaded
from erniekit.checkpoint.resize import ModelChanges
from erniekit.checkpoint.state import STATE_FILE, TrainerState, read_state
from erniekit.config import DataConfig
from erniekit.config.choices import Quantize
from erniekit.errors import CheckpointError
from erniekit.generation.load import (
    base_directory,
    find_checkpoint,
    run_data,
    run_max_positions,
    run_quantize,
)
from erniekit.local_files import missing_model
from erniekit.lora.adapters import adapter_vocab_size, is_adapter_directory
from erniekit.models.config import ErnieConfig


@dataclass(frozen=True)
class ExportSource:
    """What is exported: the weights of a directory, an adapter on top, side files from `files`.

    `checkpoint` is the directory that was found. `base` is the model that training started from, None where
    it is not known or not reachable; `trained` says whether the weights come from training, whose
    section data is `data`; `max_positions` are those that it gave its model, None: the checkpoint's. `quantize` and
    `dtype` are those of the base model under the adapter during training.
    """

    checkpoint: Path
    weights: Path
    config: ErnieConfig
    adapter: Path | None
    base: Path | None
    trained: bool
    data: DataConfig
    max_positions: int | None
    quantize: Quantize = "none"
    dtype: str = "float32"

    @property
    def files(self) -> list[Path]:
        """Directories to take side files from, the first that has a name first."""
        return [self.weights] if self.base in (None, self.weights) else [self.weights, self.base]


def resolve_source(path: Path, base: Path | None = None) -> ExportSource:
    """Find the weights, the adapter and the base model of a path. Raises CheckpointError."""
    path = find_checkpoint(path)
    base = None if base is None else model_directory(base)
    state = read_state(path) if (path / STATE_FILE).is_file() else None
    data = DataConfig.without_sources() if state is None else run_data(state)
    max_positions = None if state is None else run_max_positions(state, path)
    changes = ModelChanges(max_position_embeddings=max_positions)
    if base is not None and not (base / "config.json").is_file():
        raise CheckpointError(f"--base {missing_model(base)}")
    if is_adapter_directory(path):
        base = base or base_directory(path)
        if not (base / "config.json").is_file():
            raise CheckpointError(
                f"{path}: its base model {base} does not exist (no config.json); give its path with --base"
            )
        refuse_undownloaded(base)
        changes = replace(changes, vocab_size=adapter_vocab_size(path))
        config = changes.apply(ErnieConfig.from_dir(base))
        source = ExportSource(path, base, config, path, base, True, data, max_positions)
        if state is None or run_quantize(state, path) == "none":
            return source
        return replace(source, quantize=run_quantize(state, path), dtype=state.identity["model.dtype"])
    if base is None and state is not None:
        base = known_base(state)
    for directory in (path, base):
        if directory is not None:
            refuse_undownloaded(directory)
    config = changes.apply(ErnieConfig.from_dir(path))
    return ExportSource(path, path, config, None, base, state is not None, data, max_positions)


def known_base(state: TrainerState) -> Path | None:
    """The base model of a full checkpoint, which export can do without: it is not downloaded."""
    directory, revision = Path(state.base_model), state.config.get("model", {}).get("revision")
    if names_repository(state.base_model):
        found = cached_model(state.base_model, revision)
        return None if found is None else found.directory
    return directory if (directory / "config.json").is_file() else None
