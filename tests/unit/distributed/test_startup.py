"""Processes that wait for each other before they connect, in threads."""

import socket
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing

import pytest

from erniekit.distributed import startup
from erniekit.distributed.startup import reporting_failure, wait_for_port, wait_for_ranks
from erniekit.distributed.watchdog import PEER_LOST, PeerError
from erniekit.distributed.worker import LOCALHOST, Worker
from erniekit.errors import ConfigError, DataError
from erniekit.launch.launch import free_port

LONG = 60.0  # what goes well never waits for it


def ranks(world: int) -> list[Worker]:
    port = free_port()
    return [Worker(rank, world, rank, world, (LOCALHOST, port)) for rank in range(world)]


def fail(*workers: Worker, who: str = "") -> None:
    with reporting_failure(workers, who, LONG):
        raise DataError("no space:\nhere")


class Clock:
    """Stands in for the module `time` of what is tested."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


def test_all_ranks_go_on_together_and_leave_the_port(capsys: pytest.CaptureFixture[str]) -> None:
    workers = ranks(4)
    with ThreadPoolExecutor(4) as pool:
        # Rank 0 comes last.
        waiting = [pool.submit(wait_for_ranks, worker, LONG, LONG) for worker in reversed(workers[1:])]
        assert not wait_for_port(workers[0].master, 0.0)
        assert not any(each.done() for each in waiting)
        wait_for_ranks(workers[0], LONG, LONG)
        assert [each.result() for each in waiting] == [None] * 3
    socket.create_server(workers[0].master).close()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("failed", [0, 2])
def test_a_rank_that_fails_ends_the_others(failed: int) -> None:
    workers = ranks(3)
    with ThreadPoolExecutor(3) as pool:
        ended: list[Future[None]] = [
            pool.submit(fail if worker.rank == failed else wait_for_ranks, worker) for worker in workers
        ]
    for worker, each in zip(workers, ended, strict=True):
        if worker.rank == failed:
            with pytest.raises(DataError, match="no space"):
                each.result()
        else:
            with pytest.raises(
                PeerError, match=rf"^{PEER_LOST}: rank {failed} has failed: no space:\n  here$"
            ):
                each.result()


@pytest.mark.parametrize("machine", [0, 1])
def test_a_launcher_that_fails_ends_the_ranks_of_the_other_machine(machine: int) -> None:
    workers = ranks(4)
    own, others = (workers[:2], workers[2:]) if machine == 0 else (workers[2:], workers[:2])
    with ThreadPoolExecutor(3) as pool:
        launcher = pool.submit(fail, *own, who=f"machine {machine}")
        ended = [pool.submit(wait_for_ranks, worker) for worker in others]
    with pytest.raises(DataError, match="no space"):
        launcher.result()
    for each in ended:
        with pytest.raises(PeerError, match=rf"machine {machine} has failed: no space"):
            each.result()


def test_errors_that_nobody_waits_for_stay_as_they_are() -> None:
    for workers in ([], ranks(1)):
        with pytest.raises(DataError, match="no space"):
            fail(*workers)
    for worker in ranks(2):
        with pytest.raises(DataError, match="no space"), reporting_failure([worker], seconds=0.05):
            raise DataError("no space")


def test_ranks_that_do_not_come_are_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(startup, "_NOTICE_SECONDS", 0.01)
    main, other, _ = ranks(3)
    port = main.master[1]
    with pytest.raises(
        ConfigError, match=rf"no answer from {LOCALHOST}:{port} for 0 s\. Check that rank 0 is"
    ):
        wait_for_ranks(other, LONG, 0.3)
    assert f"waiting for rank 0 at {LOCALHOST}:{port}, " in capsys.readouterr().err
    with pytest.raises(DataError), reporting_failure([other], seconds=0.3):
        raise DataError("no space")
    assert "so far, to report an error: no space\n" in capsys.readouterr().err
    clock = Clock()
    monkeypatch.setattr(startup, "time", clock)
    hear = startup._hear

    def hear_late(connection: socket.socket) -> startup._Report | None:
        clock.now += LONG + 1
        return hear(connection)

    monkeypatch.setattr(startup, "_hear", hear_late)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(wait_for_ranks, other, LONG, LONG)
        with pytest.raises(ConfigError, match=r"^rank 2 did not start within 60 s\. Check"):
            wait_for_ranks(main, LONG, LONG)
        with pytest.raises(PeerError, match=r"rank 0 has failed: rank 2 did not start within 60 s"):
            waiting.result()


def test_rank_0_may_be_killed_while_the_others_wait() -> None:
    main, other = ranks(2)

    def killed() -> None:
        with socket.create_server(main.master) as server, closing(server.accept()[0]) as connection:
            connection.sendall(startup._HELLO)
            connection.recv(1 << 14)

    thread = threading.Thread(target=killed)
    thread.start()
    with pytest.raises(PeerError, match="rank 0 has failed: it has ended, or was killed"):
        wait_for_ranks(other, LONG, LONG)
    thread.join()


def test_a_rank_that_ends_while_it_waits_is_missing_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is named, and may be started again."""
    workers, heard, hear = ranks(3), threading.Event(), startup._hear

    def hear_rank(connection: socket.socket) -> startup._Report | None:
        report = hear(connection)
        if report is not None and report.ranks == (2,):
            heard.set()
        return report

    monkeypatch.setattr(startup, "_hear", hear_rank)
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(wait_for_ranks, workers[0], LONG, LONG)]
        assert wait_for_port(workers[0].master, LONG)
        with socket.create_connection(workers[0].master) as killed, killed.makefile("rb") as lines:
            assert lines.readline() == startup._HELLO
            killed.sendall(b'{"ranks": [1], "who": "rank 1", "reason": ""}\n')
        waiting.append(pool.submit(wait_for_ranks, workers[2], LONG, LONG))
        assert heard.wait(LONG)
        wait_for_ranks(workers[1], LONG, LONG)
        assert [each.result() for each in waiting] == [None] * 2


def test_what_else_connects_or_listens_there_is_no_rank() -> None:
    main, other = ranks(2)
    with socket.create_server(main.master) as server:
        server.settimeout(LONG)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(wait_for_ranks, other, LONG, 0.5)
            connection, _ = server.accept()
            with connection:
                connection.settimeout(LONG)
                connection.sendall(b"SSH-2.0\n" + bytes(100))
                assert connection.recv(100) == b""
            with pytest.raises(ConfigError, match="no answer"):
                waiting.result()
        with pytest.raises(ConfigError, match=rf"rank 0 cannot listen at port {main.master[1]}.*: "):
            wait_for_ranks(main, LONG, LONG)
    with ThreadPoolExecutor(2) as pool:
        waiting = pool.submit(wait_for_ranks, main, LONG, LONG)
        assert wait_for_port(main.master, LONG)  # connects and closes
        for sent in (b"GET / HTTP/1.1\r\n", b"[1]\n", b"null\n", b'{"ranks": 1, "who": "", "reason": ""}\n'):
            with socket.create_connection(main.master) as stranger:
                stranger.sendall(sent)
                assert stranger.makefile("rb").read() == startup._HELLO
        assert not waiting.done()
        wait_for_ranks(other, LONG, LONG)
        waiting.result()
