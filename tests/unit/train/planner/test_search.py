"""Layouts of a number of GPUs: all obey the rules, fit, and are sorted by throughput."""

from __future__ import annotations

from erniekit.train.planner.gpus import find_gpu
from erniekit.train.planner.job import with_settings
from erniekit.train.planner.roofline import step_time
from erniekit.train.planner.search import search_layouts
from tests.unit.train.planner.jobs import MIB, job

GPU = find_gpu("h100-80gb")
SIZES = ["num_hidden_layers=4", "moe_num_experts=6"]


def test_layouts_obey_the_rules_and_the_fastest_is_first() -> None:
    run = job("tiny-moe", 4, 400 * MIB, SIZES, train__rows_per_step=2)
    found = search_layouts(run, GPU)
    assert 1 <= len(found) <= 5
    rates = [layout.time.tokens_per_second for layout in found]
    assert rates == sorted(rates, reverse=True)
    for layout in found:
        parallel = layout.job.config.parallel
        # Six experts are not divided by 4, and two rows a step not by four ranks.
        assert parallel.expert in (1, 2)
        assert layout.job.config.num_rows() % layout.job.dims.data == 0
        assert not (parallel.shard == "parameters" and layout.job.config.train.recompute == "none")
        assert layout.job.fits and layout.time == step_time(layout.job, GPU)
        assert with_settings(run.config, layout.changes) == layout.job.config
        assert all(text.partition("=")[0] in layout.changes for text in layout.overrides)
    assert any("train.rows_per_step=4" in layout.overrides for layout in found)


def test_what_does_not_fit_is_not_found() -> None:
    assert search_layouts(job("tiny-moe", 2, MIB, SIZES, train__rows_per_step=2), GPU) == []


def test_one_gpu_has_only_recompute_to_choose() -> None:
    found = search_layouts(job("tiny-dense", 1, 2**40), GPU)
    assert [layout.overrides for layout in found] == [[], ["train.recompute=layers"]]
