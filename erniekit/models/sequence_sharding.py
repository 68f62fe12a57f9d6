"""The interface of context parallelism to the model: how a row is split over processes."""

from __future__ import annotations

from typing import Protocol

from paddle import Tensor

from erniekit.models.attention import Attend
from erniekit.models.row import RowInputs


class SequenceSharding(Protocol):
    """A split of the tokens of every row into one span per process, except for attention, which sees all tokens.

    All processes have the same rows and call the same methods in the same order. Sums over tokens are sums over the
    span of the process. `counts` is true on the one process that counts quantities of the whole row.
    """

    @property
    def counts(self) -> bool:
        """Whether this process counts quantities of the whole row."""
        ...

    def span(self, tokens: int) -> tuple[int, int]:
        """The span [start, stop) of this process in a row of `tokens` tokens. It may be empty."""
        ...

    def part(self, row: RowInputs) -> RowInputs:
        """The part of a row that this process computes outside attention.

        `input_ids`, `position_ids` and `modality` belong to the span; if it is empty, to one token that is not `valid`.
        `patches` and `grid_thw` are the share of the vision tower. `media_positions` are relative to the start of the
        span. `cu_seqlens` are of the whole row.
        """
        ...

    def features(self, features: Tensor, row: RowInputs) -> Tensor:
        """Features [n, hidden] of the images of `part` -> features of the span, in the order of the row."""
        ...

    def attend(self, attend: Attend, tokens: int) -> Attend:
        """`attend` over a row of `tokens` tokens, with the tokens of `part` as input and output."""
        ...

    def add(self, counts: Tensor) -> Tensor:
        """Counts over the span -> counts over the row. Without gradient."""
        ...

    def total(self, sums: Tensor) -> Tensor:
        """Sums over the span -> sums over the row.

        All processes compute the same loss from the result, so the gradient of the sums of a process is that of the
        result.
        """
        ...


class NoSharding:
    """No split: the process has the whole row."""

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
