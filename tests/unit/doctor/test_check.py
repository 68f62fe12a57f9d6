import os
import sys
from pathlib import Path

import pytest

from erniekit.cli import doctor as command
from erniekit.config.choices import DoctorSection
from erniekit.doctor import doctor
from erniekit.doctor.check import Check, Result, failed, ok, run_check, skipped, warning
from erniekit.doctor.doctor import all_checks
from erniekit.doctor.report import result_line, summary_line, without_secrets, write_report
from erniekit.errors import ConfigError
from tests.command import erniekit

ENVIRONMENT = {
    "HOME": "/home/jane",
    "HF_TOKEN": "hf_abcdefgh",
    "HF_HOME": "/home/jane/hub",
    "ERNIEKIT_API_KEY": "sesame-open",
    "AWS_SECRET_ACCESS_KEY": "abc/def/ghi",
    "CUDA_VISIBLE_DEVICES": "0,1",
    "NCCL_DEBUG": "INFO",
    "HF_ENDPOINT": "https://jane:pass@mirror.example",
    "HF_AUTH": "unseen",
    "UNRELATED": "unrelated",
}


def raising(error: Exception) -> Check:
    def run() -> Result:
        raise error

    return Check("kernels", "rope", run)


def test_an_exception_is_a_failure() -> None:
    assert run_check(Check("system", "disk", lambda: ok("fine"))) == ok("fine")
    assert run_check(raising(ConfigError("a reason\nin two lines"))) == failed("a reason\nin two lines")
    found = run_check(raising(ValueError("\nfirst\nsecond")))
    assert (found.status, found.detail) == ("failed", "ValueError: first")
    assert "Traceback" in found.trace
    assert "in run" in found.trace
    assert run_check(raising(KeyError())).detail == "KeyError: without a message"


def test_results_as_text() -> None:
    results = [ok("a"), warning("b"), failed("c"), failed("d"), skipped("e")]
    assert summary_line(results) == "1 ok, 1 with a warning, 2 failed, 1 not checked"
    assert result_line(raising(ValueError()), failed("wrong")) == "  failed   rope: wrong"


def test_the_report_has_no_secret(tmp_path: Path) -> None:
    trace = "Traceback: token hf_abcdefgh at https://jane:pass@mirror.example in /home/jane/work"
    results = [(raising(ValueError()), Result("failed", "sesame-open is wrong", trace))]
    write_report(tmp_path / "report.txt", results, ENVIRONMENT)
    written = (tmp_path / "report.txt").read_text()
    for secret in ("hf_abcdefgh", "sesame-open", "abc/def/ghi", "pass@", "unseen", "unrelated", "jane"):
        assert secret not in written
    for shown in (
        "kernels\n  failed   rope: *** is wrong\n    Traceback: token *** at https://***@mirror.example in ~/work",
        "\n  CUDA_VISIBLE_DEVICES=0,1\n  HF_ENDPOINT=https://***@mirror.example\n  HF_HOME=~/hub\n  NCCL_DEBUG=INFO\n",
    ):
        assert shown in written


def test_short_values_and_a_root_home_are_left(tmp_path: Path) -> None:
    assert without_secrets("/a 1", {"HOME": "/", "MY_TOKEN": "1"}) == "/a 1"
    with pytest.raises(ConfigError, match=r"report.txt: cannot be written: No such file"):
        write_report(tmp_path / "missing" / "report.txt", [], {})


@pytest.mark.parametrize(("device", "gpus"), [("cpu", 0), ("gpu", 1), ("gpu", 2)])
def test_every_section_has_checks(device: str, gpus: int, tmp_path: Path) -> None:
    sections = all_checks(device, gpus, tmp_path)
    assert list(sections) == ["system", "kernels", "attention", "step", "processes", "timings"]
    assert all(sections.values())
    names = [f"{section} {check.name}" for section, checks in sections.items() for check in checks]
    assert len(set(names)) == len(names)
    assert any("triton" in name for name in names) == (device == "gpu")
    unchecked = [check.name for checks in sections.values() for check in checks if "run_check" in check.name]
    assert not unchecked
    if device == "cpu":
        last = [run_check(sections[section][-1]) for section in ("kernels", "attention", "step", "processes")]
        assert set(last) == {skipped("needs a GPU and Paddle's GPU build")}
    elif gpus == 1:
        (alone,) = sections["processes"]
        assert run_check(alone) == skipped("needs 2 GPUs")


@pytest.fixture
def few_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sections, of which one has a failure."""

    def checks(device: str, gpus: int, work: Path) -> dict[DoctorSection, list[Check]]:
        found = {
            "system": [Check("system", "disk", lambda: ok("fast"))],
            "kernels": [raising(ConfigError("NaN"))],
        }
        return found  # type: ignore[return-value]

    monkeypatch.setattr(doctor, "all_checks", checks)


@pytest.mark.usefixtures("few_checks")
def test_the_command_shows_failures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRIVATE_TOKEN", "open-sesame")
    done = erniekit("doctor", "--report", tmp_path / "report.txt")
    assert done.returncode == 1
    assert done.stdout == (
        "system\n  ok       disk: fast\nkernels\n  failed   rope: NaN\n"
        f"1 ok, 0 with a warning, 1 failed, 0 not checked\nreport written to {tmp_path / 'report.txt'}\n"
    )
    assert "failed   rope: NaN" in (tmp_path / "report.txt").read_text()
    assert "open-sesame" not in (tmp_path / "report.txt").read_text()
    assert os.environ["PRIVATE_TOKEN"] == "open-sesame"
    alone = erniekit("doctor", "--only", "system")
    assert (alone.returncode, alone.stdout.splitlines()[-1]) == (
        0,
        "1 ok, 0 with a warning, 0 failed, 0 not checked",
    )
    assert command._COLOURS.keys() == {"ok", "warning", "failed", "skipped"}


@pytest.mark.usefixtures("few_checks")
def test_kernels_that_cannot_start_are_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def configure(device: str, threads: None, seed: int, *, kernels: str = "auto") -> str:
        if kernels == "auto":
            raise ConfigError("Triton is not installed")
        return "gpu"

    monkeypatch.setattr("erniekit.runtime.configure", configure)
    done = erniekit("doctor", "--only", "system")
    assert done.returncode == 1
    assert done.stdout.startswith(
        "system\n  failed   kernels: Triton is not installed\n  ok       disk: fast\n"
    )


def test_a_device_or_a_paddle_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paddle.is_compiled_with_cuda", lambda: False)
    done = erniekit("doctor", "--device", "gpu")
    assert (done.returncode, done.stderr.partition(";")[0]) == (
        1,
        "error: parallel.device is gpu, but the CPU wheel of Paddle is installed",
    )
    monkeypatch.setitem(sys.modules, "paddle", None)
    done = erniekit("doctor")
    assert done.returncode == 1
    assert done.stderr.startswith("error: Paddle cannot be imported: ")
