"""Checks of a run with several processes before they connect, and its packed sequences per step."""

from types import SimpleNamespace
from typing import Any

import pytest

from erniekit.config import Config
from erniekit.distributed.parallel_dims import ParallelDims
from erniekit.errors import ConfigError
from erniekit.train.distributed import check_same_model, fix_rows


def config(**train: Any) -> Config:
    return Config.model_validate(
        {
            "model": {"path": "me/model", "revision": train.pop("revision", None)},
            "data": {"train": "d.jsonl", "max_length": train.pop("max_length", 8192)},
            "train": {"output_dir": "run", **train},
        }
    )


@pytest.mark.parametrize(
    ("own", "other", "named"), [("a1", "b2", "a1, b2"), ("b2", None, "a directory, b2")], ids=["both", "one"]
)
def test_machines_with_different_commits_are_named(own: str, other: str | None, named: str) -> None:
    settings = config(revision=own)

    def processes(others: list[str | None]) -> Any:
        return SimpleNamespace(all_gather_object=lambda value: [value, *others])

    check_same_model(settings, processes([own]))
    with pytest.raises(ConfigError, match=rf"different commits of me/model: {named}\. Set model.revision"):
        check_same_model(settings, processes([other]))


@pytest.mark.parametrize(
    ("settings", "ranks", "rows"),
    [
        ({}, 1, 1),
        ({}, 6, 6),
        ({"tokens_per_step": 65536}, 1, 8),
        ({"tokens_per_step": 65536}, 4, 8),
        ({"tokens_per_step": 65536}, 3, 9),
        ({"tokens_per_step": 65536}, 16, 16),
        ({"tokens_per_step": 65536, "max_length": 32768}, 1, 2),
        ({"tokens_per_step": 65536, "max_length": 32768}, 8, 8),
        ({"tokens_per_step": 65536, "max_length": 131072}, 1, 1),
        ({"tokens_per_step": 65536, "max_length": 10000}, 1, 6),
        ({"tokens_per_step": 65536, "rows_per_step": 5}, 5, 5),
    ],
)
def test_rows_follow_the_tokens_of_a_step_and_the_processes(
    settings: dict[str, Any], ranks: int, rows: int
) -> None:
    fixed = fix_rows(config(**settings), ParallelDims(2 * ranks, context=2))
    assert fixed.train.rows_per_step == rows == fixed.num_rows() == config(**settings).num_rows(ranks)


def test_a_resumed_run_keeps_its_rows() -> None:
    by_tokens, by_rows = config(tokens_per_step=65536), config(rows_per_step=4)
    assert fix_rows(by_tokens, ParallelDims(2), saved=6).train.rows_per_step == 6
    # The checkpoint is compared with what the configuration says, and refused.
    assert fix_rows(by_rows, ParallelDims(2), saved=6).train.rows_per_step == 4
    with pytest.raises(
        ConfigError, match=r"has 6 packed sequences per step, .* multiple of 4, the number of proc"
    ):
        fix_rows(by_tokens, ParallelDims(4), saved=6)
