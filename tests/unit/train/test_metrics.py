"""What a log line says of several steps."""

import json

import numpy as np
import pytest

from erniekit.train.metrics import MetricsAccumulator, StepMetrics, summarize_layers


def step(loss_sum: float, loss_tokens: int, counts: list[int]) -> StepMetrics:
    return StepMetrics(
        loss_sum=loss_sum,
        loss_tokens=loss_tokens,
        tokens=10 * loss_tokens,
        positions=16 * loss_tokens,
        gradient_norm=loss_sum / 2,
        seconds=0.5,
        data_seconds=0.1,
        modality_tokens={"text": 4 * loss_tokens, "vision": 0},
        expert_counts={"layer_1/text": np.array(counts), "layer_1/vision": np.zeros(2, np.int64)},
        router_sums={"z_loss/text": loss_sum * 4, "entropy/layer_1/text": 3.0, "entropy/layer_1/vision": 0.0},
        router_losses={"orthogonal_loss/text": loss_sum},
    )


def test_loss_is_a_mean_over_tokens_and_load_over_all_steps() -> None:
    window = MetricsAccumulator()
    window.add(step(6.0, 2, [4, 0]))
    window.add(step(2.0, 6, [2, 2]))
    scalars = window.scalars()
    assert scalars["train/loss"] == 1.0
    assert scalars["train/gradient_norm"] == 2.0
    assert scalars["train/loss_tokens"] == 4.0
    assert scalars["train/tokens_per_second"] == 80.0
    assert scalars["train/step_seconds"] == 0.5
    assert scalars["data/unused_positions"] == 1 - 10 / 16
    assert scalars["train/data_seconds"] == pytest.approx(0.1)
    assert scalars["expert_load/layer_1/text"] == 1.5
    assert window.expert_shares() == {"expert_share/layer_1/text": [0.75, 0.25]}
    assert scalars["router/dead_experts/layer_1/text"] == 0
    assert scalars["router/z_loss/text"] == 1.0
    assert scalars["router/entropy/layer_1/text"] == 6.0 / 32
    assert scalars["router/orthogonal_loss/text"] == 4.0
    assert not [name for name in scalars if name.endswith("vision")]


def test_dead_experts_have_no_token_in_the_whole_window() -> None:
    window = MetricsAccumulator()
    for counts in ([4, 0, 0], [0, 0, 3]):
        window.add(step(1.0, 1, counts))
    assert window.scalars()["router/dead_experts/layer_1/text"] == 1.0


def test_a_window_survives_a_checkpoint() -> None:
    window = MetricsAccumulator()
    window.add(step(0.1 + 0.2, 3, [1, 2]))
    again = MetricsAccumulator(**json.loads(json.dumps(window.as_dict())))
    for each in (window, again):
        each.add(step(0.7, 5, [3, 1]))
    assert again == window


def test_layers_are_summarized() -> None:
    entropy = {
        f"router/entropy/layer_{layer}/text": value for layer, value in ((1, 0.5), (2, 1.0), (10, 3.0))
    }
    scalars = {"train/loss": 1.0, "router/z_loss/text": 2.0, **entropy, "expert_load/layer_1/vision": 4.0}
    summaries = {
        **{"router/entropy/text/min": 0.5, "router/entropy/text/mean": 1.5, "router/entropy/text/max": 3.0},
        **{f"expert_load/vision/{kind}": 4.0 for kind in ("min", "mean", "max")},
    }
    rest = {"train/loss": 1.0, "router/z_loss/text": 2.0}
    assert summarize_layers(scalars, detail=False) == rest | summaries
    assert summarize_layers(scalars, detail=True) == scalars | summaries
