"""Uploading a model or an adapter to the Hugging Face hub, with a model card."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from erniekit.checkpoint.best import BEST_NAME
from erniekit.checkpoint.download import is_repository_name, names_repository
from erniekit.checkpoint.model_files import open_model
from erniekit.checkpoint.state import STATE_FILE, find_checkpoints, read_state
from erniekit.config.choices import PushLayout
from erniekit.errors import CheckpointError, ConfigError
from erniekit.export.adapter import export_adapter
from erniekit.export.card import RunFacts, find_licence, model_card, read_metrics
from erniekit.export.export import export_model, resolve_source
from erniekit.export.quantized import check_quantized, model_config, read_quantization
from erniekit.generation.load import base_directory, find_checkpoint
from erniekit.local_files import read_json_object, refuse_placeholders
from erniekit.lora.adapters import is_adapter_directory, read_adapter
from erniekit.lora.peft import CONFIG_FILE
from erniekit.models.config import ErnieConfig

CARD = "README.md"
# Not of the model: hidden files, the state of training, and weights that engines do not read.
_LEFT_OUT = re.compile(rf"^(\.|{re.escape(STATE_FILE)}$|optimizer)|\.(tmp|pdparams|pdopt|bin|pt|pth|ckpt)$")
_LOG = "log.jsonl"


@dataclass(frozen=True)
class Upload:
    """What is uploaded: the files by their names, as they are or with a new content. card: a new model card."""

    repository: str
    files: dict[str, Path | bytes]
    card: str | None

    def lines(self) -> list[str]:
        """The files with their sizes, as text."""
        sizes = {
            f"{name} (new)" if isinstance(content, bytes) else name: (
                len(content) if isinstance(content, bytes) else content.stat().st_size
            )
            for name, content in sorted(self.files.items())
        }
        width = max(len(name) for name in sizes)
        listed = [f"  {name:{width}} {size:>16,} bytes" for name, size in sizes.items()]
        return [*listed, f"  {len(sizes)} files, {sum(sizes.values()) / 1e6:,.1f} MB, to {self.repository}"]


@contextmanager
def prepare_upload(
    path: str | Path,
    repository: str,
    *,
    run: Path | None = None,
    layout: PushLayout | None = None,
    base: str | None = None,
    licence: str | None = None,
) -> Iterator[Upload]:
    """The upload of an exported directory, or of a run or checkpoint, which is exported to a temporary directory first.

    run: the run that an exported directory is from, for its card. layout: of the export of a run. base: the base
    model's name on the hub, for the card. licence: its name on the hub; None: that of the base model's files. Raises
    ConfigError for options that do not fit, and CheckpointError for a directory that is not a complete model.
    """
    if not is_repository_name(repository):
        raise ConfigError(f"{repository}: a repository of the hub is named owner/name")
    path = Path(path)
    is_run = (path / STATE_FILE).is_file() or path.name == BEST_NAME or bool(find_checkpoints(path))
    if not is_run and not path.is_dir():
        raise CheckpointError(f"{path}: no such directory; give a run, a checkpoint or an exported directory")
    if not is_run and layout is not None:
        raise ConfigError("--layout is for a run or a checkpoint: this directory has its layout")
    if is_run and run is not None:
        raise ConfigError("--run is for an exported directory: this is a run itself")
    if not is_run:
        yield _upload(path, repository, _facts(run) if run is not None else None, base, licence, [path])
        return
    source = resolve_source(path)
    facts = _facts(path)
    beside = source.checkpoint.parent
    with tempfile.TemporaryDirectory(prefix=".push.", dir=beside) as name:
        exported = Path(name) / "model"
        if layout == "adapter":
            export_adapter(path, exported)
        else:
            export_model(path, exported, layout=layout or "hub")
        yield _upload(exported, repository, facts, base, licence, [exported, *source.files])


def upload(found: Upload, *, private: bool = False, message: str | None = None) -> str:
    """Create the repository unless it exists, and add a commit with all files. Returns the address of the commit.

    private: of a repository that is created. Raises CheckpointError where the hub refuses or cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    operations = [
        CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
        for name, content in found.files.items()
    ]
    with _explaining_errors(found.repository):
        api = HfApi()
        api.create_repo(found.repository, private=private or None, exist_ok=True)
        commit = api.create_commit(
            found.repository, operations, commit_message=message or "Upload a model made with erniekit"
        )
    return str(commit.commit_url)


def _upload(
    directory: Path,
    repository: str,
    run: RunFacts | None,
    base: str | None,
    licence: str | None,
    described: list[Path],
) -> Upload:
    refuse_placeholders(directory, (".safetensors", ".json", ".jinja", ".model"))
    files: dict[str, Path | bytes] = {
        file.name: file
        for file in sorted(directory.iterdir())
        if file.is_file() and not _LEFT_OUT.search(file.name)
    }
    if is_adapter_directory(directory):
        read_adapter(directory)
        config = ErnieConfig.from_dir(base_directory(directory))
        settings = read_json_object(directory / CONFIG_FILE)
        if base is not None:
            settings |= {"base_model_name_or_path": base, "revision": None}
            files[CONFIG_FILE] = (json.dumps(settings, indent=2) + "\n").encode()
        elif not names_repository(stated := str(settings["base_model_name_or_path"])):
            raise ConfigError(
                f"the adapter names {stated} as its base model, a directory of this machine; give the base model on "
                "the hub with --base owner/name"
            )
        else:
            base = stated
    elif (quantization := read_quantization(directory)) is not None:
        check_quantized(directory, quantization)
        config = model_config(directory)
    else:
        config, _ = open_model(directory)
    card = None
    if CARD not in files:
        card = model_card(repository, directory, config, run, base, licence or find_licence(described))
        files[CARD] = card.encode()
    return Upload(repository, files, card)


def _facts(path: Path) -> RunFacts:
    checkpoint = find_checkpoint(path)
    if not (checkpoint / STATE_FILE).is_file():
        raise CheckpointError(f"{path}: not a run or a checkpoint of one (no {STATE_FILE})")
    return RunFacts(read_state(checkpoint), read_metrics(checkpoint.parent / _LOG))


@contextmanager
def _explaining_errors(repository: str) -> Iterator[None]:
    """Turn what huggingface_hub raises into CheckpointError."""
    from huggingface_hub import constants, errors

    hub = constants.ENDPOINT
    try:
        yield
    except errors.OfflineModeIsEnabled as error:
        raise CheckpointError(
            f"{repository}: nothing can be uploaded while HF_HUB_OFFLINE is set; --dry-run needs no network"
        ) from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise CheckpointError(
                f"{repository}: {hub} refuses the upload ({status}): log in with `hf auth login`, or set HF_TOKEN, "
                "with a token that may write to this repository"
            ) from error
        raise CheckpointError(f"{repository}: the upload to {hub} failed: {_first_line(error)}") from error
    except Exception as error:  # of its many kinds some are of the libraries below huggingface_hub
        raise CheckpointError(
            f"{repository}: the upload to {hub} failed: {_first_line(error)}. Without a network, use a machine that "
            "has one, or a mirror (HF_ENDPOINT)"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
