"""How the processes that share each row share its work. A parallel form replaces the context, nothing else."""

from __future__ import annotations

from typing import Protocol

from paddle import Tensor

from erniekit.models.attention import Attend
from erniekit.models.row import RowInputs


class SequenceSharding(Protocol):
    """Each of the processes has a span of every row's tokens; attention sees them all.

    All of them have the same rows and call the same methods in the same order. What is summed over tokens is
    summed over the span; `counts` is true for the one process that counts what all of them know.
    """

    @property
    def counts(self) -> bool:
        """Whether this process counts what belongs to a row as a whole."""
        ...

    def span(self, tokens: int) -> tuple[int, int]:
        """Of a row of so many tokens this process has [start, stop), which may be empty."""
        ...

    def part(self, row: RowInputs) -> RowInputs:
        """What this process computes of a row before attention.

        `input_ids`, `position_ids` and `modality` are those of its span, or, where that is empty, of one token that
        is not `valid`; `patches` and `grid_thw` those that its vision tower sees; `media_positions` are counted from
        the start of the span and lie in it. `cu_seqlens` stay the row's.
        """
        ...

    def features(self, features: Tensor, row: RowInputs) -> Tensor:
        """[media tokens of the images of `part`, hidden] -> those of the span, in the row's order."""
        ...

    def attend(self, attend: Attend, tokens: int) -> Attend:
        """`attend` over a row of so many tokens, from and to the tokens of `part`."""
        ...

    def add(self, counts: Tensor) -> Tensor:
        """Counts of the span -> those of the row. Without gradient."""
        ...

    def total(self, sums: Tensor) -> Tensor:
        """Sums over the span -> sums over the row.

        The gradient is of one loss that all processes compute from the result: each takes it for its own sums.
        """
        ...


class NoSharding:
    """A process alone: its part of a row is the row."""

    counts = True

    def span(self, tokens: int) -> tuple[int, int]:
        return 0, tokens

    def part(self, row: RowInputs) -> RowInputs:
        return row

    def features(self, features: Tensor, row: RowInputs) -> Tensor:
        return features

    def attend(self, attend: Attend, tokens: int) -> Attend:
        return attend

    def add(self, counts: Tensor) -> Tensor:
        return counts

    def total(self, sums: Tensor) -> Tensor:
        return sums
