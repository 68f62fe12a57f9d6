"""Quantized exports with the weights that GPTQ or AWQ of llm-compressor finds with a calibration set.

llm-compressor runs in an environment of its own, on a plain export of the model: see
`erniekit/export/engines/llmcompressor_runner.py`. The result has the format of `erniekit.export.quantized`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from erniekit.checkpoint.element_types import as_dtype
from erniekit.checkpoint.header import read_header
from erniekit.checkpoint.hub import DEFAULT_SHARD_BYTES, read_array, read_index
from erniekit.config.choices import ChatTemplateSource, CheckpointLayout, Dtype
from erniekit.data.encode.stats import ErrorBudget
from erniekit.display.progress import OnProgress, no_progress
from erniekit.display.text import counted
from erniekit.errors import ConfigError, DataError
from erniekit.evaluation.dataset import EvalDataset, find_files
from erniekit.export.engines.process import LLM_COMPRESSOR, find_python, run_script
from erniekit.export.export import ExportReport, export_model
from erniekit.export.output import check_output, staging
from erniekit.export.quantized import Quantization, Rounded, check_quantized_layout
from erniekit.export.source import resolve_source
from erniekit.generation.load import find_model
from erniekit.models.config import ErnieConfig
from erniekit.models.specs import is_quantized_tensor, parameter_specs

DEFAULT_SAMPLES = 512
# Tokens of a calibration sample, from its start. A layer sees them all at once.
_MAX_TOKENS = 2048
_MAX_WARNINGS = 5


@dataclass(frozen=True)
class Calibration:
    """How llm-compressor quantizes: with the first `samples` samples of `files`.

    `python`: of its environment, None: that of `make engines`.
    """

    method: Literal["gptq", "awq"]
    files: Sequence[str]
    samples: int = DEFAULT_SAMPLES
    python: Path | None = None


def export_calibrated(
    path: str | Path,
    output: str | Path,
    calibration: Calibration,
    quantization: Quantization,
    *,
    layout: CheckpointLayout = "hub",
    dtype: Dtype = "auto",
    base: str | Path | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    template: ChatTemplateSource = "auto",
    progress: OnProgress = no_progress,
) -> ExportReport:
    """Export a model with the quantized weights of GPTQ or AWQ. The other arguments are those of `export_model`.

    A plain export is on the disk of `output` meanwhile, and the whole model in the memory of
    llm-compressor. Raises what `export_model` raises; EngineError if llm-compressor is missing or fails; DataError for
    the calibration set; ConfigError for a vision-language model.
    """
    output = Path(output)
    check_output(output)
    python = find_python(LLM_COMPRESSOR, calibration.python)
    source = resolve_source(Path(path), None if base is None else Path(base))
    check_quantized_layout(layout, source.config.family)
    _check_model(source.config, quantization, calibration.method)
    samples, left_out = calibration_samples(source.checkpoint, calibration)
    with staging(output) as folder:
        plain = export_model(
            path, folder / "model", dtype=dtype, base=base, template=template, progress=progress
        )
        codes = folder / "codes.safetensors"
        request = {
            "model": str(plain.directory),
            "method": calibration.method,
            "bits": quantization.bits,
            "group": quantization.group,
            "samples": samples,
            "codes": str(codes),
        }
        response = run_script(LLM_COMPRESSOR, python, request, folder)
        report = export_model(
            plain.directory,
            output,
            layout=layout,
            max_shard_bytes=max_shard_bytes,
            quantization=quantization,
            rounded=_read_rounded(codes, plain.directory) if calibration.method == "gptq" else None,
            progress=progress,
        )
    return replace(
        plain,
        directory=report.directory,
        tensors=report.tensors,
        shards=report.shards,
        nbytes=report.nbytes,
        dtypes=report.dtypes,
        warnings=(*plain.warnings, *left_out, *response["warnings"][:_MAX_WARNINGS]),
        quantization=quantization,
        rounding=f"by {calibration.method.upper()} of {response['name']} with {counted(len(samples), 'sample')}",
        error=report.error,
    )


def calibration_samples(checkpoint: Path, calibration: Calibration) -> tuple[list[list[int]], list[str]]:
    """The tokens of each sample of the calibration set, encoded as in training, and a line about samples left out.

    Samples longer than the model's positions are left out; data.on_error of the run decides about wrong ones. Raises
    DataError without samples.
    """
    found = find_model(checkpoint)
    budget = ErrorBudget(found.data.on_error, found.data.max_errors, on_long="drop")
    files = find_files(calibration.files, found.data)
    data = EvalDataset(files, found.encoder(), answers=False, limit=calibration.samples, budget=budget)
    samples = [sample.whole.input_ids[:_MAX_TOKENS].tolist() for sample in data]
    if not samples:
        raise DataError(f"{', '.join(calibration.files)}: no sample to calibrate with")
    left_out = f"samples of the calibration set are left out ({budget.by_reason()})"
    return samples, [left_out] if budget.left_out() else []


def _check_model(config: ErnieConfig, quantization: Quantization, method: str) -> None:
    if config.family == "vl":
        raise ConfigError(
            f"--quantize-method {method} is for text models: llm-compressor does not handle the experts of ERNIE's "
            "vision-language models; use --quantize-method rtn"
        )
    for spec in parameter_specs(config):
        if is_quantized_tensor(spec.name):
            quantization.check(spec)


def _read_rounded(file: Path, model: Path) -> Rounded:
    """Codes and scales from the file that the script wrote for a model directory."""
    tensors, types = read_header(file), read_index(model)

    def rounded(name: str) -> tuple[np.ndarray, np.ndarray]:
        codes, scale = (read_array(tensors[name + part]) for part in ("_codes", "_scale"))
        return codes, as_dtype(scale, "F32", types[name].dtype)

    return rounded
