"""Process groups over gloo, with workarounds for Paddle 3.3.1.

- Every gloo group uses the same keys in its store, so each group needs a separate store.
- gloo times out after 30 s without progress, which cannot be changed. Ranks therefore first wait for each other on
  plain sockets, without a timeout.
- There is no all-to-all. A send is matched with a receive by the number of operations that each side has done in the
  group, so all ranks of a group must always do the same number of them.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import paddle
import paddle.distributed as dist
from paddle import Tensor
from paddle.base import core
from paddle.distributed.communication.group import Group as PaddleGroup

from erniekit.distributed.watchdog import PEER_LOST, PeerError, call_text
from erniekit.distributed.worker import LOCALHOST, Worker, is_loopback
from erniekit.errors import ErnieKitError

_STORE_SECONDS = 300
_HELLO = struct.Struct("<I")
_TOKEN = struct.Struct("<Q24s")
_GO = b"\1"


class GlooBackend:
    """Creates process groups: this process's address, and the store through which the ranks exchange addresses."""

    def __init__(self, worker: Worker, store: Any) -> None:
        self.rank = worker.rank
        self.host = LOCALHOST if worker.is_local else _address_towards(*worker.master)
        self._bind_host = LOCALHOST if worker.is_local else ""
        self._store = store
        self._own_stores: list[Any] = []

    def group(self, ranks: Sequence[int], number: int) -> tuple[PaddleGroup, Rendezvous]:
        """Create a group of ranks that includes this one; all of them call this with the same unused `number`."""
        key = f"erniekit/group/{number}"
        group_rank = list(ranks).index(self.rank)
        if group_rank == 0:
            port = _free_port()
            store = core.TCPStore(self.host, port, True, 0, _STORE_SECONDS)
            listener = socket.create_server((self._bind_host, 0))
            self._store.set(key, f"{self.host} {port} {listener.getsockname()[1]}")
            rendezvous = Rendezvous.lead(ranks, listener)
        else:
            host, port, rendezvous_port = self._store.get(key).decode().split()
            store = core.TCPStore(host, int(port), False, 0, _STORE_SECONDS)
            rendezvous = Rendezvous.join(ranks, group_rank, (host, int(rendezvous_port)))
        self._own_stores.append(store)
        process_group = core.ProcessGroupGloo.create(store, group_rank, len(ranks), number)
        handle = PaddleGroup(group_rank, number, list(ranks), pg=process_group, name=f"erniekit-{number}")
        return handle, rendezvous


class Rendezvous:
    """Lets the ranks of a group wait for each other before each collective, through its first rank."""

    def __init__(self, ranks: Sequence[int], group_rank: int, sockets: dict[int, socket.socket]) -> None:
        self._ranks, self._group_rank, self._sockets = tuple(ranks), group_rank, sockets
        for connection in sockets.values():
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    @classmethod
    def lead(cls, ranks: Sequence[int], listener: socket.socket) -> Rendezvous:
        """As the first rank: accept connections from all other ranks."""
        sockets: dict[int, socket.socket] = {}
        with listener:
            while len(sockets) < len(ranks) - 1:
                connection, _ = listener.accept()
                (other,) = _HELLO.unpack(_receive(connection, _HELLO.size))
                sockets[other] = connection
        return cls(ranks, 0, dict(sorted(sockets.items())))

    @classmethod
    def join(cls, ranks: Sequence[int], group_rank: int, address: tuple[str, int]) -> Rendezvous:
        """As another rank: connect to the first rank."""
        connection = socket.create_connection(address)
        connection.sendall(_HELLO.pack(group_rank))
        return cls(ranks, group_rank, {0: connection})

    def wait(self, name: str, number: int) -> None:
        """Wait until every rank has entered call `number`, the collective `name`.

        Raises PeerError if a rank has ended, ErnieKitError if a rank has entered another collective.
        """
        token = _TOKEN.pack(number, name.encode())
        if self._group_rank:
            with self._peer_errors(0, name, number):
                self._sockets[0].sendall(token)
                _receive(self._sockets[0], len(_GO))
            return
        for other, connection in self._sockets.items():
            with self._peer_errors(other, name, number):
                peer_token = _receive(connection, _TOKEN.size)
            if peer_token != token:
                self._raise_mismatch(other, peer_token, name, number)
        for other, connection in self._sockets.items():
            with self._peer_errors(other, name, number):
                connection.sendall(_GO)

    def close(self) -> None:
        """Close the connections."""
        for connection in self._sockets.values():
            connection.close()

    def _raise_mismatch(self, other: int, token: bytes, name: str, number: int) -> None:
        peer_number, text = _TOKEN.unpack(token)
        peer_name = text.rstrip(b"\0").decode()
        raise ErnieKitError(
            f"rank {self._ranks[0]} is in {call_text(name, number, self._ranks)}, but rank {self._ranks[other]} is "
            f"in {peer_name}, its call {peer_number}. The ranks do not run the same collectives, which is a bug"
        )

    @contextmanager
    def _peer_errors(self, other: int, name: str, number: int) -> Iterator[None]:
        """Turn a broken connection into a PeerError: the other rank has ended."""
        try:
            yield
        except (EOFError, OSError):
            call = call_text(name, number, self._ranks)
            raise PeerError(f"{PEER_LOST}: rank {self._ranks[other]} ended before {call}") from None


def pairwise_all_to_all(
    parts: Sequence[Tensor], shapes: Sequence[Sequence[int]], group: PaddleGroup
) -> list[Tensor]:
    """All-to-all in a group of an even number of ranks: sends part i to rank i and receives shape i from it.

    Every rank exchanges with one other rank in each turn; the lower rank of a pair sends first. Empty parts are sent,
    too, since sends and receives are counted.
    """
    rank, size = group.rank, group.nranks
    received = list(parts)
    for turn in range(size - 1):
        other = partner(rank, turn, size)
        received[other] = paddle.empty(shapes[other], dtype=parts[rank].dtype)
        peer = group.ranks[other]
        if rank < other:
            dist.send(parts[other], peer, group=group)
            dist.recv(received[other], peer, group=group)
        else:
            dist.recv(received[other], peer, group=group)
            dist.send(parts[other], peer, group=group)
    return received


def partner(rank: int, turn: int, size: int) -> int:
    """The partner of a rank in one turn of a round robin of an even number of ranks (the circle method)."""
    last = size - 1
    if rank == last:
        # The rank that would be its own partner: 2 * other = turn (mod last), and size / 2 is the inverse of 2.
        return turn * (size // 2) % last
    other = (turn - rank) % last
    return last if other == rank else other


def _receive(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        received = connection.recv(size - len(data))
        if not received:
            raise EOFError
        data += received
    return data


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
        return port


def _address_towards(host: str, port: int) -> str:
    """This machine's address on the route to a host. On the host itself, which may resolve to loopback: the host."""
    # Connecting a datagram socket sends nothing; it only chooses the route.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, port))
        address: str = probe.getsockname()[0]
        return host if is_loopback(address) else address
