"""Runs with every router loss: what is logged, what moves, and that a resumed run is the same."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from erniekit.checkpoint.hub import read_array, read_index
from erniekit.checkpoint.state import newest_checkpoint
from erniekit.errors import ConfigError
from erniekit.train.dry_run import dry_run_training
from erniekit.train.run import run_training
from tests.closeness import assert_close
from tests.integration.runs import assert_same_run, copy_at
from tests.integration.training_setup import chats, losses, make_config, read_log, write_chats

ALL: dict[str, Any] = {
    "loss__balance_weight": 0.02,
    "loss__z_weight": 1e-3,
    "loss__orthogonal_weight": 0.1,
    "loss__bias_update_rate": 1e-3,
    "optimizer__router_learning_rate_ratio": 0.5,
}
BIAS = "model.layers.1.mlp.moe_statics.e_score_correction_bias"


def weights(run: Path) -> dict[str, np.ndarray]:
    checkpoint = newest_checkpoint(run)
    assert checkpoint is not None
    return {name: read_array(info) for name, info in read_index(checkpoint).items()}


def figures(run: Path) -> list[dict[str, float]]:
    return [
        {name: value for name, value in line.items() if name.startswith(("router/", "expert_load/"))}
        for line in read_log(run)
    ]


@pytest.mark.parametrize("mode", ["loss", "decoupled"])
def test_every_figure_is_logged_and_a_resumed_run_is_the_same(
    tmp_path: Path, model: Path, data: Path, mode: str
) -> None:
    settings = {
        **ALL,
        "loss__orthogonal_mode": mode,
        # Decoupled it is not scaled up by AdamW: a weight that outdoes what the other losses move in six steps.
        "loss__orthogonal_weight": 0.1 if mode == "loss" else 30.0,
        "train__max_steps": 6,
        "train__recompute": mode == "loss",
        "checkpoint__save_every": 1,
        "checkpoint__keep": 99,
        "log__every": 2,
        "log__router_detail": True,
    }
    whole, part = tmp_path / "whole", tmp_path / "part"
    run_training(make_config(whole, model, data, **settings))
    lines = figures(whole)
    kinds = ("text", "vision")
    names = {
        f"router/{loss}/{kind}" for loss in ("balance_loss", "z_loss", "orthogonal_loss") for kind in kinds
    }
    for figure in ("router/entropy", "router/dead_experts", "router/mean_cosine", "expert_load"):
        names |= {f"{figure}/layer_1/{kind}" for kind in kinds}
        names |= {f"{figure}/{kind}/{summary}" for kind in kinds for summary in ("min", "mean", "max")}
    assert [set(line) for line in lines] == [names] * 3
    for kind in kinds:
        # Tiny routers are nearly undecided: the least that balance can cost is top_k, the most entropy log(E).
        experts = len(_shares(whole, kind))
        assert 1.9 < lines[0][f"router/balance_loss/{kind}"] < experts
        assert 0.5 < lines[0][f"router/entropy/layer_1/{kind}"] <= np.log(experts) + 1e-4
        assert 0 <= lines[0][f"router/dead_experts/layer_1/{kind}"] < experts
        assert abs(lines[0][f"router/mean_cosine/layer_1/{kind}"]) < 1
        assert lines[-1][f"router/orthogonal_loss/{kind}"] < lines[0][f"router/orthogonal_loss/{kind}"]

    # The correction bias is saved, and taken over from the middle of a log line's window.
    assert np.unique(np.abs(weights(whole)[BIAS])).size > 1
    copy_at(whole, part, 3)
    assert run_training(make_config(part, model, data, **settings), resume=True) == 0
    assert_same_run(whole, part)
    assert figures(part) == lines


def test_router_losses_change_the_routers_and_not_the_first_loss(
    tmp_path: Path, model: Path, data: Path
) -> None:
    plain, added = tmp_path / "plain", tmp_path / "added"
    run_training(make_config(plain, model, data, train__max_steps=1))
    run_training(make_config(added, model, data, train__max_steps=1, **ALL))
    assert losses(plain)[0][1] == losses(added)[0][1]
    assert losses(plain)[0][2] != losses(added)[0][2]
    before, after = weights(plain), weights(added)
    assert not before[BIAS].any()
    assert set(np.unique(np.abs(after[BIAS]))) <= {np.float32(0), np.float32(1e-3)}
    assert after[BIAS].any()
    assert not any("loss" in name for line in figures(plain) for name in line)


def test_a_router_learns_at_its_own_rate(tmp_path: Path, model: Path, data: Path) -> None:
    for name, ratio in (("still", 0.0), ("slow", 0.125)):
        run_training(
            make_config(
                tmp_path / name,
                model,
                data,
                train__max_steps=1,
                optimizer__router_learning_rate_ratio=ratio,
                optimizer__weight_decay=0.0,
                # The last layer's vision tokens have no other loss.
                loss__z_weight=1e-3,
            )
        )
    base = {name: read_array(info) for name, info in read_index(model).items()}
    still, slow = weights(tmp_path / "still"), weights(tmp_path / "slow")
    for name in ("model.layers.1.mlp.gate.weight", "model.layers.1.mlp.gate.weight_1"):
        assert np.array_equal(still[name], base[name])
        # Adam's first step is the rate itself, which the tests' configuration sets to 1e-3.
        np.testing.assert_allclose(np.abs(slow[name] - base[name]).max(), 1.25e-4, rtol=0.01)
    other = "model.layers.1.mlp.experts.0.gate_proj.weight"
    np.testing.assert_allclose(np.abs(slow[other] - base[other]).max(), 1e-3, rtol=0.01)


def test_token_balanced_logs_the_same_loss_and_smaller_gradients(
    tmp_path: Path, model: Path, data: Path
) -> None:
    for form in ("tokens", "token_balanced"):
        run_training(make_config(tmp_path / form, model, data, train__max_steps=1, loss__normalization=form))
    (_, loss, norm, _), (_, other_loss, other_norm, _) = (
        losses(tmp_path / form)[0] for form in ("tokens", "token_balanced")
    )
    tokens = read_log(tmp_path / "tokens")[0]["train/loss_tokens"]
    assert other_loss == loss
    assert_close(other_norm, norm * tokens / (2 * 160))


def test_settings_that_this_model_cannot_follow(
    tmp_path: Path, model: Path, text_models: dict[str, Path], data: Path
) -> None:
    text = write_chats(tmp_path / "text.jsonl", chats(4, images=False))
    run = tmp_path / "run"
    cases: list[tuple[Path, Path, dict[str, Any], str]] = [
        (
            text_models["tiny-dense"],
            text,
            {"loss__z_weight": 0.1},
            "loss.z_weight: this model has no experts and no router",
        ),
        (
            model,
            data,
            {"loss__bias_update_rate": 0.1, "model__freeze": ["*.mlp.gate.*"]},
            "loss.bias_update_rate: has no effect, since model.freeze covers every router",
        ),
    ]
    for base, samples, settings, message in cases:
        for start in (dry_run_training, run_training):
            with pytest.raises(ConfigError) as caught:
                start(make_config(run, base, samples, **settings))
            assert message in str(caught.value)
            assert not run.exists()


def _shares(run: Path, kind: str) -> list[float]:
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    assert events.Scalars(f"router/entropy/layer_1/{kind}")
    return list(events.Histograms(f"expert_share/layer_1/{kind}")[0].histogram_value.bucket)
