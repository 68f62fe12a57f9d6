"""Weights & Biases and SwanLab, with modules that stand in for their libraries and record the calls."""

import json
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import yaml
from PIL import Image

from erniekit.config import load_config
from erniekit.config.config import Config
from erniekit.errors import ConfigError
from erniekit.train.trackers.hosted import TRACKERS_FILE, run_id
from erniekit.train.trackers.installed import check_installed
from erniekit.train.trackers.open import open_trackers
from erniekit.train.trackers.tracker import ShownAnswer, Tracker
from tests.command import erniekit
from tools.docs import metrics

ANSWERS = [
    ShownAnswer("a:1", "Which digit?", "7", "9", {"exact_match": 0.0}, [Image.new("RGB", (4, 4))]),
    ShownAnswer("a:2", "Say 1.", "1", "1", {"exact_match": 1.0}),
]


class Calls(list[tuple[str, dict[str, Any]]]):
    """The calls of a library, as (name, arguments)."""

    def record(self, name: str, result: Any = None) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            self.append((name, {**options, **({"": arguments} if arguments else {})}))
            return result

        return call

    def named(self, name: str) -> list[dict[str, Any]]:
        return [options for called, options in self if called == name]


@pytest.fixture
def libraries(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Both libraries."""
    calls = Calls()
    run = SimpleNamespace(
        **{name: calls.record(f"run.{name}") for name in ("define_metric", "log", "finish")}
    )
    parts: dict[str, dict[str, Any]] = {
        "wandb": {"init": calls.record("init", run)},
        "swanlab": {name: calls.record(name) for name in ("init", "log", "finish")},
    }
    for name, functions in parts.items():
        module: Any = ModuleType(name)
        module.__spec__ = SimpleNamespace(name=name)
        vars(module).update(functions)
        for kind in ("Image", "Text", "Table", "Html", "Histogram"):
            setattr(module, kind, calls.record(kind, kind))
        monkeypatch.setitem(sys.modules, name, module)
    return calls


def config(tmp_path: Path, *overrides: str) -> Config:
    file = tmp_path / "run.yaml"
    file.write_text("model: {path: m}\ndata: {train: d.jsonl}\nlog: {tensorboard: false}\n")
    return load_config(file, [f"train.output_dir={tmp_path / 'digits'}", *overrides])


def use(tracker: Tracker) -> None:
    """Everything that a run passes to a tracker."""
    tracker.log_text(0, "config", "<pre>a: 1</pre>")
    tracker.log_scalars(2, {"train/loss": 1.5}, 0.25)
    tracker.log_scalars(2, {"eval/loss": 1.0}, None)
    tracker.log_shares(2, {"expert_share/layer_1/text": [0.75, 0.25]})
    tracker.log_answers(2, ANSWERS)
    tracker.flush()


def test_wandb_gets_metrics_by_step_and_a_resumed_run_has_the_same_id(
    tmp_path: Path, libraries: Calls
) -> None:
    settings = config(
        tmp_path, "log.wandb={project: digits, mode: offline, tags: [a, b], entity: me, group: g}"
    )
    run = tmp_path / "digits"
    run.mkdir()
    for failed in (True, False):
        (tracker,) = open_trackers(settings, [], 0, print)
        use(tracker)
        tracker.close(failed=failed)
    first, second = libraries.named("init")
    assert first == second
    expected = {"project": "digits", "name": "digits", "mode": "offline", "resume": "allow", "dir": str(run)}
    assert {key: first[key] for key in expected} == expected
    assert (first["tags"], first["entity"], first["group"]) == (["a", "b"], "me", "g")
    assert first["id"] == json.loads((run / TRACKERS_FILE).read_text())["wandb"]
    assert first["config"]["optimizer"]["learning_rate"] == 1e-5
    assert {"": ("*",), "step_metric": "step"} in libraries.named("run.define_metric")
    logged = [options[""][0] for options in libraries.named("run.log")]
    assert {"step": 2, "train/loss": 1.5, "epoch": 0.25} in logged
    assert {"step": 2, "eval/loss": 1.0} in logged
    assert {"step": 2, "answers": "Table"} in logged
    rows = libraries.named("Table")[0]["data"]
    assert [row[:4] for row in rows] == [["a:1", "Which digit?", "7", "9"], ["a:2", "Say 1.", "1", "1"]]
    assert [row[-1] for row in rows] == ["Image", None]
    values, edges = libraries.named("Histogram")[0]["np_histogram"]
    assert values == [0.75, 0.25] and edges == [-0.5, 0.5, 1.5]
    assert [options["exit_code"] for options in libraries.named("run.finish")] == [1, 0]


def test_swanlab_gets_metrics_by_step_and_a_resumed_run_has_the_same_id(
    tmp_path: Path, libraries: Calls
) -> None:
    settings = config(tmp_path, "log.swanlab={project: digits, workspace: me, name: second}")
    (tmp_path / "digits").mkdir()
    for failed in (True, False):
        (tracker,) = open_trackers(settings, [], 0, print)
        use(tracker)
        tracker.close(failed=failed)
    first, second = libraries.named("init")
    assert first == second
    assert (first["workspace"], first["name"], first["mode"], first["resume"]) == (
        "me",
        "second",
        None,
        "allow",
    )
    assert len(first["id"]) == 21 and first["id"].isalnum() and first["id"] == first["id"].lower()
    assert {"": ({"train/loss": 1.5, "epoch": 0.25},), "step": 2} in libraries.named("log")
    assert {"": ({"answers/images": ["Image"], "answers/texts": ["Text"]},), "step": 2} in libraries.named(
        "log"
    )
    assert "reference: 7\nanswer: 9" in libraries.named("Image")[0]["caption"]
    assert libraries.named("finish") == [{"state": "crashed", "error": "the run ended with an error"}, {}]


@pytest.mark.parametrize(
    ("value", "project"),
    [
        ("true", "erniekit"),
        ("digits", "digits"),
        ("{project: digits}", "digits"),
        ("false", None),
        ("null", None),
    ],
)
def test_short_forms(tmp_path: Path, value: str, project: str | None) -> None:
    for name in ("wandb", "swanlab"):
        section = getattr(config(tmp_path, f"log.{name}={value}").log, name)
        assert (None if section is None else section.project) == project


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("log.wandb=3", "log.wandb: must be true, false, a project, or a section with keys or null, got 3"),
        ("log.wandb={project: ''}", "log.wandb.project: must be a non-empty string"),
        ("log.wandb.mode=offlin", "did you mean `offline`?"),
        ("log.swanlab.entity=me", "unknown key"),
    ],
)
def test_wrong_settings_name_what_is_allowed(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config(tmp_path, override)
    assert message in str(caught.value)


@pytest.mark.parametrize("name", ["wandb", "swanlab"])
def test_a_missing_library_is_an_error_before_anything_is_loaded(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    message = f"log.{name}: the package {name} is not installed. Install it: pip install {name}"
    with pytest.raises(ConfigError, match=message):
        check_installed(config(tmp_path, f"log.{name}=true").log)
    check_installed(config(tmp_path).log)
    run = tmp_path / "digits"
    ended = erniekit("train", tmp_path / "run.yaml", f"train.output_dir={run}", f"log.{name}=true")
    assert ended.returncode == 1 and ended.stderr == f"error: {message}\n"
    assert not run.exists()


def test_a_service_that_cannot_start_is_reported(tmp_path: Path, libraries: Calls) -> None:
    def init(**options: Any) -> None:
        raise OSError("api_key not configured")

    sys.modules["wandb"].init = init  # type: ignore[attr-defined]
    (tmp_path / "digits").mkdir()
    lines: list[str] = []
    trackers = open_trackers(config(tmp_path, "log.wandb=true", "log.swanlab=true"), [], 0, lines.append)
    assert [tracker.name for tracker in trackers] == ["swanlab"]
    assert lines == [
        "note: wandb failed and gets no more metrics: api_key not configured. The run goes on, and log.jsonl has all "
        "metrics"
    ]


def test_a_damaged_file_of_ids_gives_a_new_id(tmp_path: Path) -> None:
    first = run_id(tmp_path, "wandb")
    assert run_id(tmp_path, "swanlab") != first == run_id(tmp_path, "wandb")
    (tmp_path / TRACKERS_FILE).write_text('{"wandb": "')
    assert run_id(tmp_path, "wandb") != first


def test_the_example_of_the_page_of_metrics_is_valid(tmp_path: Path) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", metrics.document(), re.DOTALL)
    settings = yaml.safe_load(block)["log"]
    log = config(tmp_path, *(f"log.{name}={json.dumps(value)}" for name, value in settings.items())).log
    assert log.wandb is not None and (log.wandb.name, log.wandb.mode) == ("first-run", "offline")
    assert log.swanlab is not None and log.swanlab.project == "my-project"
