"""Options of `erniekit export`."""

from pathlib import Path
from typing import Annotated

import typer

from erniekit.config import choices

Source = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL",
        help="A run (its newest complete checkpoint, or RUN/best), a checkpoint, a model directory, or a "
        "repository of the Hub.",
        show_default=False,
    ),
]
Layout = Annotated[
    choices.ExportLayout,
    typer.Option(
        "--layout",
        "--to",
        help="hub: the released layout, for vLLM, SGLang, FastDeploy and llama.cpp. transformers: the nested "
        "config.json of transformers, which loads vision-language models without remote code; the same as hub for "
        "text models. paddle: the -Paddle layout, for FastDeploy and Baidu's ERNIEKit. adapter: only the adapter, "
        "for PEFT. paddle-adapter: only the adapter, for Baidu's tools. gguf: one file for llama.cpp, "
        "of text models.",
    ),
]
Dtype = Annotated[
    choices.Dtype,
    typer.Option(
        "--dtype", help="Dtype of the weights. auto: as in the base model. Router weights stay float32."
    ),
]
Base = Annotated[
    Path | None,
    typer.Option(
        "--base",
        metavar="MODEL",
        help="Base model (a directory or a repository), if it is not the one that the checkpoint names.",
    ),
]
ChatTemplate = Annotated[
    choices.ChatTemplateSource,
    typer.Option(
        "--chat-template",
        help="Chat template to write: the base model's, or the one used in training. auto: the base model's, "
        "unless its prompts differ from training or it ignores tools.",
    ),
]
Quantize = Annotated[
    choices.Quantize,
    typer.Option(
        "--quantize",
        help="Round the linear layers of the decoder, including experts, to 8 or 4 bits, in the format of "
        "compressed-tensors, for vLLM. Routers, embeddings, norms, vision tower and resampler are unchanged.",
    ),
]
QuantizeGroup = Annotated[
    int | None,
    typer.Option(
        "--quantize-group",
        metavar="N",
        min=0,
        help="Columns that share a scale; 0: one scale for a row. Default: 128 for int4, 0 for int8.",
        show_default=False,
    ),
]
QuantizeMethod = Annotated[
    choices.QuantizeMethod,
    typer.Option(
        "--quantize-method",
        help="rtn: round to nearest. gptq, awq: with llm-compressor and a calibration set, for text models. They "
        "run in the environment of `make engines` and hold the whole model in memory.",
    ),
]
CalibrationFiles = Annotated[
    list[str] | None,
    typer.Option(
        "--calibration",
        metavar="FILE",
        help="With --quantize-method gptq or awq: data file to calibrate with, such as the training data; repeat "
        "it for several.",
        show_default=False,
    ),
]
CalibrationSamples = Annotated[
    int | None,
    typer.Option(
        "--calibration-samples",
        metavar="N",
        min=1,
        help="Calibrate with the first N samples. Default: 512.",
        show_default=False,
    ),
]
QuantizePython = Annotated[
    Path | None,
    typer.Option(
        "--quantize-python", metavar="FILE", help="Python of another environment with llm-compressor."
    ),
]
EvalFiles = Annotated[
    list[str] | None,
    typer.Option(
        "--eval",
        metavar="FILE",
        help="With --quantize: print the loss on this data file before and after quantizing.",
        show_default=False,
    ),
]
