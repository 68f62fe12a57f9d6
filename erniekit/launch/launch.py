"""How many processes a run has, on which devices and machines; starts those of this machine."""

from __future__ import annotations

import os
import shlex
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from erniekit.distributed.watchdog import tell_ended
from erniekit.distributed.worker import (
    LOCALHOST,
    Worker,
    gpu_environment,
    split_address,
    worker_environment,
    worker_from,
)
from erniekit.errors import ConfigError
from erniekit.launch.slurm import slurm_gpu, slurm_worker
from erniekit.launch.supervisor import PATIENCE, Job, Patience, Supervisor

_TELL_SECONDS = 10


@dataclass(frozen=True, slots=True)
class Devices:
    """What the processes of one machine compute on: a GPU each, by number, or None for the CPU."""

    gpus: tuple[int | None, ...]

    @property
    def kind(self) -> str:
        """ "cpu" or "gpu", as parallel.device has it."""
        return "cpu" if self.gpus[0] is None else "gpu"


@dataclass(frozen=True, slots=True)
class Nodes:
    """The machines of a run: how many, which this one is, and where rank 0 is to be met (None: only this one)."""

    count: int = 1
    rank: int = 0
    master: tuple[str, int] | None = None


@dataclass(frozen=True, slots=True)
class Launch:
    """All processes of a run: the same number on each machine, in the order of machines and devices."""

    devices: Devices
    nodes: Nodes = Nodes()

    @property
    def world(self) -> int:
        """Processes on all machines."""
        return len(self.devices.gpus) * self.nodes.count

    def workers(self, master: tuple[str, int]) -> list[Worker]:
        """Those of this machine."""
        size = len(self.devices.gpus)
        first = size * self.nodes.rank
        return [Worker(first + place, self.world, place, size, master) for place in range(size)]


def parse_devices(text: str) -> Devices:
    """The value of --devices: "cpu", "cpu:4", or numbers of GPUs such as "0,1,2,3". Raises ConfigError."""
    kind, colon, number = text.partition(":")
    if kind == "cpu" and (not colon or (number.isascii() and number.isdigit() and int(number) > 0)):
        return Devices((None,) * (int(number) if colon else 1))
    numbers = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() for part in numbers):
        raise ConfigError(
            f"--devices is {text!r}; it takes numbers of GPUs such as 0,1,2,3, or cpu:4 for four processes on the CPU"
        )
    if len(set(map(int, numbers))) < len(numbers):
        raise ConfigError(
            f"--devices is {text!r}, which names a GPU twice; each process needs one of its own"
        )
    return Devices(tuple(map(int, numbers)))


def parse_nodes(count: int, rank: int | None, master: str | None) -> Nodes:
    """The values of --nodes, --node-rank and --master. Raises ConfigError where they do not fit together."""
    if count < 1:
        raise ConfigError(f"--nodes is {count}; it is the number of machines, at least 1")
    if count == 1:
        if rank or master is not None:
            raise ConfigError("--node-rank and --master are for runs on several machines; set --nodes, too")
        return Nodes()
    if rank is None or master is None:
        raise ConfigError(
            f"--nodes {count} needs --node-rank (0 to {count - 1}, another on each machine) and --master HOST:PORT "
            "(of machine 0, the same on each)"
        )
    if not 0 <= rank < count:
        raise ConfigError(f"--node-rank is {rank}; with --nodes {count} it is from 0 to {count - 1}")
    address = split_address(master)
    if address is None:
        raise ConfigError(f"--master is {master!r}; it takes HOST:PORT, such as 10.0.0.1:6170")
    return Nodes(count, rank, address)


def launched_worker(nodes: Nodes, devices: Devices | None, device: str) -> Worker | None:
    """This process among those that another program started; None where this command starts the processes itself.

    The first of these decides: the variables of paddle.distributed (set by paddle.distributed.launch and by this
    launcher), --nodes, the variables of a Slurm step with several tasks. Slurm's are translated into Paddle's, which
    Paddle reads, too; before Paddle is imported. device: parallel.device of the configuration. Raises ConfigError for
    variables or options that contradict each other.
    """
    worker = worker_from(os.environ)
    if worker is not None or nodes.count > 1:
        return worker
    worker = slurm_worker(os.environ)
    if worker is None:
        return None
    if devices is not None:
        raise ConfigError(
            f"srun has started {worker.world} tasks, so --devices cannot start more processes. Leave --devices out: "
            "each task takes the GPU of its SLURM_LOCALID (parallel.device=cpu: the CPU). Or let srun start one task "
            "on each node, and add --nodes, --node-rank and --master"
        )
    gpu = None if device == "cpu" else slurm_gpu(os.environ)
    os.environ.update(_quiet(os.environ) | worker_environment(worker, gpu))
    return worker


def plan_launch(devices: Devices | None, nodes: Nodes, device: str) -> Launch:
    """The processes of a run; without --devices one for each GPU that is seen, or a single one.

    device: parallel.device of the configuration. Raises ConfigError for several machines without a GPU.
    """
    if devices is not None:
        return Launch(devices, nodes)
    seen = visible_gpus() if device != "cpu" else 0
    if not seen and nodes.count > 1:
        raise ConfigError(
            f"--nodes {nodes.count} without --devices uses every GPU, but none is seen here; for processes on the "
            "CPU add --devices cpu:N"
        )
    return Launch(Devices(tuple(range(seen)) or (None,)), nodes)


def visible_gpus() -> int:
    """How many GPUs Paddle sees; imports Paddle."""
    import paddle

    return int(paddle.device.cuda.device_count()) if paddle.is_compiled_with_cuda() else 0


def use_device(devices: Devices) -> None:
    """Make this process, which is the only one, use that GPU; before Paddle is imported."""
    if devices.gpus[0] is not None:
        os.environ.update(gpu_environment(devices.gpus[0]))


def run_processes(
    launch: Launch,
    arguments: Sequence[str],
    logs: Path,
    again: Callable[[], str | None],
    patience: Patience = PATIENCE,
) -> int:
    """Run `erniekit` with these arguments in each process of this machine; returns the exit status.

    logs: directory that receives rank-N.log. again: see `Supervisor`. Raises ConfigError where the directory
    cannot be written.
    """
    master = launch.nodes.master or (LOCALHOST, _free_port())
    try:
        logs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"train.output_dir: {logs} cannot be made: {error.strerror}") from None
    command = [sys.executable, *_python_flags(), "-m", "erniekit", *arguments]
    jobs = [
        Job(
            worker.rank,
            command,
            _environment(worker, launch.devices.gpus[worker.local_rank]),
            logs / f"rank-{worker.rank}.log",
        )
        for worker in launch.workers(master)
    ]

    def failed(reason: str) -> None:
        if launch.nodes.count > 1:
            tell_machines(master, reason)

    return Supervisor(jobs, again, failed, patience).run()


def node_options(nodes: Nodes) -> list[str]:
    """The options that say the same machines again."""
    if nodes.master is None:
        return []
    host, port = nodes.master
    return ["--nodes", str(nodes.count), "--node-rank", str(nodes.rank), "--master", f"{host}:{port}"]


def command_line(arguments: Sequence[str]) -> str:
    """An `erniekit` command as one would type it."""
    return shlex.join(["erniekit", *arguments])


def _environment(worker: Worker, gpu: int | None) -> dict[str, str]:
    # These would win over PADDLE_MASTER.
    inherited = {key: value for key, value in os.environ.items() if key not in ("MASTER_ADDR", "MASTER_PORT")}
    # gloo listens at the address of the machine's name, which need not be one, where the loopback is enough.
    local = worker.is_local and gpu is None and "GLOO_SOCKET_IFNAME" not in inherited and _has_loopback()
    loopback = {"GLOO_SOCKET_IFNAME": "lo"} if local else {}
    return inherited | worker_environment(worker, gpu) | _quiet(inherited) | loopback


def _quiet(environment: Mapping[str, str]) -> dict[str, str]:
    # Paddle's store logs every connection, at the level of information.
    return {"GLOG_minloglevel": environment.get("GLOG_minloglevel", "1")}


def _has_loopback() -> bool:
    return any(name == "lo" for _, name in socket.if_nameindex())


def _python_flags() -> list[str]:
    # `-m` alone would let modules of the working directory come before those that this process uses.
    return [] if "" in sys.path or os.getcwd() in sys.path else ["-P"]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOCALHOST, 0))
        port: int = probe.getsockname()[1]
        return port


def tell_machines(master: tuple[str, int], reason: str) -> None:
    """End the ranks on other machines, too, as far as they can be reached; imports Paddle."""
    from paddle.base import core

    host, port = master
    try:
        tell_ended(core.TCPStore(host, port, False, 0, _TELL_SECONDS), reason)
    except (RuntimeError, ValueError) as error:
        # Then rank 0 is gone, which the others notice by themselves.
        print(f"the other machines could not be told: {str(error).splitlines()[0]}", file=sys.stderr)
