"""Finds and loads a model for inference: an export, a training checkpoint (full or adapter), or a run."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import get_args

from pydantic import ValidationError

from erniekit.checkpoint.best import BEST_NAME, best_checkpoint
from erniekit.checkpoint.download import local_model, names_repository
from erniekit.checkpoint.model_files import open_model
from erniekit.checkpoint.quantizer import make_quantizer
from erniekit.checkpoint.resize import ModelChanges
from erniekit.checkpoint.state import (
    STATE_FILE,
    TrainerState,
    find_checkpoints,
    newest_checkpoint,
    read_state,
)
from erniekit.checkpoint.weights import load_model
from erniekit.config import DataConfig
from erniekit.config.choices import Quantize
from erniekit.config.schema import DpoConfig
from erniekit.data.encode.encoder import Encoder, make_encoder
from erniekit.data.media.patches import ImageSpec
from erniekit.errors import CheckpointError
from erniekit.local_files import missing_model
from erniekit.lora.adapters import adapter_vocab_size, add_adapter, is_adapter_directory
from erniekit.lora.peft import read_adapter_config
from erniekit.models.ernie import ErnieModel


@dataclass(frozen=True)
class ModelSource:
    """The files of a model, before its weights are read.

    `checkpoint` holds the weights or the adapter; `directory` holds config.json, tokenizer and processor (for an
    adapter, of its base model). `data` and `seed` are of the training run, or defaults if there is none.
    `vocab_size` and `max_positions` are for an enlarged model; `quantize` is the model.quantize of the training run.
    `base` is the model.path of the training run, and `dpo` its section if it trained on preferences.
    """

    checkpoint: Path
    directory: Path
    data: DataConfig = field(default_factory=DataConfig.without_sources)
    seed: int = 0
    vocab_size: int | None = None
    max_positions: int | None = None
    quantize: Quantize = "none"
    base: str | None = None
    dpo: DpoConfig | None = None

    @property
    def title(self) -> str:
        """The checkpoint, and how its base is quantized, for messages."""
        base = "" if self.quantize == "none" else f" (base in {self.quantize}, as in training)"
        return f"{self.checkpoint}{base}"

    def encoder(self, template: str | None = None) -> Encoder:
        """The model's encoder; `template` replaces the training run's template."""
        data = self.data if template is None else self.data.model_copy(update={"template": template})
        return make_encoder(
            self.directory,
            data,
            seed=self.seed,
            vocab_size=self.vocab_size,
            max_positions=self.max_positions,
        )

    def load(self, dtype: str = "float32") -> ErnieModel:
        """The model in evaluation mode, computing in `dtype`. Raises CheckpointError."""
        changes = ModelChanges(self.vocab_size, self.max_positions)
        model = load_model(self.directory, dtype, changes=changes, quantizer=make_quantizer(self.quantize))
        if self.checkpoint != self.directory:
            add_adapter(model, self.checkpoint)
        if model.config.vision is not None:
            spec = ImageSpec.from_checkpoint(self.directory)
            model.image_mean, model.image_std = spec.image_mean, spec.image_std
        model.eval()
        return model


def find_model(path: str | Path) -> ModelSource:
    """Finds the model of a path that a user gives; an adapter's base model is the one in its configuration.

    Raises CheckpointError if there is no model or no base model, if a training checkpoint is incomplete, or if files
    do not fit together. Only headers are read, so that errors come early.
    """
    checkpoint = find_checkpoint(Path(path))
    directory, vocab_size = checkpoint, None
    if is_adapter_directory(checkpoint):
        directory = base_directory(checkpoint)
        if not (directory / "config.json").is_file():
            raise CheckpointError(
                f"{checkpoint}: its base model {directory} does not exist (base_model_name_or_path in "
                "adapter_config.json); a relative path is relative to the working directory of the command"
            )
        vocab_size = adapter_vocab_size(checkpoint)
    source = ModelSource(checkpoint, directory, vocab_size=vocab_size)
    if (checkpoint / STATE_FILE).is_file():
        state = read_state(checkpoint)
        source = replace(
            source,
            data=run_data(state),
            seed=state.seed,
            max_positions=run_max_positions(state, checkpoint),
            quantize=run_quantize(state, checkpoint),
            base=state.base_model,
            dpo=run_dpo(state, checkpoint),
        )
    open_model(directory)
    return source


def base_directory(adapter: Path) -> Path:
    """The directory of an adapter's base model, which is downloaded if it is a repository of the Hub.

    The directory need not exist. Raises CheckpointError for a repository that cannot be downloaded.
    """
    config = read_adapter_config(adapter)
    if not names_repository(config.base_path):
        return Path(config.base_path)
    try:
        return local_model(config.base_path, config.base_revision).directory
    except CheckpointError as error:
        raise CheckpointError(f"{adapter}: its base model: {error}") from error


def run_data(state: TrainerState) -> DataConfig:
    """The section data of a run; keys that are missing in runs of older versions have their defaults."""
    return DataConfig.without_sources(**state.config.get("data", {}))


def run_dpo(state: TrainerState, checkpoint: Path) -> DpoConfig | None:
    """The section dpo of a run of task dpo. Raises CheckpointError for invalid values."""
    if state.config.get("task") != "dpo":
        return None
    try:
        return DpoConfig(**state.config.get("dpo", {}))
    except (ValidationError, TypeError):
        raise _invalid(checkpoint, "dpo") from None


def run_max_positions(state: TrainerState, checkpoint: Path) -> int | None:
    """model.max_position_embeddings of a run; None: the checkpoint's. Raises CheckpointError for invalid values."""
    positions: int | None = state.config.get("model", {}).get("max_position_embeddings")
    if positions is not None and type(positions) is not int:
        raise _invalid(checkpoint, "model.max_position_embeddings")
    return positions


def run_quantize(state: TrainerState, checkpoint: Path) -> Quantize:
    """How a run quantized its base model. Raises CheckpointError for invalid values."""
    choice: Quantize = state.config.get("model", {}).get("quantize", "none")
    if choice not in get_args(Quantize):
        raise _invalid(checkpoint, "model.quantize")
    return choice


def _invalid(checkpoint: Path, key: str) -> CheckpointError:
    return CheckpointError(
        f"{checkpoint / STATE_FILE}: its config.{key} is not valid; use another checkpoint"
    )


def find_checkpoint(path: Path) -> Path:
    """The directory that holds weights or an adapter: `path` itself, or a run's newest complete checkpoint.

    RUN/best is the run's best checkpoint. A repository of the Hub is downloaded. Raises CheckpointError if there is
    none.
    """
    if not path.is_dir():
        if path.name == BEST_NAME and path.parent.is_dir():
            return best_checkpoint(path.parent)
        path = local_model(str(path)).directory
    if is_adapter_directory(path) or (path / "config.json").is_file() or (path / STATE_FILE).is_file():
        return path
    newest = newest_checkpoint(path)
    if newest is not None:
        return newest
    broken = [f"{found.path.name}: {found.problem}" for found in find_checkpoints(path)]
    if broken:
        raise CheckpointError(f"{path}: no checkpoint of this run is complete ({'; '.join(broken)})")
    if (path / "log.jsonl").is_file():
        raise CheckpointError(
            f"{path}: the run has no checkpoint yet; checkpoint.save_every sets how often it saves"
        )
    if (path / "lora_config.json").is_file() or any(path.glob("*.gguf")):
        raise CheckpointError(missing_model(path))
    raise CheckpointError(f"{path}: holds no model (config.json), no adapter and no checkpoint of a run")
