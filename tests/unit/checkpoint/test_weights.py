"""Between a model in memory and its tensors on disk, in float32 and bfloat16."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import paddle
import pytest

from erniekit.checkpoint.element_types import bfloat16_to_float32, float32_to_bfloat16
from erniekit.checkpoint.hub import read_index
from erniekit.checkpoint.quantizer import Quantizer
from erniekit.checkpoint.weights import load_model
from erniekit.errors import CheckpointError
from erniekit.models.config import ErnieConfig
from erniekit.models.factory import build_model
from erniekit.models.specs import is_router_tensor
from tests.model_configs import FLAT
from tests.models import save_weights


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A float32 checkpoint of random values."""
    model = build_model(ErnieConfig.from_json(FLAT))
    rng = np.random.default_rng(0)
    for parameter in model.parameters():
        parameter.set_value(paddle.to_tensor(rng.standard_normal(parameter.shape).astype("float32")))
    (tmp_path / "config.json").write_text(json.dumps(FLAT))
    save_weights(model, tmp_path)
    return tmp_path


def _values(directory: Path, dtype: str) -> dict[str, np.ndarray]:
    model = load_model(directory, dtype)
    return {name: p.astype("float32").numpy() for name, p in model.named_parameters()}


def test_bfloat16_rounds_all_but_the_routers(directory: Path) -> None:
    exact, rounded = _values(directory, "float32"), _values(directory, "bfloat16")
    for name, value in exact.items():
        expected = value if is_router_tensor(name) else bfloat16_to_float32(float32_to_bfloat16(value))
        np.testing.assert_array_equal(rounded[name], expected, err_msg=name)


def test_a_bfloat16_checkpoint_comes_back_in_either_type(directory: Path, tmp_path: Path) -> None:
    rounded = _values(directory, "bfloat16")
    again = tmp_path / "again"
    again.mkdir()
    (again / "config.json").write_text(json.dumps(FLAT))
    save_weights(load_model(directory, "bfloat16"), again)
    for name, info in read_index(again).items():
        assert info.dtype == ("F32" if is_router_tensor(name) else "BF16")
    for dtype in ("float32", "bfloat16"):
        for name, value in _values(again, dtype).items():
            np.testing.assert_array_equal(value, rounded[name], err_msg=name)


@pytest.mark.parametrize("bits", [None, 4])
def test_nan_is_not_loaded(directory: Path, bits: int | None) -> None:
    """By all that computes: train, eval, chat, serve."""
    name = "model.layers.1.self_attn.q_proj.weight"
    info = read_index(directory)[name]
    with info.file.open("r+b") as file:
        file.seek(info.offset + info.nbytes - 4)
        file.write(np.full(1, np.inf, np.float32).tobytes())
    with pytest.raises(CheckpointError, match=f"{info.file.name}: {name} holds NaN or infinity"):
        load_model(directory, quantizer=None if bits is None else Quantizer(bits))


def test_what_does_not_fit_the_configuration_is_listed(directory: Path) -> None:
    (directory / "config.json").write_text(
        json.dumps(FLAT | {"num_hidden_layers": 5, "moe_layer_end_index": -1})
    )
    with pytest.raises(
        CheckpointError, match=r"30 tensors are missing:\n  model\.layers\.4\.input_layernorm\.weight \[16\]"
    ):
        load_model(directory)
