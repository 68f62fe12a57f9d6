"""`python -m tests.fuzz [INPUTS] [TARGET ...]`: a long run, which prints the counts of each target."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from tests.fuzz.driver import fuzz
from tests.fuzz.targets import TARGETS

inputs = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
for target in TARGETS:
    if sys.argv[2:] and target.__name__ not in sys.argv[2:]:
        continue
    with tempfile.TemporaryDirectory() as directory:
        began = time.perf_counter()
        outcomes = fuzz(target, range(inputs), Path(directory))
    counts = f"{outcomes['accepted']:,} accepted, {outcomes['refused']:,} refused"
    print(f"{target.__name__}: {inputs:,} inputs, {counts}, {time.perf_counter() - began:.0f} s", flush=True)
