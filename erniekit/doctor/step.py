"""The optimizer's step, and a training step of a small vision-language model: in each dtype, and repeated."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from PIL import Image

from erniekit.checkpoint.weights import load_model
from erniekit.config import Config
from erniekit.create.create import create_model
from erniekit.data.load.batch import PackedBatch
from erniekit.data.media.patches import ImageSpec
from erniekit.doctor.check import Check, Result, failed, ok, warning
from erniekit.doctor.kernels import TOLERANCE, relative_error
from erniekit.kernels.adamw import AdamWParameter, adamw
from erniekit.kernels.choice import FORMS, use_forms
from erniekit.objectives.sft import SftObjective
from erniekit.train.inputs import load_inputs

_RATE, _DECAY, _BETAS, _EPSILON = 1e-2, 0.1, (0.9, 0.95), 1e-8
# Tolerances for a whole model, relative to the loss and to the norm of all gradients.
_LOSS_TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}
_GRADIENT_TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1}
# Two heads of keys, so that two processes can share them.
_SHAPE, _OVERRIDES = "tiny-vl", ["num_hidden_layers=2", "num_key_value_heads=2"]


class SmallModel:
    """A small vision-language model, chats about images, and a packed sequence of them, in a directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @cached_property
    def chats(self) -> Path:
        """Chats with images and without."""
        file, numbers = self.directory / "chats.jsonl", np.random.default_rng(0)
        self.directory.mkdir(parents=True, exist_ok=True)
        lines = []
        for number in range(8):
            name = f"image-{number}.png"
            Image.fromarray(numbers.integers(0, 256, (56, 84, 3), np.uint8)).save(self.directory / name)
            question: Any = f"Which number follows {number}?"
            if number % 2:
                text, image = (
                    {"type": "text", "text": question},
                    {"type": "image_url", "image_url": {"url": name}},
                )
                question = [image, text]
            messages = [
                {"role": "user", "content": question},
                {"role": "assistant", "content": f"It is {number + 1}."},
            ]
            lines.append(json.dumps({"messages": messages}) + "\n")
        file.write_text("".join(lines), encoding="utf-8")
        return file

    @cached_property
    def path(self) -> Path:
        """The model directory."""
        create_model(_SHAPE, self.directory / "model", [self.chats], overrides=_OVERRIDES)
        return self.directory / "model"

    def settings(self, name: str, **sections: dict[str, Any]) -> dict[str, Any]:
        """The configuration of a short run in the directory `name`; sections add to it."""
        base: dict[str, dict[str, Any]] = {
            "model": {"path": str(self.path)},
            "data": {"train": str(self.chats), "max_length": 256, "workers": 0, "cache": False},
            "train": {"output_dir": str(self.directory / name), "max_steps": 2, "rows_per_step": 2},
            "log": {"every": 1, "tensorboard": False},
        }
        return {key: base.get(key, {}) | sections.get(key, {}) for key in base.keys() | sections.keys()}

    @cached_property
    def row(self) -> PackedBatch:
        """The first packed sequence."""
        with redirect_stdout(io.StringIO()):
            inputs = load_inputs(Config.model_validate(self.settings("row")), lambda line: None)
        try:
            return inputs.train.next_row()
        finally:
            inputs.close()

    def loss_and_gradients(self, dtype: str) -> tuple[float, dict[str, np.ndarray]]:
        """The loss per token of the row, and its gradient by parameter."""
        model = load_model(self.path, dtype)
        spec = ImageSpec.from_checkpoint(self.path)
        model.image_mean, model.image_std = spec.image_mean, spec.image_std
        output = SftObjective(model)(self.row)
        loss = output.total / output.num_loss_tokens
        loss.backward()
        gradients = {
            name: parameter.grad.astype("float32").numpy()
            for name, parameter in model.named_parameters()
            if parameter.grad is not None
        }
        return float(loss), gradients


def step_checks(device: str, model: SmallModel) -> list[Check]:
    """Checks of a step on this device."""
    dtypes = ("float32", "bfloat16") if device == "gpu" else ("float32",)
    forms = [form for form in FORMS["adamw"] if device == "gpu" or form != "triton"]
    checks = [
        Check(
            "step",
            f"AdamW, {form}, {'float32' if dtype == 'float32' else 'bfloat16 with float32 masters'}",
            partial(check_adamw, form, dtype),
        )
        for form in forms
        for dtype in dtypes
    ]
    checks += [
        Check(
            "step",
            f"{_SHAPE}, {dtype}, loss and gradients against plain kernels in float32",
            partial(check_step, model, dtype),
        )
        for dtype in dtypes
    ]
    return [*checks, Check("step", "two equal steps", partial(check_repeat, model, dtypes[-1]))]


def check_adamw(form: str, dtype: str) -> Result:
    """Compares three steps with the formula in float64; a bfloat16 parameter is its master weight, rounded."""
    numbers = np.random.default_rng(0)
    start = numbers.standard_normal(5000).astype("float32")
    value = start.astype("float64")
    first, second = np.zeros_like(value), np.zeros_like(value)
    moments = [paddle.zeros([5000], "float32") for _ in range(2)]
    parameter = paddle.to_tensor(start).astype(dtype)
    master = None if dtype == "float32" else paddle.to_tensor(start)
    slot = AdamWParameter(parameter, 1.0, _DECAY, moments[0], moments[1], master)
    with use_forms(adamw=form):
        for step in (1, 2, 3):
            gradient = paddle.to_tensor(numbers.standard_normal(5000).astype("float32")).astype(dtype)
            exact = gradient.astype("float64").numpy()
            adamw([(slot, gradient)], _RATE, step, betas=_BETAS, epsilon=_EPSILON)
            first = _BETAS[0] * first + (1 - _BETAS[0]) * exact
            second = _BETAS[1] * second + (1 - _BETAS[1]) * exact**2
            corrected = first / (1 - _BETAS[0] ** step)
            scale = np.sqrt(second / (1 - _BETAS[1] ** step)) + _EPSILON
            value = value * (1 - _RATE * _DECAY) - _RATE * corrected / scale
    error = relative_error(slot.values.astype("float64").numpy() - start, value - start)
    if not error <= TOLERANCE["float32"] * 10:
        return failed(f"the change of the values is wrong by {error:.1e}")
    if master is not None and not bool((parameter == master.astype(dtype)).all()):
        return failed("the parameter is not its master copy, rounded to bfloat16")
    return ok(f"error of the change {error:.1e}")


def check_step(model: SmallModel, dtype: str) -> Result:
    """Compares loss and gradients of the chosen kernels with plain kernels in float32."""
    loss, gradients = model.loss_and_gradients(dtype)
    with use_forms(**dict.fromkeys(FORMS, "plain")):
        plain_loss, plain = model.loss_and_gradients("float32")
    if gradients.keys() != plain.keys():
        missing = sorted(gradients.keys() ^ plain.keys())
        return failed(f"gradients of {', '.join(missing[:3])} are missing")
    names = sorted(plain)
    error = relative_error(
        *(np.concatenate([found[name].ravel() for name in names]) for found in (gradients, plain))
    )
    change = abs(loss - plain_loss) / plain_loss
    figures = f"loss {loss:.5f}, {change:.1e} from {plain_loss:.5f}; gradients differ by {error:.1e}"
    if not (change <= _LOSS_TOLERANCE[dtype] and error <= _GRADIENT_TOLERANCE[dtype]):
        return failed(f"{figures}; allowed {_LOSS_TOLERANCE[dtype]:.0e} and {_GRADIENT_TOLERANCE[dtype]:.0e}")
    return ok(figures)


def check_repeat(model: SmallModel, dtype: str) -> Result:
    """Whether the same step gives the same bits twice."""
    (loss, gradients), (again, others) = (model.loss_and_gradients(dtype) for _ in range(2))
    different = [name for name in gradients if not np.array_equal(gradients[name], others[name])]
    if loss == again and not different:
        return ok(f"equal bit for bit, in {dtype}")
    error = max((relative_error(gradients[name], others[name]) for name in different), default=0.0)
    return warning(
        f"in {dtype}, losses {loss!r} and {again!r}, and {len(different)} of {len(gradients)} gradients differ, by up "
        f"to {error:.1e}: set train.deterministic for equal bits"
    )
