"""Runs that cannot fit are refused, and only those."""

from __future__ import annotations

from dataclasses import replace

import pytest

from erniekit.errors import ConfigError
from erniekit.train.activations import RowShape
from erniekit.train.planner.job import Job
from erniekit.train.planner.refuse import refuse_what_cannot_fit
from tests.unit.train.planner.jobs import job


def state(run: Job) -> int:
    memory = run.plan.memory
    return memory.weight_bytes + memory.gradient_bytes + memory.optimizer_bytes


def test_more_state_than_memory_is_refused_with_its_parts_and_changes() -> None:
    run = job("tiny-dense", 1, 2**40, ["num_hidden_layers=12"], data__max_length=1024)
    small = replace(run, device_bytes=int(state(run) * 0.9))
    with pytest.raises(ConfigError) as raised:
        refuse_what_cannot_fit(small)
    first, *rest = str(raised.value).splitlines()
    for part in ("does not fit", "weights", "gradients", "optimizer", "activations", "--force"):
        assert part in first
    assert rest[0] == "The smallest changes that fit, cheapest first:"
    assert rest[1].strip().startswith("lora.enabled=true lora.rank=32")


def test_what_might_fit_may_try() -> None:
    run = job("tiny-dense", 1, 2**40, ["num_hidden_layers=12"], data__max_length=65536)
    tight = replace(run, device_bytes=int(state(run) * 1.02))
    assert not tight.fits
    # Nothing is known of the data: it may be short.
    refuse_what_cannot_fit(tight)
    refuse_what_cannot_fit(replace(tight, row=RowShape(64, 0, 64, 64, 0)))
    with pytest.raises(ConfigError, match="does not fit"):
        refuse_what_cannot_fit(replace(tight, row=RowShape(65536, 0, 65536, 65536, 0)))


def test_images_are_not_certain() -> None:
    run = job("tiny-vl", 1, 2**40, data__max_length=8192)
    text, images = RowShape(8192, 0, 8192, 8192, 0), RowShape(8192, 8192, 8192, 8192, 4096)
    bounds = [replace(run, row=row).plan.memory.total_bytes for row in (text, images)]
    between = replace(run, row=images, device_bytes=sum(bounds) // 2)
    assert not between.fits
    refuse_what_cannot_fit(between)
