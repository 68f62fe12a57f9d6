"""One GGUF file of a dense or text MoE model, for llama.cpp.

Names, shapes and keys are those that llama.cpp reads for the architectures `ernie4_5` and `ernie4_5-moe`. Tensors are
written one at a time; the experts of a layer are one tensor.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from erniekit.checkpoint.download import model_directory
from erniekit.checkpoint.element_types import as_dtype
from erniekit.checkpoint.hub import TensorInfo, read_array
from erniekit.checkpoint.model_files import open_model
from erniekit.checkpoint.state import STATE_FILE
from erniekit.config.choices import ChatTemplateSource, GgufType
from erniekit.data.encode.tokenizer import control_tokens, load_tokenizer, stop_token_ids
from erniekit.display.progress import OnProgress, no_progress
from erniekit.errors import CheckpointError, ConfigError
from erniekit.export.convert import convert_model
from erniekit.export.export import ExportReport, export_model
from erniekit.export.files import chat_template
from erniekit.export.output import check_output, replacing, staging
from erniekit.export.source import resolve_source
from erniekit.generation.load import find_checkpoint
from erniekit.local_files import read_json_object
from erniekit.lora.adapters import is_adapter_directory
from erniekit.models.config import ErnieConfig
from erniekit.models.config_keys import Family

_FAMILIES: dict[str, Family] = {"ernie4_5": "dense", "ernie4_5-moe": "moe"}
_ATTENTION = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output"}
_MLP = {"gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down"}
_F16_MAX = 65504.0
# Elements of a row that share a scale in q8_0.
_BLOCK = 32
_TERMINATOR = "<|end_of_sentence|>"
_SPACE = "▁"
# Directories of huggingface_hub's cache: models--OWNER--NAME/snapshots/COMMIT.
_CACHED = re.compile(r"models--.+?--(.+)")


@dataclass(frozen=True)
class GgufReport:
    """A file that was written: its tensors by GGML type, and its size in bytes."""

    file: Path
    types: dict[str, int]
    nbytes: int
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class _Tensor:
    """A tensor of the file: the Hub's tensors in it, stacked if there are several, and its shape."""

    name: str
    parts: tuple[str, ...]
    shape: tuple[int, ...]


def write_gguf(directory: Path, file: Path, kind: GgufType, progress: OnProgress = no_progress) -> GgufReport:
    """Write the model of a directory, in any layout, as `file`.

    `kind`: the type of matrices; a matrix with rows that are no multiple of 32 is f16 where the others are q8_0. Norms,
    routers and correction biases are f32. Raises CheckpointError for a model that llama.cpp cannot compute, ConfigError
    if the package gguf is not installed.
    """
    gguf = _package()
    config, tensors = open_model(directory)
    _check_supported(directory, config)
    wanted = list(_tensors(config, tensors))
    writer = gguf.GGUFWriter(
        file, next(name for name, family in _FAMILIES.items() if family == config.family)
    )
    _write_settings(writer, gguf, directory, config, kind)
    warnings = _write_vocabulary(writer, gguf, directory, config)
    types: dict[str, int] = {}
    for tensor in wanted:
        chosen = _type_of(gguf, tensor, kind)
        types[chosen.name] = types.get(chosen.name, 0) + 1
        shape = (
            gguf.quant_shape_to_byte_shape(tensor.shape, chosen) if chosen.name == "Q8_0" else tensor.shape
        )
        dtype = {"F32": np.float32, "F16": np.float16, "Q8_0": np.uint8}[chosen.name]
        nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        writer.add_tensor_info(tensor.name, shape, np.dtype(dtype), nbytes, raw_dtype=chosen)
    writer.write_header_to_file(file)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    done, total = 0, sum(info.nbytes for info in tensors.values())
    for tensor in wanted:
        writer.write_tensor_data(_values(gguf, tensor, tensors, kind))
        done += sum(tensors[part].nbytes for part in tensor.parts)
        progress("weights", done, total)
    writer.close()
    return GgufReport(file, types, file.stat().st_size, tuple(warnings))


def convert_to_gguf(
    path: str | Path, output: str | Path, kind: GgufType, progress: OnProgress = no_progress
) -> GgufReport:
    """Write a model directory, a checkpoint or a repository of the Hub as `output`/model-KIND.gguf.

    See `write_gguf`. A checkpoint gets the chat template of training first, in a copy that is removed. Raises
    CheckpointError, also for an adapter.
    """
    output = Path(output)
    check_output(output)
    directory = find_checkpoint(model_directory(Path(path)))
    if is_adapter_directory(directory):
        raise CheckpointError(f"{directory}: it holds an adapter; `erniekit export --layout gguf` merges it")
    if not (directory / STATE_FILE).is_file():
        return _write_directory(directory, output, kind, progress)
    source = resolve_source(directory)
    _check_supported(directory, source.config)
    _package()
    with staging(output) as folder:
        copy = folder / model_name(source.base or directory)
        convert_model(directory, copy, "hub", progress=progress)
        return _write_directory(copy, output, kind, progress)


def export_to_gguf(
    path: str | Path,
    output: str | Path,
    kind: GgufType,
    *,
    base: str | Path | None = None,
    template: ChatTemplateSource = "auto",
    progress: OnProgress = no_progress,
) -> tuple[ExportReport, GgufReport]:
    """Export a run, a checkpoint or a model as `output`/model-KIND.gguf.

    The export is written beside the output first, and removed. The arguments and errors are those of `export_model` and
    `write_gguf`.
    """
    output = Path(output)
    check_output(output)
    _package()
    source = resolve_source(Path(path), None if base is None else Path(base))
    _check_supported(source.weights, source.config)
    with staging(output) as folder:
        merged = folder / model_name(source.base or source.weights)
        exported = export_model(path, merged, base=base, template=template, progress=progress)
        return replace(exported, directory=output), _write_directory(merged, output, kind, progress)


def model_name(directory: Path) -> str:
    """The name of a model: of its directory, or of its repository for one in huggingface_hub's cache."""
    place = directory.resolve()
    cached = _CACHED.fullmatch(place.parent.parent.name)
    return cached[1] if cached is not None and place.parent.name == "snapshots" else place.name


def read_family(files: Sequence[Path]) -> Family:
    """The family of the ERNIE model in GGUF files, of which all are checked to be complete. Raises CheckpointError."""
    gguf, found = _package(), None
    for file in files:
        try:
            reader = gguf.GGUFReader(file)
            stated = reader.fields.get("general.architecture")
        except (ValueError, IndexError, KeyError, OSError) as error:
            raise CheckpointError(f"{file}: damaged, or not complete: {error}") from error
        # Of a model in several files only the first one has it.
        found = found if stated is None else stated.contents()
    if found not in _FAMILIES:
        raise CheckpointError(
            f"{files[0]}: its architecture is {found!r}, which is not an ERNIE 4.5 model ({', '.join(_FAMILIES)})"
        )
    return _FAMILIES[found]


def describe_gguf(report: GgufReport) -> list[str]:
    """The report as lines of text."""
    kinds = ", ".join(f"{count} {name}" for name, count in sorted(report.types.items()))
    lines = [
        f"wrote {report.file}: {sum(report.types.values())} tensors ({kinds}), {report.nbytes / 1e6:,.1f} MB"
    ]
    return lines + [f"  note: {warning}" for warning in report.warnings]


def _write_directory(directory: Path, output: Path, kind: GgufType, progress: OnProgress) -> GgufReport:
    # Routers and norms are few: no type has more than 4 bytes for an element.
    nbytes = 4 * sum(int(np.prod(info.shape)) for info in open_model(directory)[1].values())
    with replacing(output, nbytes if kind == "f32" else nbytes // 2) as target:
        report = write_gguf(directory, target / f"model-{kind}.gguf", kind, progress)
    return replace(report, file=output / report.file.name)


def _package() -> Any:
    try:
        import gguf
    except ImportError as error:
        raise ConfigError(
            "GGUF files need the package gguf: in erniekit's checkout: pip install -e '.[gguf]'"
        ) from error
    logging.getLogger("gguf").setLevel(logging.WARNING)
    return gguf


def _check_supported(directory: Path, config: ErnieConfig) -> None:
    """Refuse what llama.cpp would compute otherwise, or not load."""
    problem = None
    if config.family == "vl":
        problem = "llama.cpp has no ERNIE vision-language models"
    elif config.use_bias:
        problem = "llama.cpp ignores the biases of ERNIE's linear layers (use_bias)"
    elif config.moe is not None:
        layers = config.moe.sparse_layers
        if layers != tuple(range(layers[0], config.num_hidden_layers)):
            problem = (
                f"llama.cpp wants experts in every layer from the first one on that has some, not in {layers}"
            )
    if problem is not None:
        raise CheckpointError(f"{directory}: cannot be written as GGUF: {problem}")


def _tensors(config: ErnieConfig, tensors: dict[str, TensorInfo]) -> Iterator[_Tensor]:
    def one(name: str, *parts: str) -> _Tensor:
        shape = tensors[parts[0]].shape
        if name.endswith(".bias"):  # [1, experts]
            shape = shape[1:]
        return _Tensor(name, parts, (len(parts), *shape) if len(parts) > 1 else shape)

    yield one("token_embd.weight", "model.embed_tokens.weight")
    for index in range(config.num_hidden_layers):
        hub, block = f"model.layers.{index}", f"blk.{index}"
        yield one(f"{block}.attn_norm.weight", f"{hub}.input_layernorm.weight")
        for old, new in _ATTENTION.items():
            yield one(f"{block}.{new}.weight", f"{hub}.self_attn.{old}.weight")
        yield one(f"{block}.ffn_norm.weight", f"{hub}.post_attention_layernorm.weight")
        if config.moe is None or index not in config.moe.sparse_layers:
            for old, new in _MLP.items():
                yield one(f"{block}.{new}.weight", f"{hub}.mlp.{old}.weight")
            continue
        yield one(f"{block}.ffn_gate_inp.weight", f"{hub}.mlp.gate.weight")
        yield one(f"{block}.exp_probs_b.bias", f"{hub}.mlp.moe_statics.e_score_correction_bias")
        for old, new in _MLP.items():
            parts = [f"{hub}.mlp.experts.{e}.{old}.weight" for e in range(config.moe.num_experts)]
            yield _Tensor(f"{block}.{new}_exps.weight", tuple(parts), (len(parts), *tensors[parts[0]].shape))
        if config.moe.num_shared_experts:
            for old, new in _MLP.items():
                yield one(f"{block}.{new}_shexp.weight", f"{hub}.mlp.shared_experts.{old}.weight")
    yield one("output_norm.weight", "model.norm.weight")
    if not config.tie_word_embeddings:
        yield one("output.weight", "lm_head.weight")


def _type_of(gguf: Any, tensor: _Tensor, kind: GgufType) -> Any:
    types = gguf.GGMLQuantizationType
    if len(tensor.shape) < 2 or tensor.name.endswith("ffn_gate_inp.weight") or kind == "f32":
        return types.F32
    return types.Q8_0 if kind == "q8_0" and tensor.shape[-1] % _BLOCK == 0 else types.F16


def _values(gguf: Any, tensor: _Tensor, tensors: dict[str, TensorInfo], kind: GgufType) -> np.ndarray:
    chosen = _type_of(gguf, tensor, kind)

    def read(name: str) -> np.ndarray:
        info = tensors[name]
        array = as_dtype(read_array(info), info.dtype, "F32")
        if chosen.name != "F32" and not np.abs(array).max(initial=0) <= _F16_MAX:
            raise CheckpointError(
                f"{info.file}: {name} has values beyond {_F16_MAX:,.0f}, the largest of f16; choose --gguf-type f32"
            )
        found: np.ndarray = gguf.quants.quantize(array, chosen)
        return found

    arrays = [read(name) for name in tensor.parts]
    array = arrays[0] if len(arrays) == 1 else np.stack(arrays)
    return array.reshape(-1) if tensor.name.endswith(".bias") else array


def _write_settings(writer: Any, gguf: Any, directory: Path, config: ErnieConfig, kind: GgufType) -> None:
    types = gguf.LlamaFileType
    writer.add_name(model_name(directory))
    writer.add_file_type({"f32": types.ALL_F32, "f16": types.MOSTLY_F16, "q8_0": types.MOSTLY_Q8_0}[kind])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    if config.moe is not None:
        moe, width = config.moe, config.moe.intermediate_sizes[0]
        writer.add_expert_count(moe.num_experts)
        writer.add_expert_used_count(moe.top_k)
        writer.add_interleave_moe_layer_step(1)
        writer.add_leading_dense_block_count(moe.sparse_layers[0])
        writer.add_expert_feed_forward_length(width)
        writer.add_expert_shared_count(moe.num_shared_experts)
        writer.add_expert_shared_feed_forward_length(width * moe.num_shared_experts)


def _write_vocabulary(writer: Any, gguf: Any, directory: Path, config: ErnieConfig) -> list[str]:
    """Write the SentencePiece vocabulary, added tokens and the chat template; returns warnings."""
    tokens, scores, types = _vocabulary(gguf, directory, config)
    backend = load_tokenizer(directory).backend_tokenizer
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    settings = read_json_object(directory / "tokenizer_config.json")
    first = backend.encode("a", add_special_tokens=False).tokens[0]
    writer.add_add_space_prefix(first.startswith(_SPACE))
    # Prompts begin with the beginning of sentence that the chat template writes.
    writer.add_add_bos_token(bool(settings.get("add_bos_token", False)))
    writer.add_add_eos_token(False)
    named = {key: settings.get(key) for key in ("bos_token", "unk_token", "pad_token")}
    for key, value in named.items():
        found = backend.token_to_id(value["content"] if isinstance(value, dict) else str(value))
        if found is not None:
            add: Callable[[int], None] = getattr(writer, f"add_{key}_id")
            add(found)
    stops = stop_token_ids(directory, None)
    if stops:
        writer.add_eos_token_id(stops[0])
    turn = backend.token_to_id(_TERMINATOR)
    if turn is not None:
        writer.add_eot_token_id(turn)
    name = chat_template(directory)
    if name is None:
        return ["the model has no chat template: llama.cpp's server needs one for chats"]
    template: Any = (directory / name).read_text(encoding="utf-8")
    if not name.endswith(".jinja"):
        template = read_json_object(directory / name)["chat_template"]
    writer.add_chat_template(template)
    return []


def _vocabulary(
    gguf: Any, directory: Path, config: ErnieConfig
) -> tuple[list[bytes], list[float], list[int]]:
    """Texts, scores and types of all ids, [vocab] each. Raises CheckpointError without tokenizer.model."""
    from sentencepiece import SentencePieceProcessor

    file = directory / "tokenizer.model"
    if not file.is_file():
        raise CheckpointError(
            f"{directory}: has no tokenizer.model, which llama.cpp's tokenizer needs; copy it from the released model"
        )
    pieces = SentencePieceProcessor()
    pieces.LoadFromFile(str(file))
    kinds, size = gguf.TokenType, config.vocab_size
    texts = [f"[PAD{i}]".encode() for i in range(size)]
    scores, types = [-10000.0] * size, [int(kinds.UNUSED)] * size
    for i in range(min(pieces.vocab_size(), size)):
        texts[i], scores[i], types[i] = pieces.IdToPiece(i).encode(), pieces.GetScore(i), int(kinds.NORMAL)
        for found, kind in (
            (pieces.IsUnknown(i), kinds.UNKNOWN),
            (pieces.IsControl(i), kinds.CONTROL),
            (pieces.IsUnused(i), kinds.UNUSED),
            (pieces.IsByte(i), kinds.BYTE),
        ):
            if found:
                types[i] = int(kind)
    backend = load_tokenizer(directory).backend_tokenizer
    control = control_tokens(backend)
    for i, token in backend.get_added_tokens_decoder().items():
        if i < size:
            special = i in control
            text = token.content if special else token.content.replace(_SPACE, " ")
            types[i] = int(kinds.CONTROL if special else kinds.USER_DEFINED)
            texts[i], scores[i] = text.encode(), -1000.0
    return texts, scores, types
