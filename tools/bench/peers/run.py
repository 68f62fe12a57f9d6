"""Train with erniekit and with its peers in turns, and print a table for each workload. See README.md.

    python -m tools.bench.peers.run [--minutes 12] [--only WORKLOAD ...] [--quick]

Runs in erniekit's environment, from the root of the repository; Linux only.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

from tools.bench.peers.results import Result, Round, describe, is_quiet
from tools.bench.peers.turns import Side, SideError
from tools.bench.peers.workloads import OURS, THREADS, WORKLOADS, Peer, Workload

ROOT = Path(__file__).resolve().parents[3]
PEERS_PYTHON = ROOT / ".venv-peers" / "bin" / "python"
# glibc's settings of `erniekit.runtime.tune_malloc`, as a user of torch can have them.
KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
    "MALLOC_TOP_PAD_": str(256 << 20),
}
COMMON = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}


@dataclass(frozen=True)
class Rounds:
    """How many rounds a workload takes: at least `least`, then until `wanted` of them were undisturbed, or another one
    would pass `limit`, in seconds of `time.monotonic`. by_cpu_time: disturbed ones count too."""

    least: int
    wanted: int
    limit: float
    by_cpu_time: bool = False

    def are_enough(self, done: list[Round]) -> bool:
        """Whether no further round is needed, or none has time."""
        if len(done) < self.least:
            return False
        if sum(self.by_cpu_time or is_quiet(turns) for turns in done) >= self.wanted:
            return True
        longest = max(sum(turn.seconds for turn in turns.values()) for turns in done)
        return time.monotonic() + longest > self.limit


def main() -> None:
    """Prepare, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--minutes", type=float, default=12.0, help="for all workloads together (default: 12)"
    )
    parser.add_argument(
        "--rounds", type=int, default=8, help="undisturbed rounds that are enough (default: 8)"
    )
    parser.add_argument(
        "--only", nargs="+", metavar="WORKLOAD", choices=[w.name for w in WORKLOADS], help="these workloads"
    )
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="one thread, and tokens per second of CPU time: for a machine that others use",
    )
    parser.add_argument("--quick", action="store_true", help="tiny models, one round: to try the scripts")
    parser.add_argument("--work", type=Path, help="directory of models and data (default: runs/peers)")
    parser.add_argument(
        "--peers-python", type=Path, default=PEERS_PYTHON, help="Python of the peers (default: .venv-peers)"
    )
    arguments = parser.parse_args()
    work = arguments.work or ROOT / "runs" / "peers" / ("quick" if arguments.quick else "full")
    chosen = [w for w in WORKLOADS if arguments.only is None or w.name in arguments.only]
    end = time.monotonic() + 60 * arguments.minutes
    python = arguments.peers_python if arguments.peers_python.exists() else None
    if python is None:
        print(f"erniekit alone: there is no {arguments.peers_python} (make peers)", flush=True)
    problems: list[str] = []
    for workload in chosen:
        prepare(workload, work / workload.name, quick=arguments.quick)
    for left, workload in zip(range(len(chosen), 0, -1), chosen, strict=True):
        now = time.monotonic()
        rounds = Rounds(least=1, wanted=0, limit=now, by_cpu_time=arguments.cpu_time)
        if not arguments.quick:
            limit = now + (end - now) / left
            rounds = replace(rounds, least=2, wanted=arguments.rounds, limit=limit)
        try:
            result = measure(workload, work / workload.name, python, rounds)
        except SideError as error:
            problems.append(f"{workload.name}: {error}")
            continue
        print(f"\n{describe(result)}", flush=True)
        problems += result.disagreements()
    if problems:
        sys.exit("\n".join(["", *problems]))


def prepare(workload: Workload, directory: Path, *, quick: bool) -> None:
    """Make data, model and rows in a process of their own."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "tools.bench.peers.prepare", workload.name, str(directory)]
    with (directory.parent / f"{workload.name}.prepare.log").open("w") as log:
        done = subprocess.run(
            command + ["--quick"] * quick, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, check=False
        )
    if done.returncode:
        sys.exit(f"preparing {workload.name} failed: see {log.name}")


def measure(workload: Workload, directory: Path, peers_python: Path | None, plan: Rounds) -> Result:
    """Start all sides of a workload and let them take turns. Without `peers_python` erniekit is alone.

    Raises SideError.
    """
    peers = [] if peers_python is None else [p for p in workload.peers if has_bf16() or not p.needs_bf16]
    threads = 1 if plan.by_cpu_time else THREADS
    sides: list[Side] = []
    try:
        ours = [sys.executable, "-m", "tools.bench.peers.ours", str(directory), f"--threads={threads}"]
        sides.append(Side(OURS, ours, COMMON, directory / f"{OURS}.log"))
        sides += [
            start_peer(peer, peers_python, directory, threads) for peer in peers if peers_python is not None
        ]
        for side in sides:
            side.wait_ready()
        warm_up = {side.name: side.turn(1) for side in sides}
        rounds: list[Round] = []
        while 1 + (len(rounds) + 1) * workload.steps <= workload.rows and not plan.are_enough(rounds):
            # There and back, so that a machine that gets slower or faster favours nobody.
            order = sides if len(rounds) % 2 else sides[::-1]
            rounds.append({side.name: side.turn(workload.steps) for side in order})
        memory = {side.name: side.peak_gib() for side in sides}
        return Result(workload, warm_up, rounds, memory, plan.by_cpu_time)
    finally:
        for side in sides:
            side.close()


def start_peer(peer: Peer, python: Path, directory: Path, threads: int) -> Side:
    """The process of a peer."""
    script = f"tools.bench.peers.{peer.script}"
    command = [str(python), "-m", script, str(directory), *peer.options, f"--threads={threads}"]
    env = COMMON | {"OMP_NUM_THREADS": str(threads)} | (KEEP_MEMORY if peer.keep_memory else {})
    return Side(peer.name, command, env, directory / f"{peer.name.replace(' ', '-')}.log")


def has_bf16() -> bool:
    """Whether the processor computes in bfloat16."""
    text = Path("/proc/cpuinfo").read_text()
    return "avx512_bf16" in text or "amx_bf16" in text


if __name__ == "__main__":
    main()
