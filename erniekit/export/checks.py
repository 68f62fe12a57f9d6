"""Checks of a model directory that need neither weights in memory nor another engine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from erniekit.checkpoint.element_types import as_dtype, is_finite
from erniekit.checkpoint.header import read_metadata
from erniekit.checkpoint.hub import (
    INDEX_FILE,
    TensorInfo,
    read_array,
    read_header,
    read_index,
    weight_files,
    weights_problem,
)
from erniekit.checkpoint.manifest import CHECKSUMS_FILE, checksum_problems, records_from
from erniekit.checkpoint.model_files import check_tensors, refuse_undownloaded
from erniekit.checkpoint.state import STATE_FILE
from erniekit.checkpoint.tensor_layouts import hub_index, layout_of
from erniekit.config.choices import CheckpointLayout
from erniekit.data.encode.limits import read_limits
from erniekit.data.encode.tokenizer import load_tokenizer
from erniekit.display.text import counted
from erniekit.errors import CheckpointError
from erniekit.export.base_check import check_base
from erniekit.export.check import Check, some
from erniekit.export.config_files import main_dtype
from erniekit.export.files import chat_template
from erniekit.export.layouts import (
    ARCHITECTURES,
    DTYPE_NAMES,
    HUB_MODEL_TYPES,
    NESTED_MODEL_TYPE,
    PADDLE_ARCHITECTURES,
)
from erniekit.export.quantized import check_quantized, model_config, read_quantization
from erniekit.export.writer import FILE_FORMATS
from erniekit.local_files import missing_model, read_json_object
from erniekit.lora.adapters import is_adapter_directory
from erniekit.models.config import ErnieConfig, is_paddle_config
from erniekit.models.config_keys import unknown_keys_message
from erniekit.models.specs import TensorSpec, is_router_tensor, parameter_specs

_DECODER_KEYS = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *(
        "vocab_size",
        "rms_norm_eps",
        "rope_theta",
        "tie_word_embeddings",
        "use_bias",
        "max_position_embeddings",
    ),
)
_MOE_KEYS = (
    *("moe_num_experts", "moe_k", "moe_intermediate_size", "moe_num_shared_experts"),
    *("moe_layer_start_index", "moe_layer_end_index", "moe_layer_interval"),
)
_VISION_KEYS = (
    *(
        "im_patch_id",
        "image_start_token_id",
        "image_end_token_id",
        "video_start_token_id",
        "video_end_token_id",
    ),
    *("pixel_hidden_size", "spatial_conv_size", "temporal_conv_size", "use_temporal_conv", "rope_scaling"),
    *("vision_config", "hidden_act"),
)
_NESTED_KEYS = (
    *("text_config", "vision_config", "image_token_id", "video_token_id", "image_start_token_id"),
    *("image_end_token_id", "video_start_token_id", "video_end_token_id"),
)
_TOKENIZER_ATTRIBUTES = (
    *("image_token", "image_start_token", "image_end_token"),
    *("video_token", "video_start_token", "video_end_token"),
)
# Prefixes that other tools write for the vision tower and the language model; only transformers reads them.
_FOREIGN_PREFIXES = ("model.vision_model.", "model.vision_tower.", "model.language_model.")


def check_directory(directory: Path, base: Path | None = None) -> Iterator[Check]:
    """Check files, config keys, tensors and shards; with `base`, also compare with the base model.

    Continues after a failed check where possible.
    """
    if is_adapter_directory(directory):
        yield Check("FAIL", missing_model(directory))
        return
    try:
        refuse_undownloaded(directory)
        quantization = read_quantization(directory)
        config = model_config(directory)
    except CheckpointError as error:
        yield Check("FAIL", str(error))
        return
    unknown = unknown_keys_message(config.unknown, directory / "config.json")
    if unknown is not None:
        yield Check("note", unknown)
    try:
        stored = read_index(directory)
        layout, tensors = layout_of(stored, config), hub_index(stored, config)
        if quantization is not None:
            check_quantized(directory, quantization)
            yield Check("ok", f"linear layers are {quantization.title}, in the compressed-tensors format")
    except CheckpointError as error:
        yield Check("FAIL", str(error))
        return
    yield from _check_files(directory, config, layout)
    yield from _check_config(directory, config, layout, stored)
    if (directory / "tokenizer_config.json").is_file():
        yield from _check_vocabulary(directory, config)
    if layout != "paddle":
        yield from _check_names(stored)
    if quantization is None:
        yield from _check_tensors(directory, config, tensors)
    yield from _check_shards(directory, FILE_FORMATS[layout])
    yield from _check_checksums(directory)
    yield from _check_values(tensors)
    if base is not None and quantization is not None:
        yield Check("note", "not compared with the base model: linear layers are quantized")
    elif base is not None:
        yield from check_base(tensors, base, config)


def _check_files(directory: Path, config: ErnieConfig, layout: CheckpointLayout) -> Iterator[Check]:
    nested = config.raw["model_type"] == NESTED_MODEL_TYPE
    needed = ["generation_config.json", "tokenizer_config.json"]
    if config.family == "vl" and not (nested and (directory / "processor_config.json").is_file()):
        needed.append("preprocessor_config.json")
    missing = [name for name in needed if not (directory / name).is_file()]
    if not any((directory / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        missing.append("tokenizer.json or tokenizer.model")
    if missing:
        yield Check("FAIL", f"missing files: {', '.join(missing)}")
    elif read_json_object(directory / "generation_config.json").get("eos_token_id") is None:
        yield Check("FAIL", "generation_config.json has no eos_token_id: transformers would never stop")
    else:
        yield Check("ok", f"files: config.json, {', '.join(needed)}, tokenizer")
    if not (directory / "tokenizer.json").is_file():
        yield Check(
            "note", "no tokenizer.json: transformers and vLLM convert tokenizer.model when they load it"
        )
    if not (directory / "tokenizer.model").is_file():
        yield Check("note", "no tokenizer.model: FastDeploy and llama.cpp do not load the directory")
    if "tokenizer_config.json" not in missing and chat_template(directory) is None:
        yield Check("note", "no chat template: chat endpoints of engines need one")
    if config.family == "vl" and layout == "hub" and not list(directory.glob("processing_*.py")):
        yield Check(
            "note", "no processing_*.py: vLLM, SGLang and FastDeploy need the released model's remote code"
        )


def _check_config(
    directory: Path, config: ErnieConfig, layout: CheckpointLayout, stored: Collection[str]
) -> Iterator[Check]:
    problems = list(_config_problems(directory, config, layout, stored))
    yield from (Check("FAIL", f"config.json: {problem}") for problem in problems)
    if not problems:
        yield Check("ok", "config.json has the keys that engines read")
    if config.raw["model_type"] == NESTED_MODEL_TYPE:
        yield Check(
            "note", "transformers' nested config: vLLM, SGLang and FastDeploy read the hub layout only"
        )
    if layout == "paddle":
        yield Check(
            "note", "the paddle layout: FastDeploy and Baidu's ERNIEKit read it, other engines do not"
        )


def _config_problems(
    directory: Path, config: ErnieConfig, layout: CheckpointLayout, stored: Collection[str]
) -> Iterator[str]:
    raw = config.raw
    nested = raw["model_type"] == NESTED_MODEL_TYPE
    paddle = layout == "paddle"
    wanted = (PADDLE_ARCHITECTURES if paddle else ARCHITECTURES)[config.family]
    if raw.get("architectures") != [wanted]:
        yield f"architectures is {raw.get('architectures')}; {'FastDeploy' if paddle else 'vLLM'} knows {[wanted]}"
    if not nested and raw["model_type"] != HUB_MODEL_TYPES[config.family]:
        yield f"model_type is {raw['model_type']!r}, not {HUB_MODEL_TYPES[config.family]!r}"
    if "torch_dtype" in raw and "dtype" in raw:
        yield "has both torch_dtype and dtype, which FastDeploy refuses"
    elif paddle and not is_paddle_config(raw):
        yield "must have dtype alone: FastDeploy would treat linear weights as [out, in]"
    elif not paddle and "torch_dtype" not in raw and not ("dtype" in raw and raw.get("transformers_version")):
        yield "has no torch_dtype: FastDeploy would treat linear weights as transposed"
    stated = {raw.get(key) for key in ("torch_dtype", "dtype")} - {None}
    for section in ("text_config", "vision_config"):
        inner = raw.get(section) or {}
        if {inner.get(key) for key in ("torch_dtype", "dtype")} - {None} - stated:
            yield f"{section} states another dtype than the file does, and engines may take it"
    if raw.get("num_nextn_predict_layers") and not any("mtp_" in name for name in stored):
        yield "num_nextn_predict_layers is not 0, but the weights have no multi-token-prediction head"
    keys: tuple[str, ...] = _DECODER_KEYS
    if nested:
        keys = _NESTED_KEYS
    elif config.family == "dense":
        keys += ("head_dim",)
    else:
        keys += _MOE_KEYS + (_VISION_KEYS if config.family == "vl" else ())
    missing = [key for key in keys if key not in raw]
    if missing:
        yield f"has no {', '.join(missing)}"
    elif nested:
        yield from _nested_problems(directory)
    elif config.family != "dense":
        yield from _flat_problems(directory, config, paddle)


def _flat_problems(directory: Path, config: ErnieConfig, paddle: bool) -> Iterator[str]:
    raw = config.raw
    end = raw["moe_layer_end_index"]
    if -1 in (end if isinstance(end, list) else [end]):
        yield "moe_layer_end_index is -1, which FastDeploy does not resolve to the last layer"
    if config.family != "vl":
        return
    if not paddle and "mrope_section" not in (raw["rope_scaling"] or {}):
        yield "rope_scaling has no mrope_section: vLLM would silently use 1-D positions for images"
    if raw["vision_config"].get("embed_dim") != raw["vision_config"].get("hidden_size"):
        yield "vision_config.embed_dim differs from hidden_size, which vLLM requires to be equal"
    if "auto_map" not in raw and list(directory.glob("configuration_*.py")):
        yield "has no auto_map, although the directory has remote code: copy it to the base model, and export again"


def _nested_problems(directory: Path) -> Iterator[str]:
    file = directory / "tokenizer_config.json"
    content = read_json_object(file) if file.is_file() else {}
    missing = [name for name in _TOKENIZER_ATTRIBUTES if name not in content]
    if missing:
        yield f"(tokenizer_config.json) has no {', '.join(missing)}, which transformers' processor reads"


def _check_names(stored: Collection[str]) -> Iterator[Check]:
    foreign = [name for name in stored if name.startswith(_FOREIGN_PREFIXES)]
    if foreign:
        yield Check(
            "FAIL", f"{foreign[0]}: not a tensor name of the released checkpoints; vLLM does not find it"
        )


def _check_tensors(directory: Path, config: ErnieConfig, tensors: dict[str, TensorInfo]) -> Iterator[Check]:
    specs = parameter_specs(config)
    try:
        check_tensors(tensors, config, str(directory))
        yield Check("ok", f"{len(specs)} tensors have the names and shapes given by config.json")
    except CheckpointError as error:
        yield Check("FAIL", str(error))
    present = [tensors[spec.name] for spec in specs if spec.name in tensors]
    narrow = [info for info in present if is_router_tensor(info.name) and info.dtype != "F32"]
    if narrow:
        yield Check(
            "FAIL",
            f"{narrow[0].name} is {narrow[0].dtype}: router tensors must be F32 ({len(narrow)} are not)",
        )
    main = main_dtype([TensorSpec(name, info.dtype, info.shape) for name, info in tensors.items()])
    stated = config.raw.get("torch_dtype") or config.raw.get("dtype")
    kinds = ", ".join(f"{count} {dtype}" for dtype, count in Counter(info.dtype for info in present).items())
    if DTYPE_NAMES.get(main) != stated:
        yield Check(
            "FAIL",
            f"config.json states {stated}, the tensors are {kinds}; export the model to make them agree",
        )
    elif not narrow:
        yield Check("ok", f"element types: {kinds}; routers F32" if config.moe else f"element types: {kinds}")


def _check_shards(directory: Path, wanted: str) -> Iterator[Check]:
    where: dict[str, str] = {}
    for file in weight_files(directory):
        if read_metadata(file).get("format") != wanted:
            yield Check("FAIL", f"{file.name}: its metadata has no format = {wanted}, which loaders require")
        where |= dict.fromkeys(read_header(file), file.name)
    problem = weights_problem(directory)
    if problem is not None:
        yield Check("FAIL", problem)
    index = directory / INDEX_FILE
    if not index.is_file():
        yield Check("ok", f"{len(where)} tensors in one file")
        return
    listed = read_json_object(index)["weight_map"]
    wrong = sorted(name for name in set(listed) | set(where) if listed.get(name) != where.get(name))
    if wrong:
        yield Check("FAIL", f"{INDEX_FILE} and the shards disagree on {some(wrong)}")
    else:
        yield Check("ok", f"the index agrees with the shards ({len(set(where.values()))})")


def _check_checksums(directory: Path) -> Iterator[Check]:
    """Compare the shards with what the export or the run has written."""
    file = next((directory / n for n in (CHECKSUMS_FILE, STATE_FILE) if (directory / n).is_file()), None)
    if file is None:
        yield Check("note", "no checksums: erniekit did not write this directory")
        return
    try:
        records = records_from(read_json_object(file)["files"])
    except (KeyError, ValueError, TypeError, IndexError):
        yield Check("FAIL", f"{file.name} is damaged")
        return
    shards = {name: record for name, record in records.items() if not name.startswith("optimizer")}
    problems = checksum_problems(directory, shards.items())
    yield from (Check("FAIL", problem) for problem in problems)
    if not problems:
        yield Check("ok", f"the checksums of {counted(len(shards), 'file')} are those that were written")


def _check_values(tensors: Mapping[str, TensorInfo]) -> Iterator[Check]:
    """Look for weights that no training gives: NaN, infinity, and matrices of zeros."""
    infinite, zero = [], []
    for name, info in tensors.items():
        if info.dtype not in DTYPE_NAMES:
            continue
        values = read_array(info, finite=False)
        if not is_finite(values, info.dtype):
            infinite.append(name)
        elif values.ndim > 1 and name.endswith(".weight") and not as_dtype(values, info.dtype, "F32").any():
            zero.append(name)
    if infinite:
        yield Check("FAIL", f"NaN or infinity in {some(infinite)}")
    if zero:
        yield Check("FAIL", f"all values are zero in {some(zero)}")
    if not infinite and not zero:
        yield Check("ok", "all values are finite, and no matrix is all zeros")


def _check_vocabulary(directory: Path, config: ErnieConfig) -> Iterator[Check]:
    try:
        limits = read_limits(directory, load_tokenizer(directory).backend_tokenizer)
    except CheckpointError as error:
        yield Check("FAIL", str(error))
        return
    if limits.beyond:
        yield from (Check("note", note) for note in limits.notes())
    else:
        yield Check(
            "ok", f"every token of the tokenizer has a row in the embedding ({config.vocab_size:,} rows)"
        )
