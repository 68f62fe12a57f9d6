"""A configuration and rows that are planned."""

from pathlib import Path

import numpy as np

from erniekit.config import Config, load_config
from erniekit.data.load.packing import Row
from erniekit.data.load.rows import StoredRows


def config(tmp_path: Path, *overrides: str) -> Config:
    file = tmp_path / "x.yaml"
    file.write_text("{model: {path: m}, data: {train: d, max_length: 100}, train: {output_dir: o}}")
    return load_config(file, overrides)


class Rows(StoredRows):
    """Epochs of given numbers of rows; the documents have 60, 40 and 80 tokens."""

    def __init__(self, *counts: int) -> None:
        self.counts = counts
        self.dataset = self  # type: ignore[assignment]
        self.lengths = np.array([60, 40, 80])

    def plan(self, epoch: int) -> list[Row]:
        return [(0, 1), (2,), *[()] * self.counts[epoch]][: self.counts[epoch]]
