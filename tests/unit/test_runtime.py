"""Process settings: threads, kernels, memory and seeds."""

import os
import random
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from erniekit import runtime
from erniekit.errors import ConfigError


def test_seeds_make_runs_repeat() -> None:
    import paddle

    draws = []
    for seed in (3, 3, 4):
        assert runtime.configure("cpu", 1, seed) == "cpu"
        draws.append((random.random(), float(np.random.rand()), paddle.rand([1]).item()))
    assert draws[0] == draws[1]
    assert all(a != b for a, b in zip(draws[0], draws[2], strict=True))


def test_a_gpu_that_is_not_there_is_an_error() -> None:
    import paddle

    if paddle.is_compiled_with_cuda() and paddle.device.cuda.device_count():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ConfigError, match=r"parallel\.device is gpu"):
        runtime.configure("gpu", 1, 0)
    assert runtime.configure("auto", 1, 0) == "cpu"


def test_float32_is_not_tf32_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    import paddle

    switched = []
    monkeypatch.setattr(paddle, "is_compiled_with_cuda", lambda: True)
    monkeypatch.setattr(paddle.device.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(paddle, "set_device", lambda device: None)
    monkeypatch.setattr(paddle, "seed", lambda seed: None)
    monkeypatch.setattr(paddle.base.core, "set_cublas_switch", switched.append, raising=False)
    assert runtime.configure("cpu", 1, 0) == "cpu" and switched == []
    assert runtime.configure("gpu", 1, 0, kernels="plain") == "gpu" and switched == [False]
    assert runtime.configure("cpu", 1, 0) == "cpu"


@pytest.mark.parametrize(("vendor", "kernels"), [("AuthenticAMD", "5"), ("GenuineIntel", None)])
def test_kernels_are_chosen_on_amd_only(
    vendor: str, kernels: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nvendor_id\t: {vendor}\n")
    monkeypatch.setattr(runtime, "_CPUINFO", cpuinfo)
    monkeypatch.setenv("MKL_DEBUG_CPU_TYPE", "")
    del os.environ["MKL_DEBUG_CPU_TYPE"]
    runtime.prepare_environment()
    assert os.environ.get("MKL_DEBUG_CPU_TYPE") == kernels


def test_a_machine_without_cpuinfo_is_not_amd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "_CPUINFO", tmp_path / "none")
    monkeypatch.setenv("MKL_DEBUG_CPU_TYPE", "")
    del os.environ["MKL_DEBUG_CPU_TYPE"]
    runtime.prepare_environment()
    assert "MKL_DEBUG_CPU_TYPE" not in os.environ


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "confstr", lambda name: None)
    assert runtime.tune_malloc() is False


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc is on Linux")
def test_large_blocks_are_reused() -> None:
    """A second block of 384 MiB takes the pages of the freed first one: no page faults."""
    code = (
        "import resource\nfrom erniekit.runtime import tune_malloc\n"
        "faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "tuned = tune_malloc()\nbytearray(384 << 20)\nbefore = faults()\nbytearray(384 << 20)\n"
        "print(tuned, faults() - before)"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    tuned, faults = output.split()
    if tuned == "False":
        pytest.skip("the C library is not glibc")
    assert int(faults) < 1000


@pytest.mark.slow
def test_importing_paddle_is_quiet() -> None:
    code = "from erniekit.runtime import configure\nprint(configure('cpu', 2, 0))"
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "7"},
    )
    assert (result.stdout, result.stderr) == ("cpu\n", "")


def test_usable_cores_is_a_count() -> None:
    assert 1 <= runtime.usable_cores() <= (os.cpu_count() or 1)


@pytest.mark.parametrize(
    ("dtype", "device", "computed"),
    [
        ("auto", "cpu", "float32"),
        ("auto", "gpu", "bfloat16"),
        ("float32", "gpu", "float32"),
        ("bfloat16", "gpu", "bfloat16"),
    ],
)
def test_compute_dtype(dtype: str, device: str, computed: str) -> None:
    assert runtime.compute_dtype(dtype, device) == computed


def test_bfloat16_on_a_cpu_is_refused() -> None:
    with pytest.raises(ConfigError, match="bfloat16 needs a GPU"):
        runtime.compute_dtype("bfloat16", "cpu")


def test_the_limit_of_open_files_is_raised() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
    try:
        runtime.raise_open_files()
        most = 65536 if hard == resource.RLIM_INFINITY else min(hard, 65536)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (most, hard)
        runtime.raise_open_files()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (most, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
