"""A launcher of Python snippets as a separate process, which the tests of the supervisor start and signal."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from erniekit.checkpoint.parts import is_saving
from erniekit.distributed.worker import LOCALHOST, Worker, worker_environment
from erniekit.launch.supervisor import ProcessSpec, Supervisor, Timeouts
from tests.distributed.processes import free_port


def main(snippets: list[str], logs: Path, timeouts: Timeouts, resume_command: str | None) -> int:
    """Rank i runs snippet i; returns the exit status of the run. A rank saves while a part file in `logs` is locked."""
    master, world = (LOCALHOST, free_port()), len(snippets)
    specs = []
    for rank, code in enumerate(snippets):
        environment = os.environ | worker_environment(Worker(rank, world, rank, world, master), None)
        specs.append(ProcessSpec(rank, [sys.executable, "-c", code], environment, logs / f"rank-{rank}.log"))
    failed = logs / "failed"
    return Supervisor(
        specs,
        lambda: resume_command,
        lambda reason: failed.write_text(reason) and None,
        timeouts,
        lambda: is_saving(logs),
    ).run()


if __name__ == "__main__":
    settings = json.loads(sys.argv[1])
    timeouts = Timeouts(**settings["timeouts"])
    sys.exit(main(settings["snippets"], Path(settings["logs"]), timeouts, settings["resume_command"]))
