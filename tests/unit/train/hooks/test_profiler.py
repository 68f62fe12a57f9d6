"""The profiler records the steps that it is asked for, and its table counts kernels once."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from paddle.profiler import Profiler

from erniekit.train.hooks import profiler as module
from erniekit.train.hooks.profiler import ProfilerHook, describe_trace
from tests.unit.train.toy_trainer import Log, Plain, make, run


def traces(directory: Path) -> list[str]:
    return sorted(file.name for file in (directory / "profile").glob("*"))


@pytest.mark.parametrize(
    ("steps", "total", "written"),
    [((2, 3), 4, ["steps-2-3.json"]), ((1, 1), 4, ["steps-1-1.json"]), ((3, 9), 4, ["steps-3-4.json"])],
)
def test_the_steps_are_recorded(
    steps: tuple[int, int], total: int, written: list[str], tmp_path: Path
) -> None:
    log: Any = Log()
    trainer, _, _ = make(Plain(), total_steps=total, hooks=[ProfilerHook(*steps, tmp_path, log)])
    run(trainer)
    assert traces(tmp_path) == written
    events = json.loads((tmp_path / "profile" / written[0]).read_text())["traceEvents"]
    recorded = [event for event in events if event.get("cat") == "ProfileStep"]
    assert len(recorded) == min(steps[1], total) - steps[0] + 1
    assert log.lines[0].startswith(f"profile: {tmp_path / 'profile' / written[0]}; ")
    assert any(line.split()[0] == "multiply_grad" for line in log.lines[2:])


def test_steps_after_the_last_one_are_not_recorded(tmp_path: Path) -> None:
    log: Any = Log()
    trainer, _, _ = make(Plain(), total_steps=2, hooks=[ProfilerHook(5, 6, tmp_path, log)])
    run(trainer)
    assert log.lines == [] and not (tmp_path / "profile").exists()


def test_an_error_ends_the_recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log: Any = Log()
    trainer, _, _ = make(Plain(), hooks=[ProfilerHook(1, 4, tmp_path, log)])

    def fail() -> None:
        raise ValueError

    monkeypatch.setattr(trainer, "train_step", fail)
    with pytest.raises(ValueError):
        run(trainer)
    assert log.lines == [] and traces(tmp_path) == []
    # Another profiler can start.
    run(make(Plain(), hooks=[ProfilerHook(1, 1, tmp_path, log)])[0])
    assert traces(tmp_path) == ["steps-1-1.json"]


def test_a_trace_that_cannot_be_written_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk cuts the file off."""
    export = Profiler.export

    def cut(profiler: Profiler, path: str, format: str) -> None:
        export(profiler, path, format)
        os.truncate(path, 100)

    monkeypatch.setattr(Profiler, "export", cut)
    log: Any = Log()
    trainer, _, saved = make(Plain(), total_steps=3, hooks=[ProfilerHook(1, 1, tmp_path, log)])
    run(trainer)
    assert saved == [3]
    assert log.lines[0].startswith(f"note: {tmp_path / 'profile' / 'steps-1-1.json'} cannot be written: ")


def event(name: str, kind: str, milliseconds: float) -> dict[str, Any]:
    return {"name": f"{name}[{milliseconds} ms]", "cat": kind, "dur": milliseconds * 1000, "ph": "X"}


def write(file: Path, *events: dict[str, Any]) -> Path:
    file.write_text(json.dumps({"traceEvents": [{"name": "process_name", "ph": "M"}, *events]}))
    return file


def test_the_table_has_the_heaviest_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launches = [
        event("matmul kernel launch", "DygraphKernelLaunch", 3),
        event("matmul kernel launch", "DygraphKernelLaunch", 3),
        event("add kernel launch", "DygraphKernelLaunch", 2),
        event("matmul dygraph", "Operator", 9),
        event("ProfileStep#0", "ProfileStep", 20),
    ]
    file = write(tmp_path / "a.json", *launches)
    assert describe_trace(file, 2) == [
        f"profile: {file}; 4.0 ms of kernels per step",
        "  kernel  ms per step   share  calls per step",
        "  matmul         3.00   75.0%               1",
        "  add            1.00   25.0%               0",
    ]
    # On a GPU launches only start the kernels.
    on_gpu = write(tmp_path / "b.json", *launches, event("void gemm<float>(int[4])", "Kernel", 8))
    assert [line.split() for line in describe_trace(on_gpu, 2)[2:]] == [
        ["void", "gemm<float>(int[4])", "4.00", "100.0%", "0"]
    ]
    monkeypatch.setattr(module, "_ROWS", 1)
    assert len(describe_trace(file, 2)) == 3
