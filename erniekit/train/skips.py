"""Samples that a process could not use, made known to all processes."""

from __future__ import annotations

from erniekit.data.chat.conversation import SampleError
from erniekit.data.encode.account import ErrorBudget
from erniekit.distributed.context import DistributedContext


class SkippedSampleSync:
    """Each process decodes rows of its own; with this, `budget` counts the wrong samples of all, each once."""

    def __init__(self, budget: ErrorBudget, dist: DistributedContext) -> None:
        self._budget, self._dist = budget, dist
        self._shared = 0

    @property
    def new(self) -> int:
        """How many this process has not told the others."""
        return len(self._budget.errors) - self._shared

    def share(self) -> None:
        """All processes call this. Raises DataError in each of them where there are too many together."""
        own = list(self._budget.errors.values())[self._shared :]
        gathered = self._dist.gather([[error.sample_id, error.reason, error.detail] for error in own])
        for error in (error for theirs in gathered for error in theirs):
            self._budget.spend(SampleError(*error))
        self._shared = len(self._budget.errors)
