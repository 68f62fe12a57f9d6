"""`erniekit export`: writes a trained model for inference engines."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import typer

from erniekit.cli import export_options as opt
from erniekit.cli.options import GgufType, MaxShardSize, Output
from erniekit.config import choices
from erniekit.errors import ConfigError

_ONE_FILE = ("adapter", "paddle-adapter", "gguf")


def export(
    source: opt.Source,
    output: Output,
    layout: opt.Layout = "hub",
    gguf_type: GgufType = None,
    dtype: opt.Dtype = "auto",
    base: opt.Base = None,
    chat_template: opt.ChatTemplate = "auto",
    quantize: opt.Quantize = "none",
    quantize_group: opt.QuantizeGroup = None,
    quantize_method: opt.QuantizeMethod = "rtn",
    calibration_files: opt.CalibrationFiles = None,
    calibration_samples: opt.CalibrationSamples = None,
    quantize_python: opt.QuantizePython = None,
    eval_files: opt.EvalFiles = None,
    max_shard_size: MaxShardSize = None,
) -> None:
    """Write a trained model for inference engines.

    Adapters are merged into the base model, except with --layout adapter and paddle-adapter. Tokenizer, processor and
    generation files are copied from the base model. Only a few tensors are in memory at a time.

    Examples:

    \b
      erniekit export runs/digits --output exports/digits
      erniekit export runs/lora/checkpoint-000500 --output out --layout transformers --dtype bfloat16
      erniekit export runs/text --output out --layout gguf --gguf-type q8_0
      erniekit export runs/text --output out --quantize int4 --eval heldout.jsonl
      erniekit export runs/text --output out --quantize int4 --quantize-method gptq --calibration train.jsonl
    """
    if quantize == "none" and (quantize_group is not None or eval_files or quantize_method != "rtn"):
        raise ConfigError("--quantize-group, --quantize-method and --eval need --quantize int8 or int4")
    _check_calibration(quantize_method, calibration_files, calibration_samples, quantize_python)
    _check_layout(layout, quantize, gguf_type, dtype, chat_template, max_shard_size)
    if layout == "adapter" or layout == "paddle-adapter":
        _export_adapter(source, output, layout, base)
        return
    if layout == "gguf":
        _export_gguf(source, output, gguf_type or "f16", base, chat_template)
        return

    from erniekit.display.progress import show_file_progress
    from erniekit.display.text import format_table
    from erniekit.export.calibrated import DEFAULT_SAMPLES, Calibration, export_calibrated
    from erniekit.export.export import describe_export, export_model, shard_bytes
    from erniekit.export.quantization_loss import quantization_loss
    from erniekit.export.quantized import chosen_quantization

    quantization = chosen_quantization(quantize, quantize_group)
    with show_file_progress() as progress:
        write = partial(export_model, quantization=quantization)
        if quantization is not None and quantize_method != "rtn":
            calibration = Calibration(
                quantize_method,
                calibration_files or (),
                calibration_samples or DEFAULT_SAMPLES,
                quantize_python,
            )
            write = partial(export_calibrated, calibration=calibration, quantization=quantization)
        report = write(
            source,
            output,
            layout=layout,
            dtype=dtype,
            base=base,
            max_shard_bytes=shard_bytes(max_shard_size),
            template=chat_template,
            progress=progress,
        )
    for line in describe_export(report):
        typer.echo(line)
    if eval_files:
        for line in format_table(quantization_loss(report, eval_files, dtype), indent=2):
            typer.echo(line)


def _check_calibration(
    method: choices.QuantizeMethod, files: Sequence[str] | None, samples: int | None, python: Path | None
) -> None:
    if method == "rtn" and (files or samples or python):
        raise ConfigError(
            "--calibration, --calibration-samples and --quantize-python need --quantize-method gptq or awq: rounding "
            "to nearest uses no data"
        )
    if method != "rtn" and not files:
        raise ConfigError(
            f"--quantize-method {method} needs data to calibrate with: name a file with --calibration, such "
            "as the training data"
        )


def _check_layout(
    layout: choices.ExportLayout,
    quantize: choices.Quantize,
    gguf_type: choices.GgufType | None,
    dtype: choices.Dtype,
    chat_template: choices.ChatTemplateSource,
    max_shard_size: str | None,
) -> None:
    """Raises ConfigError for an option that does not apply to the layout."""
    if quantize != "none" and layout in _ONE_FILE:
        raise ConfigError(f"--quantize does not apply to --layout {layout}; GGUF has --gguf-type q8_0")
    if gguf_type is not None and layout != "gguf":
        raise ConfigError("--gguf-type needs --layout gguf")
    if max_shard_size is not None and layout in _ONE_FILE:
        raise ConfigError(f"--max-shard-size does not apply to --layout {layout}, which has one weight file")
    if layout in ("adapter", "paddle-adapter") and (dtype != "auto" or chat_template != "auto"):
        raise ConfigError(
            f"--layout {layout} copies the adapter: it takes neither --dtype nor --chat-template"
        )
    if layout == "gguf" and dtype != "auto":
        raise ConfigError("--layout gguf has its own types: choose one with --gguf-type, not --dtype")


def _export_adapter(source: Path, output: Path, layout: choices.ExportLayout, base: Path | None) -> None:
    from erniekit.export.adapter import describe_adapter, export_adapter
    from erniekit.export.paddle_adapter import export_paddle_adapter

    export_files = export_adapter if layout == "adapter" else export_paddle_adapter
    for line in describe_adapter(export_files(source, output, base=base)):
        typer.echo(line)


def _export_gguf(
    source: Path,
    output: Path,
    gguf_type: choices.GgufType,
    base: Path | None,
    template: choices.ChatTemplateSource,
) -> None:
    from erniekit.display.progress import show_file_progress
    from erniekit.export import gguf
    from erniekit.export.export import describe_export

    with show_file_progress() as progress:
        merged, written = gguf.export_to_gguf(
            source, output, gguf_type, base=base, template=template, progress=progress
        )
    for line in [*describe_export(merged), *gguf.describe_gguf(written)]:
        typer.echo(line)
