"""The parts of the doctor's two processes, in this process. `docs/doctor.md` runs the whole command in its test."""

from pathlib import Path
from typing import Any, ClassVar

import pytest
from paddle import Tensor

from erniekit.distributed.process_group import ProcessGroup
from erniekit.doctor import collectives, processes
from erniekit.doctor.collectives import all_reduce_speed, check_collectives
from erniekit.doctor.processes import run_pair
from erniekit.doctor.step import SmallModel
from erniekit.errors import ConfigError

ALONE = ProcessGroup((0,), 0)


def test_collectives_of_one_process() -> None:
    right, wrong = check_collectives(ALONE)
    assert right == ["all_reduce", "broadcast", "all_gather", "reduce_scatter", "all_to_all"]
    assert not wrong
    assert all_reduce_speed(ALONE, 1 << 20).startswith("all_reduce of 1 MiB: 0.00 GB/s")


def test_a_wrong_collective_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def shifted(tensor: Tensor, group: ProcessGroup) -> Tensor:
        return tensor[1:]

    monkeypatch.setattr(collectives.collectives, "reduce_scatter", shifted)
    right, wrong = check_collectives(ALONE)
    assert (len(right), wrong) == (4, ["reduce_scatter"])


class Process:
    """A process that has ended, or that never ends by itself."""

    started: ClassVar[list["Process"]] = []
    failing: ClassVar[int | None] = None

    def __init__(self, command: list[str], *, env: dict[str, str], stdout: Any, stderr: Any) -> None:
        self.rank = int(env["PADDLE_TRAINER_ID"])
        self.returncode = 3 if self.rank == self.failing else None
        self.device = env.get("FLAGS_selected_gpus")
        stdout.write(b"first\nsecond\nthird\nno NCCL here\n")
        Process.started.append(self)

    def poll(self) -> int | None:
        return self.returncode

    def kill(self) -> None:
        self.returncode = -9

    def wait(self) -> None:
        """Has ended."""


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[Process]:
    """Nothing is trained, and no process is started."""
    monkeypatch.setattr(processes.subprocess, "Popen", Process)
    monkeypatch.setattr("erniekit.train.run.run_training", lambda config: 0)
    monkeypatch.setattr(Process, "started", [])
    return Process


@pytest.mark.parametrize(("device", "rank"), [("cpu", 0), ("gpu", 1)])
def test_a_process_that_fails_ends_the_other(
    device: str, rank: int, fake: type[Process], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake, "failing", rank)
    with pytest.raises(
        ConfigError, match=rf"^process {rank} ended with status 3: second / third / no NCCL here$"
    ):
        run_pair(device, SmallModel(tmp_path))
    assert sorted(process.returncode or 0 for process in fake.started) == [-9, 3]
    assert [process.device for process in fake.started] == (["0", "1"] if device == "gpu" else [None] * 2)
    settings = (tmp_path / "plan.json").read_text()
    assert settings.count(f'"device": "{device}"') == 1 + len(processes.LAYOUTS)


def test_processes_that_hang_are_killed(fake: type[Process], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^process 0 was killed after 0.1 s: second"):
        run_pair("cpu", SmallModel(tmp_path), seconds=0.1)
    assert [process.returncode for process in fake.started] == [-9, -9]
