"""Exporting adapters in the format of Baidu's tools: `lora_config.json` and `peft_model` files.

PaddleFormers' LoRA layers hold lora_A [in, r] and lora_B [r, out] (LoRALinear), and all have one rank. Query, key and
value are one layer there, and so are gate and up: their adapters stand side by side in its rank, and lora_B is zero
where one would meet another. Layers with fewer adapters are filled up with zeros.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from erniekit.checkpoint.element_types import as_dtype
from erniekit.checkpoint.header import NUMPY_TYPES, TensorInfo, read_header
from erniekit.checkpoint.hub import read_array, write_safetensors
from erniekit.checkpoint.manifest import write_checksums
from erniekit.checkpoint.tensor_layouts import StoredTensor, stored_tensors
from erniekit.display.text import clipped
from erniekit.errors import CheckpointError
from erniekit.export.adapter import AdapterReport, copy_tokenizer, count_experts, open_adapter
from erniekit.export.layouts import DTYPE_NAMES
from erniekit.export.output import check_output, replacing
from erniekit.export.writer import FILE_FORMATS
from erniekit.local_files import read_json_object
from erniekit.lora.peft import AdapterConfig
from erniekit.models.specs import TensorSpec, parameter_specs

CONFIG_FILE = "lora_config.json"
WEIGHTS_FILE = "peft_model-00001-of-00001.safetensors"
INDEX_FILE = "peft_model.safetensors.index.json"


def export_paddle_adapter(
    path: str | Path, output: str | Path, *, base: str | Path | None = None
) -> AdapterReport:
    """Write the adapter of a run or a checkpoint to `output` for Baidu's tools.

    Takes the arguments of `export_adapter` and raises the same errors. Also raises CheckpointError for tensors that
    were trained whole.
    """
    output = Path(output)
    check_output(output)
    source, adapter, tensors = open_adapter(path, base)
    if whole := [name for name in tensors if ".lora_" not in name]:
        raise CheckpointError(
            f"{source.adapter}: {whole[0]} was trained whole, which lora_config.json cannot say: export the merged "
            "model (--layout paddle)"
        )
    modules = {name.partition(".lora_A.")[0] for name in tensors if ".lora_A." in name}
    adapted = [
        stored
        for stored in stored_tensors(parameter_specs(source.config), "paddle", source.config)
        if any(_module(part) in modules for part in stored.parts)
    ]
    ranks = {module: tensors[f"{module}.lora_A.weight"].shape[0] for module in modules}
    scalings = {module: adapter.scaling(module, rank) for module, rank in ranks.items()}
    scaling = Counter(scalings.values()).most_common(1)[0][0]
    rank = max(sum(ranks.get(_module(part), 0) for part in stored.parts) for stored in adapted)
    dtype = next(iter(tensors.values())).dtype
    layers = [_PaddleLayer(stored, tensors, scalings, scaling, rank, dtype) for stored in adapted]
    reads = {spec.name: read for layer in layers for spec, read in layer.tensors()}
    specs = [spec for layer in layers for spec, _ in layer.tensors()]
    nbytes = sum(spec.size * np.dtype(NUMPY_TYPES[spec.dtype]).itemsize for spec in specs)
    with replacing(output, nbytes) as directory:
        copy_tokenizer(source, directory)
        config = _lora_config(adapter, layers, rank, scaling, dtype)
        (directory / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        metadata = {"format": FILE_FORMATS["paddle"]}
        record = write_safetensors(directory / WEIGHTS_FILE, specs, lambda name: reads[name](), metadata)
        index = {
            "metadata": {"total_size": nbytes},
            "weight_map": {spec.name: WEIGHTS_FILE for spec in specs},
        }
        (directory / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        write_checksums(directory, {WEIGHTS_FILE: record})
    loader = f"Baidu's ERNIEKit and PaddleFormers, with {source.base} in the paddle layout"
    return AdapterReport(output, source, len(modules), count_experts(modules), 0, nbytes, loader)


def check_paddle_adapter(directory: Path) -> None:
    """Raise CheckpointError unless the weight files of an adapter for Baidu's tools are complete."""
    index = directory / INDEX_FILE
    listed = read_json_object(index).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise CheckpointError(f"{index}: not a valid index of shards: weight_map must be an object")
    for name in sorted(set(map(str, listed.values()))):
        if Path(name).name != name:
            raise CheckpointError(f"{index}: {clipped(name)} is not the name of a file beside it")
        names = {tensor for tensor, file in listed.items() if file == name}
        differing = names ^ set(read_header(directory / name))
        if differing:
            raise CheckpointError(f"{index}: it and {name} disagree on {clipped(min(differing))}")


class _PaddleLayer:
    """The adapter of a linear layer of the paddle layout."""

    def __init__(
        self,
        stored: StoredTensor,
        tensors: Mapping[str, TensorInfo],
        scalings: Mapping[str, float],
        scaling: float,
        rank: int,
        dtype: str,
    ) -> None:
        self.name = stored.spec.name.removesuffix(".weight")
        self._parts, self._tensors, self._scalings = stored.parts, tensors, scalings
        self._scaling, self._rank, self._dtype = scaling, rank, dtype
        self._inner, self._outer = stored.spec.shape

    def tensors(self) -> list[tuple[TensorSpec, partial[np.ndarray]]]:
        """lora_A and lora_B, and what reads their values."""
        shapes = {"A": (self._inner, self._rank), "B": (self._rank, self._outer)}
        return [
            (TensorSpec(f"{self.name}.lora_{half}", self._dtype, shape), partial(self._read, half, shape))
            for half, shape in shapes.items()
        ]

    def _read(self, half: str, shape: tuple[int, int]) -> np.ndarray:
        values = np.zeros(shape, np.float32)
        row = column = 0
        for part in self._parts:
            module, width = _module(part), part.shape[0]
            if module in self._scalings:
                info = self._tensors[f"{module}.lora_{half}.weight"]
                found = as_dtype(read_array(info), info.dtype, "F32")
                rank = found.shape[0 if half == "A" else 1]
                if half == "A":
                    values[:, row : row + rank] = found.T
                else:
                    factor = np.float32(self._scalings[module] / self._scaling)
                    values[row : row + rank, column : column + width] = found.T * factor
                row += rank
            column += width
        return as_dtype(values, "F32", self._dtype)


def _lora_config(
    adapter: AdapterConfig, layers: list[_PaddleLayer], rank: int, scaling: float, dtype: str
) -> dict[str, object]:
    """`lora_config.json`: PaddleFormers matches target_modules as regular expressions with whole names."""
    return {
        "base_model_name_or_path": adapter.base_path,
        "r": rank,
        "lora_alpha": scaling * rank,
        "lora_dropout": adapter.dropout,
        "target_modules": [re.escape(layer.name) for layer in layers],
        "trainable_modules": None,
        "trainable_bias": None,
        "merge_weights": False,
        "enable_lora_list": None,
        "rslora": False,
        "lora_plus_scale": 1.0,
        "tensor_parallel_degree": 1,
        "dtype": DTYPE_NAMES[dtype],
    }


def _module(spec: TensorSpec) -> str:
    return spec.name.removesuffix(".weight")
