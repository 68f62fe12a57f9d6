"""The order of rows, epoch after epoch, from a small state.

A state is a dict of JSON values: the place of the next row. Which rows follow depends on nothing else.
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
    """A row of which only its cost is known: its documents are read when `read` is called.

    patches: of its images and videos. after: where the next row stands.
    """

    patches: int
    read: Callable[[], Sequence[Document]]
    after: State


class PlannedRows(Protocol):
    """The source from which a loader draws rows.

    ranks: 1 where every process plans all rows, of which a loader reads its share; else the processes that share the
    samples, of which this source reads those of one, so that all its rows are its loader's.
    """

    @property
    def ranks(self) -> int:
        """See above."""

    @property
    def settings(self) -> dict[str, Any]:
        """What must be the same for a state to mean the same row, by name; JSON values.

        "fingerprint": of the data. "files": digests of data files by name, which may differ where the fingerprint does
        not.
        """

    def start(self) -> State:
        """The place of the first row."""

    def check(self, state: State) -> None:
        """Raise DataError where there is no such place."""

    def rows(self, state: State) -> Iterator[PlannedRow]:
        """Rows from that place on, without end."""

    def epoch(self, state: State) -> int:
        """The epoch of the row at that place, from 0."""

    def epochs_done(self, state: State) -> float:
        """How many epochs lie before that place, as a fraction."""


class StoredRows:
    """Rows of a dataset on disk: every epoch is planned as a whole.

    State: {"epoch", "row"}, both from 0.
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
        """Rows in that epoch; it may differ a little between epochs, as shuffling packs differently."""
        return len(self.plan(epoch))

    def plan(self, epoch: int) -> list[Row]:
        """The rows of an epoch, as indices of documents."""
        if epoch not in self._plans:
            if len(self._plans) > 1:  # the one in use and the one that the workers have reached
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
            raise DataError("cannot continue: the checkpoint has no valid place in the training data")
        # An epoch so late seeds no generator.
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
        """Rows of every document once, in an order that never changes: for evaluation.

        One of every `ranks` rows, the same number for each rank; () where none is left.
        """
        lengths, patches = self.dataset.lengths, self.dataset.patches
        rows = plan_rows(np.arange(len(lengths)), lengths, patches, self.max_length)
        for place in range(rank, -(-len(rows) // ranks) * ranks, ranks):
            yield self._read(rows[place]) if place < len(rows) else ()

    def _read(self, row: Row) -> list[Document]:
        return [self.dataset.document(index) for index in row]


def mixture_settings(mixture: Mixture, max_length: int) -> dict[str, Any]:
    """What of a mixture decides the rows, by the names of the configuration."""
    return {
        "max_length": max_length,
        "shuffle": mixture.shuffle,
        "seed": mixture.seed,
        "mix": mixture.mix,
        "stop": mixture.stop,
        "weights": list(mixture.weights),
    }
