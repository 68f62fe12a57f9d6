"""What people get wrong: each is one clear message that names the place, exit status 1, and no traceback."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from erniekit.checkpoint.hub import TensorSpec, read_array, read_index, write_shards
from tests.command import erniekit
from tests.integration.training_setup import chats, write_chats


class Workplace:
    """A directory with a model, data and a configuration that would train."""

    def __init__(self, directory: Path, model: Path) -> None:
        self.directory = directory
        self.model = model
        self.data = write_chats(directory / "train.jsonl", chats(12))
        self.config = directory / "run.yaml"
        self.config.write_text(
            f"model:\n  path: {model}\ndata:\n  train: {self.data}\n  max_length: 512\n  workers: 0\n"
            f"train:\n  output_dir: {directory / 'run'}\n  max_steps: 2\n"
        )

    def change(self, number: int, edit: Callable[[dict[str, Any]], None]) -> None:
        """Edit one sample; lines count from 1."""
        samples = [json.loads(line) for line in self.data.read_text().splitlines()]
        edit(samples[number - 1])
        write_chats(self.data, samples)

    def train(self, *overrides: str) -> subprocess.CompletedProcess[str]:
        """`erniekit train`."""
        return erniekit("train", self.config, *overrides)


@pytest.fixture
def place(tmp_path: Path, model: Path) -> Workplace:
    return Workplace(tmp_path, model)


def _unknown_key(place: Workplace) -> str:
    place.config.write_text(place.config.read_text().replace("max_steps", "max_stepz"))
    return "run.yaml:9: train.max_stepz"


def _missing_image(place: Workplace) -> str:
    place.change(2, lambda sample: sample["messages"][0]["content"][0].update(image_url={"url": "gone.png"}))
    return "train.jsonl:2: "


def _truncated_jpeg(place: Workplace) -> str:
    from PIL import Image

    file = place.directory / "cut.jpg"
    Image.effect_noise((300, 200), 60).save(file)
    file.write_bytes(file.read_bytes()[:-2000])
    place.change(3, lambda sample: sample["messages"][0]["content"][0].update(image_url={"url": "cut.jpg"}))
    return "train.jsonl:3: "


def _json_error(place: Workplace) -> str:
    lines = place.data.read_text().splitlines()
    lines[4] = lines[4][:-3]
    place.data.write_text("\n".join(lines))
    return "train.jsonl:5: "


def _empty_dataset(place: Workplace) -> str:
    place.data.write_text("")
    return "train.jsonl"


def _no_loss_token(place: Workplace) -> str:
    place.change(6, lambda sample: sample["messages"][1].update(loss=False))
    return "train.jsonl:6: "


def _missing_tensor(place: Workplace) -> str:
    found = read_index(place.model)
    left_out = "model.layers.1.mlp.experts.5.up_proj.weight"
    copy = place.directory / "model"
    copy.mkdir()
    for file in place.model.iterdir():
        if "safetensors" not in file.name:
            (copy / file.name).write_bytes(file.read_bytes())
    specs = [
        TensorSpec(info.name, info.dtype, info.shape) for name, info in found.items() if name != left_out
    ]
    write_shards(copy, specs, lambda name: read_array(found[name]))
    place.config.write_text(place.config.read_text().replace(str(place.model), str(copy)))
    return left_out


MISTAKES = [
    _unknown_key,
    _missing_image,
    _truncated_jpeg,
    _json_error,
    _empty_dataset,
    _no_loss_token,
    _missing_tensor,
]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__.strip("_"))
def test_a_mistake_is_reported_with_its_place(place: Workplace, mistake: Callable[[Workplace], str]) -> None:
    named = mistake(place)
    finished = place.train()
    assert finished.returncode == 1
    assert "error: " in finished.stderr
    assert named in finished.stderr
    assert "Traceback" not in finished.stderr + finished.stdout


@pytest.mark.parametrize(
    "mistake",
    [_missing_image, _truncated_jpeg, _json_error, _no_loss_token],
    ids=lambda m: m.__name__.strip("_"),
)
def test_where_the_configuration_says_so_a_bad_sample_is_counted(
    place: Workplace, mistake: Callable[[Workplace], str]
) -> None:
    mistake(place)
    finished = place.train("data.on_error=skip")
    assert finished.returncode == 0, finished.stderr
    assert "skipped" in finished.stdout + finished.stderr
    finished = place.train(
        "data.on_error=skip", "data.max_errors=0", f"train.output_dir={place.directory / 'b'}"
    )
    assert finished.returncode == 1
    assert "Traceback" not in finished.stderr
