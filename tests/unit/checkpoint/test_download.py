import errno
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest

from erniekit.checkpoint import download
from erniekit.checkpoint.download import (
    cached_model,
    download_model,
    local_model,
    locate_model,
    names_repository,
)
from erniekit.checkpoint.hub import write_shards
from erniekit.config import Config, load_config
from erniekit.errors import CheckpointError, ConfigError
from erniekit.models.specs import TensorSpec
from tests.hub_server import Hub, files_of, serving

NAME = "baidu/ERNIE-4.5-0.3B-PT"
SHARDS = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
SMALL = ["LICENSE", "config.json", "model.safetensors.index.json", "modeling.py", "tokenizer.json"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Three shards with their index, files beside them, and files that no model needs."""
    directory = tmp_path_factory.mktemp("model")
    specs = [TensorSpec(name, "F32", (300, 1)) for name in ("a", "b", "c")]
    values = {name: np.full((300, 1), ord(name), np.float32) for name in ("a", "b", "c")}
    write_shards(directory, specs, values.__getitem__, 1200)
    for name in ("config.json", "tokenizer.json"):
        (directory / name).write_text(json.dumps({"name": name}))
    found = files_of(directory) | {"LICENSE": b"Apache", "modeling.py": b"raise SystemExit"}
    assert sorted(found) == sorted([*SMALL, *SHARDS])
    unneeded = (
        "README.md",
        "pytorch_model.bin",
        "training_args.pt",
        "other/config.json",
        "optimizer.safetensors",
    )
    return found | dict.fromkeys(unneeded, b"not needed")


@pytest.fixture
def hub(files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with one repository. The working directory is empty."""
    found = Hub()
    found.add(NAME, files)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    with serving(found, tmp_path / "cache"):
        yield found


@pytest.mark.parametrize(
    ("name", "expected"),
    [(NAME, True), ("./baidu/model", False), ("/models/base", False), ("model", False), ("a/b/c", False)],
)
def test_names_of_repositories(name: str, expected: bool) -> None:
    assert names_repository(name) is expected


def test_names_that_no_repository_has() -> None:
    with pytest.raises(
        CheckpointError, match=r"x/y+\.\.\.: is no name of a repository of the Hub: Repo id must"
    ):
        local_model("x/" + "y" * 99)


def test_a_directory_comes_first(hub: Hub, tmp_path: Path) -> None:
    Path(NAME).mkdir(parents=True)
    assert local_model(NAME) == download.LocalModel(Path(NAME))
    assert not hub.requests


def test_the_files_of_the_model_are_downloaded_once(
    hub: Hub, files: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    found = local_model(NAME)
    assert found.commit == hub.repositories[NAME].revisions["main"]
    assert sorted(file.name for file in found.directory.iterdir()) == sorted([*SMALL, *SHARDS])
    assert files_of(found.directory) == {name: files[name] for name in [*SMALL, *SHARDS]}
    assert hub.downloaded() == sorted([*SMALL, *SHARDS])
    assert f"{NAME}: downloading 0.0 MB in 3 files to {found.directory}\n" in capsys.readouterr().err
    hub.requests.clear()
    assert local_model(NAME) == found
    assert not hub.requests


def test_without_weights_only_small_files(hub: Hub) -> None:
    found = local_model(NAME, weights=False)
    assert hub.downloaded() == SMALL
    assert cached_model(NAME) is None
    assert local_model(NAME) == found
    assert hub.downloaded() == SHARDS


def test_an_interrupted_download_continues(hub: Hub, files: dict[str, bytes]) -> None:
    hub.broken.add(SHARDS[1])
    with pytest.raises(
        CheckpointError, match=rf"download from http.* failed: .*500.*\n  erniekit download {NAME}$"
    ):
        local_model(NAME)
    assert SHARDS[0] in hub.downloaded()
    assert cached_model(NAME) is None
    hub.broken.clear()
    found = local_model(NAME)
    assert hub.downloaded() == [SHARDS[1]]
    assert (found.directory / SHARDS[1]).read_bytes() == files[SHARDS[1]]


def test_a_connection_that_breaks_continues_at_the_byte(
    hub: Hub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 100)
    hub.cut[SHARDS[0]] = 500
    found = local_model(NAME)
    assert [start for path, start in hub.downloads if path == SHARDS[0]] == [0, 500]
    assert (found.directory / SHARDS[0]).read_bytes() == files[SHARDS[0]]


def test_ctrl_c_stops_at_once_and_names_the_command(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(futures: object) -> Iterator[None]:
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(download, "as_completed", interrupted)
    hub.hold = threading.Event()
    with pytest.raises(KeyboardInterrupt):
        threading.Timer(0.05, hub.hold.set).start()
        download_model(NAME, "main")
    assert f"Continue with:\n  erniekit download {NAME} --revision main\n" in capsys.readouterr().err
    assert cached_model(NAME, "main") is None


def test_a_revision_is_pinned_to_its_commit(
    hub: Hub,
    files: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    first = hub.repositories[NAME].revisions["main"]
    hub.repositories[NAME].commit(files | {"config.json": b'{"new": 1}'}, "v2")
    second = local_model(NAME, "v2")
    assert second.commit == hub.repositories[NAME].revisions["v2"] != first
    assert hub.downloaded() == sorted([*SMALL, *SHARDS])
    capsys.readouterr()
    # Files with the same content are not downloaded again, and need no space.
    monkeypatch.setattr(download, "_check_space", None)
    assert local_model(NAME).commit == first
    assert hub.downloaded() == ["config.json"]
    assert capsys.readouterr().err == ""
    assert local_model(NAME, second.commit) == second


def test_a_branch_that_moves_is_followed_by_the_command_only(hub: Hub, files: dict[str, bytes]) -> None:
    before = local_model(NAME)
    hub.downloads.clear()
    moved = hub.repositories[NAME].commit(files | {"config.json": b'{"new": 1}'})
    assert local_model(NAME) == before
    assert download_model(NAME).commit == moved
    assert hub.downloaded() == ["config.json"]
    assert local_model(NAME).commit == moved


def test_a_directory_of_choice(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    found = download_model(NAME, to=tmp_path / "mine")
    assert found.directory == tmp_path / "mine"
    assert found.commit == hub.repositories[NAME].revisions["main"]
    assert files_of(found.directory) == {name: files[name] for name in [*SMALL, *SHARDS]}
    assert hub.downloaded()
    download_model(NAME, to=tmp_path / "mine")
    assert hub.downloaded() == []


def test_a_download_to_a_directory_continues_there(hub: Hub, tmp_path: Path) -> None:
    hub.broken.add(SHARDS[1])
    target = tmp_path / "my models"
    with pytest.raises(
        CheckpointError, match=rf"\n  erniekit download {NAME} --revision main --to '{target}'$"
    ):
        download_model(NAME, "main", to=target)
    hub.broken.clear()
    hub.downloads.clear()
    download_model(NAME, "main", to=target)
    assert hub.downloaded() == [SHARDS[1]]


@pytest.mark.parametrize("weights", [True, False], ids=["all", "no-weights"])
def test_offline_the_error_names_the_command(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, weights: bool
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    command = f"erniekit download {NAME} --revision v1{'' if weights else ' --no-weights'}"
    with pytest.raises(CheckpointError, match=rf"HF_HUB_OFFLINE is set(.|\n)*\n  {command}$"):
        local_model(NAME, "v1", weights=weights)
    assert not hub.downloads
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    found = local_model(NAME)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert local_model(NAME) == found


def test_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        CheckpointError, match=r"download from http://127.0.0.1:9 failed: .*\n  erniekit download "
    ):
        local_model(NAME)


@pytest.mark.parametrize(
    ("name", "revision", "words"),
    [
        ("baidu/ERNIE-4.5-0.3-PT", None, f"no such repository, or it is private.*Did you mean {NAME}"),
        (
            "nobody/knows",
            None,
            "there is no directory with this name, and .* no such repository, or it is private: .*TOKEN.$",
        ),
        (NAME, "v9", f"{NAME}: the repository has no branch, tag or commit v9"),
        ("a/b/c", None, "no such directory; give .* or a repository of the Hub as owner/name"),
    ],
)
def test_names_that_are_wrong(hub: Hub, name: str, revision: str | None, words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        local_model(name, revision)
    assert not hub.downloads


def test_the_command_wants_a_repository(hub: Hub) -> None:
    with pytest.raises(CheckpointError, match=r"^\./here: a repository of the Hub is named owner/name$"):
        download_model("./here")


def test_a_path_that_is_mistyped_is_not_sought_on_the_hub(hub: Hub) -> None:
    Path("baidu").mkdir()
    with pytest.raises(
        CheckpointError, match=rf"There is a directory baidu(.|\n)*  erniekit download {NAME}$"
    ):
        local_model(NAME)
    with pytest.raises(
        CheckpointError, match=rf"There is a directory(.|\n)*  erniekit download {NAME} --no-weights$"
    ):
        local_model(NAME, weights=False)
    assert not hub.requests
    found = download_model(NAME)
    assert local_model(NAME) == found


def test_a_gated_repository(hub: Hub) -> None:
    hub.repositories[NAME].gated = True
    with pytest.raises(CheckpointError, match=rf"is gated: accept its terms at http.*/{NAME}, then log in"):
        local_model(NAME)


def test_a_repository_without_safetensors(hub: Hub) -> None:
    hub.add("me/mine", {"config.json": b"{}", "pytorch_model.bin": b"1"})
    with pytest.raises(CheckpointError, match=r"holds no safetensors weights .*-PT layout$"):
        local_model("me/mine")


def test_a_shard_that_the_repository_lacks(hub: Hub, files: dict[str, bytes]) -> None:
    hub.add("me/mine", {name: files[name] for name in files if name != SHARDS[2]})
    found = local_model("me/mine")
    with pytest.raises(CheckpointError, match=f"names shards that are not there: {SHARDS[2]}"):
        download.weight_files(found.directory)


def test_an_adapter(hub: Hub) -> None:
    hub.add("me/lora", {"adapter_config.json": b"{}", "adapter_model.safetensors": b"weights"})
    found = local_model("me/lora")
    assert local_model("me/lora") == found


def test_the_disk_is_too_small(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
    with (
        pytest.warns(UserWarning, match="Not enough free disk space"),
        pytest.raises(
            CheckpointError, match=r"the download takes 0.0 MB, but .* has 0.0 MB free(.|\n)*--to DIR$"
        ),
    ):
        local_model(NAME)
    assert hub.downloaded() == SMALL


def test_a_full_disk(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "blob")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", full)
    with pytest.raises(CheckpointError, match=r"^blob: cannot be written: No space left on device$"):
        local_model(NAME)


def test_a_cache_that_cannot_be_written(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(CheckpointError, match=r"cannot be written: .*set HF_HOME"):
        local_model(NAME)


def test_one_process_downloads_and_the_others_wait(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.hold = holding = threading.Event()
    found: list[download.LocalModel] = []
    waiting: list[str] = []

    def log(line: str) -> None:
        if line.endswith("another process is downloading it; waiting"):
            waiting.append(line)
        if len(waiting) == 2:
            holding.set()

    monkeypatch.setattr(download, "_log", log)
    threads = [threading.Thread(target=lambda: found.append(local_model(NAME))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(waiting) == 2
    assert len(found) == 3
    assert len(set(found)) == 1
    assert hub.downloaded() == sorted([*SMALL, *SHARDS])


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """The configuration of a run."""
    (tmp_path / "run.yaml").write_text(f"model: {{path: {NAME}}}\ndata: {{train: chats.jsonl}}\n")
    return load_config(tmp_path / "run.yaml", [f"train.output_dir={tmp_path / 'run'}", "train.max_steps=1"])


def test_a_configuration_gets_the_directory_and_the_commit(hub: Hub, config: Config) -> None:
    assert locate_model(config, download=False) is config
    found = locate_model(config)
    cached = cached_model(NAME)
    assert cached is not None
    assert (found.model.path, found.model.revision) == (NAME, cached.commit)
    assert found.model.directory == cached.directory
    assert config.model.directory == Path(NAME)
    assert locate_model(config, download=False).model == found.model


def test_a_revision_of_a_directory_is_refused(hub: Hub, config: Config) -> None:
    Path(NAME).mkdir(parents=True)
    assert locate_model(config) is config
    with pytest.raises(
        ConfigError, match=rf"model.revision is v1, but model.path \({NAME}\) is not a repository"
    ):
        locate_model(config.model_copy(update={"model": config.model.model_copy(update={"revision": "v1"})}))
