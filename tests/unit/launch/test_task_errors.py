"""Errors of the tasks of a Slurm step: each is printed in full once."""

import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from erniekit.distributed.worker import LOCALHOST, Worker
from erniekit.launch.launch import free_port
from erniekit.launch.task_errors import print_error, slurm_task
from tests.unit.launch.test_slurm import TASK

LONG = 60.0  # what goes well never waits for it


def tasks(world: int) -> list[Worker]:
    """The tasks of one machine, with a port that is free next to the store's."""
    while True:
        port = free_port()
        try:
            socket.create_server(("", port ^ 1)).close()
        except OSError:
            continue
        return [Worker(rank, world, rank, world, (LOCALHOST, port)) for rank in range(world)]


def test_an_error_of_all_tasks_is_printed_once(capsys: pytest.CaptureFixture[str]) -> None:
    errors = [
        "run.yaml: wrong:\n  a: 1",
        "run.yaml: wrong:\n  a: 1",
        "data.jsonl: no such file",
        "run.yaml: wrong:\n  a: 1",
    ]
    with ThreadPoolExecutor(4) as pool:
        # Rank 0 comes last.
        for task in reversed(tasks(4)):
            pool.submit(print_error, errors[task.rank], task, LONG)
    printed = capsys.readouterr().err
    assert printed.startswith("error: run.yaml: wrong:\n  a: 1\n")
    assert sorted(printed.splitlines()[2:]) == [
        "error: rank 1: the same error as on rank 0",
        "error: rank 2: data.jsonl: no such file",
        "error: rank 3: the same error as on rank 0",
    ]


def test_an_error_of_one_task_is_printed_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    main, other = tasks(2)
    print_error("no space:\n  here", other, 0.05)
    assert capsys.readouterr().err == "error: rank 1: no space:\n  here\n"
    # What listens there says nothing.
    with socket.create_server(("", other.master[1] ^ 1)):
        print_error("no space", other, 0.05)
        assert capsys.readouterr().err == "error: rank 1: no space\n"
        print_error("no space", main, LONG)
    assert capsys.readouterr().err == "error: no space\n"
    print_error("no space", main, 0.05)
    assert capsys.readouterr().err == "error: no space\n"


def test_processes_with_an_output_of_their_own_print_all() -> None:
    task = slurm_task(TASK)
    assert task is not None and task.rank == 3
    assert slurm_task({}) is None
    assert slurm_task(TASK | {"PADDLE_TRAINER_ID": "3"}) is None
    assert slurm_task(TASK | {"SLURM_LOCALID": "x"}) is None
