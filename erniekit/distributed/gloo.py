"""Groups of processes over gloo, and what Paddle 3.3.1 leaves to do by hand there.

- Every gloo group reads the same keys of its store: each group needs a store of its own.
- gloo gives up after 30 s without progress, and nothing can change that: ranks first meet on plain sockets,
  where they may wait as long as they like.
- There is no all-to-all, and a send finds its receive by the number of operations that each side has done in the
  group: all ranks of a group must always do the same number of them.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import paddle
import paddle.distributed as dist
from paddle import Tensor
from paddle.base import core
from paddle.distributed.communication.group import Group as PaddleGroup

from erniekit.distributed.watchdog import LOST, PeerError, describe
from erniekit.distributed.worker import LOCALHOST, Worker, is_loopback
from erniekit.errors import ErnieKitError

_STORE_SECONDS = 300
_HELLO = struct.Struct("<I")
_TOKEN = struct.Struct("<Q24s")
_GO = b"\1"


class GlooBackend:
    """Where this process can be reached, and the store through which it finds the others."""

    def __init__(self, worker: Worker, store: Any) -> None:
        self.rank = worker.rank
        self.host = LOCALHOST if worker.is_local else _address_towards(*worker.master)
        self._listens = LOCALHOST if worker.is_local else ""
        self._store = store
        self._own_stores: list[Any] = []

    def group(self, ranks: Sequence[int], number: int) -> tuple[PaddleGroup, Rendezvous]:
        """A group of those ranks, of which this is one; all of them call this with the same new `number`."""
        key = f"erniekit/group/{number}"
        own = list(ranks).index(self.rank)
        if own == 0:
            port = _free_port()
            store = core.TCPStore(self.host, port, True, 0, _STORE_SECONDS)
            listener = socket.create_server((self._listens, 0))
            self._store.set(key, f"{self.host} {port} {listener.getsockname()[1]}")
            rendezvous = Rendezvous.lead(ranks, listener)
        else:
            host, port, meeting_port = self._store.get(key).decode().split()
            store = core.TCPStore(host, int(port), False, 0, _STORE_SECONDS)
            rendezvous = Rendezvous.join(ranks, own, (host, int(meeting_port)))
        self._own_stores.append(store)
        process_group = core.ProcessGroupGloo.create(store, own, len(ranks), number)
        return PaddleGroup(own, number, list(ranks), pg=process_group, name=f"erniekit-{number}"), rendezvous


class Rendezvous:
    """Where the ranks of a group wait for each other, at its first rank, before each collective."""

    def __init__(self, ranks: Sequence[int], own: int, sockets: dict[int, socket.socket]) -> None:
        self._ranks, self._own, self._sockets = tuple(ranks), own, sockets
        for connection in sockets.values():
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    @classmethod
    def lead(cls, ranks: Sequence[int], listener: socket.socket) -> Rendezvous:
        """Take in all other ranks."""
        sockets: dict[int, socket.socket] = {}
        with listener:
            while len(sockets) < len(ranks) - 1:
                connection, _ = listener.accept()
                (other,) = _HELLO.unpack(_receive(connection, _HELLO.size))
                sockets[other] = connection
        return cls(ranks, 0, dict(sorted(sockets.items())))

    @classmethod
    def join(cls, ranks: Sequence[int], own: int, address: tuple[str, int]) -> Rendezvous:
        """Go to the first rank."""
        connection = socket.create_connection(address)
        connection.sendall(_HELLO.pack(own))
        return cls(ranks, own, {0: connection})

    def meet(self, name: str, number: int) -> None:
        """Wait until every rank has come to call `number`, the collective `name`.

        Raises PeerError where a rank has ended or has come to something else.
        """
        token = _TOKEN.pack(number, name.encode())
        if self._own:
            with self._blaming(0, name, number):
                self._sockets[0].sendall(token)
                _receive(self._sockets[0], len(_GO))
            return
        for other, connection in self._sockets.items():
            with self._blaming(other, name, number):
                their_token = _receive(connection, _TOKEN.size)
            if their_token != token:
                self._complain(other, their_token, name, number)
        for other, connection in self._sockets.items():
            with self._blaming(other, name, number):
                connection.sendall(_GO)

    def close(self) -> None:
        """Leave."""
        for connection in self._sockets.values():
            connection.close()

    def _complain(self, other: int, token: bytes, name: str, number: int) -> None:
        their_number, text = _TOKEN.unpack(token)
        their_name = text.rstrip(b"\0").decode()
        raise ErnieKitError(
            f"rank {self._ranks[0]} is in {describe(name, number, self._ranks)}, but rank {self._ranks[other]} in "
            f"{their_name}, its call {their_number}: the ranks do not run the same collectives, which is a bug"
        )

    @contextmanager
    def _blaming(self, other: int, name: str, number: int) -> Iterator[None]:
        """A connection that breaks inside means that the other rank has ended."""
        try:
            yield
        except (EOFError, OSError):
            before = describe(name, number, self._ranks)
            raise PeerError(f"{LOST}: rank {self._ranks[other]} ended before {before}") from None


def exchange(parts: Sequence[Tensor], shapes: Sequence[Sequence[int]], group: PaddleGroup) -> list[Tensor]:
    """All-to-all in a group of an even number of ranks: part i goes to rank i, and from there comes shape i.

    Every rank meets every other in turn; of two that meet, the lower sends first. Parts without rows are sent
    too, since sends and receives are counted.
    """
    own, size = group.rank, group.nranks
    received = list(parts)
    for turn in range(size - 1):
        other = partner(own, turn, size)
        received[other] = paddle.empty(shapes[other], dtype=parts[own].dtype)
        peer = group.ranks[other]
        if own < other:
            dist.send(parts[other], peer, group=group)
            dist.recv(received[other], peer, group=group)
        else:
            dist.recv(received[other], peer, group=group)
            dist.send(parts[other], peer, group=group)
    return received


def partner(rank: int, turn: int, size: int) -> int:
    """Whom a rank meets in that turn of a round robin among an even number of ranks (the circle method)."""
    last = size - 1
    if rank == last:
        # The one who would meet itself: 2 * other = turn (mod last), and size / 2 is the inverse of 2.
        return turn * (size // 2) % last
    other = (turn - rank) % last
    return last if other == rank else other


def wait_for_port(address: tuple[str, int], seconds: float) -> bool:
    """Whether somebody listens there within that time."""
    # Paddle's client waits 3 s before it tries again.
    end = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(address, timeout=5).close()
            return True
        except OSError:
            if time.monotonic() > end:
                return False
            time.sleep(0.02)


def _receive(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = connection.recv(size - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
        return port


def _address_towards(host: str, port: int) -> str:
    """This machine's address as that host sees it; the host itself may know its name by a loopback address."""
    # Connecting a datagram socket sends nothing: it only chooses the way.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, port))
        address: str = probe.getsockname()[0]
        return host if is_loopback(address) else address
