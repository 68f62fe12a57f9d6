"""Which worker a process is by Paddle's variables."""

import pytest

from erniekit import runtime
from erniekit.distributed.worker import Worker, split_address, worker_environment, worker_from
from erniekit.errors import ConfigError


@pytest.mark.parametrize("gpu", [None, 3])
def test_variables_and_back(gpu: int | None) -> None:
    worker = Worker(5, 8, 1, 4, ("10.0.0.1", 6170))
    environment = worker_environment(worker, gpu)
    assert worker_from(environment) == worker
    assert environment["PADDLE_DISTRI_BACKEND"] == ("gloo" if gpu is None else "nccl")
    assert environment.get("FLAGS_selected_gpus") == (None if gpu is None else "3")
    endpoints = environment["PADDLE_TRAINER_ENDPOINTS"].split(",")
    assert len(set(endpoints)) == 8
    assert endpoints[5] == environment["PADDLE_CURRENT_ENDPOINT"]


def test_other_launchers() -> None:
    assert worker_from({}) is None
    assert worker_from({"PADDLE_TRAINERS_NUM": "2"}) is None
    few = {"PADDLE_TRAINER_ID": "1", "PADDLE_TRAINERS_NUM": "2", "PADDLE_TRAINER_ENDPOINTS": "h0:1,h1:2"}
    assert worker_from(few) == Worker(1, 2, 1, 2, ("h0", 1))
    with_master = few | {"PADDLE_MASTER": "m:7", "PADDLE_LOCAL_SIZE": "1"}
    assert worker_from(with_master) == Worker(1, 2, 0, 1, ("m", 7))
    first = with_master | {"MASTER_ADDR": "a", "MASTER_PORT": "9"}
    assert worker_from(first) == Worker(1, 2, 0, 1, ("a", 9))
    alone = worker_from({"PADDLE_TRAINER_ID": "0", "PADDLE_TRAINERS_NUM": "1"})
    assert alone is not None and alone.world == 1


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"PADDLE_TRAINER_ID": "2"}, "PADDLE_TRAINER_ID is 2 and its PADDLE_TRAINERS_NUM 2"),
        ({"PADDLE_TRAINER_ID": "one"}, "PADDLE_TRAINER_ID is 'one', which is not a whole number"),
        ({}, "PADDLE_MASTER is not the HOST:PORT of rank 0$"),
        ({"PADDLE_MASTER": "here"}, "PADDLE_MASTER is not the HOST:PORT of rank 0: it is here"),
    ],
)
def test_variables_that_contradict_each_other(changed: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        worker_from({"PADDLE_TRAINER_ID": "0", "PADDLE_TRAINERS_NUM": "2"} | changed)


def test_processes_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("erniekit.distributed.worker.usable_cores", lambda: 9)
    threads = [Worker(0, 8, 0, size, ("h", 1)).threads for size in (1, 2, 4, 16)]
    assert threads == [9, 4, 2, 1]
    assert runtime.usable_cores() >= 1


@pytest.mark.parametrize("text", ["", "host", ":80", "host:", "host:0", "host:65536", "host:x"])
def test_not_an_address(text: str) -> None:
    assert split_address(text) is None
