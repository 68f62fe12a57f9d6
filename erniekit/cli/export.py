"""`erniekit export`: writes a trained model for inference engines."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from erniekit.cli.options import MaxShardSize
from erniekit.config.choices import (
    ChatTemplateSource,
    Dtype,
    ExportLayout,
    GgufType,
    Quantize,
    QuantizeMethod,
)
from erniekit.errors import ConfigError


def export(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL",
            help="A run (its newest complete checkpoint, or RUN/best), a checkpoint, a model directory, or a "
            "repository of the Hub.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output", metavar="DIR", help="Output directory. Must be new or empty.", show_default=False
        ),
    ],
    layout: Annotated[
        ExportLayout,
        typer.Option(
            "--layout",
            "--to",
            help="hub: the released layout, for vLLM, SGLang, FastDeploy and llama.cpp. transformers: the nested "
            "config.json of transformers, which loads vision-language models without remote code; the same as hub for "
            "text models. paddle: the -Paddle layout, for FastDeploy and Baidu's ERNIEKit. adapter: only the adapter, "
            "for PEFT. paddle-adapter: only the adapter, for Baidu's tools. gguf: one file for llama.cpp, "
            "of text models.",
        ),
    ] = "hub",
    gguf_type: Annotated[
        GgufType | None,
        typer.Option(
            "--gguf-type",
            help="With --layout gguf: the type of the matrices. Default: f16.",
            show_default=False,
        ),
    ] = None,
    dtype: Annotated[
        Dtype,
        typer.Option(
            "--dtype", help="Dtype of the weights. auto: as in the base model. Router weights stay float32."
        ),
    ] = "auto",
    base: Annotated[
        Path | None,
        typer.Option(
            "--base",
            metavar="MODEL",
            help="Base model (a directory or a repository), if it is not the one that the checkpoint names.",
        ),
    ] = None,
    chat_template: Annotated[
        ChatTemplateSource,
        typer.Option(
            "--chat-template",
            help="Chat template to write: the base model's, or the one used in training. auto: the base model's, "
            "unless its prompts differ from training or it ignores tools.",
        ),
    ] = "auto",
    quantize: Annotated[
        Quantize,
        typer.Option(
            "--quantize",
            help="Round the linear layers of the decoder, including experts, to 8 or 4 bits, in the format of "
            "compressed-tensors, for vLLM. Routers, embeddings, norms, vision tower and resampler are unchanged.",
        ),
    ] = "none",
    quantize_group: Annotated[
        int | None,
        typer.Option(
            "--quantize-group",
            metavar="N",
            min=0,
            help="Columns that share a scale; 0: one scale for a row. Default: 128 for int4, 0 for int8.",
            show_default=False,
        ),
    ] = None,
    quantize_method: Annotated[
        QuantizeMethod,
        typer.Option(
            "--quantize-method",
            help="rtn: round to nearest. gptq, awq: with llm-compressor and a calibration set, for text models. They "
            "run in the environment of `make engines` and hold the whole model in memory.",
        ),
    ] = "rtn",
    calibration_files: Annotated[
        list[str] | None,
        typer.Option(
            "--calibration",
            metavar="FILE",
            help="With --quantize-method gptq or awq: data file to calibrate with, such as the training data; repeat "
            "it for several.",
            show_default=False,
        ),
    ] = None,
    calibration_samples: Annotated[
        int | None,
        typer.Option(
            "--calibration-samples",
            metavar="N",
            min=1,
            help="Calibrate with the first N samples. Default: 512.",
            show_default=False,
        ),
    ] = None,
    quantize_python: Annotated[
        Path | None,
        typer.Option(
            "--quantize-python", metavar="FILE", help="Python of another environment with llm-compressor."
        ),
    ] = None,
    eval_files: Annotated[
        list[str] | None,
        typer.Option(
            "--eval",
            metavar="FILE",
            help="With --quantize: print the loss on this data file before and after quantizing.",
            show_default=False,
        ),
    ] = None,
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
    from erniekit.display.progress import show_file_progress
    from erniekit.display.text import format_table
    from erniekit.export import gguf
    from erniekit.export.adapter import describe as describe_adapter
    from erniekit.export.adapter import export_adapter
    from erniekit.export.calibrated import DEFAULT_SAMPLES, Calibration, export_calibrated
    from erniekit.export.export import describe, export_model, shard_bytes
    from erniekit.export.paddle_adapter import export_paddle_adapter
    from erniekit.export.quantization_loss import quantization_loss
    from erniekit.export.quantized import chosen_quantization

    if quantize == "none" and (quantize_group is not None or eval_files or quantize_method != "rtn"):
        raise ConfigError("--quantize-group, --quantize-method and --eval need --quantize int8 or int4")
    if quantize_method == "rtn" and (calibration_files or calibration_samples or quantize_python):
        raise ConfigError(
            "--calibration, --calibration-samples and --quantize-python need --quantize-method gptq or awq: rounding "
            "to nearest uses no data"
        )
    if quantize_method != "rtn" and not calibration_files:
        raise ConfigError(
            f"--quantize-method {quantize_method} needs data to calibrate with: name a file with --calibration, such "
            "as the training data"
        )
    if quantize != "none" and layout in ("adapter", "paddle-adapter", "gguf"):
        raise ConfigError(f"--quantize does not apply to --layout {layout}; GGUF has --gguf-type q8_0")
    if gguf_type is not None and layout != "gguf":
        raise ConfigError("--gguf-type needs --layout gguf")
    if max_shard_size is not None and layout in ("adapter", "paddle-adapter", "gguf"):
        raise ConfigError(f"--max-shard-size does not apply to --layout {layout}, which has one weight file")
    if layout == "adapter" or layout == "paddle-adapter":
        if dtype != "auto" or chat_template != "auto":
            raise ConfigError(
                f"--layout {layout} copies the adapter: it takes neither --dtype nor --chat-template"
            )
        export_files = export_adapter if layout == "adapter" else export_paddle_adapter
        for line in describe_adapter(export_files(source, output, base=base)):
            typer.echo(line)
        return
    if layout == "gguf":
        if dtype != "auto":
            raise ConfigError("--layout gguf has its own types: choose one with --gguf-type, not --dtype")
        with show_file_progress() as progress:
            merged, written = gguf.export_to_gguf(
                source, output, gguf_type or "f16", base=base, template=chat_template, progress=progress
            )
        for line in [*describe(merged), *gguf.describe(written)]:
            typer.echo(line)
        return
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
    for line in describe(report):
        typer.echo(line)
    if eval_files:
        for line in format_table(quantization_loss(report, eval_files, dtype), indent=2):
            typer.echo(line)
