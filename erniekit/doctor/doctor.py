"""The list of all checks for a machine."""

from __future__ import annotations

from pathlib import Path

from erniekit.config.choices import DoctorSection
from erniekit.doctor.attention import attention_checks
from erniekit.doctor.check import Check, skipped
from erniekit.doctor.kernels import kernel_checks
from erniekit.doctor.processes import PROCESSES, process_checks
from erniekit.doctor.step import SmallModel, step_checks
from erniekit.doctor.system import system_checks
from erniekit.doctor.timings import timing_checks

_NOT_ON_CPU: dict[DoctorSection, str] = {
    "kernels": "Triton's and Paddle's kernels for GPUs, bfloat16",
    "attention": "flash attention and FlashMask at real shapes",
    "step": "a step in bfloat16, float32 masters",
    "processes": "NCCL",
    "timings": "times of copies, products, experts and attention",
}


def all_checks(device: str, gpus: int, work: Path) -> dict[DoctorSection, list[Check]]:
    """The checks of each section, in order. gpus: number of Paddle's GPUs; work: a directory for temporary files."""
    model = SmallModel(work / "model")
    if device == "cpu":
        found: dict[DoctorSection, list[Check]] = {
            "system": system_checks(device, Path()),
            "kernels": kernel_checks(device),
            "attention": [],
            "step": step_checks(device, model),
            "processes": process_checks(device, model),
            "timings": [],
        }
        for section, what in _NOT_ON_CPU.items():
            found[section].append(_not_checked(section, what, "needs a GPU and Paddle's GPU build"))
        return found
    several = gpus >= PROCESSES
    return {
        "system": system_checks(device, Path()),
        "kernels": kernel_checks(device),
        "attention": attention_checks(),
        "step": step_checks(device, model),
        "processes": process_checks(device, model)
        if several
        else [_not_checked("processes", "NCCL and parallel layouts", f"needs {PROCESSES} GPUs")],
        "timings": timing_checks(),
    }


def _not_checked(section: str, name: str, reason: str) -> Check:
    return Check(section, name, lambda: skipped(reason))
