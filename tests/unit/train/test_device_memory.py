"""The memory that a process may use, from files of the kernel that the test writes."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import paddle
import pytest

from erniekit.train import device_memory as module
from erniekit.train.device_memory import device_gpu, device_memory
from erniekit.train.planner.gpus import find_gpu


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(module, "_MEMORY", tmp_path / "meminfo")
    monkeypatch.setattr(module, "_CGROUPS", [(str(tmp_path / "max"), str(tmp_path / "current"))])
    (tmp_path / "meminfo").write_text("MemTotal:  9000 kB\nMemFree:  100 kB\nMemAvailable:   8000 kB\n")
    return tmp_path


def test_a_cpu_is_shared_by_the_processes_of_the_machine(files: Path) -> None:
    assert device_memory() == 8000 * 1024
    assert device_memory(4) == 2000 * 1024


def test_a_container_may_have_less(files: Path) -> None:
    (files / "max").write_text("max\n")
    (files / "current").write_text("1000\n")
    assert device_memory() == 8000 * 1024
    (files / "max").write_text("5000\n")
    assert device_memory() == 4000
    (files / "max").write_text("500\n")
    assert device_memory() == 0


def test_a_system_that_does_not_tell_has_all_of_its_memory(files: Path) -> None:
    (files / "meminfo").unlink()
    assert device_memory() == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_a_gpu_is_used_by_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paddle, "get_device", lambda: "gpu:1")
    properties = SimpleNamespace(total_memory=80 * 2**30)
    monkeypatch.setattr(paddle.device.cuda, "get_device_properties", {"gpu:1": properties}.get)
    assert device_memory(8) == 80 * 2**30


def test_the_kind_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert device_gpu() is None
    monkeypatch.setattr(paddle, "get_device", lambda: "gpu:1")
    for name, gpu in (("NVIDIA H100 80GB HBM3", find_gpu("h100-80gb")), ("NVIDIA T4", None)):
        monkeypatch.setattr(paddle.device.cuda, "get_device_name", lambda name=name: name)
        assert device_gpu() == gpu
