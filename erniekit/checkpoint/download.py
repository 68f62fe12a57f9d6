"""Models of the Hugging Face Hub as local directories: from its cache, or downloaded through huggingface_hub.

The cache is huggingface_hub's own (HF_HOME), so that models downloaded by other libraries are found. A model in
the cache is used without asking the Hub; `download_model` asks. Files of a model are the ones at the top of its
repository: safetensors, their index, configurations, tokenizer, processor, licence. Python files come along because
exports carry them for engines; nothing here runs them.
"""

from __future__ import annotations

import difflib
import fcntl
import logging
import re
import shlex
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from erniekit.checkpoint.hub import weight_files
from erniekit.checkpoint.model_files import RELEASES, refuse_undownloaded
from erniekit.checkpoint.state import newest_checkpoint, read_state
from erniekit.config import Config
from erniekit.display.progress import log_progress, show_file_progress
from erniekit.display.text import clipped
from erniekit.errors import CheckpointError, ConfigError
from erniekit.local_files import missing_model

if TYPE_CHECKING:
    from huggingface_hub import DryRunFileInfo

_REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_SMALL = ("*.json", "*.jinja", "*.model", "*.txt", "*.ttf", "*.py", "LICENSE*", "NOTICE*")
_WEIGHTS = ("model*.safetensors", "adapter_model.safetensors")
_BELOW = "*/*"  # Files in folders of a repository do not belong to the model.
_FILES_AT_ONCE = 4
_LINE_SECONDS = 10.0


@dataclass(frozen=True)
class LocalModel:
    """The directory of a model. commit: of its repository on the Hub; None for a local directory."""

    directory: Path
    commit: str | None = None


@dataclass(frozen=True)
class _Repository:
    """A repository of the Hub. revision: None for the main branch; to: a directory to use instead of the cache.

    weights: whether to download the weights, too.
    """

    name: str
    revision: str | None
    to: Path | None = None
    weights: bool = True

    def __str__(self) -> str:
        return self.name if self.revision is None else f"{self.name} at {self.revision}"

    @property
    def command(self) -> str:
        """The command that downloads it."""
        options = {"--revision": self.revision, "--to": self.to}
        given = [word for name, value in options.items() if value is not None for word in (name, str(value))]
        return shlex.join(
            ["erniekit", "download", self.name, *given, *([] if self.weights else ["--no-weights"])]
        )


def download_command(name: str, revision: str | None) -> str:
    """The command that downloads configuration, tokenizer and processor of a repository into the cache."""
    return _Repository(name, revision, weights=False).command


def is_repository_name(name: str) -> bool:
    """Whether a text has the form of a repository of the Hub, owner/name."""
    return _REPOSITORY.fullmatch(name) is not None


def names_repository(name: str | Path) -> bool:
    """Whether a model is named as a repository of the Hub, owner/name, and no directory has this name."""
    return is_repository_name(str(name)) and not Path(name).is_dir()


def model_directory(path: Path) -> Path:
    """The directory of a model that a user names: the path itself, or the repository of the Hub that it names.

    Raises CheckpointError, see `local_model`.
    """
    if names_repository(path) and path.parent.is_dir() and any(path.parent.glob("checkpoint-*")):
        raise CheckpointError(missing_model(path))
    return local_model(str(path)).directory if names_repository(path) else path


def local_model(name: str, revision: str | None = None, *, weights: bool = True) -> LocalModel:
    """A directory, or the repository of the Hub with this name, which is downloaded unless the cache holds it.

    weights: False downloads configuration, tokenizer and processor only. One process of a machine downloads, and the
    others wait. Progress goes to standard error. Raises CheckpointError.
    """
    if Path(name).is_dir():
        return LocalModel(Path(name))
    if Path(name).exists() or not names_repository(name):
        what = "is a file" if Path(name).exists() else "no such directory"
        raise CheckpointError(
            f"{name}: {what}; give the directory of a model, a checkpoint or a run (its train.output_dir), or a "
            "repository of the Hub as owner/name"
        )
    found = cached_model(name, revision, weights=weights)
    if found is not None:
        return found
    repository = _Repository(name, revision, weights=weights)
    folder = Path(name).parent
    if folder.is_dir():
        raise CheckpointError(
            f"{name}: no such directory. There is a directory {folder}, so it is not taken for a repository of the "
            f"Hub. If it is one, download it first:\n  {repository.command}"
        )
    with _download_lock(repository):
        return cached_model(name, revision, weights=weights) or download_model(
            name, revision, weights=weights
        )


def cached_model(name: str, revision: str | None = None, *, weights: bool = True) -> LocalModel | None:
    """The model of a repository in huggingface_hub's cache; None if files are missing. Without network access."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        directory = Path(
            snapshot_download(
                name,
                revision=revision,
                local_files_only=True,
                allow_patterns=[*_SMALL, *(_WEIGHTS if weights else ())],
                ignore_patterns=_BELOW,
            )
        )
    except LocalEntryNotFoundError:
        return None
    except HFValidationError as error:
        raise CheckpointError(f"{clipped(name)}: is no name of a repository of the Hub: {error}") from None
    return LocalModel(directory, directory.name) if _is_complete(directory, weights=weights) else None


def _is_complete(directory: Path, *, weights: bool) -> bool:
    """Whether a snapshot has a model or an adapter; huggingface_hub may not know the list of its files."""
    if (directory / "adapter_config.json").is_file():
        return not weights or (directory / "adapter_model.safetensors").is_file()
    if not (directory / "config.json").is_file():
        return False
    if not weights:
        return True
    try:
        weight_files(directory)
    except CheckpointError:
        return False
    return True


def download_model(
    name: str, revision: str | None = None, *, to: Path | None = None, weights: bool = True
) -> LocalModel:
    """Download a repository of the Hub, at the newest commit of its revision, into the cache or the directory `to`.

    Complete files that are there are kept, so the same call continues a download that was interrupted. Raises
    CheckpointError for a repository, revision or disk that cannot be used, and if the Hub cannot be reached.
    """
    if _REPOSITORY.fullmatch(name) is None:
        raise CheckpointError(f"{name}: a repository of the Hub is named owner/name")
    from huggingface_hub import HfApi, snapshot_download

    # Importing Paddle makes loggers print; the client that huggingface_hub uses logs every request.
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    repository = _Repository(name, revision, to, weights)
    silent = _bar_class(lambda count: None, threading.Event())
    snapshot: Any = partial(snapshot_download, name, local_dir=to, ignore_patterns=_BELOW, tqdm_class=silent)
    with _explaining_errors(repository):
        # Before `snapshot_download`, which uses the cache if the Hub does not answer.
        commit = str(HfApi().model_info(name, revision=revision).sha)
        # With the revision, so that the cache records its commit.
        small = snapshot(revision=revision if to is None else commit, allow_patterns=list(_SMALL))
    directory = Path(small)
    found = LocalModel(directory, commit if to is not None else directory.name)
    if not weights:
        return found
    refuse_undownloaded(directory, name)
    with _explaining_errors(repository):
        files = snapshot(revision=found.commit, allow_patterns=list(_WEIGHTS), dry_run=True)
    if not files:
        raise CheckpointError(
            f"{repository}: the repository holds no safetensors weights (model.safetensors, or "
            "model-00001-of-...safetensors); use a release in the -PT layout"
        )
    _fetch_weights(repository, found, files)
    return found


def locate_model(
    config: Config, *, weights: bool = True, download: bool = True, resume: bool = False
) -> Config:
    """The configuration with the directory of its model, and model.revision as a commit if the model is on the Hub.

    download: False only looks into the cache, and returns the configuration unchanged if the model is not in it.
    resume: without model.revision, the commit is the one that the run in train.output_dir began with. Raises
    CheckpointError, and ConfigError for a revision of a directory.
    """
    model = config.model
    if not names_repository(model.path):
        if model.revision is not None:
            raise ConfigError(
                f"model.revision is {model.revision}, but model.path ({model.path}) is not a repository of the Hub; "
                "remove one of them"
            )
        return config
    revision = model.revision or (_saved_revision(config) if resume else None)
    find: Callable[..., LocalModel | None] = local_model if download else cached_model
    found = find(model.path, revision, weights=weights)
    if found is None:
        return config
    return config.model_copy(update={"model": model.located(found.directory, found.commit)})


def _saved_revision(config: Config) -> str | None:
    """The commit of the model that the run in train.output_dir trains, if its model has the same name."""
    checkpoint = newest_checkpoint(Path(config.train.output_dir))
    saved = {} if checkpoint is None else read_state(checkpoint).config.get("model", {})
    return saved.get("revision") if saved.get("path") == config.model.path else None


def _fetch_weights(repository: _Repository, target: LocalModel, files: Sequence[DryRunFileInfo]) -> None:
    """Download files, several at once, with progress. Other commits may have files of the same content."""
    from huggingface_hub import hf_hub_download

    sizes = [file.file_size or 0 for file in files if file.will_download]
    total = sum(sizes)
    if sizes:
        _check_space(repository, total, target.directory)
        count = "1 file" if len(sizes) == 1 else f"{len(sizes)} files"
        _log(f"{repository}: downloading {_gigabytes(total)} in {count} to {target.directory}")
    stop, lock, done = threading.Event(), threading.Lock(), 0
    with ExitStack() as stack:
        show = log_progress(_log, "bytes", _LINE_SECONDS)
        if sys.stderr.isatty():
            show = stack.enter_context(show_file_progress())

        def add(amount: float) -> None:
            nonlocal done
            with lock:
                done += int(amount)
                show(repository.name, min(done, total), total)

        fetch = partial(
            hf_hub_download,
            repository.name,
            revision=target.commit,
            local_dir=repository.to,
            tqdm_class=_bar_class(add, stop),
        )
        _run_all([partial(fetch, file.filename) for file in files], stop, repository)


def _run_all(calls: Sequence[Callable[[], Any]], stop: threading.Event, repository: _Repository) -> None:
    """Run calls in threads. After an error the others still run: a complete file need not be downloaded again."""
    errors: list[Exception] = []
    with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
        futures = [pool.submit(call) for call in calls]
        try:
            for future in as_completed(futures):
                error = future.exception()
                if isinstance(error, Exception):
                    errors.append(error)
        except KeyboardInterrupt:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            _log(
                f"{repository}: stopped; files that are complete are kept. Continue with:\n  {repository.command}"
            )
            raise
    if errors:
        with _explaining_errors(repository):
            raise errors[0]


def _bar_class(count: Callable[[float], None], stop: threading.Event) -> Any:
    """A progress bar for huggingface_hub that shows nothing and counts bytes. It ends the download after `stop`."""
    from huggingface_hub.utils import tqdm

    class Bar(tqdm):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **{**options, "disable": True})

        def update(self, n: float | None = 1) -> None:
            if stop.is_set():
                raise InterruptedError("the download was stopped")
            count(n or 0)

    return Bar


def _check_space(repository: _Repository, needed: int, directory: Path) -> None:
    free = shutil.disk_usage(directory).free
    if needed > free:
        raise CheckpointError(
            f"{repository}: the download takes {_gigabytes(needed)}, but {directory} has {_gigabytes(free)} free. Free "
            "some space, set HF_HOME to a directory on a larger disk, or choose a directory:\n"
            f"  {replace(repository, to=Path('DIR')).command}"
        )


@contextmanager
def _download_lock(repository: _Repository) -> Iterator[None]:
    """One process downloads a repository at a time into one cache; the others wait."""
    from huggingface_hub import constants

    locks = Path(constants.HF_HUB_CACHE) / ".locks"
    try:
        locks.mkdir(parents=True, exist_ok=True)
        file = (locks / f"erniekit--{repository.name.replace('/', '--')}.lock").open("a")
    except OSError as error:
        raise CheckpointError(
            f"{repository}: the cache {locks.parent} cannot be written: {error.strerror}; set HF_HOME to another "
            f"directory, or choose one:\n  {replace(repository, to=Path('DIR')).command}"
        ) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _log(f"{repository}: another process is downloading it; waiting")
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            _log(f"note: the disk of {locks.parent} has no locks ({error.strerror}); each process downloads")
        yield


@contextmanager
def _explaining_errors(repository: _Repository) -> Iterator[None]:
    """Turn what huggingface_hub raises into CheckpointError."""
    from huggingface_hub import constants, errors

    name, hub = repository.name, constants.ENDPOINT
    absent = "" if Path(name).is_dir() else "there is no directory with this name, and "
    try:
        yield
    except errors.GatedRepoError as error:
        raise CheckpointError(
            f"{repository}: the repository is gated: accept its terms at {hub}/{name}, then log in with `hf auth "
            "login` or set HF_TOKEN"
        ) from error
    except errors.RepositoryNotFoundError as error:
        close = difflib.get_close_matches(name, RELEASES, n=1)
        meant = f" Did you mean {close[0]}?" if close else ""
        raise CheckpointError(
            f"{repository}: {absent}{hub} has no such repository, or it is private: check the name, or log in "
            f"with `hf auth login` or HF_TOKEN.{meant}"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(
            f"{name}: the repository has no branch, tag or commit {repository.revision}"
        ) from error
    except errors.OfflineModeIsEnabled as error:
        raise CheckpointError(
            f"{repository}: {absent}it is not in the cache ({constants.HF_HUB_CACHE}), and HF_HUB_OFFLINE is set. "
            f"Download it without HF_HUB_OFFLINE, or on a machine with the same cache:\n  {repository.command}"
        ) from error
    except Exception as error:  # of many types, some from libraries that huggingface_hub uses
        if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
            raise CheckpointError(f"{error.filename}: cannot be written: {error.strerror}") from error
        detail = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"{repository}: {absent}the download from {hub} failed: {detail}. Complete files are kept. Without a "
            "network, use a machine that has one and the same cache (HF_HOME), or a mirror (HF_ENDPOINT). Continue "
            f"with:\n  {repository.command}"
        ) from error


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:,.1f} MB"


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
