"""Exports quantized with a calibration set, with a script in place of llm-compressor."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from erniekit.checkpoint.hub import read_array, read_index
from erniekit.cli.export import export
from erniekit.errors import ConfigError, DataError, EngineError
from erniekit.evaluation.dataset import load_samples
from erniekit.export import calibrated
from erniekit.export.calibrated import Calibration, export_calibrated
from erniekit.export.engines import process
from erniekit.export.engines.process import LLM_COMPRESSOR, Environment
from erniekit.export.export import describe_export, export_model
from erniekit.export.quantized import Quantization, read_quantization, read_quantized_model
from erniekit.generation.load import find_model
from erniekit.models.specs import is_quantized_tensor
from tests.models import hub_values
from tests.unit.export.conftest import Copy
from tests.unit.export.weights import train_adapter

INT4 = Quantization(4, 32)
SCALE = 0.0078125
NORM = "model.layers.1.input_layernorm.weight"
READERS = [f"model.layers.1.self_attn.{name}_proj.weight" for name in "qkv"]

# Code i of a weight is i % 15 - 7: no rounding finds these.
SCRIPT = f"""
import json, sys
from pathlib import Path
import numpy as np
from safetensors.numpy import load_file, save_file
request = json.loads(Path(sys.argv[1]).read_text())
for file in Path(request["model"]).glob("*.safetensors"):
    tensors = load_file(file)
    if request["method"] == "awq":
        tensors["{NORM}"] /= 4
        for name in {READERS}:
            tensors[name] *= 4
        save_file(tensors, file, {{"format": "pt"}})
    else:
        found = {{}}
        for name, tensor in tensors.items():
            if name.startswith("model.layers.") and name.endswith("_proj.weight"):
                codes = np.arange(tensor.size, dtype=np.int64) % 15 - 7
                found[name + "_codes"] = codes.astype(np.int8).reshape(tensor.shape)
                groups = tensor.shape[1] // request["group"]
                found[name + "_scale"] = np.full((len(tensor), groups), {SCALE}, np.float32)
        save_file(found, request["codes"])
Path("{{seen}}").write_text(json.dumps(request))
response = {{"name": "llm-compressor 1", "warnings": ["one layer was rounded to nearest"]}}
Path(sys.argv[2]).write_text(json.dumps(response))
"""


@pytest.fixture
def data(tmp_path: Path) -> str:
    """Three chats, the first of which is long."""
    answers = ["red mat " * 40, "two green apples", "a small cat"]
    chats = [
        {"messages": [{"role": "user", "content": "a cat?"}, {"role": "assistant", "content": answer}]}
        for answer in answers
    ]
    file = tmp_path / "chats.jsonl"
    file.write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    return str(file)


@pytest.fixture
def seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file in which the script in place of llm-compressor leaves its request."""
    script, seen = tmp_path / "script.py", tmp_path / "seen.json"
    script.write_text(SCRIPT.replace("{seen}", str(seen)))
    monkeypatch.setattr(
        calibrated, "LLM_COMPRESSOR", Environment("llm-compressor", ".venv-none", str(script), "--option")
    )
    return seen


def quantize(model: Path, output: Path, data: str, method: Any, **options: Any) -> calibrated.ExportReport:
    calibration = Calibration(method, [data], python=Path(sys.executable), **options)
    return export_calibrated(model, output, calibration, INT4)


@pytest.mark.slow
def test_codes_of_gptq_are_written_as_they_are(
    models: dict[str, Path], tmp_path: Path, data: str, seen: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrated, "_MAX_TOKENS", 32)
    train_adapter(models["moe"], tmp_path / "adapter", ["q_proj", "down_proj"])
    plain = export_model(tmp_path / "adapter", tmp_path / "plain")
    nearest = export_model(tmp_path / "adapter", tmp_path / "nearest", quantization=INT4)
    report = quantize(tmp_path / "adapter", tmp_path / "out", data, "gptq", samples=2)
    values = hub_values(read_quantized_model(report.directory))
    unchanged = read_index(plain.directory)
    for name, value in values.items():
        if is_quantized_tensor(name):
            codes = np.arange(value.size) % 15 - 7
            assert np.array_equal(value, (codes * SCALE).reshape(value.shape).astype(np.float32)), name
        else:
            assert np.array_equal(value, read_array(unchanged[name])), name
    # All else is as in an export that is rounded to nearest, and the plain export is gone.
    for file in nearest.directory.iterdir():
        if file.suffix == ".json" and file.name != "checksums.json":
            assert (report.directory / file.name).read_bytes() == file.read_bytes(), file.name
    assert {file.name for file in nearest.directory.iterdir()} == {
        file.name for file in report.directory.iterdir()
    }
    assert not list(tmp_path.glob(".out*"))
    request = json.loads(seen.read_text())
    assert (request["method"], request["bits"], request["group"]) == ("gptq", 4, 32)
    assert len(request["samples"]) == 2 and len(request["samples"][0]) == 32
    (chat,) = load_samples([data], find_model(tmp_path / "adapter").encoder())[1:2]
    assert request["samples"][1] == chat.whole.input_ids.tolist()
    lines = describe_export(report)
    assert (report.merged, report.source.adapter) == (nearest.merged, tmp_path / "adapter")
    assert (
        "  linear layers quantized: int4, groups of 32, by GPTQ of llm-compressor 1 with 2 samples" in lines
    )
    assert "  note: one layer was rounded to nearest" in lines


@pytest.mark.slow
def test_weights_that_awq_changes_are_rounded(copy: Copy, tmp_path: Path, data: str, seen: Path) -> None:
    model = copy("dense", max_position_embeddings=64)
    nearest = export_model(model, tmp_path / "nearest", quantization=INT4).directory
    report = quantize(model, tmp_path / "out", data, "awq")
    before, after = (hub_values(read_quantized_model(each)) for each in (nearest, report.directory))
    factors = dict.fromkeys(READERS, 4.0) | {NORM: 0.25}
    for name, value in after.items():
        assert np.array_equal(value, before[name] * np.float32(factors.get(name, 1))), name
    assert read_quantization(report.directory) == INT4
    # The first of three samples has more tokens than the model has positions.
    assert report.rounding == "by AWQ of llm-compressor 1 with 2 samples"
    assert any("left out (too long: 1)" in warning for warning in report.warnings)


def test_what_calibration_needs(
    models: dict[str, Path], tmp_path: Path, data: str, seen: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(model: str = "dense", **options: Any) -> str:
        with pytest.raises((ConfigError, DataError, EngineError)) as error:
            export(models[model], tmp_path / "out", **options)
        assert not (tmp_path / "out").exists() and not seen.exists() and not list(tmp_path.glob(".out*"))
        return str(error.value)

    python = Path(sys.executable)
    gptq: dict[str, Any] = {"quantize": "int4", "quantize_method": "gptq", "quantize_group": 32}
    assert "name a file with --calibration" in refused(**gptq)
    assert "need --quantize int8 or int4" in refused(quantize_method="gptq", calibration_files=[data])
    assert "need --quantize-method gptq or awq" in refused(quantize="int4", calibration_files=[data])
    gptq["calibration_files"] = [data]
    assert "--option" in refused(**gptq) and "`make engines ENGINES=none`" in refused(**gptq)
    gptq["quantize_python"] = python
    assert "is for text models" in refused("vl", **gptq)
    assert "groups of 48 do not divide" in refused(**gptq | {"quantize_group": 48})
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    assert "empty.jsonl" in refused(**gptq | {"calibration_files": [str(empty)]})
    assert "--layout hub or transformers" in refused(**gptq, layout="paddle")
    failing = tmp_path / "failing.py"
    failing.write_text("raise SystemExit('Hessian of nothing')")
    monkeypatch.setattr(calibrated, "LLM_COMPRESSOR", Environment("llm-compressor", "none", str(failing)))
    assert "Hessian of nothing" in refused(**gptq)


def test_the_environment_of_llm_compressor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(process, "_CHECKOUT", tmp_path)
    with pytest.raises(EngineError, match=r"`make engines ENGINES=llmcompressor`.*--quantize-python"):
        process.find_python(LLM_COMPRESSOR, None)
    makefile = (Path(__file__).parents[3] / "Makefile").read_text()
    assert f"{LLM_COMPRESSOR.folder}/.stamp: requirements/engines-llmcompressor.txt" in makefile
