"""Errors of `erniekit train` in the tasks of a Slurm step, which share a terminal: each error is printed in full once.

The other launchers show the output of rank 0 alone, and keep the output of the other ranks in files.
"""

from __future__ import annotations

import hashlib
import socket
import sys
import time
from collections.abc import Mapping
from contextlib import nullcontext, suppress

from erniekit.distributed.worker import Worker
from erniekit.errors import ConfigError
from erniekit.launch.slurm import slurm_worker

# How long rank 0 waits for the other ranks, and they for rank 0, which may have no error.
_SECONDS = 5.0
_POLL_SECONDS = 0.1
_DIGEST_BYTES = 16


def slurm_task(environment: Mapping[str, str]) -> Worker | None:
    """The place of this process among the tasks of `srun`; None where something else has started it."""
    if "PADDLE_TRAINER_ID" in environment:
        return None
    try:
        return slurm_worker(environment)
    except ConfigError:  # `erniekit train` raises it, too
        return None


def print_error(message: str, task: Worker | None, seconds: float = _SECONDS) -> None:
    """Print an error that ends this process; a single line where rank 0 has printed the same error.

    Rank 0 prints it and then sends its digest to each of the other ranks. They wait for the digest before they print,
    and print the whole message where none comes or it differs.
    """
    if task is None or task.rank == 0:
        _print(message)
        if task is not None:
            _send_digest(_digest(message), task, seconds)
        return
    connection = _connect(task, seconds)
    # Rank 0 goes on when the connection closes: its end may end this process.
    with connection or nullcontext():
        is_same = connection is not None and _receive(connection) == _digest(message)
        _print(f"rank {task.rank}: {'the same error as on rank 0' if is_same else message}")


def _send_digest(digest: bytes, task: Worker, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    try:
        with socket.create_server(("", _port(task)), backlog=task.world) as server:
            for _ in range(task.world - 1):
                server.settimeout(_left(deadline))
                connection, _ = server.accept()
                with connection, suppress(OSError):
                    connection.settimeout(_left(deadline))
                    connection.sendall(digest)
                    connection.recv(1)
    except OSError:
        return  # the others print their errors themselves


def _connect(task: Worker, seconds: float) -> socket.socket | None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            connection = socket.create_connection((task.master[0], _port(task)), timeout=_left(deadline))
        except OSError:
            time.sleep(_POLL_SECONDS)
        else:
            connection.settimeout(_left(deadline))
            return connection
    return None


def _receive(connection: socket.socket) -> bytes:
    try:
        return connection.recv(_DIGEST_BYTES, socket.MSG_WAITALL)
    except OSError:
        return b""


def _port(task: Worker) -> int:
    """Next to the port of the store, to which ranks without an error connect."""
    return task.master[1] ^ 1


def _left(deadline: float) -> float:
    return max(_POLL_SECONDS, deadline - time.monotonic())


def _digest(message: str) -> bytes:
    return hashlib.blake2b(message.encode(), digest_size=_DIGEST_BYTES).digest()


def _print(message: str) -> None:
    print(f"error: {message}", file=sys.stderr, flush=True)
