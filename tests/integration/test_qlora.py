"""Adapters over a quantized base: beside those over the base itself, through resume, preferences and export."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from erniekit.checkpoint.hub import read_array, read_index
from erniekit.checkpoint.state import newest_checkpoint
from erniekit.errors import CheckpointError
from erniekit.export.export import describe_export, export_model
from erniekit.generation.load import find_model
from erniekit.layers import QuantizedParameter
from erniekit.lora.merge import AdapterMerge
from erniekit.models.specs import is_quantized_tensor
from erniekit.train.dry_run import dry_run_training
from erniekit.train.run import run_training
from tests.closeness import FLOAT32, assert_close, relative_difference
from tests.integration.runs import assert_same_run
from tests.integration.test_export import sample_logits
from tests.integration.training_setup import chats, losses, make_config, read_log, write_chats

STEPS = 6
METHOD: dict[str, Any] = {
    "lora__enabled": True,
    "lora__rank": 4,
    "lora__dropout": 0.1,
    "lora__expert_rank": 2,
    "lora__train_router": True,
    "train__max_steps": STEPS,
    "train__eval_every": STEPS // 2,
    "eval__samples": 2,
    "checkpoint__save_every": STEPS // 2,
    "checkpoint__keep": 9,
}


@pytest.fixture(scope="module")
def base(trained_run: Path) -> Path:
    """A model whose answers depend on its weights."""
    found = newest_checkpoint(trained_run)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def eval_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chats(tmp_path_factory.mktemp("eval") / "eval.jsonl", chats(3, seed=9))


@pytest.fixture(scope="module")
def settings(eval_data: Path) -> dict[str, Any]:
    return METHOD | {"data__eval": [str(eval_data)]}


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory, base: Path, data: Path, settings: dict[str, Any]
) -> dict[str, Path]:
    """The same run for each choice."""
    parent = tmp_path_factory.mktemp("runs")
    for choice in ("none", "int8", "int4"):
        assert run_training(make_config(parent / choice, base, data, **settings, model__quantize=choice)) == 0
    return {choice: parent / choice for choice in ("none", "int8", "int4")}


def test_losses_are_those_over_the_base_as_far_as_its_error_allows(runs: dict[str, Path]) -> None:
    curves = {choice: np.array(losses(run))[:, 1] for choice, run in runs.items()}
    evaluated = {
        choice: [line["eval/loss"] for line in read_log(run) if "eval/loss" in line]
        for choice, run in runs.items()
    }
    for choice, error in (("int8", 0.04), ("int4", 0.4)):
        assert_close(curves[choice], curves["none"], error)
        assert_close(evaluated[choice], evaluated["none"], error)
        assert relative_difference(curves[choice], curves["none"]) > 1e-3
    assert all(curve[-1] < 0.5 * curve[0] for curve in curves.values())


def test_a_resumed_run_is_the_same_bit_by_bit(
    tmp_path: Path,
    base: Path,
    data: Path,
    settings: dict[str, Any],
    runs: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    part = shutil.copytree(runs["int4"], tmp_path / "part")
    shutil.rmtree(part / f"checkpoint-{STEPS:06d}")
    for choice in ("int8", "none"):
        with pytest.raises(CheckpointError, match=rf"model\.quantize.*int4.*{choice}"):
            run_training(make_config(part, base, data, **settings, model__quantize=choice), resume=True)
    assert run_training(make_config(part, base, data, **settings, model__quantize="int4"), resume=True) == 0
    assert_same_run(runs["int4"], part)
    assert re.search(
        r"base quantized to int4: 38 tensors, relative error (9\.\d+)%, 3\.2 MiB instead of 7\.0 MiB",
        capsys.readouterr().out,
    )


def test_a_checkpoint_is_loaded_as_it_was_trained(runs: dict[str, Path]) -> None:
    """chat, eval and serve compute with what training computed with, in its memory."""
    quantized, plain = find_model(runs["int4"]), find_model(runs["none"])
    assert (quantized.quantize, plain.quantize) == ("int4", "none")
    assert quantized.title == f"{quantized.checkpoint} (base in int4, as in training)"
    assert plain.title == str(plain.checkpoint)
    model = quantized.load()
    weights = [layer for layer in model.sublayers() if isinstance(layer, QuantizedParameter)]
    assert len(weights) == 2 * 4 + 3 + 4 + 3


def test_an_export_merges_into_the_base_and_says_how_far_that_is(
    tmp_path: Path, runs: dict[str, Path], base: Path, data: Path
) -> None:
    report = export_model(runs["int4"], tmp_path / "out")
    before, after = read_index(base), read_index(tmp_path / "out")
    merge = AdapterMerge(report.source.adapter or "", {name: info.shape for name, info in before.items()})
    for name, info in before.items():
        np.testing.assert_array_equal(
            read_array(after[name]), merge(info, after[name].dtype), err_msg=name, strict=True
        )
    quantized = [name for name in before if is_quantized_tensor(name)]
    assert report.quantized == report.merged == len(quantized) == 38
    (line,) = [line for line in describe_export(report) if "quantized to int4" in line]
    assert re.fullmatch(
        r"  38 weights quantized to int4 in training, exported from the base model's original values: "
        rf"relative difference {report.difference:.2%}",
        line,
    )
    assert 0.09 < report.difference < 0.1
    # The merged model is near the trained one, and nearer to it in int8.
    for choice, error in (("int8", 0.05), ("int4", 0.5)):
        if choice != "int4":
            exported = export_model(runs[choice], tmp_path / choice)
            assert 0.005 < exported.difference < 0.007
        merged = find_model(tmp_path / ("out" if choice == "int4" else choice))
        trained = sample_logits(find_model(runs[choice]).load(), base, data)
        difference = relative_difference(sample_logits(merged.load(), base, data), trained)
        assert error / 50 < difference < error, choice


def test_an_adapter_alone_tells_nothing_of_the_base(tmp_path: Path, runs: dict[str, Path]) -> None:
    """Its files are those that PEFT reads, with the keys of any adapter: then the base is taken as it is."""
    configs = []
    for choice in ("int4", "none"):
        checkpoint = newest_checkpoint(runs[choice])
        assert checkpoint is not None
        configs.append(json.loads((checkpoint / "adapter_config.json").read_text()))
    assert configs[0] == configs[1]
    (tmp_path / "adapter").mkdir()
    checkpoint = newest_checkpoint(runs["int4"])
    assert checkpoint is not None
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(checkpoint / name, tmp_path / "adapter" / name)
    assert find_model(tmp_path / "adapter").quantize == "none"
    report = export_model(tmp_path / "adapter", tmp_path / "out")
    assert report.quantized == 0 and not any("int4 values" in line for line in describe_export(report))


@pytest.mark.parametrize("reference", ["auto", "copy", "cached"])
def test_every_reference_has_the_quantized_base(
    tmp_path: Path, base: Path, reference: str, pairs: Path
) -> None:
    """Before the first step, policy and reference are the same: the loss of a pair is log 2."""
    config = make_config(
        tmp_path / "run", base, pairs, task="dpo", train__max_steps=1, lora__enabled=True,
        model__quantize="int4", dpo__reference=reference, data__cache_dir=str(tmp_path / "cache"),
    )  # fmt: skip
    assert run_training(config) == 0
    assert_close(losses(tmp_path / "run")[0][1], np.log(2), FLOAT32)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    samples = []
    for number, sample in enumerate(chats(6)):
        question, answer = sample["messages"]
        samples.append({"messages": [question], "chosen": answer, "rejected": f"Say number {number}."})
    return write_chats(tmp_path_factory.mktemp("pairs") / "pairs.jsonl", samples)


def test_a_dry_run_plans_the_quantized_weights(
    tmp_path: Path, base: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(tmp_path / "run", base, data, lora__enabled=True, model__quantize="int8")
    dry_run_training(config)
    printed = capsys.readouterr().out
    assert re.search(r"memory: weights 4\.\d MiB, dequantized weights 512\.0 KiB, ", printed)
