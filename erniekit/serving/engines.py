"""The commands with which inference engines serve a model for production, with the parsers of its family.

Sources: the help of `vllm serve` and vLLM's parser "ernie45" (reasoning up to </think>, calls between <tool_call>
tags: the form that all chat templates here share); FastDeploy's documentation of its parameters, of reasoning
outputs and of tool calling.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path

from erniekit.checkpoint.state import STATE_FILE
from erniekit.data.chat.template import Template
from erniekit.data.media.video import VideoSpec
from erniekit.generation.load import ModelSource
from erniekit.models.config import ErnieConfig


@dataclass(frozen=True, slots=True)
class EngineCommands:
    """export: what makes the directory that engines load, "" where the model is one; notes: what to mind."""

    export: str
    vllm: str
    fastdeploy: str
    notes: tuple[str, ...]


def engine_commands(given: Path, source: ModelSource, template: Template) -> EngineCommands:
    """The commands for the model that a user named `given`, which is `source`. Raises CheckpointError."""
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
    # Its own default is 2048, however long the model's chats may be.
    fastdeploy += ["--max-model-len", str(config.max_position_embeddings), "--load-choices", "default_v1"]
    fastdeploy += _fastdeploy_parsers(vl, thinks)
    notes = []
    if vl and not list(source.directory.glob("processing_*.py")):
        notes.append("both need the released model's *.py files beside the weights, and they are not there")
    if vl:
        # As many frames a second as in training: else vLLM takes 32 of every video, however long it is.
        spec = VideoSpec.from_checkpoint(source.directory, source.data)
        videos = {"video": {"fps": spec.fps, "num_frames": spec.max_frames}}
        vllm += ["--media-io-kwargs", json.dumps(videos)]
        notes.append(
            f"vLLM knows no least number of frames of a video, which is {spec.min_frames} in training"
        )
    if not thinks:
        notes.append("FastDeploy documents no parser of tool calls for this family: there they stay text")
    return EngineCommands(export, shlex.join(vllm), shlex.join(fastdeploy), tuple(notes))


def describe(commands: EngineCommands) -> list[str]:
    """The commands as lines for people, each on one that can be copied."""
    lines = ["for production:"]
    if commands.export:
        lines += ["  # first write it in the layout that engines load", f"  {commands.export}"]
    lines += [f"  {commands.vllm}", f"  {commands.fastdeploy}"]
    return lines + [f"  # {note}" for note in commands.notes]


def _needs_export(source: ModelSource, config: ErnieConfig) -> bool:
    """Adapters and training checkpoints do, and the nested layout of transformers, which neither engine reads."""
    trained = (source.checkpoint / STATE_FILE).is_file()
    return trained or source.checkpoint != source.directory or "text_config" in config.raw


def _fastdeploy_parsers(vl: bool, thinks: bool) -> list[str]:
    if not thinks:
        return ["--reasoning-parser", "ernie-45-vl"] if vl else []
    parser = "ernie-45-vl-thinking" if vl else "ernie-x1"
    return ["--reasoning-parser", parser, "--tool-call-parser", parser]
