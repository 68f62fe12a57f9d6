"""Everything that reads what others wrote, on 2,000 mutated inputs each; `make fuzz` runs 100,000."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.driver import Target, fuzz
from tests.fuzz.targets import TARGETS

INPUTS = 2000


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.__name__)
def test_mutated_inputs_are_accepted_or_refused_in_words(target: Target, tmp_path: Path) -> None:
    outcomes = fuzz(target, range(INPUTS), tmp_path)
    # A target that accepts or refuses everything tries nothing.
    assert min(outcomes["accepted"], outcomes["refused"]) > INPUTS // 100
