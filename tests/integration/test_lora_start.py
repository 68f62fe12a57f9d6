"""Training that starts from an adapter (lora.path): of a run, or as PEFT writes it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from erniekit.config import Config, load_config
from erniekit.errors import CheckpointError, ConfigError
from erniekit.export.adapter import export_adapter
from erniekit.export.export import export_model
from erniekit.train.dry_run import dry_run_training
from erniekit.train.run import run_training
from tests.integration.training_setup import losses, make_config

LORA: dict[str, Any] = dict(lora__enabled=True, lora__rank=4, lora__targets=["q_proj", "down_proj"])


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, model: Path, data: Path) -> Path:
    """A run with adapters, two steps long."""
    run = tmp_path_factory.mktemp("first") / "run"
    run_training(make_config(run, model, data, train__max_steps=2, **LORA))
    return run


def test_it_starts_where_the_adapter_stands(first: Path, model: Path, data: Path, tmp_path: Path) -> None:
    """The first step has the loss of the merged model: from a run, and from its adapter as PEFT has it."""
    export_model(first, tmp_path / "merged")
    export_adapter(first, tmp_path / "peft")
    found = {}
    for name, base, settings in (
        ("merged", tmp_path / "merged", LORA),
        ("run", model, LORA | {"lora__path": str(first)}),
        ("exported", model, LORA | {"lora__path": str(tmp_path / "peft")}),
    ):
        run = tmp_path / name / "run"
        run_training(make_config(run, base, data, train__max_steps=1, **settings))
        found[name] = losses(run)[0][1]
    new = tmp_path / "new" / "run"
    run_training(make_config(new, model, data, train__max_steps=1, **LORA))
    assert found["run"] == pytest.approx(found["merged"], rel=1e-5)
    assert found["exported"] == found["run"]
    assert losses(new)[0][1] != pytest.approx(found["merged"], rel=1e-4)


def test_a_resumed_run_does_not_need_it(first: Path, model: Path, data: Path, tmp_path: Path) -> None:
    start = shutil.copytree(next(first.glob("checkpoint-*")), tmp_path / "start")
    config = make_config(tmp_path / "run", model, data, train__max_steps=1, **LORA, lora__path=str(start))
    run_training(config)
    shutil.rmtree(start)
    config = make_config(tmp_path / "run", model, data, train__max_steps=2, **LORA)
    assert run_training(config, resume=True) == 0
    assert [line[0] for line in losses(tmp_path / "run")] == [1, 2]


def test_routers_that_the_adapter_lacks_are_trained_from_the_base(
    first: Path, model: Path, data: Path, tmp_path: Path
) -> None:
    settings = LORA | {"lora__path": str(first), "train__max_steps": 1}
    run_training(make_config(tmp_path / "run", model, data, lora__train_router=True, **settings))
    config = make_config(tmp_path / "next", model, data, **settings | {"lora__path": str(tmp_path / "run")})
    with pytest.raises(ConfigError, match=r"it has trained .*gate\.weight.*: set lora\.train_router: true"):
        run_training(config)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"lora__rank": 8}, r"its rank is 4 on model\.layers\.0\..* modules, not 8: set lora\.rank to it"),
        ({"lora__expert_rank": 2}, r"its rank is 4 on .*experts.*, not 2: set lora\.expert_rank to it"),
        ({"lora__alpha": 4.0}, r"it is scaled by 2 on .*, not by 1: set lora\.alpha to 8"),
        (
            {"lora__targets": ["q_proj"]},
            r"it has adapters on .*down_proj.*, and lora\.targets does not name them",
        ),
        (
            {"lora__targets": ["q_proj", "down_proj", "o_proj"]},
            r"it has no adapters on model\.layers\.0\.self_attn\.o_proj.*, and lora\.targets names them",
        ),
    ],
)
def test_an_adapter_that_does_not_fit(
    first: Path, model: Path, data: Path, tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    """Before data is encoded, and in a dry run."""
    config = make_config(tmp_path / "run", model, data, **LORA | settings, lora__path=str(first))
    for command in (run_training, dry_run_training):
        with pytest.raises(ConfigError, match=words):
            command(config)
    assert not (tmp_path / "run").exists()


def test_paths_without_an_adapter(model: Path, data: Path, tmp_path: Path) -> None:
    def start(path: Path) -> Config:
        return make_config(tmp_path / "run", model, data, **LORA, lora__path=str(path))

    with pytest.raises(
        CheckpointError, match=r"lora\.path: .* is a complete model, not an adapter; .* set model\.path"
    ):
        run_training(start(model))
    with pytest.raises(CheckpointError, match="no such directory"):
        run_training(start(tmp_path / "none"))


def test_preference_training_needs_its_reference(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    settings = {"path": "m"}, {"train": ["d.jsonl"]}, {"enabled": True, "path": "a"}
    model, data, lora = settings
    file.write_text(json.dumps({"task": "dpo", "model": model, "data": data, "lora": lora}))
    with pytest.raises(
        ConfigError, match=r"lora\.path.* cannot be set with dpo\.loss sigmoid: the reference model"
    ):
        load_config(file, ["train.output_dir=r"])
    assert load_config(file, ["train.output_dir=r", "dpo.loss=orpo"]).lora.path == "a"
