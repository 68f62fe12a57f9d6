"""Make a new model directory: configuration, tokenizer and seeded weights in the Hub's layout."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from erniekit.checkpoint.element_types import as_dtype
from erniekit.checkpoint.hub import NUMPY_TYPES, spec_bytes, write_shards
from erniekit.create.corpus import read_texts
from erniekit.create.shapes import shape_config
from erniekit.create.tokenizer import TrainedTokenizer, train_tokenizer
from erniekit.errors import CheckpointError, ConfigError
from erniekit.json_fields import read_integer
from erniekit.models.config import ErnieConfig
from erniekit.models.specs import TensorSpec, parameter_specs
from erniekit.scratch import UNFINISHED, scratch_directory
from erniekit.vl_checkpoint import CLIP_MEAN, CLIP_STD

_SAFETENSORS_TYPES = {"float32": "F32", "bfloat16": "BF16"}
_BLOCK = 1 << 22


@dataclass(frozen=True)
class CreatedModel:
    """The result of `create_model`: size of the tokenizer, number of weights, and their bytes on disk."""

    config: ErnieConfig
    num_parameters: int
    num_tokens: int
    nbytes: int


def create_model(
    shape: str,
    output: Path,
    tokenizer_text: Sequence[Path],
    *,
    vocab_size: int | None = None,
    seed: int = 0,
    std: float | None = None,
    overrides: Sequence[str] = (),
    weights: bool = True,
) -> CreatedModel:
    """Write a model of a named shape into `output`, which must be absent or empty.

    `vocab_size` is the number of embedding rows and the maximum size of the tokenizer (default:
    the shape's). `std` is the standard deviation of the weights (default: 1 / sqrt(hidden_size), which is
    0.02 for the released MoE models, and keeps the logits of tied embeddings near 1). The same arguments
    give the same bytes. Memory: one tensor. Without `weights`, everything except the shards is written.
    Raises ConfigError, DataError or CheckpointError; `output` is then unchanged.
    """
    output = Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise CheckpointError(
            f"{output}: is not an empty directory; choose another --output, or remove it first"
        )
    if std is not None and not 0 < std < math.inf:
        raise ConfigError(f"--std {std}: must be above 0")
    raw = shape_config(shape, overrides)
    if vocab_size is not None:
        raw["vocab_size"] = vocab_size
    try:
        rows = read_integer(raw, "vocab_size")  # the trainer of the tokenizer allocates memory for it
    except (KeyError, ValueError) as error:
        raise ConfigError(f"shape {shape}: {error}") from None
    dtype = _SAFETENSORS_TYPES.get(raw["torch_dtype"])
    if dtype is None:
        known = " or ".join(_SAFETENSORS_TYPES)
        raise ConfigError(f"--set torch_dtype={raw['torch_dtype']}: the element type must be {known}")
    tokenizer = train_tokenizer(read_texts(tokenizer_text), rows)
    if "vision_config" in raw:
        raw.update(_media_token_ids(tokenizer))
    config = ErnieConfig.from_json(raw, where=f"shape {shape}")
    specs = parameter_specs(config, dtype)
    nbytes = sum(spec_bytes(spec) for spec in specs)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{output}: cannot be created: {error.strerror}") from None
    if weights:
        _check_space(output.parent, nbytes)
    # Written to another name and renamed, so that the directory is always complete.
    with scratch_directory(output.parent, f".{output.name}.", UNFINISHED) as aside:
        _write_side_files(aside, config, tokenizer)
        if weights:
            write_shards(aside, specs, _drawer(specs, seed, config.hidden_size**-0.5 if std is None else std))
        aside.replace(output)
    return CreatedModel(config, sum(spec.size for spec in specs), len(tokenizer), nbytes)


def _drawer(specs: Sequence[TensorSpec], seed: int, std: float) -> Callable[[str], np.ndarray]:
    by_name = {spec.name: spec for spec in specs}
    return lambda name: initial_value(by_name[name], seed, std)


def initial_value(spec: TensorSpec, seed: int, std: float) -> np.ndarray:
    """The first value of a tensor, in the numpy form of its element type; depends only on the arguments.

    Norms are 1, biases and the routers' correction 0, all else is normal with standard deviation `std`.
    """
    dtype = NUMPY_TYPES[spec.dtype]
    if spec.name.endswith((".bias", "e_score_correction_bias")):
        return np.zeros(spec.shape, dtype)
    if len(spec.shape) == 1:
        return as_dtype(np.ones(spec.shape, np.float32), "F32", spec.dtype)
    # A generator for each name: the values of a tensor do not depend on which others exist.
    digest = hashlib.sha256(f"{seed}/{spec.name}".encode()).digest()
    generator = np.random.Generator(np.random.PCG64(np.frombuffer(digest, "<u4")))
    result = np.empty(spec.size, dtype)
    # In blocks, so that temporaries are small compared to a large tensor.
    for start in range(0, spec.size, _BLOCK):
        values = generator.standard_normal(min(_BLOCK, spec.size - start), np.float32)
        values *= np.float32(std)
        result[start : start + values.size] = as_dtype(values, "F32", spec.dtype)
    return result.reshape(spec.shape)


def _check_space(directory: Path, nbytes: int) -> None:
    free = shutil.disk_usage(directory).free
    if nbytes > free:
        raise CheckpointError(
            f"{directory}: the weights take {nbytes / 2**30:.1f} GiB, the disk has {free / 2**30:.1f} GiB left; "
            "choose another --output, a smaller shape, or --no-weights"
        )


def _media_token_ids(tokenizer: TrainedTokenizer) -> dict[str, int]:
    placeholder = tokenizer.id_of("<|IMAGE_PLACEHOLDER|>")
    return {
        "im_patch_id": placeholder,
        "max_text_id": placeholder,
        "image_start_token_id": tokenizer.id_of("<|IMAGE_START|>"),
        "image_end_token_id": tokenizer.id_of("<|IMAGE_END|>"),
        "video_start_token_id": tokenizer.id_of("<|VIDEO_START|>"),
        "video_end_token_id": tokenizer.id_of("<|VIDEO_END|>"),
    }


def _write_side_files(directory: Path, config: ErnieConfig, tokenizer: TrainedTokenizer) -> None:
    vision = config.vision is not None
    _write_json(directory / "config.json", config.raw)
    ids = {key: config.raw[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    _write_json(directory / "generation_config.json", {**ids, "do_sample": False})
    tokenizer.save(directory, vision=vision, max_length=config.max_position_embeddings)
    if vision:
        _write_json(directory / "preprocessor_config.json", _preprocessor(config))


def _preprocessor(config: ErnieConfig) -> dict[str, Any]:
    """Settings of the image processor: areas in pixels, under both names that readers look for."""
    assert config.vision is not None
    patch, merge = config.vision.patch_size, config.vision.spatial_merge_size
    token = (patch * merge) ** 2
    smallest, largest = 4 * token, 6177 * token
    return {
        "image_processor_type": "Ernie4_5_VLMoeImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "resample": 3,
        "min_pixels": smallest,
        "max_pixels": largest,
        "size": {"shortest_edge": smallest, "longest_edge": largest},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [*CLIP_MEAN],
        "image_std": [*CLIP_STD],
        "patch_size": patch,
        "temporal_patch_size": 1,
        "merge_size": merge,
        "temporal_conv_size": config.vision.temporal_merge_size,
    }


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
