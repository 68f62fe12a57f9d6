"""Which layers are in the backward pass and recomputed there, from the model alone; and that no gradient changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from paddle import Tensor

from erniekit.config import Config, load_config
from erniekit.distributed.parallel_dims import ParallelDims
from erniekit.models.config import ErnieConfig
from erniekit.models.ernie import ErnieModel
from erniekit.models.layer_runner import Run
from erniekit.objectives.routing import RouterWeights
from erniekit.objectives.sft import SftObjective
from erniekit.train.describe import describe_backward
from erniekit.train.memory import USABLE, TrainingPlan, plan_training
from erniekit.train.recompute import BackwardPlan, backward_plan
from erniekit.train.selection import select_parameters
from tests.closeness import assert_all_close
from tests.model_configs import FLAT
from tests.models import apply_lora
from tests.unit.objectives.rows import filler, gradients_of, make_model, make_row, totals_of

ROWS = [make_row([9, 6, 4], images=2), make_row([7, 8], seed=1), filler()]
ARCHITECTURE = ErnieConfig.from_json({**FLAT, "vision_config": {**FLAT["vision_config"], "depth": 2}})
LAYERS, DEPTH = 4, 2


@pytest.mark.parametrize(
    ("trained", "vision", "layers"),
    [
        ("vision_model.patch_embed.proj.weight", 0, 0),
        ("vision_model.blocks.1.mlp.fc1.weight", 1, 0),
        ("vision_model.ln.weight", DEPTH, 0),
        ("model.resampler_model.mlp.weight", DEPTH, 0),
        ("model.embed_tokens.weight", DEPTH + 1, 0),
        ("model.layers.2.self_attn.q_proj.lora_A.weight", DEPTH + 1, 2),
        ("model.norm.weight", DEPTH + 1, LAYERS),
        ("lm_head.weight", DEPTH + 1, LAYERS),
    ],
)
def test_the_backward_pass_ends_at_the_lowest_trained_parameter(
    trained: str, vision: int, layers: int
) -> None:
    plan = backward_plan(ARCHITECTURE, ["lm_head.weight", "model.layers.3.mlp.gate.weight"])
    assert plan == BackwardPlan(range(DEPTH + 1, DEPTH + 1), range(3, LAYERS))
    plan = backward_plan(ARCHITECTURE, [trained, "model.norm.weight"])
    assert plan == BackwardPlan(range(vision, DEPTH + 1), range(layers, LAYERS))


def test_the_lowest_layers_are_recomputed_first() -> None:
    plan = BackwardPlan(range(1, 3), range(4))
    found = [replace(plan, num_recomputed=count) for count in range(plan.size + 1)]
    assert [len(one.recomputed_vision) for one in found] == [0, 1, 2, 2, 2, 2, 2]
    assert [one.recomputed_layers for one in found[2:]] == [range(count) for count in range(5)]


def gradients(model: ErnieModel) -> tuple[list[float], dict[str, np.ndarray]]:
    objective = SftObjective(model, router_weights=RouterWeights(balance=0.1, z=0.01))
    losses = []
    for row in ROWS:
        output = objective(row, totals_of(ROWS))
        output.total.backward()
        losses.append(float(output.total))
    return losses, gradients_of(model)


def assert_unchanged(model: ErnieModel, plan: BackwardPlan) -> None:
    """Losses are bit for bit those of autograd alone, gradients up to the order in which their parts are added."""
    losses, expected = gradients(model)
    plan.apply(model)
    found_losses, found = gradients(model)
    assert found_losses == losses
    assert_all_close(found, expected)


@pytest.mark.parametrize("count", range(LAYERS + DEPTH + 2))
def test_recomputing_changes_no_gradient(count: int) -> None:
    model = make_model()
    trained = [name for name, parameter in model.named_parameters() if not parameter.stop_gradient]
    assert_unchanged(model, replace(backward_plan(model.config, trained), num_recomputed=count))


@pytest.mark.parametrize("count", [0, 1, 2])
def test_frozen_layers_below_run_without_a_graph(count: int) -> None:
    model = make_model()
    apply_lora(model, rank=2, alpha=4.0, dropout=0.0, targets=["model.layers.[23].*"], seed=1)
    for name, parameter in model.named_parameters():
        if ".lora_B" in name:
            parameter.set_value(parameter + 0.1)
    trained = [name for name, parameter in model.named_parameters() if not parameter.stop_gradient]
    plan = replace(backward_plan(model.config, trained), num_recomputed=count)
    assert (plan.layers, len(plan.vision)) == (range(2, 4), 0)
    assert_unchanged(model, plan)
    has_graph: dict[int, bool] = {}

    def watched(number: int, run: Run, x: Tensor) -> tuple[Tensor, ...]:
        outputs = inner(number, run, x)
        has_graph[number] = not outputs[0].stop_gradient
        return outputs

    inner, model.model.layer_runner = model.model.layer_runner, watched
    gradients(model)
    assert has_graph == {0: False, 1: False, 2: True, 3: True}


def config(tmp_path: Path, *overrides: str) -> Config:
    file = tmp_path / "run.yaml"
    file.write_text("model: {path: m}\ndata: {train: a, max_length: 4096}\ntrain: {output_dir: o}\n")
    return load_config(file, overrides)


def planned(tmp_path: Path, device_bytes: float, *overrides: str) -> TrainingPlan:
    settings = config(tmp_path, *overrides)
    selected = select_parameters(settings, ARCHITECTURE, "float32")
    processes = 2 if settings.parallel.shard != "none" else 1
    dims = ParallelDims(processes)
    return plan_training(settings, ARCHITECTURE, "float32", selected, dims, int(device_bytes))


def test_auto_recomputes_the_fewest_layers_that_fit(tmp_path: Path) -> None:
    none, layers = (planned(tmp_path, 1, f"train.recompute={choice}") for choice in ("none", "layers"))
    assert (none.backward.num_recomputed, layers.backward.num_recomputed) == (0, LAYERS + DEPTH + 1)
    assert layers.memory.total_bytes < none.memory.total_bytes
    counts = []
    for share in np.linspace(0, 1, 9):
        target = layers.memory.total_bytes * (1 - share) + none.memory.total_bytes * share
        plan = planned(tmp_path, target / USABLE + 1, "train.recompute=auto")
        assert plan.memory.fits(plan.device_bytes)
        counts.append(plan.backward.num_recomputed)
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[4] > counts[-1] == 0
    # Nothing fits: as little memory as there can be.
    assert planned(tmp_path, 1, "train.recompute=auto").backward == layers.backward


def test_auto_recomputes_all_layers_with_sharded_weights(tmp_path: Path) -> None:
    plan = planned(tmp_path, 2**50, "train.recompute=auto", "parallel.shard=parameters")
    assert plan.backward.num_recomputed == plan.backward.size


def test_the_log_says_what_is_recomputed(tmp_path: Path) -> None:
    def said(device_bytes: float, *overrides: str) -> list[str]:
        plan = planned(tmp_path, device_bytes, *overrides)
        choice = config(tmp_path, *overrides).train.recompute
        return describe_backward(plan.backward, choice, plan.memory, plan.device_bytes)

    assert said(1) == []
    assert said(1, "train.recompute=layers") == ["recompute: 4 of 4 layers, 2 of 2 vision blocks"]
    (line,) = said(2**40, "train.recompute=auto")
    assert line.startswith("recompute: 0 of 4 layers, 0 of 2 vision blocks (auto: ")
    assert line.endswith(" at the peak fits into 92% of 1024.0 GiB)")
    (line,) = said(2**20, "train.recompute=auto")
    assert line.startswith("recompute: 4 of 4 layers, ")
    assert line.endswith(" at the peak does not fit into 92% of 1.0 MiB)")
    lora = ["lora.enabled=true", 'lora.targets=["model.layers.3.*"]', "train.recompute=true"]
    assert said(1, *lora) == [
        "backward pass: 1 of 4 layers; nothing is trained below them",
        "recompute: 1 of 1 layer",
    ]
