"""Calibrates quantized weights with llm-compressor. A script for the Python of its environment; it imports nothing of
erniekit.

    python llmcompressor_runner.py REQUEST.json RESPONSE.json

REQUEST.json: {"model": directory of a text model in the hub layout, "method": "gptq" | "awq", "bits": 8 | 4, "group":
columns that share a scale or 0 for rows, "samples": [[token ids]], "codes": file to write}. RESPONSE.json: {"name":
name and version, "warnings": [lines of its log about weights that it could not calibrate]}.

gptq writes `codes`, a safetensors file: for each quantized weight its codes, int8 [out, in], as `NAME_codes`, and its
scales, float32 [out, groups], as `NAME_scale`. awq writes no codes: it changes the weights in the files of `model`, so
that rounding them to nearest costs less.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from llmcompressor import oneshot
from llmcompressor.modeling.moe.linearize import load_quantizable_moe
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.quantization import QuantizationModifier
from llmcompressor.modifiers.transform.awq import AWQMapping, AWQModifier
from llmcompressor.pipelines.cache import IntermediatesCache
from loguru import logger
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer

# The linear layers that erniekit quantizes, as `is_quantized_tensor` has them.
_LINEAR = r"re:model\.layers\..*_proj$"


def main(request_file: str, response_file: str) -> None:
    """Calibrate the model of a request."""
    request = json.loads(Path(request_file).read_text(encoding="utf-8"))
    warnings: list[str] = []
    logger.add(lambda line: warnings.append(str(line.record["message"])), filter=_concerns_weights)
    directory = Path(request["model"])
    with load_quantizable_moe():
        model = AutoModelForCausalLM.from_pretrained(directory, dtype="auto")
    awq = request["method"] == "awq"
    if not torch.accelerator.is_available():
        # AWQ of llm-compressor 0.14 pins memory for an accelerator even where there is none, which fails.
        IntermediatesCache.pin_memory = lambda *_: None
    oneshot(
        model=model,
        processor=AutoTokenizer.from_pretrained(directory),
        dataset=DataLoader(request["samples"], batch_size=1, collate_fn=_batch),
        recipe=_recipe(model, request, awq),
    )
    if awq:
        _replace_weights(directory, dict(model.named_parameters()))
    else:
        save_file(dict(_codes(model, request["bits"])), request["codes"])
    response = {"name": f"llm-compressor {version('llmcompressor')}", "warnings": warnings}
    Path(response_file).write_text(json.dumps(response), encoding="utf-8")


def _concerns_weights(record: Any) -> bool:
    """Whether a line of the log says that weights were rounded in another way than asked for."""
    return str(record["message"]).startswith(("Hessian inversion failed", "Skipping smooth_layer"))


def _batch(samples: list[list[int]]) -> dict[str, torch.Tensor]:
    ids = torch.tensor(samples)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _recipe(model: Any, request: dict[str, Any], awq: bool) -> list[Any]:
    group = request["group"]
    weights = QuantizationArgs(
        num_bits=request["bits"],
        type="int",
        symmetric=True,
        strategy="group" if group else "channel",
        group_size=group or None,
    )
    groups = {"group_0": QuantizationScheme(targets=[_LINEAR], weights=weights)}
    if not awq:
        return [GPTQModifier(config_groups=groups)]
    return [AWQModifier(mappings=list(_mappings(model))), QuantizationModifier(config_groups=groups)]


def _mappings(model: Any) -> Iterator[AWQMapping]:
    """Layers to divide by a factor for each channel, and the layers after them to multiply by it.

    llm-compressor's own mappings for ERNIE leave the router out, which reads the same values as the experts.
    """
    names = {name for name, _ in model.named_modules()}
    for index in range(model.config.num_hidden_layers):
        layer = f"model.layers.{index}"
        attention = f"{layer}.self_attn"
        yield AWQMapping(f"{layer}.input_layernorm", [f"{attention}.{each}_proj" for each in "qkv"])
        yield AWQMapping(f"{attention}.v_proj", [f"{attention}.o_proj"])
        inputs = [
            name
            for name in names
            if name.startswith(f"{layer}.mlp.") and name.endswith(("gate_proj", "up_proj"))
        ]
        router = [name for name in (f"{layer}.mlp.gate",) if name in names]
        yield AWQMapping(f"{layer}.post_attention_layernorm", [*router, *sorted(inputs)])
        for up in sorted(name for name in inputs if name.endswith("up_proj")):
            yield AWQMapping(up, [f"{up.removesuffix('up_proj')}down_proj"])


def _codes(model: Any, bits: int) -> Iterator[tuple[str, torch.Tensor]]:
    lowest = -(2 ** (bits - 1))
    for name, module in model.named_modules():
        scale = getattr(module, "weight_scale", None)
        if scale is None:
            continue
        weight, scale = (tensor.detach().float().cpu() for tensor in (module.weight, scale))
        each = scale[..., None]
        codes = (weight.reshape(len(weight), each.shape[1], -1) / each).round().clamp(lowest, -lowest - 1)
        yield f"{name}.weight_codes", codes.reshape(weight.shape).to(torch.int8)
        yield f"{name}.weight_scale", scale


def _replace_weights(directory: Path, parameters: dict[str, torch.Tensor]) -> None:
    """Write the values of a model to its files: all of decoder layers, but for correction biases, which stay."""
    for file in sorted(directory.glob("*.safetensors")):
        tensors = load_file(file)
        for name, tensor in tensors.items():
            if name.startswith("model.layers.") and not name.endswith("e_score_correction_bias"):
                tensors[name] = parameters[name].detach().to("cpu", tensor.dtype).contiguous()
        save_file(tensors, file, {"format": "pt"})


if __name__ == "__main__":
    main(*sys.argv[1:])
