"""Safetensors on disk: round trips, damage, and memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from erniekit.checkpoint import element_types, hub
from erniekit.errors import CheckpointError
from erniekit.models.specs import TensorSpec

ROOT = Path(__file__).resolve().parents[3]

ARRAYS = {
    "a.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "b.bias": np.array([1.5, -2.0], np.float32),
    "c": np.array(7.0, np.float32),
}
SPECS = [TensorSpec(name, "F32", array.shape) for name, array in ARRAYS.items()]


def test_shards_are_read_back_and_by_the_library(tmp_path: Path) -> None:
    files = hub.write_shards(tmp_path, SPECS, ARRAYS.__getitem__, max_shard_bytes=50)
    assert list(files) == [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    index = json.loads((tmp_path / hub.INDEX_FILE).read_text())
    assert index["metadata"]["total_size"] == 60
    found = hub.read_index(tmp_path)
    library = {name: array for file in files for name, array in load_file(tmp_path / file).items()}
    for name, array in ARRAYS.items():
        assert found[name].file.name == index["weight_map"][name]
        np.testing.assert_array_equal(hub.read_array(found[name]), array)
        np.testing.assert_array_equal(library[name], array)


def test_one_file_without_index_is_read(tmp_path: Path) -> None:
    save_file(ARRAYS, tmp_path / "model.safetensors")
    assert set(hub.read_index(tmp_path)) == set(ARRAYS)
    # Of two sets of weights each reader would take another one.
    hub.write_shards(tmp_path, SPECS, lambda name: ARRAYS[name])
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors and .*index\.json, which does not name it"
    ):
        hub.read_index(tmp_path)


@pytest.mark.slow
def test_bfloat16_rounds_to_nearest_even_and_widens_exactly() -> None:
    torch = pytest.importorskip("torch")
    values = np.random.default_rng(0).standard_normal(5000).astype(np.float32) * 1e3
    values[:6] = [0.0, -0.0, np.inf, -np.inf, np.nan, 1.00390625]
    narrow = element_types.float32_to_bfloat16(values)
    expected = torch.tensor(values).to(torch.bfloat16)
    np.testing.assert_array_equal(
        element_types.bfloat16_to_float32(narrow), expected.to(torch.float32).numpy()
    )


@pytest.mark.parametrize("damage", ["cut header", "cut data", "not json", "empty"])
def test_a_damaged_file_is_named(tmp_path: Path, damage: str) -> None:
    file = tmp_path / "model.safetensors"
    save_file(ARRAYS, file)
    content = file.read_bytes()
    changed = {
        "cut header": content[:20],
        "cut data": content[:-8],
        "not json": content[:8] + b"#" * (len(content) - 8),
        "empty": b"",
    }
    file.write_bytes(changed[damage])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        hub.read_index(tmp_path)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    files = hub.write_shards(tmp_path, SPECS, ARRAYS.__getitem__, max_shard_bytes=50)
    (tmp_path / list(files)[1]).unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002\.safetensors"):
        hub.read_index(tmp_path)


def test_no_weights_at_all(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no weights"):
        hub.read_index(tmp_path)


def test_all_misfits_are_listed_at_once(tmp_path: Path) -> None:
    save_file(
        ARRAYS | {"extra": np.zeros(2, np.float32), "model.mtp_block.0.w": np.zeros(1)},
        tmp_path / "model.safetensors",
    )
    wanted = [TensorSpec("a.weight", "F32", (4, 3)), *SPECS[1:], TensorSpec("gone", "F32", (5,))]
    with pytest.raises(CheckpointError) as caught:
        hub.check_against(hub.read_index(tmp_path), wanted, "here")
    message = str(caught.value)
    assert "gone [5]" in message
    assert "extra [2]" in message
    assert "a.weight is [3, 4], config.json wants [4, 3]" in message
    assert "mtp" not in message


def test_writing_refuses_an_array_that_is_not_what_was_announced(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.weight"):
        hub.write_shards(tmp_path, SPECS[:1], lambda _: np.zeros((3, 3), np.float32))


_MEMORY_SCRIPT = """
import json, sys
from pathlib import Path
from erniekit.models.config import ErnieConfig
from erniekit.models.factory import build_model
from erniekit.checkpoint.weights import load_model
from tests.models import save_weights

def rss(key):
    lines = open("/proc/self/status").read().split("\\n")
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) * 1024

raw = dict(model_type="ernie4_5", vocab_size=40000, hidden_size=256, intermediate_size=16384, num_hidden_layers=8,
           num_attention_heads=2, head_dim=128)
model = build_model(ErnieConfig.from_json(raw))
sizes = [p.size * 4 for p in model.parameters()]
out = Path(sys.argv[1])
(out / "config.json").write_text(json.dumps(raw))
result = dict(limit=2 * max(sizes) + (64 << 20), total=sum(sizes))
for key, action in (("save", lambda: save_weights(model, out)), ("load", lambda: load_model(out))):
    Path("/proc/self/clear_refs").write_text("5")
    before = rss("VmRSS")
    loaded = action()
    # What is loaded stays; the rest of the peak is what loading takes.
    result[key] = rss("VmHWM") - before - (result["total"] if key == "load" else 0)
print(json.dumps(result))
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc"
)
def test_saving_and_loading_hold_one_tensor_at_a_time(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _MEMORY_SCRIPT, str(tmp_path)]
    finished = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    figures = json.loads(finished.stdout.splitlines()[-1])
    assert figures["total"] > 2 * figures["limit"]
    assert figures["save"] < figures["limit"]
    assert figures["load"] < figures["limit"]


_TYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16}


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16"])
def test_values_that_are_not_finite(dtype: str) -> None:
    def array(values: list[float]) -> np.ndarray:
        if dtype == "BF16":
            return element_types.float32_to_bfloat16(np.array(values, np.float32))
        return np.array(values, _TYPES[dtype])

    limit = 3.3e38 if dtype == "BF16" else float(np.finfo(np.float16 if dtype == "F16" else np.float32).max)
    assert element_types.is_finite(array([0.0, -0.0, limit, -limit, 1e-40]), dtype)
    assert element_types.is_finite(array([]), dtype)
    assert element_types.is_finite(array([1.0]).reshape(()), dtype)
    # Values of float64 pass through float32.
    for value in (np.nan, -np.nan, np.inf, -np.inf, *((1e300, -3.40282357e38) if dtype == "F64" else ())):
        assert not element_types.is_finite(array([1.0, value]), dtype)
        # Beyond the first block that is compared, and not contiguous.
        many = array([1.0] * 300_000)
        many[200_000] = array([value])[0]
        assert not element_types.is_finite(many.reshape(2, -1).T, dtype)
    assert element_types.is_finite(np.array([0x7FF0], np.uint16), "U16")


def test_nan_is_refused_with_tensor_and_file(tmp_path: Path) -> None:
    values = {"a": np.ones((3, 4), np.float32), "b": np.ones(5, np.float32)}
    values["b"][3] = np.nan
    save_file(values, tmp_path / "model.safetensors")
    found = hub.read_index(tmp_path)
    assert hub.read_array(found["a"]).shape == (3, 4)
    assert hub.read_span(found["b"], 0, 3).tolist() == [1, 1, 1]
    for read in (lambda: hub.read_array(found["b"]), lambda: hub.read_span(found["b"], 2, 5)):
        with pytest.raises(CheckpointError, match=r"model\.safetensors: b holds NaN or infinity"):
            read()
    assert np.isnan(hub.read_array(found["b"], finite=False)[3])
