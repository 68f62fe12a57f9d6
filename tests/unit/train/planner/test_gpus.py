"""The table of GPUs."""

from __future__ import annotations

import pytest

from erniekit.errors import ConfigError
from erniekit.train.planner.gpus import GPUS, find_gpu


def test_names_are_unique_and_found() -> None:
    assert len({gpu.name for gpu in GPUS}) == len(GPUS)
    for gpu in GPUS:
        assert find_gpu(gpu.name.upper()) is gpu
        # The maker's gigabytes are in the name; a process sees a little less.
        size = int(gpu.name.rpartition("-")[2].removesuffix("gb"))
        assert 0.9 * size <= gpu.memory / 2**30 <= size


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("h100-80g", r"--gpu h100-80g: no such GPU, did you mean h100-80gb\? known: b200"),
        ("tpu", r"--gpu tpu: no such GPU; known: .*l40s-48gb.*rtx4090-24gb"),
    ],
)
def test_an_unknown_gpu_is_named_with_those_that_are_known(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_gpu(name)
