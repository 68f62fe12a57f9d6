"""A process's place in a run, in the environment variables of paddle.distributed.

The launcher of `erniekit train` and `paddle.distributed.launch` set the same variables.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from erniekit.errors import ConfigError
from erniekit.runtime import usable_cores

LOCALHOST = "127.0.0.1"
_GPU_NUMBER = "FLAGS_selected_gpus"


@dataclass(frozen=True, slots=True)
class Worker:
    """The place of one process in a run.

    rank: among all `world` processes; local_rank: among the `local_size` processes of its machine. The ranks of a
    machine are consecutive. master: host and port where rank 0 serves the TCP store.
    """

    rank: int
    world: int
    local_rank: int
    local_size: int
    master: tuple[str, int]

    @property
    def threads(self) -> int:
        """CPU threads of this process: an equal share of the machine's usable cores, at least 1."""
        return max(1, usable_cores() // self.local_size)

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the store."""
        return is_loopback(self.master[0])


def worker_from(environment: Mapping[str, str]) -> Worker | None:
    """The worker that Paddle's variables describe; None if they are not set.

    Raises ConfigError for variables that contradict each other.
    """
    if "PADDLE_TRAINERS_NUM" not in environment or "PADDLE_TRAINER_ID" not in environment:
        return None
    world, rank = (
        read_number(environment, "PADDLE_TRAINERS_NUM"),
        read_number(environment, "PADDLE_TRAINER_ID"),
    )
    if world < 1 or not 0 <= rank < world:
        raise ConfigError(
            f"the launcher's PADDLE_TRAINER_ID is {rank} and its PADDLE_TRAINERS_NUM {world}; ranks count from 0 to "
            "PADDLE_TRAINERS_NUM - 1"
        )
    local_size = read_number(environment, "PADDLE_LOCAL_SIZE", default=world)
    local_rank = read_number(environment, "PADDLE_RANK_IN_NODE", default=rank % local_size)
    master = _master(environment) if world > 1 else (LOCALHOST, 0)
    return Worker(rank, world, local_rank, local_size, master)


def worker_environment(worker: Worker, gpu: int | None) -> dict[str, str]:
    """The variables that make a process this worker, on the GPU of that number or, with None, on the CPU."""
    host, port = worker.master
    # Paddle compares and counts these addresses, but only connects to the master.
    endpoints = [f"{host}:{port + 1 + rank}" for rank in range(worker.world)]
    variables = {
        "PADDLE_TRAINER_ID": str(worker.rank),
        "PADDLE_TRAINERS_NUM": str(worker.world),
        "PADDLE_RANK_IN_NODE": str(worker.local_rank),
        "PADDLE_LOCAL_SIZE": str(worker.local_size),
        "PADDLE_MASTER": f"{host}:{port}",
        "PADDLE_TRAINER_ENDPOINTS": ",".join(endpoints),
        "PADDLE_CURRENT_ENDPOINT": endpoints[worker.rank],
        "PADDLE_DISTRI_BACKEND": "gloo" if gpu is None else "nccl",
    }
    return variables | (gpu_environment(gpu) if gpu is not None else {})


def gpu_environment(number: int) -> dict[str, str]:
    """The variable that makes a process use a GPU, by its number among the visible GPUs."""
    return {_GPU_NUMBER: str(number)}


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's loopback."""
    return host == "localhost" or host.startswith("127.")


def split_address(address: str) -> tuple[str, int] | None:
    """Host and port of "host:port"; None for anything else."""
    host, colon, port = address.strip().rpartition(":")
    if not (colon and host and port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        return None
    return host, int(port)


def _master(environment: Mapping[str, str]) -> tuple[str, int]:
    # Paddle looks for them in this order.
    names = ["PADDLE_MASTER", "PADDLE_TRAINER_ENDPOINTS"]
    found = [environment[name].split(",")[0] for name in names if environment.get(name)]
    if environment.get("MASTER_ADDR") and environment.get("MASTER_PORT"):
        found.insert(0, f"{environment['MASTER_ADDR']}:{environment['MASTER_PORT']}")
    address = split_address(found[0]) if found else None
    if address is None:
        raise ConfigError(
            "the launcher's PADDLE_TRAINERS_NUM asks for several processes, but PADDLE_MASTER is not the HOST:PORT of "
            f"rank 0{f': it is {found[0]}' if found else ''}"
        )
    return address


def read_number(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    """The whole number in a launcher's variable; `default` where the variable is not set. Raises ConfigError."""
    text = environment.get(name)
    if text is None and default is not None:
        return default
    try:
        return int(text or "")
    except ValueError:
        raise ConfigError(f"the launcher's {name} is {text!r}, which is not a whole number") from None
