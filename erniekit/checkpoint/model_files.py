"""Opening a model directory: checks of its download and tensors, before any weight is read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from erniekit.checkpoint.element_types import as_dtype
from erniekit.checkpoint.hub import TensorInfo, check_against, read_index, read_span
from erniekit.checkpoint.tensor_layouts import OUTPUT, hub_index
from erniekit.display.text import clipped
from erniekit.errors import CheckpointError
from erniekit.local_files import read_json_object, refuse_placeholders
from erniekit.models.config import ErnieConfig
from erniekit.models.specs import parameter_specs

# Files where transformers looks for classes in remote code, and the mark of a class in another repository.
_WITH_AUTO_MAP = ("config.json", "tokenizer_config.json", "preprocessor_config.json", "processor_config.json")
_REPOSITORY_MARK = "--"
EMBEDDING = "model.embed_tokens.weight"
_READ = (".safetensors", ".json", ".jinja", ".model", ".txt", ".ttf")
_BLOCK = 1 << 22
# Repositories of fine-tunable models in the Hub's layout, some without -PT in their names.
RELEASES = (
    "baidu/ERNIE-4.5-0.3B-PT",
    "baidu/ERNIE-4.5-21B-A3B-PT",
    "baidu/ERNIE-4.5-300B-A47B-PT",
    "baidu/ERNIE-4.5-VL-28B-A3B-PT",
    "baidu/ERNIE-4.5-VL-424B-A47B-PT",
    "baidu/ERNIE-4.5-21B-A3B-Thinking",
    "baidu/ERNIE-4.5-VL-28B-A3B-Thinking",
)


def open_model(directory: str | Path) -> tuple[ErnieConfig, dict[str, TensorInfo]]:
    """The configuration of a model directory, and the place of each of its tensors under the Hub's name.

    The directory has any of the layouts hub, transformers and paddle. Reads the headers of weight files, and an
    `lm_head.weight` of a model with tied embeddings. Raises CheckpointError for incomplete downloads, an unsupported
    config.json, missing, unexpected or misshapen tensors, and an output matrix that differs from the tied embedding.
    """
    directory = Path(directory)
    refuse_undownloaded(directory)
    config = ErnieConfig.from_dir(directory)
    found = model_index(directory, config)
    check_tensors(found, config, str(directory))
    return config, found


def model_index(directory: Path, config: ErnieConfig) -> dict[str, TensorInfo]:
    """The tensors of a model directory in any layout, under the Hub's names. Raises CheckpointError."""
    return hub_index(read_index(directory), config)


def check_tensors(found: dict[str, TensorInfo], config: ErnieConfig, where: str) -> None:
    """Check names, shapes and the output matrix. found: of `model_index`. Raises CheckpointError, see `open_model`."""
    check_against(found, parameter_specs(config), where)
    if config.tie_word_embeddings and OUTPUT in found:
        _check_output_matrix(found, config, where)


def refuse_undownloaded(directory: Path, name: str | None = None) -> None:
    """Raise CheckpointError for a directory that holds Git LFS pointers, or weights in Paddle's pickles only.

    Runs first, because the config.json of such a directory may lack required keys. Reads names and first bytes only.
    name: of the model in the message, None for the directory.
    """
    refuse_placeholders(directory, _READ)
    pickles = sorted(file.name for file in directory.glob("*.pdparams"))
    if pickles and not any(directory.glob("*.safetensors")):
        raise CheckpointError(
            f"{name or directory}: its weights are Paddle's pickles ({pickles[0]}), which are not read; use a release "
            f"with safetensors files, such as {RELEASES[0]} or the -Paddle release of today"
        )


def remote_code_note(directory: Path) -> str | None:
    """A note about Python code in a model directory or referred to by it; None if there is none.

    erniekit never runs it. Engines do with --trust-remote-code.
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
