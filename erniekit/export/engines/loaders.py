"""Checks of a directory against what the loaders of engines read, for engines that are not run.

The names, shapes and keys that all engines share are in `erniekit.export.checks`; these are in addition to them. They
come from the engines' sources, see `docs/export.md`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from erniekit.config.choices import Engine
from erniekit.export.check import Check
from erniekit.export.files import chat_template
from erniekit.export.layouts import NESTED_MODEL_TYPE
from erniekit.models.config import ErnieConfig, is_paddle_config

Rule = Callable[[Path, ErnieConfig], Iterator[Check]]


def check_loader(engine: Engine, directory: Path, config: ErnieConfig) -> Iterator[Check]:
    """What the engine's loader reads beyond the checks that all engines share. Nothing is run."""
    for rule in _RULES[engine]:
        yield from rule(directory, config)


def _flat(directory: Path, config: ErnieConfig) -> Iterator[Check]:
    if config.raw["model_type"] == NESTED_MODEL_TYPE:
        yield Check(
            "FAIL", "reads the flat config.json of VL models, not the nested one: export with --layout hub"
        )


def _remote_code(directory: Path, config: ErnieConfig) -> Iterator[Check]:
    flat = config.family == "vl" and config.raw["model_type"] != NESTED_MODEL_TYPE
    if flat and not list(directory.glob("processing_*.py")):
        yield Check(
            "FAIL",
            "has no processing_*.py, which turns images into patches: copy the released model's *.py files",
        )
    if flat and "auto_map" not in config.raw:
        yield Check("FAIL", "config.json has no auto_map: the Python files beside it are not found")


def _sentencepiece(directory: Path, config: ErnieConfig) -> Iterator[Check]:
    if not (directory / "tokenizer.model").is_file():
        yield Check("FAIL", "has no tokenizer.model: copy it from the released model")


def _fast_tokenizer(directory: Path, config: ErnieConfig) -> Iterator[Check]:
    if not (directory / "tokenizer.json").is_file():
        yield Check("note", "has no tokenizer.json: the tokenizer is converted at each start")
    if chat_template(directory) is None:
        yield Check("FAIL", "has no chat template: /v1/chat/completions refuses requests")


def _image_ids(directory: Path, config: ErnieConfig) -> Iterator[Check]:
    media = config.media
    if media is None:
        return
    last = max(
        (media.image_placeholder, media.image_start, media.image_end, media.video_start, media.video_end)
    )
    if config.vocab_size - 1 > last:
        yield Check(
            "note",
            f"takes every token id from im_patch_id ({media.image_placeholder}) on for an image token, and the model "
            f"has ids up to {config.vocab_size - 1}: no text token may be among them",
        )


def _rotary_split(directory: Path, config: ErnieConfig) -> Iterator[Check]:
    section = (config.raw.get("rope_scaling") or {}).get("mrope_section")
    if section is not None and section[0] != section[2]:
        yield Check(
            "note",
            f"sets freq_allocation to mrope_section[0] = {section[0]}, where ERNIE has {section[2]} for time: export "
            "with --layout paddle, which has no mrope_section",
        )


def _dense_name(directory: Path, config: ErnieConfig) -> Iterator[Check]:
    if config.family == "dense":
        yield Check(
            "note",
            "some versions know dense models only as Ernie4_5_ForCausalLM, which vLLM refuses: if yours does, start it "
            """with --json-model-override-args '{"architectures": ["Ernie4_5_ForCausalLM"]}'""",
        )


def _torch_layout(directory: Path, config: ErnieConfig) -> Iterator[Check]:
    if is_paddle_config(config.raw):
        yield Check("FAIL", "does not read the paddle layout: convert it with `erniekit convert --to hub`")


def _text_only(directory: Path, config: ErnieConfig) -> Iterator[Check]:
    if config.family == "vl":
        yield Check("FAIL", "has no ERNIE vision-language models")


_RULES: dict[Engine, tuple[Rule, ...]] = {
    "transformers": (_torch_layout,),
    "vllm": (_torch_layout, _flat, _remote_code),
    "llama.cpp": (_text_only, _sentencepiece),
    "sglang": (_torch_layout, _flat, _remote_code, _fast_tokenizer, _dense_name),
    "fastdeploy": (_flat, _remote_code, _sentencepiece, _image_ids, _rotary_split),
    "paddleformers": (_sentencepiece,),
}
