"""The smallest changes that fit: every one is verified, and cheap ones come first."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from erniekit.create.shapes import released_architecture
from erniekit.train.planner.gpus import find_gpu
from erniekit.train.planner.remedies import find_remedies
from erniekit.train.planner.report import remedy_lines
from erniekit.train.planner.roofline import step_time
from tests.unit.train.planner.jobs import MIB, job

DENSE = ["num_hidden_layers=12"]
MOE = ["num_hidden_layers=6", "moe_intermediate_size=1024"]
# Nothing left to save without other layouts.
LEAST = {"train__recompute": "layers", "loss__chunk_tokens": 256}


def test_a_run_that_fits_needs_nothing() -> None:
    assert find_remedies(job("tiny-dense", 1, 2**40)) == []


def test_recompute_is_the_cheapest_and_as_little_as_needed() -> None:
    whole = job("tiny-dense", 1, 2**40, DENSE, data__max_length=8192)
    least = whole.changed({"train.recompute": "layers"})
    middle = (whole.plan.memory.total_bytes + least.plan.memory.total_bytes) / 2
    small = job("tiny-dense", 1, int(middle / 0.92), DENSE, data__max_length=8192)
    first = find_remedies(small)[0]
    assert first.overrides == ["train.recompute=auto"] and first.job.fits
    assert 0 < first.job.plan.backward.num_recomputed < first.job.plan.backward.size


def test_every_remedy_fits_and_none_is_another_one_and_more() -> None:
    large = job("tiny-moe", 4, 2**40, MOE, data__max_length=2048, train__rows_per_step=8)
    for share in (0.8, 0.3):
        bounded = job(
            "tiny-moe",
            4,
            int(large.plan.memory.total_bytes * share),
            MOE,
            data__max_length=2048,
            train__rows_per_step=8,
        )
        found = find_remedies(bounded)
        assert found and len(found) <= 5
        for remedy in found:
            again = bounded.changed(remedy.settings)
            assert again.fits and again.plan.memory == remedy.job.plan.memory
            assert remedy.cost and not remedy.cost.endswith(";")
            assert not any(
                other is not remedy and other.settings.items() <= remedy.settings.items() for other in found
            )


def test_layouts_come_before_changes_of_what_is_trained() -> None:
    several: dict[str, Any] = dict(train__rows_per_step=4, data__max_length=128, **LEAST)
    large = job("tiny-moe", 4, 2**40, MOE, **several)
    bounded = job("tiny-moe", 4, int(large.plan.memory.total_bytes * 0.65), MOE, **several)
    assert find_remedies(bounded)[0].overrides == ["parallel.shard=optimizer"]
    # One process has no layout: adapters are the last resort.
    alone = job("tiny-moe", 1, int(large.plan.memory.total_bytes * 0.35), MOE, **several)
    assert [remedy.overrides for remedy in find_remedies(alone)] == [["lora.enabled=true", "lora.rank=32"]]


@pytest.mark.slow
def test_layouts_come_by_the_time_of_a_step_on_known_gpus() -> None:
    """Over two machines, gradients of all weights take longer than the tokens of experts on one of them."""
    gpu = find_gpu("h100-80gb")
    model = released_architecture("baidu/ERNIE-4.5-21B-A3B-PT")
    assert model is not None
    settings = {"data__max_length": 8192, "train__recompute": "layers"}
    large = replace(job("tiny-moe", 16, gpu.memory, **settings), model=model)
    # An order by what the settings are usually said to cost.
    assert find_remedies(large)[0].overrides == ["parallel.shard=gradients"]
    found = find_remedies(large, gpu=gpu)
    assert found[0].overrides == ["parallel.expert=8"]
    layouts = [one for one in found if all(key.startswith("parallel.") for key in one.settings)]
    speeds = [step_time(remedy.job, gpu).tokens_per_second for remedy in layouts]
    assert len(speeds) == 3 and speeds == sorted(speeds, reverse=True)
    assert layouts == found[:3] and all(remedy.job.fits for remedy in found)
    assert f"about {speeds[0]:,.0f} tokens/s; " in remedy_lines(found, gpu)[2]


def test_adapters_need_no_groups_that_match_nothing() -> None:
    groups = [{"match": "*.mlp.gate.weight*", "learning_rate_ratio": 0.01}]
    several: dict[str, Any] = dict(data__max_length=128, optimizer__groups=groups, **LEAST)
    large = job("tiny-moe", 1, 2**40, MOE, **several)
    alone = job("tiny-moe", 1, int(large.plan.memory.total_bytes * 0.35), MOE, **several)
    assert find_remedies(alone)[0].settings["optimizer.groups"] == []


def test_a_quantized_base_with_adapters() -> None:
    several: dict[str, Any] = dict(
        lora__enabled=True, lora__rank=2, lora__expert_rank=2, data__max_length=128, **LEAST
    )
    large = job("tiny-moe", 1, 2**40, MOE, **several)
    for share, expected in ((0.75, "int8"), (0.55, "int4")):
        bounded = job("tiny-moe", 1, int(large.plan.memory.total_bytes * share), MOE, **several)
        assert find_remedies(bounded)[0].overrides == [f"model.quantize={expected}"]


def test_less_than_a_run_that_has_failed() -> None:
    """After a run that should have fitted: changes that take less than the plan said."""
    run = job("tiny-dense", 1, 2**40, DENSE, data__max_length=8192)
    limit = int(run.plan.memory.total_bytes * 0.7)
    found = find_remedies(run, limit)
    assert found and all(remedy.job.plan.memory.total_bytes <= limit for remedy in found)


@pytest.mark.parametrize("processes", [1, 4])
def test_nothing_helps(processes: int) -> None:
    assert find_remedies(job("tiny-dense", processes, MIB, train__rows_per_step=4)) == []
