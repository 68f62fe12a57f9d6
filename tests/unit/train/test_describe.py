"""Data, model and plan of a run in words."""

from pathlib import Path

import pytest

from erniekit.data.chat.conversation import SampleError
from erniekit.data.encode import stats
from erniekit.data.encode.stats import DataStats, ErrorBudget
from erniekit.distributed.parallel_dims import ParallelDims
from erniekit.lora.targets import LoraMatch
from erniekit.train.describe import (
    describe_data,
    describe_lora,
    describe_parallel_dims,
    describe_rounding,
    describe_run,
    describe_skipped,
    format_bytes,
)
from erniekit.train.plan import plan_run
from tests.unit.train.plans import Rows, config


def test_intervals_longer_than_the_run_are_noted(tmp_path: Path) -> None:
    every = ["data.eval=e", "train.eval_every=4", "checkpoint.save_every=9", "log.every=6"]
    early = ["eval.best_metric=eval/loss", "eval.patience=2"]
    settings = config(tmp_path, *every, *early)
    assert describe_run(plan_run(settings, Rows(8)), settings, "ernie")[3:] == [
        "note: checkpoint.save_every is 9, more than the 8 steps of the run: it is saved at the end only",
        "note: eval.patience is 2, but the run has only 2 evaluations: it cannot end early",
    ]
    found = describe_run(plan_run(settings, Rows(3)), settings, "ernie")[3:]
    assert [line.split()[1] for line in found] == [
        "train.eval_every", "checkpoint.save_every", "log.every", "eval.patience"
    ]  # fmt: skip
    assert len(describe_run(plan_run(settings, Rows(12)), settings, "ernie")) == 3
    settings = config(tmp_path, "train.profile_steps=[2,4]")
    assert describe_run(plan_run(settings, Rows(3)), settings, "ernie")[3:] == [
        "note: train.profile_steps ends with step 4, after the 3 steps of the run"
    ]
    assert len(describe_run(plan_run(settings, Rows(4)), settings, "ernie")) == 3


def test_a_long_run_that_saves_at_its_end_only_is_noted(tmp_path: Path) -> None:
    for settings, noted in (
        (["train.max_steps=999"], False),
        (["train.max_steps=1000"], True),
        (["train.max_steps=1000", "checkpoint.save_every=500"], False),
    ):
        chosen = config(tmp_path, *settings)
        lines = describe_run(plan_run(chosen, Rows(8)), chosen, "ernie")[3:]
        assert any("checkpoint.save_every is not set: the 1,000 steps" in line for line in lines) == noted


def test_the_run_in_words(tmp_path: Path) -> None:
    settings = config(tmp_path, "train.max_steps=7", "train.rows_per_step=2", "schedule.type=constant")
    assert describe_run(plan_run(settings, Rows(2)), settings, "ernie_vl") == [
        "rows: template ernie_vl; 2 rows per epoch, of at most 100 tokens, 10.0% unused "
        "(padding each sample would leave 40.0% unused)",
        "steps: 7 (train.max_steps), 2 rows each, about 180 tokens; an epoch is 1.0 steps",
        "learning rate: 1e-05, 0 steps of warm-up, then constant",
    ]


@pytest.mark.parametrize(
    ("tokens", "rows", "note"),
    [
        (800, 8, None),
        (850, 8, "note: train.tokens_per_step is 850, but a step takes up to 800 tokens: 8 rows of 100"),
        (50, 1, "note: train.tokens_per_step is 50, but a step takes up to 100 tokens: 1 row of 100"),
        (
            1600,
            18,
            "note: train.tokens_per_step is 1,600, but a step takes up to 1,800 tokens: 18 rows of 100",
        ),
    ],
)
def test_tokens_of_a_step_that_are_rounded_are_noted(
    tmp_path: Path, tokens: int, rows: int, note: str | None
) -> None:
    given = config(tmp_path, f"train.tokens_per_step={tokens}")
    assert describe_rounding(given, rows) == ([] if note is None else [note])
    # Where the number of rows is set, it is not rounded.
    assert describe_rounding(given.with_rows(rows), rows) == describe_rounding(config(tmp_path), rows) == []


def test_layout_in_words() -> None:
    assert describe_parallel_dims(ParallelDims()) == []
    assert describe_parallel_dims(ParallelDims(8, 4, 2)) == [
        "processes: 8; expert parallel degree 4; context parallel degree 2"
    ]


def test_data_in_words() -> None:
    stats = DataStats(samples=1200, documents=1200, tokens=10_000, loss_tokens=2_500, longest=99)
    assert describe_data("training data", stats) == [
        "training data: 1,200 samples, 10,000 tokens, 2,500 trained (25.0%); longest 99 tokens"
    ]
    stats.images, stats.videos, stats.vision_tokens = 7, 2, 28
    stats.documents, stats.tool_calls, stats.pairs = 1300, 5, 3
    stats.trimmed, stats.untrained_reasoning, stats.calls_as_history = 4, 6, 7
    assert describe_data("training data", stats)[1:] == [
        "  7 images and 2 videos, 28 vision tokens",
        "  5 tool calls",
        "  1,300 documents (long texts are split, and data.loss_on may split chats by answer)",
        "  3 preference pairs, trained on the chosen answers only",
        "  4 documents without their oldest turns (data.on_long: trim_history)",
        "  the reasoning of 6 earlier answers is not trained, since later turns do not see it "
        "(data.loss_on: each_turn trains it)",
        "  7 tool calls trained in the form of the chat history, not in the form that the model generates "
        "(data.loss_on: each_turn trains that form)",
    ]
    assert not any("chat history" in line for line in describe_data("x", stats, "dpo"))
    stats.notices.add(["key 'mood' of a record is not read"], "a.jsonl:3")
    stats.notices.add(["key 'mood' of a record is not read"], "a.jsonl:9")
    assert describe_data("x", stats)[-1] == (
        "  note: key 'mood' of a record is not read: 2 samples, the first a.jsonl:3"
    )


def test_what_was_left_out_in_words() -> None:
    budget = ErrorBudget("skip", 1, "drop")
    assert describe_skipped(budget) == []
    budget.spend(SampleError("f:9", "bad image", "no"))
    for number in [*range(6), 0]:
        budget.spend(SampleError(f"f:{number}", "too long", "9 tokens"))
    assert describe_skipped(budget) == [
        "  7 samples skipped (too long: 6, bad image: 1)",
        "    f:9: no",
        *(f"    f:{number}: 9 tokens" for number in range(4)),
        "    and 2 more; `erniekit data check` names them all",
    ]


def test_samples_that_are_too_long_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream may drop any number of them."""
    monkeypatch.setattr(stats, "_MOST_DROPPED", 3)
    budget = ErrorBudget("raise", 0, "drop")
    for number in [*range(8), 0]:
        budget.spend(SampleError(f"f:{number}", "too long", "9 tokens"))
    assert [error.sample_id for error in budget.left_out()] == ["f:0", "f:1", "f:2"]
    assert describe_skipped(budget)[0] == "  8 samples skipped (too long: 8)"


def test_adapters_in_a_table() -> None:
    matches = [LoraMatch(f"model.layers.{layer}.self_attn.q_proj", 8, 8, 64, 4) for layer in range(3)]
    matches.append(LoraMatch("model.layers.0.mlp.experts.11.up_proj", 8, 4, 48, 4))
    assert describe_lora(matches) == [
        "LoRA of rank 4 on 4 modules:",
        "  model.layers.*.self_attn.q_proj            3 x           192 parameters",
        "  model.layers.*.mlp.experts.*.up_proj       1 x            48 parameters",
    ]


def test_sizes_in_words() -> None:
    found = [format_bytes(n) for n in (0, 1023, 1536, 5 << 20, 3 << 30, 5000 << 30)]
    assert found == ["0 B", "1023 B", "1.5 KiB", "5.0 MiB", "3.0 GiB", "5000.0 GiB"]
