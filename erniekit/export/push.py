"""Uploading a model or an adapter to the Hugging Face Hub, with a model card."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from erniekit.checkpoint.best import BEST_NAME
from erniekit.checkpoint.download import is_repository_name, local_model, names_repository
from erniekit.checkpoint.hub import read_index, weights_problem
from erniekit.checkpoint.manifest import CHECKSUMS_FILE, checksum_problems, records_from
from erniekit.checkpoint.model_files import open_model
from erniekit.checkpoint.state import STATE_FILE, find_checkpoints, read_state
from erniekit.checkpoint.tensor_layouts import layout_of
from erniekit.config.choices import ExportLayout, GgufType
from erniekit.errors import CheckpointError, ConfigError
from erniekit.export.adapter import export_adapter
from erniekit.export.card import Artifact, Kind, RunFacts, find_licence, model_card, read_metrics
from erniekit.export.export import export_model
from erniekit.export.gguf import export_to_gguf, read_family
from erniekit.export.layouts import HUB_MODEL_TYPES
from erniekit.export.output import staging
from erniekit.export.paddle_adapter import CONFIG_FILE as PADDLE_CONFIG_FILE
from erniekit.export.paddle_adapter import check_paddle_adapter, export_paddle_adapter
from erniekit.export.quantized import check_quantized, model_config, read_quantization
from erniekit.export.source import known_base, resolve_source
from erniekit.generation.load import find_checkpoint
from erniekit.local_files import read_json_object, refuse_placeholders
from erniekit.lora.adapters import read_adapter
from erniekit.lora.peft import CONFIG_FILE
from erniekit.models.config import ErnieConfig

CARD = "README.md"
# Not of the model: hidden files, the state of training, and weights that engines do not read.
_LEFT_OUT = re.compile(rf"^(\.|{re.escape(STATE_FILE)}$|optimizer)|\.(tmp|pdparams|pdopt|bin|pt|pth|ckpt)$")
_LOG = "log.jsonl"
_ADAPTER_CONFIGS = frozenset((CONFIG_FILE, PADDLE_CONFIG_FILE))
# Names of weight files that engines look for. One file comes before an index of several in some of them.
_WEIGHTS = re.compile(r"(model|pytorch_model)(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?")
_PADDLE_WEIGHTS = re.compile(r"peft_model(-\d+-of-\d+)?\.safetensors")


@dataclass(frozen=True)
class Upload:
    """What is uploaded: the files by their names, as they are or with a new content. card: a new model card."""

    repository: str
    files: dict[str, Path | bytes]
    card: str | None
    kind: Kind

    def replaces(self, name: str) -> bool:
        """Whether a file of the repository is of weights that these files replace."""
        weights = _PADDLE_WEIGHTS if self.kind == "paddle-adapter" else _WEIGHTS
        return self.kind not in ("gguf", "adapter") and weights.fullmatch(name) is not None

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
    layout: ExportLayout | None = None,
    gguf_type: GgufType | None = None,
    base: str | None = None,
    licence: str | None = None,
) -> Iterator[Upload]:
    """The upload of an exported directory, or of a run or checkpoint, which is exported to a temporary directory first.

    run: the run that an exported directory is from, for its card. layout, gguf_type: of the export of a run. base: the
    base model's name on the Hub, for the card. licence: its name on the Hub; None: that of the base model's files.
    Raises ConfigError for options that do not fit, and CheckpointError for a directory that is not a complete model.
    """
    for option, name in (("", repository), ("--base ", base)):
        if name is not None and not is_repository_name(name):
            raise ConfigError(f"{option}{name}: a repository of the Hub is named owner/name")
    path = Path(path)
    is_run = (path / STATE_FILE).is_file() or path.name == BEST_NAME or bool(find_checkpoints(path))
    if not is_run and not path.is_dir():
        what = "is a file" if path.is_file() else "no such directory"
        raise CheckpointError(f"{path}: {what}; give a run, a checkpoint or an exported directory")
    if not is_run and layout is not None:
        raise ConfigError("--layout is for a run or a checkpoint: this directory has its layout")
    if is_run and run is not None:
        raise ConfigError("--run is for an exported directory: this is a run itself")
    if gguf_type is not None and layout != "gguf":
        raise ConfigError("--gguf-type needs a run or a checkpoint, and --layout gguf")
    if not is_run:
        facts = None if run is None else _facts(run)
        known = None if facts is None else known_base(facts.state)
        yield _upload(path, repository, facts, base, licence, [path] if known is None else [path, known])
        return
    source = resolve_source(path)
    facts, beside = _facts(path), source.checkpoint.parent
    if not os.access(beside, os.W_OK):
        raise CheckpointError(
            f"{beside}: cannot be written, and the files to upload are exported to it: export the run to another "
            "directory, and push that, with --run"
        )
    with staging(beside / "push") as folder:
        exported = folder / "model"
        _export(path, exported, layout or "hub", gguf_type or "f16")
        yield _upload(exported, repository, facts, base, licence, [exported, *source.files])


def upload(
    found: Upload, *, private: bool = False, revision: str | None = None, message: str | None = None
) -> tuple[str, list[str]]:
    """Create repository and branch unless they exist, and add a commit with all files.

    private: of a repository that is created. revision: a branch, None: main. Weight files of earlier uploads that the
    new ones do not replace are removed in the same commit, since some engines would load them. Returns the address of
    the commit, and the names of these files. Raises CheckpointError for damaged weight files, for a model in a
    repository of an adapter and the reverse, and where the Hub refuses or cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    _check_checksums(found)
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
        for name, content in found.files.items()
    ]
    with _explaining_errors(found.repository):
        api = HfApi()
        api.create_repo(found.repository, private=private or None, exist_ok=True)
        if revision is not None:
            api.create_branch(found.repository, branch=revision, exist_ok=True)
        present = set(api.list_repo_files(found.repository, revision=revision))
    _refuse_mixture(found, present)
    stale = sorted(name for name in present - found.files.keys() if found.replaces(name))
    operations += [CommitOperationDelete(name) for name in stale]
    with _explaining_errors(found.repository):
        commit = api.create_commit(
            found.repository,
            operations,
            commit_message=message or "Upload a model made with erniekit",
            revision=revision,
        )
    return str(commit.commit_url), stale


def _check_checksums(found: Upload) -> None:
    """Raise CheckpointError if a weight file is not the one that the export wrote."""
    file = found.files.get(CHECKSUMS_FILE)
    if not isinstance(file, Path):
        return
    try:
        records = records_from(read_json_object(file)["files"])
    except (KeyError, ValueError, TypeError, IndexError):
        raise CheckpointError(f"{file}: damaged; export again") from None
    problems = checksum_problems(file.parent, records.items())
    if problems:
        raise CheckpointError(f"{file.parent}: {problems[0]}; export again")


def _refuse_mixture(found: Upload, present: set[str]) -> None:
    """Raise CheckpointError where an adapter would lie beside a model: transformers loads the adapter, too."""
    is_adapter = not _ADAPTER_CONFIGS.isdisjoint(found.files)
    others = (
        {name for name in present if _WEIGHTS.fullmatch(name)} if is_adapter else _ADAPTER_CONFIGS & present
    )
    if others and found.kind != "gguf":
        raise CheckpointError(
            f"{found.repository}: it has {min(others)}, and an adapter beside a model is loaded with it: choose "
            "another repository or --revision, or remove the file"
        )


def _export(path: Path, output: Path, layout: ExportLayout, gguf_type: GgufType) -> None:
    """Export a run in any layout."""
    if layout == "adapter":
        export_adapter(path, output)
    elif layout == "paddle-adapter":
        export_paddle_adapter(path, output)
    elif layout == "gguf":
        export_to_gguf(path, output, gguf_type)
    else:
        export_model(path, output, layout=layout)


def _upload(
    directory: Path,
    repository: str,
    run: RunFacts | None,
    base: str | None,
    licence: str | None,
    described: list[Path],
) -> Upload:
    refuse_placeholders(directory, (".safetensors", ".json", ".jinja", ".model", ".gguf"))
    files: dict[str, Path | bytes] = {
        file.name: file
        for file in sorted(directory.iterdir())
        if file.is_file() and not _LEFT_OUT.search(file.name)
    }
    settings_file = next((name for name in sorted(_ADAPTER_CONFIGS) if (directory / name).is_file()), None)
    if settings_file is not None:
        artifact, base, place = _read_adapter(directory / settings_file, base, files)
        described = [*described, place]
    else:
        artifact = _read_model(directory)
    card = None
    if CARD not in files:
        card = model_card(repository, artifact, run, base, licence or find_licence(described))
        files[CARD] = card.encode()
    return Upload(repository, files, card, artifact.kind)


def _read_model(directory: Path) -> Artifact:
    """What a directory without an adapter holds. Raises CheckpointError unless it is complete."""
    ggufs = sorted(directory.glob("*.gguf"))
    if ggufs and not (directory / "config.json").is_file():
        family = read_family(ggufs)
        return Artifact("gguf", family, HUB_MODEL_TYPES[family])
    kind: Kind = "model"
    quantization = read_quantization(directory)
    if quantization is not None:
        check_quantized(directory, quantization)
        config = model_config(directory)
    else:
        config, _ = open_model(directory)
        kind = "paddle" if layout_of(read_index(directory), config) == "paddle" else "model"
    problem = weights_problem(directory)
    if problem is not None:
        raise CheckpointError(f"{directory}: {problem}")
    return Artifact(kind, config.family, config.raw["model_type"], quantized=quantization is not None)


def _read_adapter(file: Path, base: str | None, files: dict[str, Path | bytes]) -> tuple[Artifact, str, Path]:
    """What the directory of an adapter holds, its base model on the Hub, and a directory with the files of that.

    file: its settings, which name the base model; `files` gets settings that name `base` if it is given.
    """
    if file.name == CONFIG_FILE:
        read_adapter(file.parent)
    else:
        check_paddle_adapter(file.parent)
    settings = read_json_object(file)
    stated = str(settings.get("base_model_name_or_path"))
    if base is None and not names_repository(stated):
        raise ConfigError(
            f"the adapter names {stated} as its base model, a directory of this machine; give the base model on "
            "the Hub with --base owner/name"
        )
    place = Path(stated)
    if not (place / "config.json").is_file():
        revision = settings.get("revision") if base is None else None
        place = local_model(base or stated, revision, weights=False).directory
    if base is not None:
        settings |= {"base_model_name_or_path": base} | ({"revision": None} if "revision" in settings else {})
        files[file.name] = (json.dumps(settings, indent=2) + "\n").encode()
    config = ErnieConfig.from_dir(place)
    kind: Kind = "adapter" if file.name == CONFIG_FILE else "paddle-adapter"
    return Artifact(kind, config.family, config.raw["model_type"]), base or stated, place


def _facts(path: Path) -> RunFacts:
    checkpoint = find_checkpoint(path)
    if not (checkpoint / STATE_FILE).is_file():
        raise CheckpointError(f"{path}: not a run or a checkpoint of one (no {STATE_FILE})")
    state = read_state(checkpoint)
    return RunFacts(state, read_metrics(checkpoint.parent / _LOG, state.step))


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
