"""What a run says at its end: where the checkpoint is, and the next command."""

from __future__ import annotations

import shlex
from pathlib import Path

from erniekit.checkpoint.best import BEST_NAME
from erniekit.checkpoint.state import checkpoint_name, newest_checkpoint
from erniekit.config import Config
from erniekit.display.text import counted
from erniekit.train.trainer import Trainer

CONFIG_FILE = "config.yaml"
REPORT_FILE = "report.html"


def resume_command(run_dir: Path, devices: str = "") -> str:
    """The command that continues the run. devices: an option, if it needs one."""
    return f"erniekit train {shlex.quote(str(run_dir / CONFIG_FILE))} --resume{devices}"


def next_commands(config: Config, *, has_best: bool) -> list[str]:
    """Commands for the trained model, the best checkpoint if there is one."""
    run_dir = Path(config.train.output_dir)
    model = shlex.quote(str(run_dir / BEST_NAME if has_best else run_dir))
    evaluate = f"erniekit eval {model} --config {shlex.quote(str(run_dir / CONFIG_FILE))}"
    return [
        f"erniekit chat {model}",
        *([evaluate] if config.data.eval else []),
        f"erniekit export {model} --output {shlex.quote(f'{run_dir}-export')}",
    ]


def describe_end(trainer: Trainer, config: Config, devices: str = "") -> list[str]:
    """The closing lines of a run that is finished, has stopped early or was interrupted."""
    run_dir, progress = Path(config.train.output_dir), trainer.progress
    total, newest = trainer.settings.total_steps, newest_checkpoint(run_dir)
    report = run_dir / REPORT_FILE
    see = f" The report is {report}" if config.log.report and report.is_file() else ""
    if trainer.is_interrupted and not trainer.is_finished:
        return [
            f"Stopped after step {progress.step} of {total}.{see}",
            f"The checkpoint is {newest}. Continue with:",
            f"  {resume_command(run_dir, devices)}",
        ]
    lines = []
    if trainer.stop_reason is not None:
        lines.append(f"Stopped early, after step {progress.step} of {total}: {trainer.stop_reason}.")
    lines.append(f"Done: {counted(progress.step, 'step')}, {counted(progress.tokens, 'token')}.{see}")
    best = progress.best
    where = f"The trained model is {newest}"
    if best.value is not None:
        where += f"\nThe best checkpoint by {best.metric} ({best.value:.4f}) is {run_dir / checkpoint_name(best.step)}"
    commands = next_commands(config, has_best=best.value is not None)
    return [*lines, f"{where}. Next:", *(f"  {command}" for command in commands)]


def describe_failure(run_dir: Path, devices: str = "") -> str:
    """What to add to the error that ends a run."""
    newest = newest_checkpoint(run_dir)
    if newest is None:
        return "Nothing was saved yet."
    return f"The newest checkpoint is {newest}. Continue with:\n  {resume_command(run_dir, devices)}"
