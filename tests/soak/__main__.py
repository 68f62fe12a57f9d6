"""Kill runs at random moments and compare them with runs that nobody killed.

python -m tests.soak [KILLS] [SEED]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.soak.test_soak import METHODS, soak


def main() -> None:
    """Soak each method and print the counts."""
    kills, seed = (int(text) for text in (*sys.argv[1:], *("50", "0")[len(sys.argv) - 1 :]))
    for method in METHODS:
        with tempfile.TemporaryDirectory() as name:
            done = soak(Path(name), method, kills, seed)
        print(
            f"{method}: {done.kills} kills in {done.attempts} starts, {done.in_save} while a checkpoint was written; "
            "weights and optimizer are those of a run that was not killed, bit for bit",
            flush=True,
        )


if __name__ == "__main__":
    main()
