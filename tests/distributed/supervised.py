"""A launcher of Python snippets, as a process of its own: what the tests of the supervisor start and shoot at."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from erniekit.distributed.worker import LOCALHOST, Worker, worker_environment
from erniekit.launch.supervisor import Job, Patience, Supervisor
from tests.distributed.processes import free_port


def main(snippets: list[str], logs: Path, patience: Patience, again: str | None) -> int:
    """Rank i runs snippet i; the exit status of the whole."""
    master, world = (LOCALHOST, free_port()), len(snippets)
    jobs = []
    for rank, code in enumerate(snippets):
        environment = os.environ | worker_environment(Worker(rank, world, rank, world, master), None)
        jobs.append(Job(rank, [sys.executable, "-c", code], environment, logs / f"rank-{rank}.log"))
    failed = logs / "failed"
    return Supervisor(jobs, lambda: again, lambda reason: failed.write_text(reason) and None, patience).run()


if __name__ == "__main__":
    settings = json.loads(sys.argv[1])
    patience = Patience(**settings["patience"])
    sys.exit(main(settings["snippets"], Path(settings["logs"]), patience, settings["again"]))
