"""Time the start of the command line: the help texts and `--version`.

    python tools/bench/startup.py [--runs 5]

Each command runs `runs` times in a new process, after a first run that fills the caches. The shortest and the median
time are printed in seconds, next to those of an empty Python program. `erniekit --help` must take less than 0.3 s.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

COMMANDS = ("--version", "--help", "data --help", "train --help")


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=5, help="timed runs per command")
    runs = parser.parse_args().runs
    print(f"{'seconds':24}{'shortest':>10}{'median':>10}")
    found = {"python -c pass": times([sys.executable, "-c", "pass"], runs)}
    for command in COMMANDS:
        words = [sys.executable, "-m", "erniekit", *command.split()]
        found[f"erniekit {command}"] = times(words, runs)
    for name, seconds in found.items():
        print(f"{name:24}{min(seconds):10.3f}{statistics.median(seconds):10.3f}")


def times(command: list[str], runs: int) -> list[float]:
    """Seconds of each run after the first."""
    found = []
    for _ in range(runs + 1):
        begun = time.perf_counter()
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        found.append(time.perf_counter() - begun)
    return found[1:]


if __name__ == "__main__":
    main()
