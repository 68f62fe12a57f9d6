"""Whole runs of small models: what they learn, leave behind, tell and refuse."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from erniekit.checkpoint.hub import read_array, read_index
from erniekit.checkpoint.state import STATE_FILE, read_state
from erniekit.checkpoint.weights import load_model
from erniekit.config import load_config
from erniekit.data.encode.encoder import make_encoder
from erniekit.errors import ConfigError
from erniekit.lora.adapters import read_adapter_index
from erniekit.lora.peft import read_adapter_config
from erniekit.models.config import ErnieConfig
from erniekit.models.specs import is_expert_tensor
from erniekit.train.dry_run import dry_run_training
from erniekit.train.run import run_training
from tests.closeness import assert_close
from tests.integration.runs import final
from tests.integration.training_setup import chats, losses, make_config, read_log, write_chats


def weights(directory: Path) -> dict[str, np.ndarray]:
    return {name: read_array(info) for name, info in read_index(directory).items()}


def test_full_training_end_to_end(
    tmp_path: Path, model: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    eval_data = write_chats(tmp_path / "eval.jsonl", chats(4, seed=9))
    run = tmp_path / "run"
    config = make_config(
        run, model, data, train__epochs=6, data__eval=[str(eval_data)], train__eval_every=8, log__every=2,
        log__router_detail=True, eval__samples=2, eval__max_new_tokens=4, data__workers=1,
        train__profile_steps=[3, 3], train__peak_tflops=0.1,
    )  # fmt: skip
    assert run_training(config) == 0
    printed = capsys.readouterr().out

    steps = losses(run)
    assert steps[-1][1] < 0.5 * steps[0][1]
    assert [step for step, *_ in steps] == [*range(2, steps[-1][0], 2), steps[-1][0]]
    lines = read_log(run)
    evaluations = [(line["step"], line["eval/loss"]) for line in lines if "eval/loss" in line]
    assert evaluations[0][0] == 8
    assert evaluations[-1][0] == steps[-1][0]
    # Four eval chats are few: the loss must have fallen far, but not with every evaluation.
    assert all(loss < 0.5 * steps[0][1] for _, loss in evaluations)
    assert lines[-2]["epoch"] == 6.0
    for name in ("train/loss_tokens", "train/tokens_per_second", "train/step_seconds", "memory/peak_gib"):
        assert lines[0][name] > 0
    assert all(0 < line["train/mfu"] < 1 for line in lines if "train/loss" in line)
    assert "peak of CPU: 0.1 TFLOP/s in float32" in printed
    assert re.search(r"step 2/.* tokens/s  MFU [0-9.]+%", printed)
    trace = run / "profile" / "steps-3-3.json"
    assert trace.is_file()
    assert f"profile: {trace}" in printed and re.search(
        r"^  matmul +[0-9.]+ +[0-9.]+%", printed, re.MULTILINE
    )
    assert lines[0]["expert_load/layer_1/text"] >= 1
    assert lines[0]["expert_load/layer_1/vision"] >= 1

    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    scalars = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert [step for step, _ in scalars] == [step for step, *_ in steps]
    assert_close(scalars[0][1], steps[0][1])
    shares = events.Histograms("expert_share/layer_1/vision")[0].histogram_value
    assert_close(sum(shares.bucket), 1)

    metadata = events.Tags()["tensors"]
    assert {"run/config", "run/samples", "answers", "custom_scalars__config__"} <= set(metadata)
    samples = events.Tensors("run/samples")[0].tensor_proto.string_val[0].decode()
    assert re.search(r"Which colour\?.*<strong>It is \w+\.", samples, re.DOTALL)

    page = (run / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") >= 8 and "train/loss <b>" in page and "router/entropy/vision/mean <b>" in page
    assert f"Answers after step {steps[-1][0]}" in page and "data:image/jpeg;base64," in page
    assert "training data: 16 samples" in page and "epochs: 6" in page
    assert printed.endswith(
        f"Done: {steps[-1][0]} steps, {int(lines[-2]['train/tokens_seen']):,} tokens. The report is {run}/report.html\n"
        f"The trained model is {final(run)}. Next:\n  erniekit chat {run}\n"
        f"  erniekit eval {run} --config {run}/config.yaml\n  erniekit export {run} --output {run}-export\n"
    )

    assert load_config(run / "config.yaml") == config
    checkpoint = final(run)
    assert checkpoint.name == f"checkpoint-{steps[-1][0]:06d}"
    assert str(checkpoint) in printed
    state = read_state(checkpoint)
    assert state.tokens == lines[-2]["train/tokens_seen"]
    assert not [entry for entry in run.iterdir() if entry.name.endswith(".tmp")]

    # The checkpoint is a model by itself.
    assert load_model(checkpoint).config == ErnieConfig.from_dir(model)
    make_encoder(checkpoint)
    trained, before = weights(checkpoint), weights(model)
    unchanged = {name for name in before if np.array_equal(trained[name], before[name])}
    assert unchanged == {name for name in before if name.endswith("e_score_correction_bias")}


def test_lora_trains_adapters_alone(
    tmp_path: Path, model: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    config = make_config(run, model, data, train__max_steps=8, lora__enabled=True, lora__rank=4)
    assert run_training(config) == 0
    printed = capsys.readouterr().out
    assert "LoRA of rank 4 on" in printed
    assert "model.layers.*.mlp.experts.*.gate_proj" in printed
    steps = losses(run)
    assert steps[-1][1] < steps[0][1]
    checkpoint = final(run)
    adapter = read_adapter_config(checkpoint)
    assert (adapter.rank, adapter.alpha) == (4, 8.0)
    names = read_adapter_index(checkpoint)
    assert len(names) % 2 == 0
    assert all(".lora_A." in name or ".lora_B." in name for name in names)
    moved = [n for n, info in names.items() if ".lora_B." in n and read_array(info).any()]
    assert any(".experts." in name for name in moved)
    assert not list(checkpoint.glob("model*.safetensors"))


def test_experts_have_a_rank_of_their_own(
    tmp_path: Path, model: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    lora = dict(lora__enabled=True, lora__rank=4, lora__expert_rank="auto")
    assert (
        run_training(make_config(run, model, data, train__max_steps=2, checkpoint__save_every=1, **lora)) == 0
    )
    # Two experts a token.
    assert "LoRA of rank 4, rank 2 of experts, on" in capsys.readouterr().out
    ranks = {
        (is_expert_tensor(name), info.shape[0])
        for name, info in read_adapter_index(final(run)).items()
        if ".lora_A." in name
    }
    assert ranks == {(True, 2), (False, 4)}
    assert json.loads((final(run) / "adapter_config.json").read_text())["lora_alpha"] == 8.0
    shutil.rmtree(final(run))
    assert run_training(make_config(run, model, data, train__max_steps=2, **lora), resume=True) == 0
    assert final(run).name == "checkpoint-000002"


def test_lora_with_routers(tmp_path: Path, model: Path, data: Path) -> None:
    run = tmp_path / "run"
    run_training(
        make_config(run, model, data, train__max_steps=2, lora__enabled=True, lora__train_router=True)
    )
    names = read_adapter_index(final(run))
    before = weights(model)
    routers = [name for name in names if ".lora_" not in name]
    assert routers == ["model.layers.1.mlp.gate.weight", "model.layers.1.mlp.gate.weight_1"]
    assert all(not np.array_equal(read_array(names[name]), before[name]) for name in routers)


def test_what_is_frozen_does_not_move(tmp_path: Path, model: Path, data: Path) -> None:
    run = tmp_path / "run"
    freeze = ["vision", "router", "model.layers.0.*"]
    run_training(make_config(run, model, data, train__max_steps=2, model__freeze=freeze))
    before, after = weights(model), weights(final(run))
    same = {name for name in before if np.array_equal(before[name], after[name])}
    prefixes = (
        "vision_model.",
        "model.layers.0.",
        "model.layers.1.mlp.gate.",
        "model.layers.1.mlp.moe_statics",
    )
    assert same == {name for name in before if name.startswith(prefixes)}


@pytest.mark.parametrize("shape", ["tiny-dense", "tiny-moe"])
def test_text_models(tmp_path: Path, text_models: dict[str, Path], shape: str) -> None:
    data = write_chats(tmp_path / "text.jsonl", chats(12, images=False))
    run = tmp_path / "run"
    assert run_training(make_config(run, text_models[shape], data, train__epochs=4)) == 0
    steps = losses(run)
    assert steps[-1][1] < steps[0][1]


def test_accumulation_equals_one_large_row(tmp_path: Path, model: Path) -> None:
    data = write_chats(tmp_path / "four.jsonl", chats(4))
    common: dict[str, Any] = {"train__epochs": 1, "data__shuffle": False}
    for name, settings in (
        ("apart", {"data__max_length": 90, "train__rows_per_step": 8}),
        ("together", {"data__max_length": 800, "train__rows_per_step": 1}),
    ):
        run_training(make_config(tmp_path / name, model, data, **common, **settings))
    apart, together = losses(tmp_path / "apart"), losses(tmp_path / "together")
    assert read_state(final(tmp_path / "apart")).rows > 1
    assert read_state(final(tmp_path / "together")).rows == 1
    assert len(apart) == len(together) == 1
    (_, loss, norm, rate), (_, other_loss, other_norm, other_rate) = apart[0], together[0]
    assert_close(loss, other_loss)
    assert_close(norm, other_norm)
    assert rate == other_rate


def test_recompute_changes_nothing(tmp_path: Path, model: Path, data: Path) -> None:
    for name, recompute in (("kept", False), ("again", True)):
        run_training(
            make_config(tmp_path / name, model, data, train__max_steps=2, train__recompute=recompute)
        )
    assert losses(tmp_path / "kept") == losses(tmp_path / "again")


def test_mistakes_leave_no_directory(tmp_path: Path, model: Path, data: Path) -> None:
    run = tmp_path / "run"
    for settings, message in (
        ({"model__freeze": ["visoin"]}, "model.freeze: 'visoin' is neither a part"),
        ({"lora__enabled": True, "lora__targets": ["w_proj"]}, "lora.targets: 'w_proj' matches no module"),
        (
            {"model__freeze": ["*.experts.0.*"]},
            "experts.0.gate_proj.weight but not model.layers.1.mlp.experts.1.",
        ),
        ({"optimizer__groups": [{"match": "x.*"}]}, "optimizer.groups: 'x.*' matches no trained parameter"),
    ):
        for start in (run_training, dry_run_training):
            if start is dry_run_training and "optimizer__groups" in settings:
                continue
            with pytest.raises(ConfigError) as caught:
                start(make_config(run, model, data, **settings))
            assert message in str(caught.value)
            assert not run.exists()


def test_old_checkpoints_are_removed(tmp_path: Path, model: Path, data: Path) -> None:
    run = tmp_path / "run"
    run_training(
        make_config(run, model, data, train__max_steps=4, checkpoint__save_every=1, checkpoint__keep=2)
    )
    kept = sorted(path.parent.name for path in run.glob(f"checkpoint-*/{STATE_FILE}"))
    assert kept == ["checkpoint-000003", "checkpoint-000004"]
