"""The place of a process among the tasks that Slurm's `srun` starts."""

from __future__ import annotations

import re
from collections.abc import Mapping

from erniekit.distributed.worker import Worker, read_number, split_address
from erniekit.errors import ConfigError

# Ports of the TCP store where MASTER_PORT is not set: below those that Linux gives to outgoing connections.
_FIRST_PORT, _PORTS = 15000, 10000
_TASKS = re.compile(r"(\d+)(?:\(x(\d+)\))?")


def slurm_worker(environment: Mapping[str, str]) -> Worker | None:
    """The worker that a task of a Slurm step is; None outside of a step and in a step of a single task.

    A batch script and an interactive shell have SLURM_PROCID and SLURM_NTASKS as well. Only `srun` sets SLURM_STEP_ID
    and SLURM_STEP_NUM_TASKS, the number of tasks that really run.

    MASTER_ADDR and MASTER_PORT say where rank 0 holds the store. Their defaults are the first node of the step and a
    port that follows from the job's id. Raises ConfigError for variables that contradict each other.
    """
    if "SLURM_STEP_ID" not in environment or "SLURM_PROCID" not in environment:
        return None
    world = read_number(environment, "SLURM_STEP_NUM_TASKS", default=1)
    if world == 1:
        return None
    rank, local_rank, node = (
        read_number(environment, name) for name in ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID")
    )
    tasks = tasks_per_node(environment.get("SLURM_STEP_TASKS_PER_NODE", ""))
    if sum(tasks) != world or not node < len(tasks):
        raise ConfigError(
            f"Slurm's SLURM_STEP_TASKS_PER_NODE is {environment.get('SLURM_STEP_TASKS_PER_NODE')!r}, which does not "
            f"describe the {world} tasks of SLURM_STEP_NUM_TASKS with node {node} of SLURM_NODEID; start the "
            "processes with srun"
        )
    if rank != sum(tasks[:node]) + local_rank:
        raise ConfigError(
            f"Slurm numbers its tasks across the nodes: task {rank} is number {local_rank} of node {node}. Ranks must "
            "be consecutive on each node; add --distribution=block to srun"
        )
    return Worker(rank, world, local_rank, tasks[node], _master(environment))


def slurm_gpu(environment: Mapping[str, str]) -> int:
    """The GPU of a task, by its number among those that CUDA shows to the task.

    SLURM_LOCALID, or 0 where Slurm shows each task one GPU alone, as with --gpus-per-task.
    """
    visible = [name for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return 0 if len(visible) == 1 else read_number(environment, "SLURM_LOCALID")


def tasks_per_node(text: str) -> list[int]:
    """Slurm's "2(x3),1" -> [2, 2, 2, 1]; an empty list for anything else."""
    found: list[int] = []
    for part in text.split(","):
        match = _TASKS.fullmatch(part)
        if match is None:
            return []
        found += [int(match[1])] * int(match[2] or 1)
    return found


def first_node(nodes: str) -> str:
    """The first host of Slurm's list of nodes: "gpu[03-07,10],login1" -> "gpu03"."""
    return re.sub(r"\[([^],-]+)[^]]*\]", r"\1", nodes).split(",")[0]


def _master(environment: Mapping[str, str]) -> tuple[str, int]:
    host = environment.get("MASTER_ADDR") or first_node(environment.get("SLURM_STEP_NODELIST", ""))
    if not host:
        raise ConfigError(
            "Slurm's SLURM_STEP_NODELIST is not set, so the node of rank 0 is not known; set MASTER_ADDR to its name"
        )
    port = environment.get("MASTER_PORT")
    if port is None:
        port = str(_FIRST_PORT + read_number(environment, "SLURM_JOB_ID") % _PORTS)
    address = split_address(f"{host}:{port}")
    if address is None:
        raise ConfigError(
            f"MASTER_ADDR and MASTER_PORT are {host!r} and {port!r}, which is not a host and a port"
        )
    return address
