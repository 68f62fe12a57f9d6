import importlib.metadata
import resource
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from erniekit.doctor import system
from erniekit.doctor.check import run_check
from erniekit.doctor.system import (
    check_disk,
    check_driver,
    check_libraries,
    check_limits,
    check_paddle,
    check_shared_memory,
    check_triton,
    system_checks,
)


def test_this_machine_is_described(tmp_path: Path) -> None:
    found = {check.name: run_check(check) for check in system_checks("cpu", tmp_path)}
    assert not [name for name, result in found.items() if result.status == "failed"]
    assert "Python 3." in found["python and erniekit"].detail
    assert "built for" in found["Paddle"].detail


@pytest.fixture
def versions(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The versions that are installed; all others are those of this environment."""
    found: dict[str, str] = {}
    real = importlib.metadata.version

    def version(name: str) -> str:
        if found.get(name) == "":
            raise importlib.metadata.PackageNotFoundError(name)
        return found.get(name) or real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    return found


def test_versions_out_of_range(versions: dict[str, str]) -> None:
    versions |= {"numpy": "1.26.0", "pyarrow": ""}
    found = check_libraries()
    assert found.status == "failed"
    assert "numpy 1.26.0 is not in <3,>=2.4" in found.detail
    assert "pyarrow is missing" in found.detail


def test_two_builds_of_paddle(versions: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    versions |= {"paddlepaddle": "3.3.1", "paddlepaddle-gpu": "3.3.1"}
    assert check_paddle().status == "failed"
    versions["paddlepaddle-gpu"] = ""
    assert check_paddle().status == "ok"
    monkeypatch.setattr(system.paddle.version, "full_version", "2.6.2")
    assert "2.6.2" in check_paddle().detail
    assert check_paddle().status == "failed"


def test_triton(versions: dict[str, str]) -> None:
    versions["triton"] = ""
    assert check_triton("cpu").status == "skipped"
    assert check_triton("gpu").status == "failed"


def smi(monkeypatch: pytest.MonkeyPatch, *lines: str, status: int = 0) -> None:
    """nvidia-smi prints these lines."""
    printed = subprocess.CompletedProcess([], status, "\n".join(lines), "")
    monkeypatch.setattr(system.subprocess, "run", lambda *arguments, **options: printed)


CARD = "NVIDIA H100 80GB HBM3, 81559 MiB, 550.54.15"


def test_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    smi(monkeypatch, CARD, CARD)
    monkeypatch.setattr(system, "_is_cuda", lambda: False)
    found = check_driver()
    assert (found.status, found.detail.partition(",")[0]) == ("warning", "2 x NVIDIA H100 80GB HBM3")
    assert "Paddle's CPU build" in found.detail
    monkeypatch.setattr(system, "_is_cuda", lambda: True)
    properties = SimpleNamespace(major=9, minor=0, total_memory=80 << 30)
    cuda = SimpleNamespace(device_count=lambda: 1, get_device_properties=lambda index: properties)
    monkeypatch.setattr(system.paddle.device, "cuda", cuda)
    monkeypatch.setattr(system.paddle.version, "cuda", lambda: "12.6")
    assert check_driver().detail.endswith("Paddle sees 1 (0: sm_90, 80 GiB)")
    cuda.device_count = lambda: 0
    assert "Paddle sees none" in check_driver().detail
    monkeypatch.setattr(system.paddle.version, "cuda", lambda: "13.0")
    assert "CUDA 13.0 needs a driver of at least 580" in check_driver().detail
    smi(monkeypatch, status=9)
    assert check_driver().status == "failed"


@pytest.mark.parametrize(("free", "status"), [(100 << 30, "ok"), (1 << 30, "warning")])
def test_a_disk_that_is_nearly_full(
    free: int, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(system, "_WRITTEN", 1 << 20)
    monkeypatch.setattr(system, "_SLOW", 0)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free, total=free))
    found = check_disk(tmp_path / "missing" / "below")
    assert found.status == status
    assert found.detail.startswith(f"{tmp_path}: {free >> 30} GiB free, writes ")
    monkeypatch.setattr(system, "_SLOW", 1e12)
    monkeypatch.setattr(system, "_FAST", 1e13)
    assert (check_disk(tmp_path).status, check_disk(tmp_path).detail[-6:]) == ("warning", "(slow)")
    assert check_shared_memory().status == "ok"
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=64 << 20, total=64 << 20))
    assert "--shm-size" in check_shared_memory().detail


def test_few_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    def limit(kind: int) -> tuple[Any, Any]:
        return (1024, 1024) if kind == resource.RLIMIT_NOFILE else (resource.RLIM_INFINITY,) * 2

    monkeypatch.setattr(resource, "getrlimit", limit)
    found = check_limits()
    assert found.status == "warning"
    assert (
        found.detail
        == "open files 1,024, processes unlimited, locked memory unlimited; raise the open files: ulimit -n 4096"
    )
