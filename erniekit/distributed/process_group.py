"""Some ranks of a run, this one among them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from erniekit.distributed.watchdog import Calls

if TYPE_CHECKING:
    from erniekit.distributed.gloo import Rendezvous


@dataclass(frozen=True, eq=False)
class ProcessGroup:
    """Some ranks of a run, this one among them.

    ranks: in the world's numbers, ascending; rank: this one's place among them. A group of one has neither
    `handle` (Paddle's group) nor `calls` (its collectives so far). `rendezvous` is only there on gloo.
    """

    ranks: tuple[int, ...]
    rank: int
    handle: Any = None
    calls: Calls | None = None
    rendezvous: Rendezvous | None = None

    @property
    def size(self) -> int:
        """Number of ranks."""
        return len(self.ranks)
