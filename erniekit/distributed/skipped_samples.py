"""Samples that one process could not use, counted by all processes."""

from __future__ import annotations

from erniekit.data.chat.conversation import SampleError
from erniekit.data.encode.stats import ErrorBudget
from erniekit.distributed.context import DistributedContext
from erniekit.distributed.failures import error_of_all
from erniekit.errors import DataError


class SkippedSampleSync:
    """Makes `budget` count the skipped samples of all processes, each once: processes decode different rows."""

    def __init__(self, budget: ErrorBudget, dist: DistributedContext) -> None:
        self._budget, self._dist = budget, dist
        self._num_shared = 0

    @property
    def new(self) -> int:
        """The number of samples that this process has skipped since the last `share`."""
        return len(self._budget.errors) - self._num_shared

    def share(self) -> None:
        """All processes call this together. Raises DataError in each of them where all have skipped too many."""
        own = list(self._budget.errors.values())[self._num_shared :]
        gathered = self._dist.all_gather_object(
            [[error.sample_id, error.reason, error.detail] for error in own]
        )
        for errors in gathered:
            for error in errors:
                try:
                    self._budget.spend(SampleError(*error))
                except DataError as too_many:
                    raise error_of_all(too_many) from None
        self._num_shared = len(self._budget.errors)
