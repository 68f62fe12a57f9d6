"""Sums and words of a plan."""

from pathlib import Path

import numpy as np
import pytest

from erniekit.config import Config, load_config
from erniekit.config.choices import SHARDS
from erniekit.data.chat.conversation import SampleError
from erniekit.data.encode.stats import DataStats
from erniekit.data.load.packing import Row
from erniekit.data.load.rows import StoredRows
from erniekit.distributed.parallel_dims import ParallelDims
from erniekit.errors import ConfigError
from erniekit.lora.targets import LoraMatch
from erniekit.models.specs import TensorSpec
from erniekit.optim.schedule import Schedule
from erniekit.train.build_dpo import keeps_reference_copy
from erniekit.train.describe import (
    describe_data,
    describe_lora,
    describe_model,
    describe_parallel_dims,
    describe_run,
    describe_skipped,
    format_bytes,
)
from erniekit.train.memory import ShardingPlan, plan_model
from erniekit.train.plan import plan_run

SPECS = [TensorSpec("a", "BF16", (10, 10)), TensorSpec("b", "BF16", (50,)), TensorSpec("router", "F32", (5,))]


def config(tmp_path: Path, *overrides: str) -> Config:
    file = tmp_path / "x.yaml"
    file.write_text("{model: {path: m}, data: {train: d, max_length: 100}, train: {output_dir: o}}")
    return load_config(file, overrides)


class Rows(StoredRows):
    """Epochs of given numbers of rows; the documents have 60, 40 and 80 tokens."""

    def __init__(self, *counts: int) -> None:
        self.counts = counts
        self.dataset = self  # type: ignore[assignment]
        self.lengths = np.array([60, 40, 80])

    def plan(self, epoch: int) -> list[Row]:
        return [(0, 1), (2,), *[()] * self.counts[epoch]][: self.counts[epoch]]


def test_steps_of_all_epochs_are_rounded_up(tmp_path: Path) -> None:
    settings = config(tmp_path, "train.epochs=3", "train.rows_per_step=4", "schedule.warmup_ratio=0.5")
    plan = plan_run(settings, Rows(3, 2, 4))
    assert (plan.total_steps, plan.epochs, plan.rows, plan.tokens) == (3, 3, 3, 180)
    assert plan.schedule == Schedule("cosine", 1e-5, 0.0, 3, 2, 0.1)


def test_max_steps_wins(tmp_path: Path) -> None:
    plan = plan_run(config(tmp_path, "train.max_steps=7", "train.epochs=3"), Rows(3, 2, 4))
    assert (plan.total_steps, plan.epochs) == (7, None)


@pytest.mark.parametrize(
    ("epochs", "rows", "steps"),
    [
        ("1.5", (3, 4), 5),  # 3 rows, and 2 of 4
        ("0.5", (3,), 2),
        ("2.0", (3, 4), 7),
        ("1.1", (10, 10), 11),  # 0.1 * 10 is above 1 in floats
        ("2.3", (10, 10, 10), 23),
        ("0.001", (10,), 1),
    ],
)
def test_a_part_of_an_epoch_is_its_first_rows(
    tmp_path: Path, epochs: str, rows: tuple[int, ...], steps: int
) -> None:
    plan = plan_run(config(tmp_path, f"train.epochs={epochs}"), Rows(*rows))
    assert (plan.total_steps, plan.epochs) == (steps, float(epochs))


def test_warmup_that_the_data_is_too_short_for(tmp_path: Path) -> None:
    settings = config(tmp_path, "schedule.warmup_steps=100", "train.rows_per_step=2")
    with pytest.raises(ConfigError, match=r"schedule\.warmup_steps is 100, but .* a run of 18 steps"):
        plan_run(settings, Rows(36))
    assert plan_run(settings, Rows(200)).schedule.warmup_steps == 100
    share = config(tmp_path, "schedule.warmup_ratio=0.1", "train.rows_per_step=2")
    assert plan_run(share, Rows(36)).schedule.warmup_steps == 2


def test_warmup_and_decay_that_overlap(tmp_path: Path) -> None:
    settings = ["schedule.type=wsd", "schedule.decay_ratio=0.5"]
    with pytest.raises(
        ConfigError, match=r"schedule\.decay_ratio is 0\.5, which gives 5 steps .* 6 steps of warm-up"
    ):
        plan_run(config(tmp_path, *settings, "schedule.warmup_steps=6"), Rows(10))
    plan_run(config(tmp_path, *settings, "schedule.warmup_steps=5"), Rows(10))


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


def test_the_run_in_words(tmp_path: Path) -> None:
    settings = config(tmp_path, "train.max_steps=7", "train.rows_per_step=2", "schedule.type=constant")
    assert describe_run(plan_run(settings, Rows(2)), settings, "ernie_vl") == [
        "rows: template ernie_vl; 2 rows per epoch, of at most 100 tokens, 10.0% unused "
        "(padding each sample would leave 40.0% unused)",
        "steps: 7 (train.max_steps), 2 rows each, about 180 tokens; an epoch is 1.0 steps",
        "learning rate: 1e-05, 0 steps of warm-up, then constant",
    ]


@pytest.mark.parametrize(("rows", "gradients"), [(1, 200 + 20), (2, 200 + 400 + 20)])
def test_memory(rows: int, gradients: int) -> None:
    plan = plan_model(SPECS, ["a", "router"], rows_per_step=rows)
    assert (plan.parameters, plan.trained) == (155, 105)
    assert plan.weight_bytes == 200 + 100 + 20
    assert plan.gradient_bytes == gradients
    assert plan.optimizer_bytes == 100 * 12 + 5 * 8
    assert describe_model(plan)[0] == "parameters: 155, trained 105 (67.74%)"
    assert plan.reference_bytes == 0 and "reference" not in describe_model(plan)[1]
    assert plan.communication_bytes == 0 and plan.total_bytes == 320 + gradients + 1240


def test_a_frozen_copy_for_the_reference_is_counted() -> None:
    adapter = TensorSpec("a.lora_A.weight", "F32", (25,))
    plan = plan_model([*SPECS, adapter], [adapter.name], rows_per_step=1, reference=True)
    assert plan.reference_bytes == 200 + 100 + 20 == plan.weight_bytes - 100
    assert describe_model(plan)[1:] == [
        "memory: weights 420 B, reference model 320 B, gradients 100 B, optimizer 200 B; "
        "about 1.0 KiB at the peak"
    ]


def test_a_cached_reference_is_computed_with_the_whole_model_before_training() -> None:
    plan = plan_model(SPECS, ["b"], rows_per_step=1, cached=True, activations=50)
    training = plan.gradient_bytes + plan.optimizer_bytes
    assert (plan.cached_bytes, training) == (320, 100 + 600)
    assert plan.total_bytes == 320 + 50 + training
    assert "the whole model, 320 B, while it computes the reference" in describe_model(plan)[2]
    # Little is trained: then the model beside the model is the peak.
    assert plan_model(SPECS, ["router"], rows_per_step=1, cached=True).total_bytes == 640
    assert plan.fits(1e-5) and not plan.fits(1e-6)


def test_what_processes_send_each_other_is_counted() -> None:
    """Of a layer of 100 trained parameters and an expert of 60: by hand."""
    specs = [
        TensorSpec("model.layers.0.self_attn.q_proj.weight", "BF16", (10, 10)),
        TensorSpec("model.layers.0.mlp.experts.0.up_proj.weight", "BF16", (60,)),
        TensorSpec("model.layers.1.self_attn.q_proj.weight", "BF16", (10,)),
        TensorSpec("lm_head.weight", "BF16", (1000,)),
    ]
    names = [spec.name for spec in specs]

    def exchanged(spread: ShardingPlan, trained: list[str]) -> int:
        return plan_model(specs, trained, rows_per_step=4, sharding=spread).communication_bytes

    assert exchanged(ShardingPlan(), names) == 0
    assert exchanged(ShardingPlan(2, 4, 2, "gradients"), names) == 6 * 100 + 6 * 30
    assert exchanged(ShardingPlan(4, 4, 1, "gradients"), names) == 6 * 100
    assert exchanged(ShardingPlan(2, 4, 2, "parameters"), names) == 6 * 130 + 2 * 2 * 130
    assert exchanged(ShardingPlan(2, 4, 2, "parameters"), ["lm_head.weight"]) == 2 * 2 * 130


@pytest.mark.parametrize(
    ("settings", "copied"),
    [
        (["task=sft"], False),
        (["task=dpo"], True),
        (["task=dpo", "lora.enabled=true"], False),
        (["task=dpo", "lora.enabled=true", "dpo.reference=copy"], True),
        (["task=dpo", "dpo.reference=cached"], False),
        (["task=dpo", "dpo.loss=simpo"], False),
    ],
)
def test_which_runs_hold_a_frozen_copy(tmp_path: Path, settings: list[str], copied: bool) -> None:
    assert keeps_reference_copy(config(tmp_path, *settings)) is copied


def test_memory_of_processes_that_share_a_model() -> None:
    """By hand: a layer's weight, an expert's, a router's, an adapter's and the head's, of 240 elements each."""
    names = [
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.0.mlp.experts.0.up_proj.weight",
        "model.layers.0.mlp.gate.weight",
        "model.layers.0.self_attn.o_proj.lora_A.weight",
        "lm_head.weight",
    ]
    specs = [TensorSpec(name, "F32", (240,)) for name in names]
    found = []
    for shard in SHARDS:
        # Of 4 processes 2 share the experts, so that 2 have the same ones.
        plan = plan_model(specs, names, rows_per_step=2, sharding=ShardingPlan(2, 4, 2, shard))
        # A copy is spread as the model is.
        copied = plan_model(
            specs, names, rows_per_step=2, sharding=ShardingPlan(2, 4, 2, shard), reference=True
        )
        assert copied.reference_bytes == plan.weight_bytes - 240 * 4  # the adapter's, which is whole
        found.append((plan.weight_bytes / 4, plan.gradient_bytes / 4, plan.optimizer_bytes / 4))
        assert (plan.parameters, plan.trained) == (1200, 1200)
    whole = 240 + 120 + 240 + 240 + 240
    parts = 60 + 60 + 240 + 60 + 60
    assert found[0] == (whole, whole, 2 * whole)
    assert found[1] == (whole, whole, 3 * parts - 240)
    assert found[2] == (whole, parts, 3 * parts - 240)
    assert found[3] == (60 + 60 + 240 + 240 + 240, parts, 2 * parts + 60 + 60)


def test_experts_of_one_process_alone_are_not_spread() -> None:
    """Nobody else has them: parallel.shard changes nothing."""
    spec = TensorSpec("model.layers.0.mlp.experts.0.up_proj.weight", "BF16", (240,))
    plans = [
        plan_model([spec], [spec.name], rows_per_step=1, sharding=ShardingPlan(2, 2, 1, shard))
        for shard in SHARDS
    ]
    assert plans == [plans[0]] * 4


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
    assert describe_skipped([]) == []
    errors = [SampleError(f"f:{number}", "too long", "9 tokens") for number in range(6)]
    assert describe_skipped([*errors, SampleError("f:9", "bad image", "no")]) == [
        "  7 samples skipped (too long: 6, bad image: 1)",
        *(f"    f:{number}: 9 tokens" for number in range(5)),
        "    and 2 more; `erniekit data check` names them all",
    ]


def test_adapters_in_a_table() -> None:
    matches = [LoraMatch(f"model.layers.{layer}.self_attn.q_proj", 8, 8, 64) for layer in range(3)]
    matches.append(LoraMatch("model.layers.0.mlp.experts.11.up_proj", 8, 4, 48))
    assert describe_lora(matches, 4) == [
        "LoRA of rank 4 on 4 modules:",
        "  model.layers.*.self_attn.q_proj            3 x           192 parameters",
        "  model.layers.*.mlp.experts.*.up_proj       1 x            48 parameters",
    ]


def test_sizes_in_words() -> None:
    found = [format_bytes(n) for n in (0, 1023, 1536, 5 << 20, 3 << 30, 5000 << 30)]
    assert found == ["0 B", "1023 B", "1.5 KiB", "5.0 MiB", "3.0 GiB", "5000.0 GiB"]
