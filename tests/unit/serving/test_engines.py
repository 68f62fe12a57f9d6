from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from erniekit.checkpoint.state import STATE_FILE
from erniekit.config import DataConfig
from erniekit.create.create import create_model
from erniekit.data.chat.families import TEMPLATES
from erniekit.export.layouts import transformers_config
from erniekit.generation.load import ModelSource
from erniekit.models.config import ErnieConfig
from erniekit.serving.engines import command_lines, engine_commands

CALLS = "--enable-auto-tool-choice --tool-call-parser ernie45"
VIDEOS = """--media-io-kwargs '{"video": {"fps": 2.0, "num_frames": 180}}'"""


def _model(directory: Path, family: str) -> Path:
    (directory.parent / "text.txt").write_text("Hello")
    create_model(f"tiny-{family}", directory, [directory.parent / "text.txt"], seed=0, weights=False)
    return directory


@pytest.mark.parametrize(
    ("family", "template", "vllm", "fastdeploy"),
    [
        ("dense", "ernie", f" {CALLS}", ""),
        ("moe", "ernie", f" {CALLS}", ""),
        (
            "moe",
            "ernie_thinking",
            f" --reasoning-parser ernie45 {CALLS}",
            " --reasoning-parser ernie-x1 --tool-call-parser ernie-x1",
        ),
        ("vl", "ernie_vl", f" --trust-remote-code {CALLS} {VIDEOS}", " --reasoning-parser ernie-45-vl"),
        (
            "vl",
            "ernie_vl_thinking",
            f" --trust-remote-code --reasoning-parser ernie45 {CALLS} {VIDEOS}",
            " --reasoning-parser ernie-45-vl-thinking --tool-call-parser ernie-45-vl-thinking",
        ),
    ],
)
def test_each_family_has_its_parsers(
    family: str, template: str, vllm: str, fastdeploy: str, tmp_path: Path
) -> None:
    model = _model(tmp_path / "my model", family)
    found = engine_commands(model, ModelSource(model, model), TEMPLATES[template])
    assert found.export == ""
    assert found.vllm == f"vllm serve '{model}'{vllm}"
    server = "python -m fastdeploy.entrypoints.openai.api_server"
    options = "--max-model-len 8192 --load-choices default_v1"
    assert found.fastdeploy == f"{server} --model '{model}' {options}{fastdeploy}"
    thinks = template.endswith("thinking")
    assert any("no tool call parser" in note for note in found.notes) != thinks
    assert any("*.py files" in note for note in found.notes) == (family == "vl")
    if family == "vl":
        (model / "processing_ernie4_5_vl.py").write_text("")
        notes = engine_commands(model, ModelSource(model, model), TEMPLATES[template]).notes
        assert not any("*.py files" in note for note in notes)
    # The flag that runs code is only printed with a note that names the code, or says that it is missing.
    assert any("--trust-remote-code" in note for note in found.notes) == ("--trust-remote-code" in found.vllm)
    if family == "vl":
        assert any("processing_ernie4_5_vl.py, of the base model" in note for note in notes)


def test_vllm_picks_as_many_frames_as_the_run(tmp_path: Path) -> None:
    model = _model(tmp_path / "model", "vl")
    options = DataConfig.without_sources(video_fps=0.5, video_max_frames=40, video_min_frames=4)
    found = engine_commands(model, ModelSource(model, model, options), TEMPLATES["ernie_vl"])
    flag, value = shlex.split(found.vllm)[-2:]
    assert (flag, json.loads(value)) == ("--media-io-kwargs", {"video": {"fps": 0.5, "num_frames": 40}})
    assert "vLLM has no minimum number of frames per video; in training it is 4" in found.notes


def test_what_engines_cannot_load_is_exported_first(tmp_path: Path) -> None:
    base = _model(tmp_path / "base", "dense")
    given, adapter = tmp_path / "run", tmp_path / "run" / "checkpoint-000010"
    expected = f"erniekit export {given} --output {given}-export"
    found = engine_commands(given, ModelSource(adapter, base), TEMPLATES["ernie"])
    assert found.export == expected and found.vllm.startswith(f"vllm serve {given}-export ")
    lines = command_lines(found)
    assert (
        lines.index(f"  {expected}") < lines.index(f"  {found.vllm}") < lines.index(f"  {found.fastdeploy}")
    )

    assert engine_commands(base, ModelSource(base, base), TEMPLATES["ernie"]).export == ""
    (base / STATE_FILE).write_text("{}")
    assert engine_commands(base, ModelSource(base, base), TEMPLATES["ernie"]).export != ""


def test_the_nested_layout_is_exported_first(tmp_path: Path) -> None:
    model = _model(tmp_path / "vl", "vl")
    flat = json.loads((model / "config.json").read_text())
    assert engine_commands(model, ModelSource(model, model), TEMPLATES["ernie_vl"]).export == ""
    nested = transformers_config(ErnieConfig.from_json(flat), "F32")
    (model / "config.json").write_text(json.dumps(nested))
    assert engine_commands(model, ModelSource(model, model), TEMPLATES["ernie_vl"]).export.startswith(
        "erniekit"
    )
