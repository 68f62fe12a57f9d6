"""Exporting adapters without merging them, as PEFT loads them onto the model of transformers."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from erniekit.checkpoint.download import names_repository
from erniekit.checkpoint.header import NUMPY_TYPES, TensorInfo
from erniekit.checkpoint.hub import read_array, write_safetensors
from erniekit.checkpoint.manifest import write_checksums
from erniekit.checkpoint.state import check_weights
from erniekit.checkpoint.tensor_layouts import transformers_name
from erniekit.errors import CheckpointError
from erniekit.export.files import side_files
from erniekit.export.output import check_output, replacing
from erniekit.export.source import ExportSource, resolve_source
from erniekit.lora.adapters import PREFIX, WEIGHTS_FILE, read_adapter
from erniekit.lora.merge import check_fit
from erniekit.lora.peft import CONFIG_FILE, AdapterConfig
from erniekit.lora.stacked import LEAVES, stack_a, stack_b
from erniekit.models.config import ErnieConfig
from erniekit.models.specs import TensorSpec, is_vocab_tensor, parameter_specs

_EXPERT = re.compile(r"^(?P<path>.*\.mlp)\.experts\.(?P<number>\d+)\.(?P<leaf>\w+)$")
_TOKENIZER = re.compile(
    r"^(tokenizer|special_tokens_map|added_tokens|chat_template|LICENSE|generation_config)"
)


@dataclass(frozen=True)
class AdapterReport:
    """The result: `adapters` of linear modules, of which `experts` belong to experts; `whole` full tensors.

    loader: what loads it.
    """

    directory: Path
    source: ExportSource
    adapters: int
    experts: int
    whole: int
    nbytes: int
    loader: str


@dataclass(frozen=True)
class _Target:
    """A module or parameter that PEFT adapts: its name in transformers, and the tensors of its adapter."""

    name: str
    rank: int
    alpha: float
    is_parameter: bool
    tensors: tuple[tuple[TensorSpec, Callable[[], np.ndarray]], ...]


def export_adapter(path: str | Path, output: str | Path, *, base: str | Path | None = None) -> AdapterReport:
    """Write the adapter of a run or a checkpoint to `output`, as `adapter_config.json` and `adapter_model.safetensors`.

    `PeftModel.from_pretrained` (PEFT 0.21) loads it onto the base model of transformers 5, whose experts are stacked in
    parameters; the layout of the base does not matter. `base` replaces the base model that the adapter names. Raises
    CheckpointError for a path without an adapter, and for trained routers, which PEFT cannot load.
    """
    output = Path(output)
    check_output(output)
    source, adapter, tensors = open_adapter(path, base)
    modules = sorted({name.partition(".lora_A.")[0] for name in tensors if ".lora_A." in name})
    whole = sorted(name for name in tensors if ".lora_" not in name)
    targets = [*_linear_targets(modules, tensors, adapter, source.config)]
    targets += _expert_targets(modules, tensors, adapter, source.config)
    written = [entry for target in targets for entry in target.tensors]
    for name in whole:
        info = tensors[name]
        spec = TensorSpec(transformers_name(name, source.config), info.dtype, info.shape)
        written.append((spec, partial(read_array, info)))
    reads = {PREFIX + spec.name: read for spec, read in written}
    specs = [TensorSpec(PREFIX + spec.name, spec.dtype, spec.shape) for spec, _ in written]
    nbytes = sum(spec.size * np.dtype(NUMPY_TYPES[spec.dtype]).itemsize for spec in specs)
    with replacing(output, nbytes) as directory:
        copy_tokenizer(source, directory)
        config = _peft_config(adapter, targets)
        (directory / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        record = write_safetensors(directory / WEIGHTS_FILE, specs, lambda name: reads[name]())
        write_checksums(directory, {WEIGHTS_FILE: record})
    loader = f"PeftModel.from_pretrained on {source.base} in a layout that transformers 5 loads"
    return AdapterReport(output, source, len(modules), count_experts(modules), len(whole), nbytes, loader)


def open_adapter(
    path: str | Path, base: str | Path | None
) -> tuple[ExportSource, AdapterConfig, dict[str, TensorInfo]]:
    """The source of an export of an adapter, its configuration and its tensors; checksums are compared.

    Raises CheckpointError for a whole model, for trained routers, norms and biases, for an adapter that does not fit
    its base model, and for files that were changed.
    """
    source = resolve_source(Path(path), None if base is None else Path(base))
    if source.adapter is None:
        raise CheckpointError(
            f"{source.checkpoint}: it holds a whole model, not an adapter; choose another --layout"
        )
    check_weights(source.checkpoint)
    adapter, tensors = read_adapter(source.adapter)
    others = [name for name in tensors if ".lora_" not in name and not is_vocab_tensor(name)]
    if others:
        raise CheckpointError(
            f"{source.adapter}: {min(others)} was trained, too, which an exported adapter cannot hold: export the "
            "merged model (--layout hub, transformers or paddle)"
        )
    check_fit(
        source.adapter, adapter, tensors, {spec.name: spec.shape for spec in parameter_specs(source.config)}
    )
    if base is not None:  # the revision is one of the base model that the adapter names
        adapter = replace(adapter, base_path=str(base), base_revision=None)
    if not names_repository(adapter.base_path):
        # A relative path would be a repository of the Hub in another working directory.
        adapter = replace(adapter, base_path=str(Path(adapter.base_path).absolute()))
    return source, adapter, tensors


def copy_tokenizer(source: ExportSource, directory: Path) -> None:
    """Copy tokenizer, chat template and licence."""
    for name, file in side_files(source.files).items():
        if _TOKENIZER.search(name):
            shutil.copyfile(file, directory / name)


def count_experts(modules: Iterable[str]) -> int:
    """The number of modules of experts."""
    return sum(_EXPERT.match(module) is not None for module in modules)


def describe_adapter(report: AdapterReport) -> list[str]:
    """The report as lines of text."""
    lines = [
        f"exported the adapter of {report.source.checkpoint} to {report.directory}",
        f"  {report.adapters} adapters, {report.experts} of them on experts, {report.nbytes / 1e6:,.1f} MB, for "
        f"{report.loader}",
    ]
    if report.source.quantize != "none":
        lines.append(
            f"  note: the base model was in {report.source.quantize} during training; PEFT adds the adapter to "
            "weights in the element type that they are loaded in"
        )
    if report.experts and report.loader.startswith("Peft"):
        lines.append(
            "  note: PEFT 0.21 warns that keys of rank_pattern and alpha_pattern for experts were ignored; it uses them"
        )
    if report.whole:
        lines.append(
            f"  note: {report.whole} tensors of the vocabulary are whole: call model.resize_token_embeddings before "
            "PEFT loads them"
        )
    return lines


def _linear_targets(
    modules: list[str], tensors: dict[str, TensorInfo], adapter: AdapterConfig, base: ErnieConfig
) -> list[_Target]:
    found = []
    for module in modules:
        if _EXPERT.match(module):
            continue
        halves = [tensors[f"{module}.lora_{half}.weight"] for half in "AB"]
        rank = halves[0].shape[0]
        name = transformers_name(module, base)
        # PEFT takes every module of a text model with experts that is called like their projections for one of them,
        # unless its weight is listed as a parameter.
        is_parameter = base.family == "moe" and ".mlp." in module
        entries = tuple(
            (TensorSpec(f"{name}.lora_{half}.weight", info.dtype, info.shape), partial(read_array, info))
            for half, info in zip("AB", halves, strict=True)
        )
        alpha = _alpha(adapter.scaling(module, rank), rank, adapter.use_rslora)
        found.append(_Target(f"{name}.weight" if is_parameter else name, rank, alpha, is_parameter, entries))
    return found


def _expert_targets(
    modules: list[str], tensors: dict[str, TensorInfo], adapter: AdapterConfig, base: ErnieConfig
) -> list[_Target]:
    """The stacked parameters of experts; experts and projections without an adapter get one of zeros."""
    moe = base.moe
    if moe is None:
        return []
    adapted: dict[tuple[str, str], set[str]] = {}
    for module in modules:
        expert = _EXPERT.match(module)
        if expert is not None:
            kind = ""
            if base.family == "vl":
                kind = ".vision_moe" if int(expert["number"]) >= moe.num_experts else ".text_moe"
            leaf = next(leaf for leaf, parts in LEAVES.items() if expert["leaf"] in parts)
            adapted.setdefault((expert["path"], kind), set()).add(leaf)
    found = []
    for (path, kind), leaves in adapted.items():
        name = f"{transformers_name(path, base)}{kind}.experts"
        first = moe.num_experts if kind == ".vision_moe" else 0
        for leaf in LEAVES:
            if leaf in leaves:
                inner = ".base_layer" if leaf == "gate_up_proj" and "down_proj" in leaves else ""
                numbers = range(first, first + moe.num_experts)
                names = [[f"{path}.experts.{number}.{part}" for part in LEAVES[leaf]] for number in numbers]
                found.append(_stacked(f"{name}{inner}", f"{name}.{leaf}", names, tensors, adapter))
    return found


def _stacked(
    stored: str,
    parameter: str,
    modules: list[list[str]],
    tensors: dict[str, TensorInfo],
    adapter: AdapterConfig,
) -> _Target:
    """The adapter of a stacked parameter. modules: the projections of each expert; stored: where PEFT keeps it."""
    present = [module for expert in modules for module in expert if f"{module}.lora_A.weight" in tensors]
    infos = {half: tensors[f"{present[0]}.lora_{half}.weight"] for half in "AB"}
    rank = infos["A"].shape[0]
    scalings = {adapter.scaling(module, tensors[f"{module}.lora_A.weight"].shape[0]) for module in present}
    if len(scalings) > 1 or any(tensors[f"{module}.lora_A.weight"].shape[0] != rank for module in present):
        raise CheckpointError(
            f"{infos['A'].file}: the adapters of {parameter} differ in rank or alpha, and PEFT has one of both for it"
        )

    def read(half: str) -> list[list[np.ndarray]]:
        zeros = np.zeros(infos[half].shape, NUMPY_TYPES[infos[half].dtype])
        return [
            [
                read_array(tensors[name]) if (name := f"{module}.lora_{half}.weight") in tensors else zeros
                for module in expert
            ]
            for expert in modules
        ]

    experts, parts = len(modules), len(modules[0])
    total = rank * parts
    a_shape = (experts * total, infos["A"].shape[1])
    b_shape = (parts * infos["B"].shape[0], experts * total)
    entries = (
        (TensorSpec(f"{stored}.lora_A.weight", infos["A"].dtype, a_shape), lambda: stack_a(read("A"))),
        (TensorSpec(f"{stored}.lora_B.weight", infos["B"].dtype, b_shape), lambda: stack_b(read("B"))),
    )
    # The rank is `parts` times as large, and the scaling is that of the single adapters.
    return _Target(parameter, total, _alpha(scalings.pop(), total, adapter.use_rslora), True, entries)


def _alpha(scaling: float, rank: int, use_rslora: bool) -> float:
    """lora_alpha that gives an adapter of a rank its scaling."""
    return scaling * (math.sqrt(rank) if use_rslora else rank)


def _peft_config(adapter: AdapterConfig, targets: list[_Target]) -> dict[str, Any]:
    """`adapter_config.json`. PEFT matches names exactly or by their last parts, and patterns likewise."""
    names = {target: target.name.removeprefix("model.") for target in targets}
    parameters = [name for target, name in names.items() if target.is_parameter]
    (rank, alpha), _ = Counter((target.rank, target.alpha) for target in targets).most_common(1)[0]
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": adapter.base_path,
        "revision": adapter.base_revision,
        "r": rank,
        "lora_alpha": alpha,
        # PEFT refuses dropout on parameters.
        "lora_dropout": 0.0 if parameters else adapter.dropout,
        "target_modules": [name for target, name in names.items() if not target.is_parameter],
        "target_parameters": parameters or None,
        "rank_pattern": {re.escape(names[t]): t.rank for t in targets if t.rank != rank},
        "alpha_pattern": {re.escape(names[t]): t.alpha for t in targets if t.alpha != alpha},
        "use_rslora": adapter.use_rslora,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
