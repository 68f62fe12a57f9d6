"""Exporting a trained model as a directory that inference engines load.

Tensors are processed one at a time: read, merged with their adapter, converted, written.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import paddle

from erniekit.checkpoint.base import check_base
from erniekit.checkpoint.element_types import as_dtype, is_finite
from erniekit.checkpoint.hub import DEFAULT_SHARD_BYTES, TensorInfo, read_array
from erniekit.checkpoint.model_files import check_tensors, model_index
from erniekit.checkpoint.quantizer import Quantizer, make_quantizer, relative_error
from erniekit.checkpoint.state import check_weights
from erniekit.checkpoint.tensor_layouts import stored_tensors
from erniekit.config.choices import ChatTemplateSource, CheckpointLayout, Dtype
from erniekit.data.encode.limits import read_limits
from erniekit.data.encode.tokenizer import load_tokenizer
from erniekit.display.progress import OnProgress, no_progress
from erniekit.display.text import counted, format_table
from erniekit.errors import CheckpointError, ConfigError
from erniekit.export.config_files import main_dtype, write_config
from erniekit.export.files import carry_files, set_positions, side_files, write_json
from erniekit.export.layouts import DTYPE_NAMES
from erniekit.export.output import check_output, replacing
from erniekit.export.processors import set_image_bounds, set_videos
from erniekit.export.prompts import settle_chat_template
from erniekit.export.quantized import (
    CONFIG_KEY,
    Quantization,
    QuantizationError,
    Rounded,
    check_quantized_layout,
    quantized_tensors,
)
from erniekit.export.source import ExportSource, resolve_source
from erniekit.export.writer import WeightsWriter
from erniekit.local_files import read_json_object
from erniekit.lora.merge import AdapterMerge
from erniekit.models.config import ErnieConfig
from erniekit.models.config_keys import unknown_keys_message
from erniekit.models.specs import TensorSpec, is_quantized_tensor, is_router_tensor, parameter_specs

_ELEMENT_TYPES = {name: element for element, name in DTYPE_NAMES.items()}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?", re.IGNORECASE)
_SMALLEST_SIZE = 1000


@dataclass(frozen=True)
class ExportReport:
    """The result of an export: `nbytes` of weights, `merged` adapters, `replaced` full tensors of the adapter.

    `quantized` is the number of weights that were quantized in training, and `difference` how far they were from those
    that the adapters are merged into, relative to these by norms. `quantization` is that of the export, `rounding` how
    its codes were found, and `error` its table of relative errors by layer.
    """

    directory: Path
    source: ExportSource
    tensors: int
    shards: int
    nbytes: int
    dtypes: dict[str, int]
    merged: int
    replaced: int
    warnings: tuple[str, ...]
    quantized: int = 0
    difference: float = 0.0
    quantization: Quantization | None = None
    rounding: str = "rounded to nearest"
    error: tuple[tuple[str, ...], ...] = ()


def export_model(
    path: str | Path,
    output: str | Path,
    *,
    layout: CheckpointLayout = "hub",
    dtype: Dtype = "auto",
    base: str | Path | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    template: ChatTemplateSource = "auto",
    quantization: Quantization | None = None,
    rounded: Rounded | None = None,
    progress: OnProgress = no_progress,
) -> ExportReport:
    """Export a run (its newest complete checkpoint), a checkpoint or a model directory to `output`.

    With `dtype` auto each tensor has the element type of the base model; router tensors are always float32. `base`
    replaces the base model that the checkpoint names. `template`: see `settle_chat_template`. `quantization`:
    of the linear layers of decoder layers, not in the paddle layout; `rounded`: their codes, None: rounded to nearest.
    `output` appears when it is complete. Raises CheckpointError if the input is incomplete or does not fit, or the
    output is not empty; ConfigError for a quantization that does not fit the weights.
    """
    output = Path(output)
    check_output(output)
    source = resolve_source(Path(path), None if base is None else Path(base))
    check_weights(source.checkpoint)
    if source.adapter is not None and base is None:
        check_base(source.weights, source.adapter.resolve().parent)
    tensors = model_index(source.weights, _on_disk(source.config, source.weights))
    wanted = parameter_specs(source.config)
    check_tensors(tensors, _on_disk(source.config, source.weights), str(source.weights))
    specs = _output_specs(source, tensors, wanted, dtype)
    quantizer = make_quantizer(source.quantize)
    read = read_array if quantizer is None else partial(_read_measured, quantizer, source.dtype)
    shapes = {spec.name: spec.shape for spec in wanted}
    merge = AdapterMerge(source.adapter, shapes, read) if source.adapter is not None else None
    if merge is not None:
        _check_vocabulary(source, tensors, shapes, merge)
    stored = stored_tensors(specs, layout, source.config)
    error = QuantizationError()
    if quantization is not None:
        check_quantized_layout(layout, source.config.family)
        stored = quantized_tensors(stored, quantization, error, rounded)
    writer = WeightsWriter(layout, stored, max_shard_bytes, progress)
    with replacing(output, writer.nbytes) as target:
        warnings = write_files(source, target, layout, main_dtype(specs), template)
        if quantization is not None:
            file = target / "config.json"
            write_json(file, read_json_object(file) | {CONFIG_KEY: quantization.config()})
        shards = writer.write(target, _reader(tensors, specs, merge))
    dropped = len(set(tensors) - {spec.name for spec in wanted})
    if dropped:
        warnings.append(
            f"{dropped} unused tensors are left out (multi-token prediction, or a copy of tied weights)"
        )
    return ExportReport(
        directory=output,
        source=source,
        tensors=len(writer.stored),
        shards=shards,
        nbytes=writer.nbytes,
        dtypes=dict(Counter(tensor.spec.dtype for tensor in writer.stored)),
        merged=len(merge.modules) if merge is not None else 0,
        replaced=len(merge.whole) if merge is not None else 0,
        warnings=tuple(warnings),
        quantized=0 if quantizer is None else sum(is_quantized_tensor(spec.name) for spec in specs),
        difference=0.0 if quantizer is None else relative_error(quantizer.sums),
        quantization=quantization,
        error=tuple(map(tuple, error.table())) if quantization is not None else (),
    )


def merged_values(source: ExportSource, dtype: Dtype = "auto") -> Callable[[str], np.ndarray]:
    """Reads a tensor of an export in float32, as `export_model` writes it: merged, and rounded to its element type."""
    tensors = model_index(source.weights, _on_disk(source.config, source.weights))
    specs = _output_specs(source, tensors, parameter_specs(source.config), dtype)
    types = {spec.name: spec.dtype for spec in specs}
    shapes = {spec.name: spec.shape for spec in specs}
    read = _reader(tensors, specs, None if source.adapter is None else AdapterMerge(source.adapter, shapes))
    return lambda name: as_dtype(read(name), types[name], "F32")


def describe_export(report: ExportReport) -> list[str]:
    """The report as lines of text."""
    kinds = ", ".join(f"{count} {dtype}" for dtype, count in sorted(report.dtypes.items()))
    files = "1 file" if report.shards == 1 else f"{report.shards} files"
    lines = [
        f"exported {report.source.checkpoint} to {report.directory}",
        f"  {report.tensors} tensors ({kinds}), {report.nbytes / 1e6:,.1f} MB in {files}",
    ]
    if report.source.adapter is not None:
        lines.append(f"  {report.merged} adapters merged into {report.source.weights} (all of them)")
    if report.quantized:
        weights = counted(report.quantized, "weight")
        lines.append(
            f"  {weights} quantized to {report.source.quantize} in training, exported from the base model's original "
            f"values: relative difference {report.difference:.2%}"
        )
    if report.quantization is not None:
        lines.append(f"  linear layers quantized: {report.quantization.title}, {report.rounding}")
        lines += format_table(report.error, indent=4)
    if report.replaced:
        lines.append(f"  {report.replaced} tensors of the base model replaced by trained ones")
    return lines + [f"  note: {warning}" for warning in report.warnings]


def shard_bytes(size: str | None) -> int:
    """Bytes of `--max-shard-size`, None: the default. Raises ConfigError."""
    return DEFAULT_SHARD_BYTES if size is None else parse_size(size)


def parse_size(text: str) -> int:
    """Bytes in "5GB" (10^9 each), "512MiB" (2^20 each) or "5000000", at least 1000. Raises ConfigError."""
    match = _SIZE.fullmatch(text.strip())
    size = 0
    if match is not None:
        unit = 1024 if match[3] else 1000
        size = int(float(match[1]) * unit ** " KMGT".index(match[2].upper() or " "))
    if size < _SMALLEST_SIZE:
        raise ConfigError(
            f"{text!r} is not a size of at least {_SMALLEST_SIZE:,} bytes; write it as 5GB, 512MiB or a number of bytes"
        )
    return size


def _output_specs(
    source: ExportSource, tensors: dict[str, TensorInfo], wanted: list[TensorSpec], choice: Dtype
) -> list[TensorSpec]:
    base: dict[str, TensorInfo] = {}
    if source.base is not None and source.base != source.weights:
        base = model_index(source.base, _on_disk(source.config, source.base))
        check_tensors(
            base, _on_disk(source.config, source.base), f"{source.base} (the base of {source.weights})"
        )
    raw = source.config.raw
    stated = _ELEMENT_TYPES.get(str(raw.get("torch_dtype") or raw.get("dtype")))

    def element_type(spec: TensorSpec) -> str:
        if is_router_tensor(spec.name):
            return "F32"
        if choice != "auto":
            return _ELEMENT_TYPES[choice]
        if base:
            return base[spec.name].dtype
        # Training on a CPU writes float32; config.json still states the element type of the base model.
        if source.trained and source.adapter is None and stated is not None:
            return stated
        return tensors[spec.name].dtype

    specs = [replace(spec, dtype=element_type(spec)) for spec in wanted]
    odd = next((spec for spec in specs if spec.dtype not in DTYPE_NAMES), None)
    if odd is not None:
        raise CheckpointError(
            f"{source.weights}: {odd.name} has the element type {odd.dtype}; choose a supported one with --dtype"
        )
    return specs


def _on_disk(config: ErnieConfig, directory: Path) -> ErnieConfig:
    """The configuration with the vocabulary size of a directory, to which training may have added rows."""
    return replace(config, vocab_size=ErnieConfig.from_dir(directory).vocab_size)


def _check_vocabulary(
    source: ExportSource,
    tensors: dict[str, TensorInfo],
    shapes: dict[str, tuple[int, ...]],
    merge: AdapterMerge,
) -> None:
    """Raise CheckpointError if the adapter has more token ids than the base model, and lacks a tensor of them."""
    for name, shape in shapes.items():
        if name not in merge.whole and tensors[name].shape != shape:
            raise CheckpointError(
                f"{source.adapter}: the adapter does not fit {source.weights}: {name} is "
                f"{list(tensors[name].shape)}, the model expects {list(shape)}"
            )


def _reader(
    tensors: dict[str, TensorInfo], specs: list[TensorSpec], merge: AdapterMerge | None
) -> Callable[[str], np.ndarray]:
    targets = {spec.name: spec.dtype for spec in specs}

    def read(name: str) -> np.ndarray:
        info, dtype = tensors[name], targets[name]
        with np.errstate(over="ignore"):
            array = as_dtype(read_array(info), info.dtype, dtype) if merge is None else merge(info, dtype)
        # What was read is finite; float16 ends at 65,504, and a sum may be larger than any number.
        if (merge is not None or (dtype == "F16" and info.dtype != "F16")) and not is_finite(array, dtype):
            raise CheckpointError(
                f"{info.file}: {name} has values that {DTYPE_NAMES[dtype]} cannot hold; choose another --dtype"
            )
        return array

    return read


def _read_measured(quantizer: Quantizer, dtype: str, info: TensorInfo) -> np.ndarray:
    """A tensor of the base model; measures what quantizing it changed in training, where it computed in `dtype`."""
    array = read_array(info)
    if is_quantized_tensor(info.name):
        weight = paddle.to_tensor(as_dtype(array, info.dtype, "F32")).astype(dtype)
        quantizer.measure(weight, quantizer(weight))
    return array


def _vocabulary_warnings(source: ExportSource, target: Path) -> list[str]:
    """Warnings about tokens that were added to the tokenizer."""
    config, warnings = source.config, []
    if source.base is not None and config.media is not None:
        before = ErnieConfig.from_dir(source.base).vocab_size
        if config.vocab_size > before:
            warnings.append(
                f"FastDeploy treats every token id from im_patch_id ({config.media.image_placeholder}) on as an "
                f"image token, including the added ones from {before} on: use vLLM or transformers"
            )
    tokenizer = load_tokenizer(target).backend_tokenizer
    return warnings + read_limits(target, tokenizer, config.vocab_size).notes()


def write_files(
    source: ExportSource,
    target: Path,
    layout: CheckpointLayout,
    dtype: str,
    template: ChatTemplateSource = "auto",
    *,
    has_mtp: bool = False,
) -> list[str]:
    """Write everything but weights, with the settings of training if there was any; returns warnings.

    dtype, has_mtp: see `write_config`. template: see `settle_chat_template`.
    """
    config, data = source.config, source.data
    unknown = unknown_keys_message(config.unknown, source.weights / "config.json")
    warnings = [] if unknown is None else [unknown]
    warnings += carry_files(side_files(source.files), target, config, layout)
    if source.max_positions is not None:
        set_positions(target, config.max_position_embeddings)
    if config.family == "vl":
        warnings += set_image_bounds(target, data.min_pixels, data.max_pixels)
        if source.trained:
            warnings += set_videos(target, data)
    if source.trained and source.base is None:
        warnings.append("the base model is missing: element types and files are taken from the checkpoint")
    warnings += write_config(target, config, layout, dtype, has_mtp=has_mtp)
    warnings += _vocabulary_warnings(source, target)
    return warnings + settle_chat_template(
        target,
        data.template,
        template,
        layout,
        trained=source.trained,
        vl=config.family == "vl",
    )
