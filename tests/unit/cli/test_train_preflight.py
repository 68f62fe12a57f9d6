"""What stops a run of several processes before any of them starts: one message, and nothing is written."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from erniekit.create.create import create_model
from erniekit.launch import launch
from tests.command import erniekit

CHAT = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("place")
    (place / "chats.jsonl").write_text(json.dumps(CHAT) + "\n")
    create_model("tiny-moe", place / "model", [place / "chats.jsonl"], overrides=["num_hidden_layers=2"])
    (place / "run.yaml").write_text(
        "model: {path: model}\ndata: {train: chats.jsonl}\ntrain: {output_dir: out}\n"
    )
    return place


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, place: Path) -> list[Any]:
    calls: list[Any] = []
    monkeypatch.chdir(place)
    monkeypatch.setattr(launch, "run_processes", lambda *arguments: calls.append(arguments) or 0)
    return calls


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.path=nothing", "nothing: no such directory"),
        ("data.train=nothing.jsonl", "nothing.jsonl: cannot read the data file"),
        ("data.eval=nothing.jsonl", "nothing.jsonl: cannot read the data file"),
        ("train.rows_per_step=3", "train.rows_per_step is 3, which is not a multiple of 4"),
        ("parallel.expert=3", "parallel.expert is 3, which does not divide the 4 processes"),
        ("train.output_dir=chats.jsonl", "train.output_dir: chats.jsonl is not a directory"),
        ("train.output_dir=model", "train.output_dir: model is not empty"),
        ("model.freeze=[visoin]", "visoin"),
    ],
)
def test_an_error_comes_once_before_anything_starts(
    started: list[Any], place: Path, override: str, message: str
) -> None:
    result = erniekit("train", "run.yaml", override, "--devices", "cpu:4")
    assert result.returncode == 1
    assert result.stderr.count("error: ") == 1 and message in result.stderr
    assert not result.stdout and not started and not (place / "out").exists()


def test_the_processes_start_where_nothing_is_wrong(started: list[Any]) -> None:
    assert erniekit("train", "run.yaml", "--devices", "cpu:4", "parallel.expert=2").returncode == 0
    assert started[0][0].world == 4


def test_a_resumed_run_keeps_its_packed_sequences(
    started: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    state = SimpleNamespace(identity={"train.rows_per_step": 1})
    monkeypatch.setattr("erniekit.train.preflight.newest_checkpoint", lambda run: run / "checkpoint-000001")
    monkeypatch.setattr("erniekit.train.preflight.read_state", lambda checkpoint: state)
    result = erniekit("train", "run.yaml", "--resume", "--devices", "cpu:2")
    assert result.returncode == 1 and not started
    assert "the run has 1 packed sequence per step, which is not a multiple of 2" in result.stderr
    state.identity["train.rows_per_step"] = 6
    assert erniekit("train", "run.yaml", "--resume", "--devices", "cpu:2").returncode == 0
