"""The memory plan against trainings on CPU processes, as tools/bench/plan_memory.py measures them.

Compared is what Paddle's allocator counts: beside these small models, buffers of libraries would not be small.
"""

from __future__ import annotations

import pytest

from tools.bench.plan_memory import Case, measure

pytestmark = pytest.mark.slow
SIZES = ("hidden_size=256", "intermediate_size=768", "num_hidden_layers=4", "num_attention_heads=4")
CASES = [
    Case("dense", "tiny-dense", (*SIZES, "num_key_value_heads=2"), length=512, vocab=2048),
    Case(
        "experts",
        "tiny-moe",
        (*SIZES, "num_key_value_heads=2", "moe_intermediate_size=256"),
        {"lora.enabled": True, "lora.rank": 8, "train.recompute": "layers"},
        length=512,
        vocab=2048,
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_training_takes_what_the_plan_says(case: Case) -> None:
    found = measure(case)
    assert found["predicted"] == pytest.approx(found["tensors"], rel=0.1)
