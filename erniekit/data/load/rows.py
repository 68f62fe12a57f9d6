"""The order of rows, epoch after epoch.

A state is a dict of JSON values: the position of the next row. The rows that follow depend on nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np

from erniekit.data.encode.document import Document
from erniekit.data.load.mixture import Mixture
from erniekit.data.load.packing import Row, plan_rows
from erniekit.data.store.dataset import Dataset
from erniekit.errors import DataError

State = dict[str, Any]
NEW_RUN = "start a new run from the checkpoint's weights"


@dataclass(frozen=True, slots=True)
class PlannedRow:
    """A row with its cost. Its documents are only read by `read`.

    patches: number of patches of its images and videos. after: the state after the row.
    """

    patches: int
    read: Callable[[], Sequence[Document]]
    after: State


class PlannedRows(Protocol):
    """The source of a loader's rows."""

    @property
    def ranks(self) -> int:
        """The number of processes that share the samples, if this source only has the rows of one of them. 1 if every
        process plans all rows, and its loader selects its own."""

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that must be equal for a state to be valid, by name; JSON values.

        "fingerprint": of the data. "files": digests of data files by name, for error messages; they may differ while
        the fingerprint is equal.
        """

    def start(self) -> State:
        """The state before the first row."""

    def check(self, state: State) -> None:
        """Raise DataError for a state that this source cannot have."""

    def rows(self, state: State) -> Iterator[PlannedRow]:
        """The rows from a state on, without end."""

    def epoch(self, state: State) -> int:
        """The epoch of the next row, counted from 0."""

    def epochs_done(self, state: State) -> float:
        """The number of epochs before a state, as a fraction."""


class StoredRows:
    """Rows of a dataset on disk. Each epoch is planned as a whole.

    The state is {"epoch", "row"}, both counted from 0.
    """

    ranks = 1

    def __init__(self, dataset: Dataset, mixture: Mixture, max_length: int) -> None:
        self.dataset = dataset
        self.mixture = mixture
        self.max_length = max_length
        self._plans: dict[int, list[Row]] = {}

    @property
    def settings(self) -> dict[str, Any]:
        settings = mixture_settings(self.mixture, self.max_length)
        return {**settings, "fingerprint": self.dataset.fingerprint, "files": self.dataset.files}

    def rows_per_epoch(self, epoch: int) -> int:
        """The number of rows in an epoch. It may differ slightly between epochs, since packing depends on the order."""
        return len(self.plan(epoch))

    def plan(self, epoch: int) -> list[Row]:
        """The rows of an epoch, as indices of documents. Cached for two epochs."""
        if epoch not in self._plans:
            if len(self._plans) > 1:  # the current epoch, and the next one, which the workers prepare
                del self._plans[min(self._plans)]
            rows = plan_rows(
                self.mixture.order(self.dataset.sizes, epoch),
                self.dataset.lengths,
                self.dataset.patches,
                self.max_length,
            )
            self._plans[epoch] = self.mixture.order_rows(rows, epoch)
        return self._plans[epoch]

    def start(self) -> State:
        return {"epoch": 0, "row": 0}

    def check(self, state: State) -> None:
        epoch, row = state.get("epoch"), state.get("row")
        if type(epoch) is not int or type(row) is not int:
            raise DataError("cannot continue: the checkpoint has no valid position in the training data")
        # Larger numbers are no valid seeds.
        if not 0 <= epoch < 1 << 31 or not 0 <= row < self.rows_per_epoch(epoch):
            raise DataError(f"cannot continue: there is no row {row} in epoch {epoch} of the training data")

    def rows(self, state: State) -> Iterator[PlannedRow]:
        epoch, row = state["epoch"], state["row"]
        while True:
            plan = self.plan(epoch)
            here, row = row, row + 1
            if row == len(plan):
                epoch, row = epoch + 1, 0
            patches = int(self.dataset.patches[list(plan[here])].sum())
            yield PlannedRow(patches, partial(self._read, plan[here]), {"epoch": epoch, "row": row})

    def epoch(self, state: State) -> int:
        return int(state["epoch"])

    def epochs_done(self, state: State) -> float:
        return float(state["epoch"] + state["row"] / self.rows_per_epoch(state["epoch"]))

    def once(self, rank: int = 0, ranks: int = 1) -> Iterator[Sequence[Document]]:
        """Rows with every document once, always in the same order, for evaluation.

        A rank gets every `ranks`-th row. All ranks get the same number of rows; () where none is left.
        """
        lengths, patches = self.dataset.lengths, self.dataset.patches
        rows = plan_rows(np.arange(len(lengths)), lengths, patches, self.max_length)
        for place in range(rank, -(-len(rows) // ranks) * ranks, ranks):
            yield self._read(rows[place]) if place < len(rows) else ()

    def _read(self, row: Row) -> list[Document]:
        return [self.dataset.document(index) for index in row]


def mixture_settings(mixture: Mixture, max_length: int) -> dict[str, Any]:
    """The settings of a mixture that determine the rows, by their names in the configuration."""
    return {
        "max_length": max_length,
        "shuffle": mixture.shuffle,
        "seed": mixture.seed,
        "mix": mixture.mix,
        "stop": mixture.stop,
        "weights": list(mixture.weights),
    }
