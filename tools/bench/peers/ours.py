"""erniekit's side: the trainer of `erniekit train`, with a hook that waits for its turns.

    python -m tools.bench.peers.ours DIRECTORY [--threads 2]

DIRECTORY is what prepare.py made.
"""

from __future__ import annotations

import argparse
import tempfile
from contextlib import ExitStack
from pathlib import Path

from erniekit import runtime

runtime.prepare_environment()

from erniekit.config import load_config
from erniekit.interrupt import InterruptGuard
from erniekit.train.metrics import StepMetrics
from erniekit.train.trainer import Hook, Trainer
from tools.bench.peers.prepare import CONFIG, make_trainer
from tools.bench.peers.turns import Turns
from tools.bench.peers.workloads import THREADS


class TurnHook(Hook):
    """Lets the trainer take the steps of each turn, and leaves when no further turn comes."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns

    def on_train_start(self, trainer: Trainer) -> None:
        if not self._turns.ready():
            raise SystemExit

    def on_step_end(self, trainer: Trainer, metrics: StepMetrics) -> None:
        count = metrics.pair_sums.get("pairs") or metrics.loss_tokens
        if not self._turns.step_done(metrics.tokens, metrics.loss_sum / count):
            raise SystemExit


def main() -> None:
    """Prepare the run, then take turns."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument("--threads", type=int, default=THREADS)
    arguments = parser.parse_args()
    turns = Turns()
    with ExitStack() as stack:
        run = stack.enter_context(tempfile.TemporaryDirectory(dir=arguments.directory))
        overrides = [f"train.output_dir={run}", f"parallel.threads={arguments.threads}"]
        config = load_config(arguments.directory / CONFIG, overrides)
        trainer = make_trainer(config, stack)
        trainer.hooks = [*trainer.hooks, TurnHook(turns)]
        trainer.train(stack.enter_context(InterruptGuard(print)))


if __name__ == "__main__":
    main()
