"""Directories that a killed process leaves."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from erniekit.scratch import scratch_directory, temporary_directory

KILLED = """
import os, signal
from erniekit.scratch import temporary_directory
with temporary_directory("erniekit-data-") as directory:
    (directory / "ids.bin").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_leaves_is_removed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    killed = subprocess.run(
        [sys.executable, "-c", KILLED], env={**os.environ, "TMPDIR": str(tmp_path)}, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    for other in ("erniekit-data-mine", "my-erniekit-data-0123abcd"):
        (tmp_path / other).mkdir()
    with temporary_directory("erniekit-data-") as running, temporary_directory("erniekit-data-") as second:
        assert running.is_dir() and second.is_dir() and not left.exists()
        assert running.stat().st_mode & 0o777 == 0o700
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "erniekit-data-mine",
        "my-erniekit-data-0123abcd",
    ]


def test_links_are_not_followed(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "file").touch()
    (tmp_path / "a-01234567").symlink_to(theirs)
    with scratch_directory(tmp_path, "a-") as directory:
        assert directory.is_dir()
    assert (theirs / "file").exists() and (tmp_path / "a-01234567").is_symlink()
