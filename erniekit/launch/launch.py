"""The processes of a run, their devices and machines; starts the processes of this machine."""

from __future__ import annotations

import os
import shlex
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from erniekit.display.output import forgiving_output
from erniekit.distributed.startup import wait_for_port
from erniekit.distributed.watchdog import publish_failure
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
from erniekit.launch.supervisor import DEFAULT_TIMEOUTS, ProcessSpec, Supervisor

_STORE_SECONDS = 10


@dataclass(frozen=True, slots=True)
class Devices:
    """The device of each process of one machine: the number of a GPU, or None for the CPU."""

    gpus: tuple[int | None, ...]

    @property
    def kind(self) -> str:
        """ "cpu" or "gpu", a value of parallel.device."""
        return "cpu" if self.gpus[0] is None else "gpu"


@dataclass(frozen=True, slots=True)
class Nodes:
    """The machines of a run: their number, this one's rank, and the address of rank 0 (None for 1 machine)."""

    count: int = 1
    rank: int = 0
    master: tuple[str, int] | None = None


@dataclass(frozen=True, slots=True)
class LaunchPlan:
    """All processes of a run: the same number on each machine, ranked by machine, then by device."""

    devices: Devices
    nodes: Nodes = Nodes()

    @property
    def world(self) -> int:
        """Processes on all machines."""
        return len(self.devices.gpus) * self.nodes.count

    def workers(self, master: tuple[str, int]) -> list[Worker]:
        """The workers of this machine."""
        size = len(self.devices.gpus)
        first = size * self.nodes.rank
        return [Worker(first + local, self.world, local, size, master) for local in range(size)]


def parse_devices(text: str) -> Devices:
    """Parse the value of --devices: "cpu", "cpu:4", or GPU numbers such as "0,1,2,3". Raises ConfigError."""
    kind, colon, number = text.partition(":")
    if kind == "cpu" and (not colon or (number.isascii() and number.isdigit() and int(number) > 0)):
        return Devices((None,) * (int(number) if colon else 1))
    numbers = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() for part in numbers):
        raise ConfigError(
            f"--devices is {text!r}; it takes GPU numbers such as 0,1,2,3, or cpu:4 for 4 processes on the CPU"
        )
    if len(set(map(int, numbers))) < len(numbers):
        raise ConfigError(
            f"--devices is {text!r}, which lists a GPU twice; each process needs a different one"
        )
    return Devices(tuple(map(int, numbers)))


def parse_nodes(count: int, rank: int | None, master: str | None) -> Nodes:
    """Check the values of --nodes, --node-rank and --master. Raises ConfigError if they contradict each other."""
    if count < 1:
        raise ConfigError(f"--nodes is {count}; it is the number of machines, at least 1")
    if count == 1:
        if rank or master is not None:
            raise ConfigError("--node-rank and --master need --nodes, the number of machines")
        return Nodes()
    if rank is None or master is None:
        raise ConfigError(
            f"--nodes {count} needs --node-rank (0 to {count - 1}, different on each machine) and --master HOST:PORT "
            "(an address of machine 0, the same on each machine)"
        )
    if not 0 <= rank < count:
        raise ConfigError(f"--node-rank is {rank}; with --nodes {count} it must be from 0 to {count - 1}")
    address = split_address(master)
    if address is None:
        raise ConfigError(f"--master is {master!r}; it takes HOST:PORT, such as 10.0.0.1:6170")
    return Nodes(count, rank, address)


def launched_worker(nodes: Nodes, devices: Devices | None) -> Worker | None:
    """This process among those that another program started; None where this command starts the processes itself.

    The first of these decides: the variables of paddle.distributed (set by paddle.distributed.launch and by this
    launcher), --nodes, the variables of a Slurm step with several tasks. Raises ConfigError for variables or options
    that contradict each other.
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
    return worker


def node_workers(nodes: Nodes, devices: Devices | None) -> list[Worker]:
    """The workers that this command starts as one of several machines, as far as known without Paddle; else empty."""
    if nodes.master is None:
        return []
    return LaunchPlan(devices or Devices((None,)), nodes).workers(nodes.master)


def set_worker_variables(worker: Worker, device: str) -> None:
    """Translate Slurm's variables into Paddle's, which Paddle reads, too; before Paddle is imported.

    device: parallel.device of the configuration. Changes nothing where Paddle's are set.
    """
    if worker_from(os.environ) is None:
        gpu = None if device == "cpu" else slurm_gpu(os.environ)
        os.environ.update(_quiet(os.environ) | worker_environment(worker, gpu))


def plan_launch(devices: Devices | None, nodes: Nodes, device: str) -> LaunchPlan:
    """The processes of a run. Without --devices: one for each visible GPU, or a single one on the CPU.

    device: parallel.device of the configuration. Raises ConfigError for several machines without a GPU.
    """
    if devices is not None:
        return LaunchPlan(devices, nodes)
    gpus = visible_gpus() if device != "cpu" else 0
    if not gpus and nodes.count > 1:
        raise ConfigError(
            f"--nodes {nodes.count} without --devices uses every visible GPU, but there is none; for processes on "
            "the CPU add --devices cpu:N"
        )
    return LaunchPlan(Devices(tuple(range(gpus)) or (None,)), nodes)


def visible_gpus() -> int:
    """Number of GPUs that Paddle sees; imports Paddle."""
    import paddle

    return int(paddle.device.cuda.device_count()) if paddle.is_compiled_with_cuda() else 0


def use_device(devices: Devices) -> None:
    """Select the device of a single-process run. Call before Paddle is imported."""
    if devices.gpus[0] is not None:
        os.environ.update(gpu_environment(devices.gpus[0]))


def run_processes(
    plan: LaunchPlan,
    arguments: Sequence[str],
    logs: Path,
    resume_command: Callable[[], str | None],
    is_saving: Callable[[], bool],
) -> int:
    """Run `erniekit` with these arguments in each process of this machine; returns the exit status.

    logs: directory of the files rank-N.log. resume_command, is_saving: see `Supervisor`. Raises ConfigError if the
    directory cannot be created.
    """
    master = plan.nodes.master or (LOCALHOST, free_port())
    try:
        logs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"train.output_dir: {logs} cannot be created: {error.strerror}") from None
    command = [sys.executable, *_python_flags(), "-m", "erniekit", *arguments]
    specs = [
        ProcessSpec(
            worker.rank,
            command,
            process_environment(worker, plan.devices.gpus[worker.local_rank]),
            logs / f"rank-{worker.rank}.log",
        )
        for worker in plan.workers(master)
    ]

    def on_failure(reason: str) -> None:
        if plan.nodes.count > 1:
            end_other_nodes(master, reason)

    with forgiving_output():
        return Supervisor(specs, resume_command, on_failure, DEFAULT_TIMEOUTS, is_saving).run()


def node_options(nodes: Nodes) -> list[str]:
    """The options --nodes, --node-rank and --master; empty for 1 machine."""
    if nodes.master is None:
        return []
    host, port = nodes.master
    return ["--nodes", str(nodes.count), "--node-rank", str(nodes.rank), "--master", f"{host}:{port}"]


def command_line(arguments: Sequence[str]) -> str:
    """An `erniekit` command with these arguments, quoted for a shell."""
    return shlex.join(["erniekit", *arguments])


def process_environment(worker: Worker, gpu: int | None) -> dict[str, str]:
    """The environment of a process that is a worker; gpu: its device, None for the CPU."""
    # Paddle prefers these to PADDLE_MASTER.
    inherited = {key: value for key, value in os.environ.items() if key not in ("MASTER_ADDR", "MASTER_PORT")}
    # gloo listens at the address of the host name, which may not resolve; on one machine the loopback is enough.
    local = worker.is_local and gpu is None and "GLOO_SOCKET_IFNAME" not in inherited and _has_loopback()
    loopback = {"GLOO_SOCKET_IFNAME": "lo"} if local else {}
    return inherited | worker_environment(worker, gpu) | _quiet(inherited) | loopback


def _quiet(environment: Mapping[str, str]) -> dict[str, str]:
    # Paddle's store logs every connection, at the level of information.
    return {"GLOG_minloglevel": environment.get("GLOG_minloglevel", "1")}


def _has_loopback() -> bool:
    return any(name == "lo" for _, name in socket.if_nameindex())


def _python_flags() -> list[str]:
    # With `-m` alone, modules in the working directory would shadow the modules of this process.
    return [] if "" in sys.path or os.getcwd() in sys.path else ["-P"]


def free_port() -> int:
    """A port that no process listens on."""
    with socket.socket() as probe:
        probe.bind((LOCALHOST, 0))
        port: int = probe.getsockname()[1]
        return port


def end_other_nodes(master: tuple[str, int], reason: str) -> None:
    """End the ranks on other machines through the store of rank 0, if it can be reached; imports Paddle."""
    from paddle.base import core

    host, port = master
    if not wait_for_port(master, 0.0):
        # Rank 0 has ended with its store; the watchdogs of the other ranks notice that.
        print(f"could not notify the other machines: no answer from {host}:{port}", file=sys.stderr)
        return
    try:
        publish_failure(core.TCPStore(host, port, False, 0, _STORE_SECONDS), reason)
    except (RuntimeError, ValueError) as error:
        print(f"could not notify the other machines: {str(error).splitlines()[0]}", file=sys.stderr)
