"""The Triton kernels compile for a GPU, from Paddle's tensors, which the interpreter does not show."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

KERNELS = {
    "_add_up_counts_kernel",
    "_copy_rows_kernel",
    "_count_experts_kernel",
    "_place_pairs_kernel",
    "_rms_norm_backward_kernel",
    "_rms_norm_forward_kernel",
    "_rotate_halves_kernel",
    "_rotate_pairs_kernel",
    "_sum_partial_kernel",
    "_sum_rows_kernel",
    "_swiglu_backward_kernel",
    "_swiglu_forward_kernel",
    "_unpermute_backward_kernel",
}


@pytest.mark.slow
def test_every_kernel_compiles_for_an_h100(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"}
    script = Path(__file__).with_name("compile_for_gpu.py")
    result = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, env=environment, check=False
    )
    assert result.returncode == 0, result.stderr
    assert set(result.stdout.split()) == KERNELS
