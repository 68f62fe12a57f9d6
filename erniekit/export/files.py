"""The files of a model directory besides weights and `config.json`: tokenizer, processors, remote code.

Configurations, tokenizer, templates, code, fonts and licences of the base model are copied; data, logs and its README
are not. Some are changed: settings that the layouts spell differently are rewritten, references to missing remote code
and to places on a machine are removed, and a missing `generation_config.json` is made from the end tokens of config and
tokenizer.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from erniekit.checkpoint.manifest import CHECKSUMS_FILE
from erniekit.checkpoint.model_files import remote_code_note
from erniekit.checkpoint.state import STATE_FILE, is_side_file
from erniekit.config.choices import CheckpointLayout
from erniekit.data.media.patches import ImageSpec
from erniekit.data.media.video import FONT
from erniekit.errors import CheckpointError
from erniekit.export.layouts import NESTED_MODEL_TYPE
from erniekit.local_files import read_json_object
from erniekit.lora.adapters import CONFIG_FILE as ADAPTER_CONFIG
from erniekit.models.config import ErnieConfig

Json = dict[str, Any]

VIDEO_PLACEHOLDER = "<|VIDEO_PLACEHOLDER|>"
# Not of the model: what transformers' trainer and runs write beside it, and what an export writes by itself.
_LEFT_OUT = re.compile(
    rf"^(\.|README|config\.json$|{re.escape(ADAPTER_CONFIG)}$|{re.escape(STATE_FILE)}$|{re.escape(CHECKSUMS_FILE)}$"
    r"|(all|train|eval|predict|test)_results\.json$|training_args\.json$|base_checksums\.json$)|\.index\.json$"
)
# Placeholders in chat templates that the processor of each layout expands: (Hub, transformers).
_PLACEHOLDERS = (
    ("<|image@placeholder|>", "<|IMAGE_PLACEHOLDER|>"),
    ("<|video@placeholder|>", VIDEO_PLACEHOLDER),
)
# Attributes that transformers' Ernie4_5_VLMoeProcessor reads from its tokenizer.
_MEDIA_ATTRIBUTES = {
    "image_token": "<|IMAGE_PLACEHOLDER|>",
    "image_start_token": "<|IMAGE_START|>",
    "image_end_token": "<|IMAGE_END|>",
    "video_token": VIDEO_PLACEHOLDER,
    "video_start_token": "<|VIDEO_START|>",
    "video_end_token": "<|VIDEO_END|>",
}
_REMOTE_CLASS = "Ernie4_5_VLTokenizer"
# Where older versions of transformers keep the place that a file was loaded from.
_PLACES = ("name_or_path", "_name_or_path", "special_tokens_map_file", "tokenizer_file", "vocab_file")
_TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json")


def side_files(directories: Sequence[Path]) -> dict[str, Path]:
    """Name -> path of every file to copy. The first directory with a name wins.

    Only names that files of models have: a directory may hold logs, data and keys of whoever trained in it.
    """
    found: dict[str, Path] = {}
    for directory in directories:
        for file in sorted(directory.iterdir()):
            if file.is_file() and is_side_file(file.name) and not _LEFT_OUT.search(file.name):
                found.setdefault(file.name, file)
    return found


def carry_files(
    files: dict[str, Path], target: Path, config: ErnieConfig, layout: CheckpointLayout
) -> list[str]:
    """Write the files of an export besides its weights into `target`; returns warnings.

    `config` is that of the base model. Raises CheckpointError if a file is missing that every engine needs.
    """
    _check_present(files, config)
    nested_before = config.raw["model_type"] == NESTED_MODEL_TYPE
    nested_after = config.family == "vl" and layout == "transformers"
    for name, file in files.items():
        if not (nested_after and name.endswith(".py")):
            shutil.copyfile(file, target / name)
    if nested_after and not nested_before:
        _to_nested(target)
    elif nested_before and not nested_after:
        _to_flat(target)
    for name in ("tokenizer_config.json", "preprocessor_config.json", "processor_config.json"):
        if (target / name).is_file():
            content = read_json_object(target / name)
            before = dict(content)
            drop_missing_code(content, target)
            _drop_places(content)
            if name == "tokenizer_config.json" and config.family != "vl" and layout != "paddle":
                _set_known_class(content, target)
            if content != before:
                write_json(target / name, content)
    warnings = _warnings(target, config, layout)
    generation = target / "generation_config.json"
    if not generation.is_file():
        write_json(generation, _generation_config(target, config))
        warnings.append(
            "the base model has no generation_config.json: made one with the end token of its config"
        )
    elif (content := read_json_object(generation)).get("eos_token_id") is None:
        stated = {key: value for key, value in content.items() if value is not None}
        write_json(generation, _generation_config(target, config) | stated)
        warnings.append("generation_config.json of the base model has no end token: added that of its config")
    return warnings


def set_positions(target: Path, positions: int) -> None:
    """Raise the tokenizer's `model_max_length` to the positions that the model was trained with.

    vLLM uses the minimum of this and the config's max_position_embeddings.
    """
    file = target / "tokenizer_config.json"
    content = read_json_object(file)
    length = content.get("model_max_length")
    if isinstance(length, int | float) and length < positions:
        write_json(file, content | {"model_max_length": positions})


def drop_missing_code(content: Json, directory: Path) -> bool:
    """Remove references of `auto_map` to Python files missing from `directory`; returns whether it changed.

    A class in another repository ("owner/name--module.Class") needs no file and is kept.
    """
    references = content.get("auto_map")
    if not isinstance(references, dict):
        return False
    kept = {key: value for key, value in references.items() if _is_there(value, directory)}
    if kept == references:
        return False
    content["auto_map"] = kept
    if not kept:
        del content["auto_map"]
    return True


def _drop_places(content: Json) -> None:
    """Remove places on the machine that saved a tokenizer or processor."""
    for key in [key for key in _PLACES if str(content.get(key) or "").startswith(("/", "~"))]:
        del content[key]


def _set_known_class(tokenizer: Json, target: Path) -> None:
    """Replace a tokenizer class of Baidu's without its code, which transformers 4 does not know ("does not exist")."""
    if "auto_map" not in tokenizer and str(tokenizer.get("tokenizer_class", "")).startswith("Ernie"):
        # transformers reads the same files with these classes.
        generic = "PreTrainedTokenizerFast" if (target / "tokenizer.json").is_file() else "LlamaTokenizer"
        tokenizer |= {"tokenizer_class": generic, "add_bos_token": False, "add_prefix_space": False}


def token_id(directory: Path, token: str) -> int | None:
    """The id of a token in `tokenizer.json`; None without the file or the token. Raises CheckpointError."""
    file = directory / "tokenizer.json"
    if not file.is_file():
        return None
    content = read_json_object(file)
    try:
        for added in content.get("added_tokens") or []:
            if added["content"] == token:
                return int(added["id"])
        vocabulary = content.get("model", {}).get("vocab")
        found = vocabulary.get(token) if isinstance(vocabulary, dict) else None
        return None if found is None else int(found)
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
        raise CheckpointError(f"{file}: its tokens are not valid: download it again") from None


def write_json(file: Path, content: Json) -> None:
    """Write a JSON object, indented, in UTF-8."""
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def chat_template(directory: Path) -> str | None:
    """The name of the file with the chat template of a model directory; None without a template."""
    for name in _TEMPLATE_FILES:
        file = directory / name
        if file.is_file() and (name.endswith(".jinja") or read_json_object(file).get("chat_template")):
            return name
    return None


def write_chat_template(directory: Path, program: str, layout: CheckpointLayout) -> None:
    """Replace the chat template by a Jinja program that has the image placeholders of the Hub layout."""
    if layout == "transformers":
        program = _with_placeholders(program, 0, 1)
    (directory / "chat_template.jinja").write_text(program, encoding="utf-8")
    (directory / "chat_template.json").unlink(missing_ok=True)
    tokenizer = read_json_object(directory / "tokenizer_config.json")
    if tokenizer.pop("chat_template", None) is not None:
        write_json(directory / "tokenizer_config.json", tokenizer)


def _check_present(files: dict[str, Path], config: ErnieConfig) -> None:
    needed = [("tokenizer_config.json",), ("tokenizer.json", "tokenizer.model")]
    if config.family == "vl":
        needed.append(("preprocessor_config.json", "processor_config.json"))
    for names in needed:
        if not any(name in files for name in names):
            raise CheckpointError(
                f"the model has no {' or '.join(names)}, which every engine needs; copy "
                "it from the released model, or give a directory that has it with --base"
            )


def _is_there(reference: Any, directory: Path) -> bool:
    names = reference if isinstance(reference, list) else [reference]
    return all(
        name is None or "--" in name or (directory / f"{name.partition('.')[0]}.py").is_file()
        for name in names
    )


def _to_nested(target: Path) -> None:
    """Rewrite the files of a flat VL base model for transformers' processor."""
    _rename_placeholders(target, 0, 1)
    tokenizer = read_json_object(target / "tokenizer_config.json")
    if (
        tokenizer.pop("auto_map", None) is not None
    ):  # its class is remote code, which this layout does without
        tokenizer["tokenizer_class"] = _REMOTE_CLASS
    _set_known_class(tokenizer, target)
    write_json(target / "tokenizer_config.json", tokenizer | _MEDIA_ATTRIBUTES)
    spec = ImageSpec.from_checkpoint(target)
    (target / "processor_config.json").unlink(missing_ok=True)
    common = {
        "processor_class": "Ernie4_5_VLMoeProcessor",
        "patch_size": spec.patch_size,
        "merge_size": spec.merge_size,
    }
    common |= {"image_mean": list(spec.image_mean), "image_std": list(spec.image_std)}
    common |= {"do_convert_rgb": True, "do_resize": True, "resample": 3}
    common |= {"do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True}
    image = {"image_processor_type": "Ernie4_5_VLMoeImageProcessor", "temporal_patch_size": 1}
    image["size"] = {"shortest_edge": spec.min_pixels, "longest_edge": spec.max_pixels}
    write_json(target / "preprocessor_config.json", common | image)
    video = {
        "video_processor_type": "Ernie4_5_VLMoeVideoProcessor",
        "temporal_patch_size": 2,
        "do_sample_frames": True,
    }
    # Areas in pixels and numbers of frames are those of transformers' Ernie4_5_VLMoeVideoProcessor. Without fps it uses
    # every frame of a video; 2 fps is the rate of the released processor.
    video |= {
        "fps": 2.0,
        "size": {"shortest_edge": 299 * 28 * 28, "longest_edge": 1196 * 28 * 28},
        "min_frames": 16,
        "max_frames": 180,
    }
    write_json(target / "video_preprocessor_config.json", common | video | timestamps(target))


def timestamps(target: Path) -> Json:
    """Settings that make transformers' video processor draw the time on each frame; copies the font it needs.

    The released remote code, which reads the hub layout, has its own copy of the font.
    """
    if not (target / FONT.name).is_file():
        shutil.copyfile(FONT, target / FONT.name)
        shutil.copyfile(FONT.with_name("LICENSE.txt"), target / "Roboto-LICENSE.txt")
    return {"draw_on_frames": True, "font": FONT.name}


def _to_flat(target: Path) -> None:
    """Rewrite the files of a nested VL base model for the Hub's remote code and erniekit."""
    _rename_placeholders(target, 1, 0)
    spec = ImageSpec.from_checkpoint(target)
    for name in ("processor_config.json", "video_preprocessor_config.json"):
        (target / name).unlink(missing_ok=True)
    image = {
        "image_mean": list(spec.image_mean),
        "image_std": list(spec.image_std),
        "rescale_factor": 1 / 255,
    }
    image |= {"min_pixels": spec.min_pixels, "max_pixels": spec.max_pixels, "temporal_conv_size": 2}
    image |= {"patch_size": spec.patch_size, "merge_size": spec.merge_size}
    write_json(target / "preprocessor_config.json", image)


def _rename_placeholders(target: Path, old: int, new: int) -> None:
    for name in _TEMPLATE_FILES:
        file = target / name
        if not file.is_file():
            continue
        content = file.read_text(encoding="utf-8") if name.endswith(".jinja") else read_json_object(file)
        if isinstance(content, str):
            file.write_text(_with_placeholders(content, old, new), encoding="utf-8")
        elif isinstance(content.get("chat_template"), str):
            content["chat_template"] = _with_placeholders(content["chat_template"], old, new)
            write_json(file, content)


def _with_placeholders(template: str, old: int, new: int) -> str:
    for names in _PLACEHOLDERS:
        template = template.replace(names[old], names[new])
    return template


def _warnings(target: Path, config: ErnieConfig, layout: CheckpointLayout) -> list[str]:
    nested = config.family == "vl" and layout == "transformers"
    warnings = []
    if not (target / "tokenizer.json").is_file():
        warnings.append(
            "no tokenizer.json in the base model: transformers and vLLM convert tokenizer.model when loading it"
        )
    if not (target / "tokenizer.model").is_file():
        warnings.append("no tokenizer.model in the base model: FastDeploy and llama.cpp need it")
    if config.family == "vl" and layout == "hub" and not list(target.glob("processing_*.py")):
        warnings.append(
            "no *.py files in the base model: vLLM, SGLang and FastDeploy need those of the released model for the hub "
            "layout. Copy them into the directory of the base model, from a download of the release (`erniekit "
            "download REPO --to DIR`, REPO such as baidu/ERNIE-4.5-VL-28B-A3B-PT), and export again; or choose the "
            "layout transformers, which needs none"
        )
    code = remote_code_note(target)
    if code is not None:
        warnings.append(code)
    if nested:
        warnings.append("vLLM, SGLang and FastDeploy read the hub layout of VL models, not this one")
        if token_id(target, VIDEO_PLACEHOLDER) is None:
            warnings.append(
                f"the tokenizer has no {VIDEO_PLACEHOLDER}: videos cannot be distinguished from images"
            )
    return warnings


def _generation_config(target: Path, config: ErnieConfig) -> Json:
    raw = config.raw | config.raw.get("text_config", {})
    result = {
        key: raw[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if raw.get(key) is not None
    }
    if "eos_token_id" not in result:
        name = read_json_object(target / "tokenizer_config.json").get("eos_token")
        found = token_id(target, str(name.get("content") if isinstance(name, dict) else name))
        if found is None:
            raise CheckpointError(
                "the model has no generation_config.json, and neither its config.json nor its tokenizer "
                "names an end token, so engines would never stop: add a generation_config.json with "
                "eos_token_id"
            )
        result["eos_token_id"] = found
    return result
