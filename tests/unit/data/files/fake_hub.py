"""A stand-in for the package datasets."""

import sys
from types import SimpleNamespace
from typing import Any

import pyarrow
import pytest


class FakeHub:
    """Stands for the package datasets."""

    def __init__(self, rows: list[dict[str, Any]], error: Exception | None = None) -> None:
        self.rows = rows
        self.error = error
        self.asked: list[tuple[str, str]] = []

    def load_dataset(self, name: str, split: str) -> Any:
        self.asked.append((name, split))
        if self.error is not None:
            raise self.error
        return self

    def with_format(self, format: str) -> Any:
        assert format == "arrow"
        return SimpleNamespace(iter=self.iter)

    def iter(self, batch_size: int) -> Any:
        for start in range(0, len(self.rows), batch_size):
            yield pyarrow.Table.from_pylist(self.rows[start : start + batch_size])


def install(monkeypatch: pytest.MonkeyPatch, hub: FakeHub) -> None:
    monkeypatch.setitem(sys.modules, "datasets", hub)  # type: ignore[arg-type]
