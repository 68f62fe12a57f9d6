"""Small models, chats and configurations that the training tests share."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from erniekit.config import Config, load_config
from erniekit.create.create import create_model
from erniekit.train.metric_names import find_metric

SHAPE_OVERRIDES = {
    "tiny-dense": ["num_hidden_layers=2"],
    "tiny-moe": ["num_hidden_layers=2"],
    "tiny-vl": ["num_hidden_layers=2"],
}
TRAINED_STEPS = 60
TIME_QUESTION = "What is the time in Rome?"
TIME_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "time",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
TIME_CALL = {"id": "1", "type": "function", "function": {"name": "time", "arguments": '{"city": "Rome"}'}}
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 60), "blue": (40, 60, 230), "yellow": (230, 220, 40)}


def image_uri(colour: tuple[int, int, int], seed: int) -> str:
    """A noisy square of one colour as a data: URI."""
    noise = np.random.default_rng(seed).integers(-20, 20, (56, 56, 3))
    pixels = np.clip(np.asarray(colour) + noise, 0, 255).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def chats(count: int, seed: int = 0, *, images: bool = True) -> list[dict[str, Any]]:
    """Chats whose answer is a colour, shown in an image or named in the question."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        name = list(COLOURS)[int(rng.integers(len(COLOURS)))]
        content: Any = f"Say {name}, number {number}."
        if images and number % 3:
            image = {"url": image_uri(COLOURS[name], seed + number)}
            content = [{"type": "image_url", "image_url": image}, {"type": "text", "text": "Which colour?"}]
        answer = {"role": "assistant", "content": f"It is {name}."}
        found.append({"messages": [{"role": "user", "content": content}, answer]})
    return found


def tool_chats() -> list[dict[str, Any]]:
    """Chats that call a tool, and one that answers with its result."""
    question = {"role": "user", "content": TIME_QUESTION}
    call = {"role": "assistant", "content": None, "tool_calls": [TIME_CALL]}
    result, answer = {"role": "tool", "content": "12:00"}, {"role": "assistant", "content": "It is noon."}
    asked = {"messages": [question, call], "tools": [TIME_TOOL]}
    answered = {"messages": [question, {**call, "loss": False}, result, answer], "tools": [TIME_TOOL]}
    return [asked, asked, answered]


def write_chats(file: Path, samples: list[dict[str, Any]]) -> Path:
    """Chats as JSON lines."""
    file.write_text("".join(json.dumps(sample) + "\n" for sample in samples), encoding="utf-8")
    return file


def make_model(directory: Path, shape: str = "tiny-vl") -> Path:
    """A small model with a tokenizer for the chats."""
    text = write_chats(directory.parent / f"{directory.name}.text.jsonl", chats(40, images=False))
    create_model(shape, directory, [text], seed=3, overrides=SHAPE_OVERRIDES[shape])
    return directory


def make_config(directory: Path, model: Path, data: Path, **settings: Any) -> Config:
    """A configuration for `directory` with small steps on one thread; `settings` as a__b=value for a.b."""
    defaults = {
        "model.path": str(model),
        "data.train": str(data),
        "data.max_length": 160,
        "data.workers": 0,
        "optimizer.learning_rate": 1e-3,
        "train.output_dir": str(directory),
        "train.rows_per_step": 2,
        "parallel.device": "cpu",
        "parallel.threads": 1,
    }
    chosen = defaults | {key.replace("__", "."): value for key, value in settings.items()}
    file = directory.parent / f"{directory.name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("{}\n")
    return load_config(file, [f"{key}={json.dumps(value)}" for key, value in chosen.items()])


def read_log(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's log."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    names = {name for line in lines if "event" not in line for name in line}
    unknown = {name for name in names if find_metric(name) is None} - {"step", "time", "epoch"}
    assert not unknown, f"not in the glossary of metrics: {unknown}"
    return lines


def losses(run: Path) -> list[tuple[int, float, float, float]]:
    """Step, loss, gradient norm and learning rate of each logged step."""
    keys = ("train/loss", "train/gradient_norm", "train/learning_rate")
    return [(line["step"], *(line[key] for key in keys)) for line in read_log(run) if "train/loss" in line]
