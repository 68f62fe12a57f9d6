"""Computes whole rows on one process with a model that otherwise shares rows between processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from erniekit.models.ernie import ErnieModel
from erniekit.models.sequence_sharding import NoSharding


@contextmanager
def unsharded_rows(model: ErnieModel) -> Iterator[None]:
    """Inside, this process computes whole rows: context parallelism is off."""
    sharding, model.sharding = model.sharding, NoSharding()
    try:
        yield
    finally:
        model.sharding = sharding
