"""Where an export appears, and what interrupted ones leave."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from erniekit.errors import CheckpointError
from erniekit.export.output import check_output, replacing, staging

KILLED = """
import os, signal, sys
from pathlib import Path
from erniekit.export.output import replacing
with replacing(Path(sys.argv[1]), 0) as target:
    (target / "config.json").write_text("{}")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def write(output: Path) -> None:
    with replacing(output, 0) as target:
        for name in ("config.json", "model.safetensors"):
            (target / name).write_text(name)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_an_empty_directory_stays_the_same_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be a mount point or the working directory, and its parent may be read-only."""
    there = tmp_path / "there"
    there.mkdir()
    (tmp_path / "link").symlink_to(there)
    monkeypatch.chdir(there)
    number = there.stat().st_ino
    for output in (there, tmp_path / "link", Path()):
        write(output)
        assert names(there) == ["config.json", "model.safetensors"]
        assert there.stat().st_ino == number and names(tmp_path) == ["link", "there"]
        for file in there.iterdir():
            file.unlink()


def test_config_json_is_moved_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[str] = []
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda path, to: (moved.append(path.name), replace(path, to))[1])
    with replacing(tmp_path, 0) as target:
        for name in ("adapter_config.json", "a.json", "x.safetensors"):
            (target / name).touch()
    assert moved == ["a.json", "x.safetensors", "adapter_config.json"]


def test_new_directories_have_the_permissions_of_any_other(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    write(tmp_path / "parent" / "out")
    assert (tmp_path / "parent" / "out").stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.slow
@pytest.mark.parametrize("there", [False, True])
def test_what_a_killed_command_leaves_is_removed_by_the_next(tmp_path: Path, there: bool) -> None:
    output = tmp_path / "out [1] ü"
    if there:
        output.mkdir()
    killed = subprocess.run([sys.executable, "-c", KILLED, output], check=False)
    assert killed.returncode == -signal.SIGKILL
    place = output if there else tmp_path
    left = [name for name in names(place) if name.endswith(".unfinished")]
    assert len(left) == 1 and not (output / "config.json").exists()
    # That of a running command for the same output stays, and so does that for another output.
    with staging(output) as running, staging(tmp_path / "other") as other:
        (running / "x").touch()
        write(output)
        assert names(running) == ["x"] and other.is_dir()
        assert not (place / left[0]).exists()
    assert names(output) == ["config.json", "model.safetensors"] and names(tmp_path) == [output.name]


def test_outputs_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    (tmp_path / "file").touch()
    for output, words in (
        (tmp_path / "link", "a symbolic link to something that is not there"),
        (tmp_path / "file", "not an empty directory"),
        (tmp_path, "not an empty directory"),
    ):
        with pytest.raises(CheckpointError, match=words):
            check_output(output)
    with pytest.raises(CheckpointError, match=r"cannot be written: File exists \(.*/file\)"):
        write(tmp_path / "file" / "out")


def test_another_command_that_was_faster(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="out: "), replacing(tmp_path / "out", 0) as target:
        (target / "config.json").touch()
        write(tmp_path / "out")
    assert (tmp_path / "out" / "config.json").read_text() == "config.json"
    assert names(tmp_path) == ["out"]


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"No such file or directory .*gone"), replacing(tmp_path, 0):
        os.stat(tmp_path / "gone")
    assert not names(tmp_path)
