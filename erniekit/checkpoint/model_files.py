"""Checks of a model directory before its weights are read: complete download, layout, tensors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from erniekit.checkpoint.hub import INDEX_FILE, TensorInfo, as_dtype, check_against, read_index, read_span
from erniekit.display.text import clipped
from erniekit.errors import CheckpointError
from erniekit.local_files import read_json_object, refuse_placeholders
from erniekit.models.config import ErnieConfig
from erniekit.models.specs import parameter_specs

# Where transformers looks for classes in remote code, and what marks those of another repository.
_WITH_AUTO_MAP = ("config.json", "tokenizer_config.json", "preprocessor_config.json", "processor_config.json")
_REPOSITORY_MARK = "--"
EMBEDDING, OUTPUT = "model.embed_tokens.weight", "lm_head.weight"
_READ = (".safetensors", ".json", ".jinja", ".model", ".txt", ".ttf")
_BLOCK = 1 << 22
# Prefixes and fused linear layers of the -Paddle files, see the table of layouts in ERNIEKit and FastDeploy.
_PADDLE_PREFIXES = ("ernie.",)
_PADDLE_SUFFIX = "-Paddle"
_PADDLE_PARTS = (".qkv_proj.", ".up_gate_proj.")
# (model_type, hidden_size, num_hidden_layers) -> the release in the supported layout.
_RELEASES: dict[tuple[str, Any, Any], str] = {
    ("ernie4_5", 1024, 18): "baidu/ERNIE-4.5-0.3B-PT",
    ("ernie4_5_moe", 2560, 28): "baidu/ERNIE-4.5-21B-A3B-PT",
    ("ernie4_5_moe", 8192, 54): "baidu/ERNIE-4.5-300B-A47B-PT",
    ("ernie4_5_moe_vl", 2560, 28): "baidu/ERNIE-4.5-VL-28B-A3B-PT",
    ("ernie4_5_moe_vl", 8192, 54): "baidu/ERNIE-4.5-VL-424B-A47B-PT",
}
# The repositories that can be fine-tuned. Those without -PT in their names have the same layout.
RELEASES = (
    *_RELEASES.values(),
    "baidu/ERNIE-4.5-21B-A3B-Thinking",
    "baidu/ERNIE-4.5-VL-28B-A3B-Thinking",
)


def open_model(directory: str | Path) -> tuple[ErnieConfig, dict[str, TensorInfo]]:
    """The configuration of a model directory, and the place of each of its tensors.

    Reads the headers of weight files, and an `lm_head.weight` of a model with tied embeddings. Raises CheckpointError
    for incomplete downloads, a `-Paddle` release, an unsupported config.json, missing, unexpected or misshapen tensors,
    and an output matrix that differs from the tied embedding.
    """
    directory = Path(directory)
    refuse_undownloaded(directory)
    config = ErnieConfig.from_dir(directory)
    found = read_index(directory)
    check_tensors(found, config, str(directory))
    return config, found


def check_tensors(found: dict[str, TensorInfo], config: ErnieConfig, where: str) -> None:
    """Check names, shapes and the output matrix. Raises CheckpointError, see `open_model`."""
    specs = parameter_specs(config)
    shapes = {spec.name: spec.shape for spec in specs}
    foreign = [name for name in found if _is_paddle(name)]
    if foreign:
        raise _paddle_error(where, f"it holds {foreign[0]}", config.raw)
    linear = [
        name
        for name, shape in shapes.items()
        if name.endswith("_proj.weight") and shape != shape[::-1] and name in found
    ]
    if linear and all(found[name].shape == shapes[name][::-1] for name in linear):
        name = linear[0]
        sign = f"{name} is {list(found[name].shape)}, {list(shapes[name])} in -PT"
        raise _paddle_error(where, sign, config.raw)
    check_against(found, specs, where)
    if config.tie_word_embeddings and OUTPUT in found:
        _check_output_matrix(found, config, where)


def refuse_undownloaded(directory: Path, name: str | None = None) -> None:
    """Raise CheckpointError for a directory that holds Git LFS pointers, or a `-Paddle` release.

    Runs first, because the config.json of such a directory may lack required keys. Reads names and first bytes only.
    name: of the model in the message, None for the directory.
    """
    where = name or str(directory)
    refuse_placeholders(directory, _READ)
    parameters = sorted(file.name for file in directory.glob("*.pdparams"))
    if parameters and not any(directory.glob("*.safetensors")):
        raise _paddle_error(where, f"it holds {parameters[0]}", _config_of(directory))
    index = directory / INDEX_FILE
    listed = read_json_object(index).get("weight_map") if index.is_file() else None
    foreign = [name for name in listed if _is_paddle(name)] if isinstance(listed, dict) else []
    if foreign:
        raise _paddle_error(where, f"it holds {foreign[0]}", _config_of(directory))


def refuse_paddle_name(name: str) -> None:
    """Raise CheckpointError for a repository of the hub that is named like a `-Paddle` release."""
    if name.endswith(_PADDLE_SUFFIX):
        raise _paddle_error(name, f"its name ends in {_PADDLE_SUFFIX}", {})


def remote_code_note(directory: Path) -> str | None:
    """What to know of the Python code that a model directory carries or names; None without any.

    erniekit runs none of it. Engines do with --trust-remote-code.
    """
    files = sorted(file.name for file in directory.glob("*.py"))
    elsewhere: set[str] = set()
    for name in _WITH_AUTO_MAP:
        content = read_json_object(directory / name) if (directory / name).is_file() else {}
        elsewhere.update(
            reference for reference in _strings(content.get("auto_map")) if _REPOSITORY_MARK in reference
        )
    if not files and not elsewhere:
        return None
    carried = f"the Python files {', '.join(files)}" if files else ""
    named = f"code of other repositories ({', '.join(sorted(map(clipped, elsewhere)))})" if elsewhere else ""
    return (
        f"the model has {' and '.join(filter(None, [carried, named]))}, of the base model: engines run this code with "
        "--trust-remote-code, so read it first"
    )


def _strings(value: Any) -> Iterator[str]:
    """The strings in a JSON value."""
    if isinstance(value, str):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _strings(inner)


def _is_paddle(name: str) -> bool:
    return name.startswith(_PADDLE_PREFIXES) or any(part in name for part in _PADDLE_PARTS)


def _config_of(directory: Path) -> dict[str, Any]:
    file = directory / "config.json"
    return read_json_object(file) if file.is_file() else {}


def _paddle_error(where: str, sign: str, raw: dict[str, Any]) -> CheckpointError:
    size = (str(raw.get("model_type")), raw.get("hidden_size"), raw.get("num_hidden_layers"))
    use = _RELEASES.get(size, "baidu/ERNIE-4.5-...-PT")
    name = Path(where).name
    if name.endswith(_PADDLE_SUFFIX):
        # Releases without -PT in their name are PyTorch's too: ERNIE-4.5-VL-28B-A3B-Thinking.
        use = f"baidu/{name.removesuffix(_PADDLE_SUFFIX)}" + ("" if "Thinking" in name else "-PT")
    return CheckpointError(
        f"{where}: the weights are in the layout of the -Paddle releases, with transposed or fused linear layers "
        f"({sign}). Use the release of the same model in the -PT layout: {use}"
    )


def _check_output_matrix(found: dict[str, TensorInfo], config: ErnieConfig, where: str) -> None:
    """Refuse an `lm_head.weight` that differs from the embedding it is tied to: one of the two would be lost."""
    output, embedding = found[OUTPUT], found[EMBEDDING]
    if output.shape == embedding.shape and _same_values(output, embedding):
        return
    stated = (
        "says"
        if "tie_word_embeddings" in {**config.raw, **(config.raw.get("text_config") or {})}
        else "means"
    )
    raise CheckpointError(
        f"{where}: config.json {stated} tie_word_embeddings true, but {OUTPUT} ({output.file.name}) is not equal to "
        f'{EMBEDDING}. Set "tie_word_embeddings": false in config.json to use and train {OUTPUT}, or remove {OUTPUT} '
        "from its file to use the embedding"
    )


def _same_values(first: TensorInfo, second: TensorInfo) -> bool:
    """Whether two tensors of one shape have equal values, whatever their element types. Reads block by block."""
    size = int(np.prod(first.shape))
    for start in range(0, size, _BLOCK):
        stop = min(start + _BLOCK, size)
        one, two = (as_dtype(read_span(info, start, stop), info.dtype, "F32") for info in (first, second))
        if not np.array_equal(one, two, equal_nan=True):
            return False
    return True
