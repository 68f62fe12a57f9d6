"""Runs of two processes, of which some or all cannot read an image."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.distributed.image_checks import draw_differently, reference_loads
from tests.distributed.layouts import trainings
from tests.distributed.processes import run, run_to_end
from tests.integration.training_setup import chats, losses, make_model, read_log, write_chats


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a model, and images of `samples`."""
    directory = tmp_path_factory.mktemp("pictures")
    make_model(directory / "model")
    return directory


def setting(directory: Path, name: str) -> dict[str, Any]:
    return {
        "model.path": str(directory / "model"),
        "data.max_length": 160,
        "data.workers": 0,
        "data.on_error": "skip",
        "data.cache_dir": str(directory / name / "cache"),
        "train.rows_per_step": 2,
        "train.max_steps": 2,
        "train.output_dir": str(directory / name / "run"),
        "parallel.device": "cpu",
        "parallel.threads": 1,
    }


def samples(directory: Path, damaged: tuple[int, ...] = ()) -> list[dict[str, Any]]:
    """Eight chats whose images are files in `directory`; of the damaged ones the size can be read, no more."""
    directory.mkdir()
    found = chats(8)
    for number, sample in enumerate(found):
        content = sample["messages"][0]["content"]
        if isinstance(content, list):
            data = base64.b64decode(content[0]["image_url"]["url"].split(",")[1])
            file = directory / f"{number}.png"
            file.write_bytes(data[: len(data) // 3] if number in damaged else data)
            content[0]["image_url"] = {"url": str(file)}
    return found


def test_a_cached_reference_is_computed_by_the_main_process_alone(directory: Path) -> None:
    """Once, though an image stays unreadable; the other process gets the values."""
    pairs = [
        {"messages": [question], "chosen": answer, "rejected": "No."}
        for question, answer in (sample["messages"] for sample in samples(directory / "cached", damaged=(4,)))
    ]
    settings = setting(directory, "cached") | {
        "task": "dpo",
        "dpo.reference": "cached",
        "data.train": str(write_chats(directory / "cached" / "pairs.jsonl", pairs)),
    }
    starts = [str(directory / "cached" / f"run-{number}") for number in range(2)]
    found = run(2, reference_loads, 2, [settings | {"train.output_dir": start} for start in starts])
    assert [rank["loads"] for rank in found] == [1, 0]
    first, second = (read_log(Path(start)) for start in starts)
    assert np.isfinite([line["train/loss"] for line in first]).all()
    assert [line["train/loss"] for line in second] == [line["train/loss"] for line in first]


@pytest.mark.parametrize("dims", [{}, {"parallel.expert": 2}], ids=["own chats", "in step"])
def test_processes_that_draw_different_eval_chats_say_so(directory: Path, dims: dict[str, Any]) -> None:
    name = f"eval-{len(dims)}"
    data = str(write_chats(directory / f"{name}.jsonl", samples(directory / name)))
    settings = setting(directory, name) | {
        "data.train": data,
        "data.eval": data,
        "eval.samples": 8,
        "eval.max_new_tokens": 2,
        **dims,
    }
    ends = run_to_end(2, draw_differently, 2, settings, f"{data}:2")
    for end in ends:
        assert (
            "ErnieKitError: eval.samples: the processes have drawn different chats of data.eval" in end.output
        )
    words = rf"chat \d is {data}:2 of \d+ tokens on rank 0, but {data}:\d of \d+ tokens on rank 1"
    assert re.search(words, ends[0].output)
    for end in ends:
        assert f"One of them has skipped {data}:2: the picture cannot be read here. Give" in end.output


def test_skipped_samples_are_reported_and_counted_on_all_processes(directory: Path) -> None:
    """Each process reads two of the four that are damaged; the main process reports all of them once. Where a step has
    no other samples, the next one takes its place."""
    damaged = (1, 2, 4, 5)
    data = str(write_chats(directory / "skipped.jsonl", samples(directory / "skipped", damaged)))
    settings = setting(directory, "skipped") | {"data.train": data, "data.eval": data}
    # Rows of one chat each, and every chat once.
    settings |= {"data.max_length": 45, "data.shuffle": False, "train.max_steps": None, "train.epochs": 1}
    stopping = settings | {"data.eval": [], "data.max_errors": 1, "train.output_dir": f"{directory}/stopped"}
    ends = run_to_end(2, trainings, 2, [settings, stopping])
    first, second = ends[0].output.split("Done: ")
    # In training and in the evaluation.
    assert [first.count(f"skipped: {data}:{number + 1}: ") for number in damaged] == [2, 2, 2, 2]
    assert [step for step, *_ in losses(directory / "skipped" / "run")] == [1, 2, 3]
    assert "DataError: more than data.max_errors=1 samples cannot be used" in second + ends[1].output
