"""Evaluations of a run while it goes on: answers, the best checkpoint, and an end when nothing improves."""

import base64
import errno
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from erniekit.checkpoint import writer
from erniekit.checkpoint.state import STATE_FILE, newest_checkpoint, read_state
from erniekit.data.chat.conversation import SampleError
from erniekit.errors import CheckpointError, ConfigError
from erniekit.evaluation import answers, evaluator
from erniekit.generation.load import find_checkpoint
from erniekit.train.run import run_training
from tests.integration.runs import assert_same_run, at_step, copy_at
from tests.integration.training_setup import (
    COLOURS,
    chats,
    image_uri,
    losses,
    make_config,
    read_log,
    write_chats,
)

ANSWERS = {"eval__samples": 4, "eval__max_new_tokens": 6, "train__eval_every": 2}
BEST = {"eval__best_metric": "eval/loss", "train__eval_every": 1}


@pytest.fixture(scope="module")
def eval_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chats(tmp_path_factory.mktemp("eval") / "eval.jsonl", chats(9, seed=5))


def figures(run: Path) -> list[dict[str, float]]:
    """The lines of evaluations, without times."""
    return [
        {name: value for name, value in line.items() if name not in ("time", "eval/seconds")}
        for line in read_log(run)
        if "eval/loss" in line
    ]


def checkpoints(run: Path) -> list[int]:
    return sorted(int(path.name[-6:]) for path in run.glob("checkpoint-*"))


def best_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "best.json").read_text(encoding="utf-8"))


def test_answers_are_written_and_training_is_not_disturbed(
    tmp_path: Path, model: Path, data: Path, eval_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With dropout and recomputation, images among the chats: the losses are those of a run without answers."""
    settings: dict[str, Any] = {
        "train__max_steps": 4, "lora__enabled": True, "lora__dropout": 0.3, "lora__train_router": True,
        "train__recompute": True, "data__eval": str(eval_data),
    }  # fmt: skip
    plain, answering = tmp_path / "plain", tmp_path / "answering"
    run_training(make_config(plain, model, data, **settings))
    capsys.readouterr()
    run_training(make_config(answering, model, data, **settings, **ANSWERS))
    printed = capsys.readouterr().out
    assert_same_run(plain, answering)
    assert [line["step"] for line in figures(answering)] == [2, 4]
    assert all("eval/exact_match" in line for line in figures(answering))
    assert "eval answers: 4 chats in each evaluation, scored by exact_match" in printed
    assert "eval/exact_match 0.0000" in printed
    records = {
        step: [json.loads(line) for line in (answering / "eval" / f"step-{step:06d}.jsonl").open()]
        for step in (2, 4)
    }
    ids = [record["id"] for record in records[2]]
    assert len(ids) == 4 and ids == [record["id"] for record in records[4]]
    assert ids == sorted(ids) and all(name.startswith(f"{eval_data}:") for name in ids)
    assert all(record["expected"].startswith("It is ") for record in records[2])
    assert any("<image>" in record["prompt"] for record in records[2])
    assert [path.name for path in plain.iterdir() if path.name in ("eval", "best.json")] == []


def test_the_best_is_saved_kept_and_found(
    tmp_path: Path, model: Path, data: Path, eval_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A learning rate at which the model only gets worse after a while."""
    run = tmp_path / "run"
    settings = {
        **BEST, "data__eval": str(eval_data), "train__max_steps": 8, "checkpoint__keep": 1,
        "checkpoint__save_every": 4, "optimizer__learning_rate": 0.3, "schedule__type": "constant",
    }  # fmt: skip
    run_training(make_config(run, model, data, **settings))
    found = {int(line["step"]): line["eval/loss"] for line in figures(run)}
    best = min(found, key=found.__getitem__)
    assert best < 8, "the test needs a run that gets worse"
    assert best_of(run) == {
        "checkpoint": f"checkpoint-{best:06d}", "step": best, "metric": "eval/loss", "value": found[best]
    }  # fmt: skip
    assert checkpoints(run) == [best, 8]
    assert find_checkpoint(run / "best") == run / f"checkpoint-{best:06d}"
    assert find_checkpoint(run) == run / "checkpoint-000008"
    printed = capsys.readouterr().out
    assert f"The trained model is {run}/checkpoint-000008" in printed
    assert f"The best checkpoint by eval/loss ({found[best]:.4f}) is {run}/checkpoint-{best:06d}" in printed


def test_a_run_ends_when_nothing_improves_and_goes_on_with_more_patience(
    tmp_path: Path, model: Path, data: Path, eval_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No improvement is as large as min_delta, but for the first."""
    run = tmp_path / "run"
    settings = {
        **BEST, "data__eval": str(eval_data), "train__max_steps": 5, "eval__patience": 2, "eval__min_delta": 1e6,
        "log__every": 4,
    }  # fmt: skip
    assert run_training(make_config(run, model, data, **settings)) == 0
    printed = capsys.readouterr().out
    first = figures(run)[0]["eval/loss"]
    assert (
        f"Stopped early, after step 3 of 5: eval/loss has not improved on {first:.4f} by more "
        "than 1e+06 for 2 evaluations." in printed
    )
    assert [line["step"] for line in figures(run)] == [1, 2, 3]
    assert [step for step, *_ in losses(run)] == [3], "the steps before the end are logged"
    run_training(make_config(run, model, data, **settings), resume=True)
    assert "Stopped early, after step 3" in capsys.readouterr().out
    assert [line["step"] for line in figures(run)] == [1, 2, 3]
    run_training(make_config(run, model, data, **settings | {"eval__patience": 9}), resume=True)
    assert [line["step"] for line in figures(run)] == [1, 2, 3, 4, 5]


def test_a_resumed_run_decides_as_one_that_never_stopped(
    tmp_path: Path, model: Path, data: Path, eval_data: Path
) -> None:
    settings = {
        **BEST, "data__eval": str(eval_data), "train__max_steps": 9, "eval__patience": 3, "checkpoint__keep": 99,
        "checkpoint__save_every": 1, "optimizer__learning_rate": 0.3, "eval__samples": 3, "eval__max_new_tokens": 4,
    }  # fmt: skip
    whole = tmp_path / "whole"
    run_training(make_config(whole, model, data, **settings))
    last = checkpoints(whole)[-1]
    assert last < 9, "the test needs a run that stops early"
    for step in range(1, last):
        part = tmp_path / f"part{step}"
        copy_at(whole, part, step)
        run_training(make_config(part, model, data, **settings), resume=True)
        assert_same_run(whole, part)
        assert figures(whole) == figures(part)
        assert best_of(whole) == best_of(part)
        assert checkpoints(whole) == checkpoints(part)
        for file in (whole / "eval").iterdir():
            assert file.read_bytes() == (part / "eval" / file.name).read_bytes()


def test_pairs_out_of_a_stream_with_adapters(tmp_path: Path, model: Path) -> None:
    pairs = [
        {"messages": [question], "chosen": answer, "rejected": "Say what?"}
        for question, answer in (sample["messages"] for sample in chats(12))
    ]
    data = write_chats(tmp_path / "pairs.jsonl", pairs)
    settings = {
        **ANSWERS, "task": "dpo", "lora__enabled": True, "data__streaming": True, "data__buffer": 12,
        "data__eval": str(data),
        "train__max_steps": 5, "checkpoint__save_every": 1, "checkpoint__keep": 9,
        "eval__best_metric": "eval/rewards/margin", "eval__patience": 2,
    }  # fmt: skip
    whole, part = tmp_path / "whole", tmp_path / "part"
    run_training(make_config(whole, model, data, **settings))
    found = figures(whole)
    assert [line["step"] for line in found] == [2, 4, 5]
    assert {"eval/rewards/accuracy", "eval/exact_match"} <= set(found[0])
    assert found[0]["eval/rewards/margin"] < found[2]["eval/rewards/margin"]
    assert best_of(whole) == {
        "checkpoint": "checkpoint-000005", "step": 5, "metric": "eval/rewards/margin",
        "value": found[2]["eval/rewards/margin"],
    }  # fmt: skip
    records = [json.loads(line) for line in (whole / "eval" / "step-000004.jsonl").open()]
    assert all(record["expected"].startswith("It is ") for record in records), "the chosen answers"
    copy_at(whole, part, 3)
    run_training(make_config(part, model, data, **settings), resume=True)
    assert_same_run(whole, part)
    assert figures(part) == found and best_of(part) == best_of(whole)


def test_checkpoints_of_before_can_be_resumed_and_a_lost_best_is_reported(
    tmp_path: Path, model: Path, data: Path, eval_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    plain = {"train__max_steps": 2, "checkpoint__save_every": 1}
    run_training(make_config(run, model, data, **plain))
    file = run / "checkpoint-000002" / STATE_FILE
    state = json.loads(file.read_text())
    del state["best"], state["config"]["eval"], state["checksum"]
    file.write_text(json.dumps(state))
    capsys.readouterr()
    settings = {**BEST, "data__eval": str(eval_data)}
    run_training(make_config(run, model, data, **settings, train__max_steps=3), resume=True)
    printed = capsys.readouterr().out
    assert "eval.best_metric: None -> eval/loss" in printed
    assert printed.count("None -> ") == 2, "with train.eval_every; other keys have their defaults"
    assert best_of(run)["step"] == 3
    shutil.rmtree(run / "checkpoint-000003")
    with pytest.raises(CheckpointError, match=r"the best checkpoint according to .*, does not exist"):
        find_checkpoint(run / "best")
    run_training(make_config(run, model, data, **settings, train__max_steps=3), resume=True)
    assert best_of(run)["step"] == 3
    state = json.loads((run / "checkpoint-000003" / STATE_FILE).read_text())
    assert state["best"] == read_state(run / "checkpoint-000003").best
    state["best"]["step"] = 1
    del state["checksum"]
    (run / "checkpoint-000003" / STATE_FILE).write_text(json.dumps(state))
    (run / "best.json").unlink()
    capsys.readouterr()
    run_training(make_config(run, model, data, **settings, train__max_steps=4), resume=True)
    assert (
        "checkpoint-000001, the best checkpoint, does not exist; the next evaluation is the best"
        in capsys.readouterr().out
    )
    assert best_of(run)["step"] == 4


@pytest.mark.parametrize("part", ["loss", "answers"])
def test_an_interrupted_evaluation_is_made_when_the_run_is_resumed(
    tmp_path: Path, model: Path, data: Path, eval_data: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """A preempted machine does not live as long as an evaluation takes: the run is saved at once."""
    settings = {
        **BEST,
        **ANSWERS,
        "train__eval_every": 2,
        "data__eval": str(eval_data),
        "train__max_steps": 5,
    }
    whole, run = tmp_path / "whole", tmp_path / "run"
    run_training(make_config(whole, model, data, **settings))

    def interrupting(function: Any) -> Any:
        def call(*arguments: Any, **keywords: Any) -> Any:
            os.kill(os.getpid(), signal.SIGTERM)
            return function(*arguments, **keywords)

        return call

    with monkeypatch.context() as patch:
        if part == "loss":
            patch.setattr(evaluator.EvalRows, "once", interrupting(evaluator.EvalRows.once))
        else:
            patch.setattr(answers, "evaluate_generation", interrupting(answers.evaluate_generation))
        assert run_training(make_config(run, model, data, **settings)) == 143
    assert newest_checkpoint(run) == run / "checkpoint-000002"
    assert figures(run) == [] and not (run / "eval").exists()
    assert run_training(make_config(run, model, data, **settings), resume=True) == 0
    assert_same_run(whole, run)
    assert figures(whole) == figures(run)
    assert best_of(whole) == best_of(run)


def test_an_evaluation_that_fails_does_not_lose_the_steps_before(
    tmp_path: Path,
    model: Path,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The image of a sample has vanished meanwhile. Nothing else is saved before the end."""
    image = tmp_path / "red.png"
    image.write_bytes(base64.b64decode(image_uri(COLOURS["red"], 1).partition(",")[2]))
    parts = [{"type": "image_url", "image_url": {"url": str(image)}}, {"type": "text", "text": "Which?"}]
    chat = {"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "Red."}]}
    settings = {"data__eval": str(write_chats(tmp_path / "eval.jsonl", [chat])), "train__max_steps": 3}
    whole, run = tmp_path / "whole", tmp_path / "run"
    run_training(make_config(whole, model, data, **settings))
    content = image.read_bytes()
    at_step(2, monkeypatch, image.unlink)
    with pytest.raises(SampleError, match=r"red\.png"):
        run_training(make_config(run, model, data, **settings))
    monkeypatch.undo()
    assert "saving step 3 after an error" in capsys.readouterr().out
    assert newest_checkpoint(run) == run / "checkpoint-000003"
    image.write_bytes(content)
    shutil.copystat(run, image)
    assert run_training(make_config(run, model, data, **settings), resume=True) == 0
    assert_same_run(whole, run)
    assert figures(whole) == figures(run)


def test_the_best_checkpoint_stays_while_a_better_one_cannot_be_written(
    tmp_path: Path, model: Path, data: Path, eval_data: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    run = tmp_path / "run"
    settings = {
        **BEST, "data__eval": str(eval_data), "train__max_steps": 6, "train__eval_every": 2, "checkpoint__keep": 1,
        "checkpoint__save_every": 3, "optimizer__learning_rate": 1e-4,
    }  # fmt: skip
    written = writer.write_safetensors

    def write(file: Path, *arguments: Any) -> Any:
        if "000004" in str(file) or "000006" in str(file):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return written(file, *arguments)

    monkeypatch.setattr(writer, "write_safetensors", write)
    with pytest.raises(CheckpointError, match="No space left on device"):
        run_training(make_config(run, model, data, **settings))
    assert [line["step"] for line in figures(run)] == [2, 4, 6]
    improved = [line["eval/loss"] for line in figures(run)]
    assert improved == sorted(improved, reverse=True), "the test needs a run that gets better"
    assert "checkpoint-000004, the best checkpoint, does not exist; the best is checkpoint-000002 again" in (
        capsys.readouterr().out
    )
    assert best_of(run)["step"] == 2 and checkpoints(run) == [2, 3]
    monkeypatch.undo()
    assert run_training(make_config(run, model, data, **settings), resume=True) == 0
    assert best_of(run)["step"] == 6 and checkpoints(run) == [6]


def test_evaluations_of_other_data_are_not_compared(
    tmp_path: Path, model: Path, data: Path, eval_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, own = tmp_path / "run", tmp_path / "eval.jsonl"
    shutil.copy(eval_data, own)
    settings = {**BEST, "data__eval": str(own), "train__max_steps": 1}
    run_training(make_config(run, model, data, **settings))
    write_chats(own, chats(5, seed=9))
    capsys.readouterr()
    settings["optimizer__learning_rate"] = 1e-9
    assert run_training(make_config(run, model, data, **settings | {"train__max_steps": 2}), resume=True) == 0
    assert "data.eval, or how answers to it are generated, has changed; the search" in capsys.readouterr().out
    assert best_of(run)["step"] == 2


def test_what_cannot_be_measured_is_reported_before_training(
    tmp_path: Path, model: Path, data: Path, eval_data: Path
) -> None:
    settings = {**ANSWERS, "data__eval": str(eval_data), "train__max_steps": 2}
    with pytest.raises(ConfigError, match=r"eval\.best_metric: call_name does not apply to any of the 4"):
        run_training(make_config(tmp_path / "a", model, data, **settings, eval__best_metric="eval/call_name"))
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"text": "Red, green and blue are colours, number 3."}\n')
    with pytest.raises(ConfigError, match=r"data\.eval has no chat that can be answered"):
        run_training(make_config(tmp_path / "b", model, data, **settings | {"data__eval": str(texts)}))
