"""Weights in 8 or 4 bits in the compressed-tensors format, which vLLM and transformers load.

A linear layer is three tensors: `weight_packed`, int32 [out, in * bits / 32], with the code of the first column in the
lowest bits and 2^(bits - 1) added to each; `weight_scale` [out, groups], positive, in the element type that the weight
had; `weight_shape`, int64 [2]. A weight is code * scale (format `pack-quantized`, symmetric).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from erniekit.checkpoint.element_types import as_dtype
from erniekit.checkpoint.hub import TensorInfo, check_against, read_array, read_index
from erniekit.checkpoint.names import assemble, by_parameter, hub_tensors
from erniekit.checkpoint.tensor_layouts import StoredTensor
from erniekit.checkpoint.weights import assign
from erniekit.config.choices import CheckpointLayout, Quantize
from erniekit.data.media.patches import ImageSpec
from erniekit.errors import CheckpointError, ConfigError
from erniekit.local_files import read_json_object
from erniekit.models.config import ErnieConfig
from erniekit.models.config_keys import Family
from erniekit.models.ernie import ErnieModel
from erniekit.models.factory import build_model
from erniekit.models.specs import TensorSpec, is_quantized_tensor, parameter_specs

CONFIG_KEY = "quantization_config"
_INT4_GROUP = 128
_PACKED, _SCALE, _SHAPE = "_packed", "_scale", "_shape"
# Modules of engines that keep their weights: routers (vLLM has names of its own for those of vision-language models),
# output, vision tower, resampler.
_IGNORED = [
    "lm_head",
    r"re:.*mlp\.(text_experts_|vision_experts_)?gate$",
    r"re:.*vision_model.*",
    r"re:.*vision_tower.*",
    r"re:.*resampler_model.*",
]

TRANSFORMERS_VL = (
    "transformers 5.24 does not load quantized vision-language models. It unpacks the experts of a layer into one "
    "tensor, and experts for text and vision have different widths"
)

# The values of a tensor of the Hub by name, in float32.
Read = Callable[[str], np.ndarray]
# The codes int8 [out, in] of a linear layer by its name, and its scales [out, groups] in the dtype of the weight.
Rounded = Callable[[str], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Quantization:
    """`bits` is 8 or 4; `group` is the number of columns that share a scale, 0: one scale for a row."""

    bits: int
    group: int = 0

    @property
    def title(self) -> str:
        """For people."""
        return f"int{self.bits}, " + (f"groups of {self.group}" if self.group else "a scale for each row")

    def groups(self, columns: int) -> int:
        """The number of scales of a row."""
        return columns // self.group if self.group else 1

    def check(self, spec: TensorSpec) -> None:
        """Raise ConfigError if a weight cannot be quantized."""
        columns, per_word = spec.shape[1], 32 // self.bits
        if self.group and columns % self.group:
            raise ConfigError(
                f"{spec.name} has {columns} columns, which groups of {self.group} do not divide: choose another "
                "--quantize-group, or 0 for a scale for each row"
            )
        if columns % per_word:
            raise ConfigError(
                f"{spec.name} has {columns} columns; {per_word} codes of {self.bits} bits fill a word: it cannot be "
                "quantized"
            )

    def quantize(self, weight: np.ndarray, scale_dtype: str) -> tuple[np.ndarray, np.ndarray]:
        """Codes int8 [out, in] and scales [out, groups] in `scale_dtype` of a weight float32 [out, in].

        A scale is 2 / (2^bits - 1) of the largest magnitude, as in compressed-tensors; codes are rounded to nearest
        with the scale in the precision that the file has.
        """
        rows, columns = weight.shape
        grouped = weight.reshape(rows, self.groups(columns), -1)
        exact = np.abs(grouped).max(-1) * np.float32(2 / (2**self.bits - 1))
        exact = np.where(exact == 0, np.float32(1), exact)
        scale = as_dtype(exact.astype(np.float32), "F32", scale_dtype)
        used = as_dtype(scale, scale_dtype, "F32")[..., None]
        lowest = -(2 ** (self.bits - 1))
        codes = np.rint(grouped / used).clip(lowest, -lowest - 1).astype(np.int8)
        return codes.reshape(rows, columns), scale

    def pack(self, codes: np.ndarray) -> np.ndarray:
        """Codes int8 [out, in] as words int32 [out, in * bits / 32]."""
        per_word = 32 // self.bits
        offset = (codes.astype(np.int16) + 2 ** (self.bits - 1)).astype(np.uint32)
        parts = offset.reshape(len(codes), -1, per_word) << (np.arange(per_word, dtype=np.uint32) * self.bits)
        return np.bitwise_or.reduce(parts, axis=-1).view(np.int32)

    def unpack(self, words: np.ndarray) -> np.ndarray:
        """The codes int8 [out, in] of packed words."""
        per_word = 32 // self.bits
        shifted = words.view(np.uint32)[..., None] >> (np.arange(per_word, dtype=np.uint32) * self.bits)
        codes = (shifted & (2**self.bits - 1)).astype(np.int16) - 2 ** (self.bits - 1)
        return codes.astype(np.int8).reshape(len(words), -1)

    def dequantize(self, codes: np.ndarray, scale: np.ndarray, scale_dtype: str) -> np.ndarray:
        """The weight float32 [out, in]."""
        rows, columns = codes.shape
        used = as_dtype(scale, scale_dtype, "F32")
        grouped = codes.reshape(rows, self.groups(columns), -1).astype(np.float32) * used[..., None]
        return grouped.reshape(rows, columns)

    def config(self) -> dict[str, Any]:
        """The value of `quantization_config` in config.json."""
        weights: dict[str, Any] = {"num_bits": self.bits, "type": "int", "symmetric": True, "dynamic": False}
        weights |= {"strategy": "group", "group_size": self.group} if self.group else {"strategy": "channel"}
        group = {
            "targets": ["Linear"],
            "weights": weights,
            "input_activations": None,
            "output_activations": None,
        }
        return {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "quantization_status": "compressed",
            "config_groups": {"group_0": group},
            "ignore": _IGNORED,
            "kv_cache_scheme": None,
        }


def check_quantized_layout(layout: CheckpointLayout, family: Family) -> None:
    """Raise ConfigError for a layout that no program reads with quantized weights."""
    if layout == "paddle":
        raise ConfigError(
            "--quantize needs --layout hub or transformers: no reader of the paddle layout has it"
        )
    if layout == "transformers" and family == "vl":
        raise ConfigError(f"--quantize needs --layout hub, for vLLM: {TRANSFORMERS_VL}")


def chosen_quantization(choice: Quantize, group: int | None) -> Quantization | None:
    """The quantization of `--quantize` and `--quantize-group`."""
    if choice == "none":
        return None
    return (
        Quantization(8, group or 0)
        if choice == "int8"
        else Quantization(4, _INT4_GROUP if group is None else group)
    )


class QuantizationError:
    """Squares of what quantizing changes and of the weights, summed for each layer and part of it."""

    def __init__(self) -> None:
        self.sums: dict[tuple[int, str], np.ndarray] = {}

    def add(self, name: str, weight: np.ndarray, quantized: np.ndarray) -> None:
        """Add a weight of a decoder layer."""
        key = (int(name.split(".")[2]), _part(name))
        squares = [np.square(values, dtype=np.float64).sum() for values in (quantized - weight, weight)]
        self.sums[key] = self.sums.get(key, np.zeros(2)) + squares

    def table(self) -> list[list[str]]:
        """||W - Q(W)|| / ||W|| by layer, with a heading and the whole model, for `format_table`."""
        parts = [part for part in ("attention", "mlp", "experts") if any(key[1] == part for key in self.sums)]
        layers = sorted({layer for layer, _ in self.sums})
        rows = [["relative error", *parts]]
        for layer in layers:
            rows.append([f"layer {layer}", *(_relative([self.sums.get((layer, part))]) for part in parts)])
        every = (_relative([sums for key, sums in self.sums.items() if key[1] == part]) for part in parts)
        return [*rows, ["all layers", *every]]


def quantized_tensors(
    stored: Sequence[StoredTensor],
    quantization: Quantization,
    error: QuantizationError,
    rounded: Rounded | None = None,
) -> list[StoredTensor]:
    """The tensors of a file in the hub layout with its linear layers quantized. Raises ConfigError.

    error: gets each weight when it is written. rounded: codes and scales from elsewhere; None: rounded to nearest.
    """
    found: list[StoredTensor] = []
    for tensor in stored:
        if not is_quantized_tensor(tensor.spec.name):
            found.append(tensor)
            continue
        quantization.check(tensor.spec)
        layer = _Layer(tensor, quantization, error, rounded)
        found += [_Part(spec, (tensor.spec,), False, layer, place) for place, spec in enumerate(layer.specs)]
    return found


def read_quantization(directory: Path) -> Quantization | None:
    """How an export is quantized, from its config.json; None if it is not. Raises CheckpointError for other formats."""
    file = directory / "config.json"
    content = read_json_object(file).get(CONFIG_KEY) if file.is_file() else None
    if content is None:
        return None
    try:
        weights = content["config_groups"]["group_0"]["weights"]
        found = Quantization(int(weights["num_bits"]), int(weights.get("group_size") or 0))
        known = found.bits in (4, 8) and content == found.config()
    except (KeyError, TypeError, ValueError):
        known = False
    if not known:
        raise CheckpointError(
            f"{directory}: its quantization_config is not one that `erniekit export --quantize` writes"
        )
    return found


def model_config(directory: Path) -> ErnieConfig:
    """The configuration of a model directory, also of a quantized export. Raises CheckpointError."""
    if read_quantization(directory) is None:
        return ErnieConfig.from_dir(directory)
    raw = read_json_object(directory / "config.json")
    return ErnieConfig.from_json(
        {key: value for key, value in raw.items() if key != CONFIG_KEY}, str(directory / "config.json")
    )


def check_quantized(directory: Path, quantization: Quantization) -> dict[str, TensorInfo]:
    """The tensors of a quantized export. Raises CheckpointError if names or shapes differ from config.json."""
    config = model_config(directory)
    tensors = read_index(directory)
    plain = [StoredTensor(spec, (spec,), False) for spec in parameter_specs(config)]
    wanted = [tensor.spec for tensor in quantized_tensors(plain, quantization, QuantizationError())]
    whole = [spec for spec in wanted if spec.dtype.startswith("I")]
    floats = {name: info for name, info in tensors.items() if not info.dtype.startswith("I")}
    check_against(floats, [spec for spec in wanted if spec not in whole], str(directory))
    for spec in whole:
        info = tensors.get(spec.name)
        if info is None or info.shape != spec.shape or info.dtype != spec.dtype:
            found = "missing" if info is None else f"{info.dtype} {list(info.shape)}"
            raise CheckpointError(f"{directory}: {spec.name} is {found}, not {spec.dtype} {list(spec.shape)}")
    return tensors


def read_quantized_model(directory: Path) -> ErnieModel:
    """The model of a quantized export with the values that engines compute with, in float32. Raises CheckpointError."""
    quantization = read_quantization(directory)
    if quantization is None:
        raise ValueError(f"{directory} is not quantized")
    tensors = check_quantized(directory, quantization)

    def read(name: str) -> np.ndarray:
        if not is_quantized_tensor(name):
            return as_dtype(read_array(tensors[name]), tensors[name].dtype, "F32")
        packed, scale = tensors[name + _PACKED], tensors[name + _SCALE]
        codes = quantization.unpack(read_array(packed))
        return quantization.dequantize(codes, read_array(scale), scale.dtype)

    return model_of(model_config(directory), read, directory)


def model_of(config: ErnieConfig, read: Read, directory: Path) -> ErnieModel:
    """A model in evaluation mode, in float32, with the values that `read` gives. directory: has the processor."""
    model = build_model(config, "float32")
    parameters = dict(model.named_parameters())
    for name, tensors in by_parameter(hub_tensors(model)).items():
        values = assemble(
            tensors,
            lambda tensor, start, stop: (read(tensor.name).reshape(-1)[start:stop], "F32"),
            "F32",
            (0, tensors[-1].stop),
        )
        assign(parameters[name], values.reshape(parameters[name].shape), "F32")
    if config.vision is not None:
        spec = ImageSpec.from_checkpoint(directory)
        model.image_mean, model.image_std = spec.image_mean, spec.image_std
    model.eval()
    return model


class _Layer:
    """A linear layer in a file: its weight is quantized once, when the first of its tensors is written."""

    def __init__(
        self,
        tensor: StoredTensor,
        quantization: Quantization,
        error: QuantizationError,
        rounded: Rounded | None,
    ) -> None:
        self._tensor, self._quantization, self._error, self._rounded = tensor, quantization, error, rounded
        self._values: list[np.ndarray] = []
        name, dtype, (rows, columns) = tensor.spec.name, tensor.spec.dtype, tensor.spec.shape
        words = columns * quantization.bits // 32
        self.specs = (
            TensorSpec(name + _PACKED, "I32", (rows, words)),
            TensorSpec(name + _SCALE, dtype, (rows, quantization.groups(columns))),
            TensorSpec(name + _SHAPE, "I64", (2,)),
        )

    def read(self, place: int, get: Read) -> np.ndarray:
        """The tensor of `specs` at a place, which are read in their order."""
        if place == 0:
            name, dtype = self._tensor.spec.name, self._tensor.spec.dtype
            weight = as_dtype(self._tensor.read(get), dtype, "F32")
            if self._rounded is None:
                codes, scale = self._quantization.quantize(weight, dtype)
            else:
                codes, scale = self._rounded(name)
            self._error.add(name, weight, self._quantization.dequantize(codes, scale, dtype))
            shape = np.array(self._tensor.spec.shape, np.int64)
            self._values = [shape, scale, self._quantization.pack(codes)]
        return self._values.pop()


@dataclass(frozen=True)
class _Part(StoredTensor):
    """One of the tensors of a quantized layer."""

    layer: _Layer
    place: int

    def read(self, get: Read) -> np.ndarray:
        return self.layer.read(self.place, get)


def _part(name: str) -> str:
    if ".mlp.experts." in name:
        return "experts"
    return "mlp" if ".mlp." in name else "attention"


def _relative(sums: Iterable[np.ndarray | None]) -> str:
    total = sum((each for each in sums if each is not None), np.zeros(2))
    return f"{math.sqrt(total[0] / total[1]):.3%}" if total[1] else "-"
