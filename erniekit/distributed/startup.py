"""Lets the processes of a run wait for each other before they connect, and ends all of them if one has failed.

Paddle's store waits silently for processes that fail before they connect to it. So rank 0 first listens at the store's
address itself. Every other rank reports there that it is ready, or why it has failed; rank 0 answers when all are
ready, or as soon as it knows of a failure.
"""

from __future__ import annotations

import json
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace

from erniekit.distributed.watchdog import PEER_LOST, PeerError, ranks_text
from erniekit.distributed.worker import LOCALHOST, Worker
from erniekit.errors import ConfigError, ErnieKitError

# How long ranks wait for each other, which may have a model to download; and a failed one for those that it tells.
_START_SECONDS, _FAILED_SECONDS = 900.0, 60.0
_NOTICE_SECONDS = 10.0
_POLL_SECONDS, _TALK_SECONDS = 0.1, 5.0
# Rank 0 speaks first: what else listens there receives nothing from the other ranks.
_HELLO = b"erniekit startup\n"
_MOST = 1000  # characters of a reason
_LONGEST = 1 << 14  # bytes of a message


@dataclass(frozen=True, slots=True)
class _Report:
    """What a process reports for its rank, or a launcher for the ranks that it would have started.

    who: "rank 3", or the machine; reason: why it has failed, "" if it is ready.
    """

    ranks: tuple[int, ...]
    who: str
    reason: str = ""


def wait_for_ranks(
    worker: Worker, lead_seconds: float = _START_SECONDS, follow_seconds: float = _START_SECONDS
) -> None:
    """Wait until every rank has called this. Prints what it waits for, if that takes long.

    Raises PeerError if another rank has failed (`reporting_failure`) or ended, ConfigError if one does not come in time
    or rank 0 cannot listen.
    """
    own = _Report((worker.rank,), f"rank {worker.rank}")
    failure = _exchange(worker, own, lead_seconds, follow_seconds)
    if failure is None:
        return
    reason = failure.reason.replace("\n", "\n  ")
    if failure.ranks == own.ranks:
        raise ConfigError(reason)
    raise PeerError(f"{PEER_LOST}: {failure.who} has failed: {reason}")


@contextmanager
def reporting_failure(
    workers: Sequence[Worker], who: str = "", seconds: float = _FAILED_SECONDS
) -> Iterator[None]:
    """If an exception leaves the block, tell the ranks that are in `wait_for_ranks`, or enter it within this time.

    Only before `wait_for_ranks` is called. workers: this process, or those that it starts; empty where nobody waits for
    it. who: names the process if it is not a rank itself.
    """
    try:
        yield
    except Exception as error:
        if workers and workers[0].world > 1:
            reason = (str(error) or type(error).__name__)[:_MOST]
            ranks = tuple(worker.rank for worker in workers)
            with suppress(ErnieKitError):
                _exchange(workers[0], _Report(ranks, who or f"rank {ranks[0]}", reason), seconds, seconds)
        raise


def _exchange(worker: Worker, own: _Report, lead_seconds: float, follow_seconds: float) -> _Report | None:
    """Tell and hear the reports of all ranks. Returns the first failure, which may be the own one."""
    if worker.rank:
        return _follow(worker, own, follow_seconds, lead_seconds)
    return _lead(worker, own, lead_seconds)


def wait_for_port(address: tuple[str, int], seconds: float) -> bool:
    """Whether a server listens at the address within that time; Paddle's client would wait for many minutes."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(address, timeout=5).close()
            return True
        except OSError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)


def _lead(worker: Worker, own: _Report, seconds: float) -> _Report | None:
    """As rank 0: hear from every other rank."""
    failure = own if own.reason else None
    missing = set(range(worker.world)) - set(own.ranks)
    waiting: dict[socket.socket, _Report] = {}
    deadline = time.monotonic() + seconds
    notice = _Notice(own.reason)
    with _listen(worker) as server:
        server.settimeout(_POLL_SECONDS)
        while time.monotonic() < deadline:
            missing |= _drop_ended(waiting)
            if not missing:
                break
            notice.show(f"{ranks_text(sorted(missing))} to start")
            try:
                connection, _ = server.accept()
            except TimeoutError:
                continue
            report = _hear(connection)
            if report is None:
                connection.close()
                continue
            missing -= set(report.ranks)
            waiting[connection] = report
            if report.reason and failure is None:
                failure = report
                deadline = min(deadline, time.monotonic() + _FAILED_SECONDS)
            if failure is not None:
                _answer(waiting, failure)
    if missing and failure is None:
        reason = f"{ranks_text(sorted(missing))} did not start within {seconds:.0f} s. Check their logs"
        failure = replace(own, reason=reason)
    # Now that the port is closed: the other ranks look for Paddle's store there next.
    _answer(waiting, failure)
    return failure


def _follow(worker: Worker, own: _Report, seconds: float, lead_seconds: float) -> _Report | None:
    """As another rank: report to rank 0, and receive its answer."""
    host, port = worker.master
    deadline = time.monotonic() + seconds
    notice = _Notice(own.reason)
    while time.monotonic() < deadline:
        with (
            suppress(OSError),
            socket.create_connection(worker.master, timeout=_TALK_SECONDS) as connection,
            connection.makefile("rb") as lines,
        ):
            if lines.readline(len(_HELLO)) == _HELLO:
                connection.sendall(_line(own))
                connection.settimeout(lead_seconds + _FAILED_SECONDS)
                answer = lines.readline(_LONGEST)
                return _read(answer) if answer else _Report((0,), "rank 0", "it has ended, or was killed")
        notice.show(f"rank 0 at {host}:{port}")
        time.sleep(_POLL_SECONDS)
    raise ConfigError(
        f"no answer from {host}:{port} for {seconds:.0f} s. Check that rank 0 is running there and that this machine "
        "can reach it"
    )


def _listen(worker: Worker) -> socket.socket:
    port = worker.master[1]
    try:
        if worker.is_local:
            return socket.create_server((LOCALHOST, port), backlog=worker.world)
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        return socket.create_server(("", port), family=family, backlog=worker.world, dualstack_ipv6=both)
    except OSError as error:
        raise ConfigError(
            f"rank 0 cannot listen at port {port}, where the other ranks look for it: {error.strerror}. Choose another "
            "port (--master, or MASTER_PORT of the launcher)"
        ) from error


def _hear(connection: socket.socket) -> _Report | None:
    """The report of a rank; None if anything else has connected."""
    try:
        connection.settimeout(_TALK_SECONDS)
        connection.sendall(_HELLO)
        with connection.makefile("rb") as lines:
            return _read(lines.readline(_LONGEST))
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _drop_ended(waiting: dict[socket.socket, _Report]) -> set[int]:
    """Drop connections of ranks that were ready and have ended since, such as for lack of memory; returns the ranks."""
    ended = set[int]()
    for connection, report in list(waiting.items()):
        connection.settimeout(0)
        try:
            if connection.recv(1, socket.MSG_PEEK):
                continue
        except BlockingIOError:
            continue
        except OSError:
            pass
        connection.close()
        del waiting[connection]
        ended.update(report.ranks)
    return ended


def _answer(waiting: dict[socket.socket, _Report], failure: _Report | None) -> None:
    """Send all waiting ranks the failure, or None, and close their connections."""
    for connection in waiting:
        with suppress(OSError), connection:
            connection.settimeout(_TALK_SECONDS)
            connection.sendall(_line(failure))
            # The side that closes first keeps the port busy for a while.
            connection.recv(1)
    waiting.clear()


def _line(report: _Report | None) -> bytes:
    return json.dumps(report and asdict(report)).encode() + b"\n"


def _read(line: bytes) -> _Report | None:
    found = json.loads(line)
    if found is None:
        return None
    return _Report(tuple(int(rank) for rank in found["ranks"]), str(found["who"]), str(found["reason"]))


class _Notice:
    """Prints what this process waits for, less and less often. reason: why it has failed, which it waits to report."""

    def __init__(self, reason: str) -> None:
        self._started, self._next = time.monotonic(), _NOTICE_SECONDS
        self._aim = f", to report an error: {reason}" if reason else ""

    def show(self, what: str) -> None:
        """Print a line if it is time."""
        seconds = time.monotonic() - self._started
        if seconds >= self._next:
            self._next *= 2
            print(f"waiting for {what}, {seconds:.0f} s so far{self._aim}", file=sys.stderr, flush=True)
