"""Check and time every Triton kernel on a GPU. Needs torch and Triton, not Paddle.

    PYTHONPATH=. python tools/gpu/kernels.py [--seed 0]

Runs the scripts beside it one after the other: grouped products, quantized weights, pointwise kernels, and loss,
embedding and optimizer. The status is not 0 if one of them failed.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PARTS = ("grouped", "quantize", "pointwise", "head")


def main() -> None:
    """Run all parts with the arguments of the command line."""
    failed = []
    for part in PARTS:
        script = Path(__file__).with_name(f"kernels_{part}.py")
        print(f"== {script.name}", flush=True)
        if subprocess.run([sys.executable, script, *sys.argv[1:]], check=False).returncode:
            failed.append(script.name)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
