"""The Triton kernels compile for a GPU, from Paddle's tensors, which the interpreter does not show."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from erniekit.kernels import triton as triton_kernels

KERNELS = Path(triton_kernels.__file__).parent


@pytest.mark.slow
def test_every_kernel_compiles_for_an_h100(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"}
    script = Path(__file__).with_name("compile_for_gpu.py")
    result = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, env=environment, check=False
    )
    assert result.returncode == 0, result.stderr
    sources = "".join(file.read_text(encoding="utf-8") for file in KERNELS.glob("*.py"))
    # A kernel is launched in brackets, or by `launch`.
    launched = re.findall(r"^ +(_\w+)\[.*?\]\(|\blaunch\(\s+(_\w+),", sources, re.MULTILINE)
    assert set(result.stdout.split()) == {name for names in launched for name in names if name}
