"""A model computed by one process alone, where processes share its rows otherwise."""

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
