"""The lock of a run's directory, also on disks where the kernel's lock does not decide."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from erniekit.errors import ConfigError
from erniekit.train import run_lock
from erniekit.train.run_lock import LOCK_FILE, Holder, lock_run_directory, refuse_second_run

HERE = Holder.this()
ELSEWHERE = replace(HERE, host="gpu-node-7", pid=71, started="2026-01-02 03:04:05 UTC")
DEAD = replace(HERE, pid=2**22)
REBOOTED = replace(HERE, boot="another boot")
REUSED = replace(HERE, birth="1")


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Sets the kind of disk: local, network (locks of this machine alone) or no locks."""

    def choose(disk: str) -> None:
        def no_locks(file: Any, operation: int) -> None:
            raise OSError(38, "Function not implemented")

        monkeypatch.setattr(run_lock, "_is_local", lambda path: disk == "local")
        if disk == "no locks":
            monkeypatch.setattr(run_lock.fcntl, "lockf", no_locks)

    return choose


def write(run: Path, holder: Holder) -> None:
    (run / LOCK_FILE).write_text(json.dumps(asdict(holder)))


@pytest.mark.parametrize("disk", ["local", "network", "no locks"])
@pytest.mark.parametrize("holder", [DEAD, REBOOTED, REUSED], ids=["dead", "rebooted", "reused"])
def test_the_lock_of_a_dead_process_is_taken_over(
    tmp_path: Path, on: Callable[[str], None], disk: str, holder: Holder
) -> None:
    on(disk)
    write(tmp_path, holder)
    refuse_second_run(tmp_path)
    lines: list[str] = []
    with lock_run_directory(tmp_path, lines.append):
        assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == os.getpid()
    assert f"process {holder.pid} on {holder.host}, since {holder.started}, has ended" in lines[-1]
    assert len(lines) == 1 + (disk == "no locks")
    assert (tmp_path / LOCK_FILE).read_text() == ""


@pytest.mark.parametrize("disk", ["network", "no locks"])
def test_another_machine_is_believed(tmp_path: Path, on: Callable[[str], None], disk: str) -> None:
    on(disk)
    write(tmp_path, ELSEWHERE)
    message = (
        r"process 71 on gpu-node-7, since 2026-01-02 03:04:05 UTC, .*If it is gone, remove .*/\.run\.lock"
    )
    for use in (refuse_second_run, lambda run: lock_run_directory(run, print).__enter__()):
        with pytest.raises(ConfigError, match=message):
            use(tmp_path)
    assert json.loads((tmp_path / LOCK_FILE).read_text())["host"] == "gpu-node-7"
    (tmp_path / LOCK_FILE).unlink()
    with lock_run_directory(tmp_path, print):
        pass


def test_a_container_of_another_name_is_gone_where_one_kernel_has_the_lock(
    tmp_path: Path, on: Callable[[str], None]
) -> None:
    on("local")
    write(tmp_path, ELSEWHERE)
    lines: list[str] = []
    with lock_run_directory(tmp_path, lines.append):
        assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == os.getpid()
    assert lines == [
        f"{tmp_path}: process 71 on gpu-node-7, since 2026-01-02 03:04:05 UTC, has ended without releasing its lock; "
        "this run takes it over"
    ]


def test_a_living_process_without_locks(tmp_path: Path, on: Callable[[str], None]) -> None:
    on("no locks")
    parent = replace(HERE, pid=os.getppid(), birth=run_lock._birth(os.getppid()))
    write(tmp_path, parent)
    with pytest.raises(ConfigError, match=rf"process {parent.pid} on "):
        refuse_second_run(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"host": 1}', '{"host": 1, "pid": -1, "started": []}', "x" * 10_000, "[" * 4000]
)
def test_text_that_no_run_has_written(tmp_path: Path, on: Callable[[str], None], text: str) -> None:
    """It is the lock of nobody."""
    on("network")
    (tmp_path / LOCK_FILE).write_text(text)
    lines: list[str] = []
    with lock_run_directory(tmp_path, lines.append):
        assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == os.getpid()
    assert lines == []


def test_a_directory_that_goes_away(tmp_path: Path) -> None:
    """A run ends without an error, and a new run can have its directory."""
    run = tmp_path / "run"
    run.mkdir()
    with lock_run_directory(run, print):
        shutil.rmtree(run)
    refuse_second_run(run)
    assert not run.exists()
