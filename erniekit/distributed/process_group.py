"""A group of ranks of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from erniekit.distributed.watchdog import CollectiveTracker

if TYPE_CHECKING:
    from erniekit.distributed.gloo import Rendezvous


@dataclass(frozen=True, eq=False)
class ProcessGroup:
    """A group of ranks that includes this one.

    ranks: global ranks, ascending; rank: this process's index among them. A group of one rank has neither a `handle`
    (Paddle's group) nor a `tracker` of its collectives. `rendezvous` is only set on gloo.
    """

    ranks: tuple[int, ...]
    rank: int
    handle: Any = None
    tracker: CollectiveTracker | None = None
    rendezvous: Rendezvous | None = None

    @property
    def size(self) -> int:
        """Number of ranks."""
        return len(self.ranks)
