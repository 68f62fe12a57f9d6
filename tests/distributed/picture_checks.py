"""What the tests of pictures that cannot be read run in each process."""

from __future__ import annotations

from typing import Any
from unittest import mock

from erniekit.train import job
from tests.distributed.layouts import trainings


def reference_loads(world: int, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Train as each of `runs` says; how often this process loaded the reference in all of them."""
    with mock.patch.object(job, "load_shared", wraps=job.load_shared) as load:
        trainings(world, runs)
    return {"loads": load.call_count}
