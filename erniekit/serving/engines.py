"""The commands that serve a model in vLLM and FastDeploy, with the parsers of its family.

Sources: the help of `vllm serve` and vLLM's parser "ernie45" (reasoning up to </think>, calls between <tool_call>
tags: the form of all chat templates here); FastDeploy's documentation of its parameters, of reasoning
outputs and of tool calling.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path

from erniekit.checkpoint.hub import read_index
from erniekit.checkpoint.model_files import remote_code_note
from erniekit.checkpoint.state import STATE_FILE
from erniekit.checkpoint.tensor_layouts import layout_of
from erniekit.data.chat.template import Template
from erniekit.data.media.video import VideoSpec
from erniekit.generation.load import ModelSource
from erniekit.models.config import ErnieConfig


@dataclass(frozen=True, slots=True)
class EngineCommands:
    """export: the command that writes the directory for the engines, "" if they load the model as it is."""

    export: str
    vllm: str
    fastdeploy: str
    notes: tuple[str, ...]


def engine_commands(given: Path, source: ModelSource, template: Template) -> EngineCommands:
    """The commands for the model at `source`, which the user gave as the path `given`. Raises CheckpointError."""
    config = ErnieConfig.from_dir(source.directory)
    vl, thinks = config.family == "vl", template.thinking == "on"
    target, export = given, ""
    if _needs_export(source, config):
        target = given.with_name(f"{given.resolve().name}-export")
        export = shlex.join(["erniekit", "export", str(given), "--output", str(target)])
    vllm = ["vllm", "serve", str(target)]
    vllm += ["--trust-remote-code"] if vl else []
    vllm += ["--reasoning-parser", "ernie45"] if thinks else []
    vllm += ["--enable-auto-tool-choice", "--tool-call-parser", "ernie45"]
    fastdeploy = ["python", "-m", "fastdeploy.entrypoints.openai.api_server", "--model", str(target)]
    # The default is 2048, whatever the model's limit.
    fastdeploy += ["--max-model-len", str(config.max_position_embeddings), "--load-choices", "default_v1"]
    fastdeploy += _fastdeploy_parsers(vl, thinks)
    notes = []
    if not export and _in_paddle_layout(source.directory, config):
        notes.append(
            "vLLM does not read the paddle layout: convert it with `erniekit convert MODEL DIR --to hub`"
        )
    code = remote_code_note(source.directory)
    if code is not None:
        notes.append(code)
    if vl and not list(source.directory.glob("processing_*.py")):
        notes.append(
            "both need the *.py files of the released model, which are missing in the model directory; vLLM runs them "
            "with --trust-remote-code"
        )
    if vl:
        # The frame rate of training: vLLM's default is 32 frames of every video, whatever its length.
        spec = VideoSpec.from_checkpoint(source.directory, source.data)
        videos = {"video": {"fps": spec.fps, "num_frames": spec.max_frames}}
        vllm += ["--media-io-kwargs", json.dumps(videos)]
        notes.append(f"vLLM has no minimum number of frames per video; in training it is {spec.min_frames}")
    if not thinks:
        notes.append("FastDeploy documents no tool call parser for this family: calls stay text there")
    return EngineCommands(export, shlex.join(vllm), shlex.join(fastdeploy), tuple(notes))


def command_lines(commands: EngineCommands) -> list[str]:
    """The commands for a terminal, each on one line, to copy."""
    lines = ["for production:"]
    if commands.export:
        lines += ["  # first export it in the layout that the engines load", f"  {commands.export}"]
    lines += [f"  {commands.vllm}", f"  {commands.fastdeploy}"]
    return lines + [f"  # {note}" for note in commands.notes]


def _needs_export(source: ModelSource, config: ErnieConfig) -> bool:
    """True for adapters, training checkpoints and transformers' nested layout, which neither engine loads."""
    trained = (source.checkpoint / STATE_FILE).is_file()
    return trained or source.checkpoint != source.directory or "text_config" in config.raw


def _in_paddle_layout(directory: Path, config: ErnieConfig) -> bool:
    has_weights = any(directory.glob("*.safetensors"))
    return has_weights and layout_of(read_index(directory), config) == "paddle"


def _fastdeploy_parsers(vl: bool, thinks: bool) -> list[str]:
    if not thinks:
        return ["--reasoning-parser", "ernie-45-vl"] if vl else []
    parser = "ernie-45-vl-thinking" if vl else "ernie-x1"
    return ["--reasoning-parser", parser, "--tool-call-parser", parser]
