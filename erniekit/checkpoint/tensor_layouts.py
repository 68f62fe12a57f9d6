"""The layouts of tensors in checkpoints, and their tensors under the Hub's names.

- hub: the `-PT` releases. Linear weights are [out, in], and each has its own tensor.
- paddle: the `-Paddle` releases. Linear weights are [in, out]; query, key and value are side by side in one tensor, and
  so are gate and up (FastDeploy's and ERNIEKit's loaders, and their table of names).
- transformers: the Hub's names or the names of transformers' classes, with the experts of a layer stacked.

`hub_index` reads all of them; `stored_tensors` says what a file in a layout holds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from erniekit.checkpoint.header import NUMPY_TYPES, Columns, TensorInfo
from erniekit.checkpoint.hub import transpose_into
from erniekit.config.choices import CheckpointLayout
from erniekit.display.text import clipped
from erniekit.errors import CheckpointError
from erniekit.models.config import ErnieConfig
from erniekit.models.specs import TensorSpec, parameter_specs

OUTPUT = "lm_head.weight"

# The names of the paddle layout: (Hub, paddle).
_PADDLE_PREFIX = ("model.", "ernie.")
# Linear layers that are one tensor in the paddle layout, side by side in this order.
_FUSED: dict[str, tuple[str, ...]] = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "up_gate_proj": ("gate_proj", "up_proj"),
}
# Weights that are [in, out] in the paddle layout, by their names on the Hub.
_TRANSPOSED = re.compile(
    r"\.(q|k|v|o|gate|up|down)_proj\.weight$"
    r"|^vision_model\..*\.(proj|qkv|fc1|fc2)\.weight$"
    r"|\.resampler_model\.((spatial|temporal)_linear\.[02]|mlp)\.weight$"
    r"|\.mtp_linear_proj\.\d+\.weight$"
)
# The router of a text model; in vision-language models it is [hidden, experts] in both layouts.
_TEXT_ROUTER = re.compile(r"\.mlp\.gate\.weight$")
_FUSED_NAME = re.compile(rf"\.({'|'.join(_FUSED)})\.(weight|bias)$")
_PART_NAME = re.compile(
    rf"\.({'|'.join(part for parts in _FUSED.values() for part in parts)})\.(weight|bias)$"
)

# Where transformers' classes of vision-language models have the parts of the model: (transformers, Hub).
TRANSFORMERS_CLASSES = (
    ("model.language_model.layers.", "model.layers."),
    ("model.language_model.embed_tokens.", "model.embed_tokens."),
    ("model.language_model.norm.", "model.norm."),
    ("model.vision_tower.", "vision_model."),
)
# Names of transformers' classes and files -> the Hub's.
TRANSFORMERS_NAMES = (
    *TRANSFORMERS_CLASSES,
    ("model.vision_model.", "vision_model."),
    ("_linear.fc1.", "_linear.0."),
    ("_linear.fc2.", "_linear.2."),
    ("_linear.ln.", "_linear.3."),
    (".mlp.gate.moe_statics.", ".mlp.moe_statics."),
)
_STACKED = re.compile(r"\.mlp\.(text_moe\.|vision_moe\.|)experts\.(gate_up_proj|down_proj)$")
_VL_ROUTER = re.compile(r"\.mlp\.(text|vision)_moe\.gate\.weight$")
_VL_BIAS = re.compile(r"\.mlp\.(text|vision)_moe\.gate\.moe_statics\.e_score_correction_bias$")

Read = Callable[[str], np.ndarray]


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a file: the tensors of the Hub in it, side by side, transposed if `transposed`."""

    spec: TensorSpec
    parts: tuple[TensorSpec, ...]
    transposed: bool

    def read(self, get: Read) -> np.ndarray:
        """Its values, from `get(name)` for each tensor of the Hub in it."""
        if len(self.parts) == 1 and not self.transposed:
            return get(self.parts[0].name)
        if not self.transposed:
            return np.concatenate([get(part.name) for part in self.parts])
        array = np.empty(self.spec.shape, NUMPY_TYPES[self.spec.dtype])
        column = 0
        for part in self.parts:
            width = part.shape[0]
            transpose_into(array[:, column : column + width], get(part.name))
            column += width
        return array


def stored_tensors(
    specs: Sequence[TensorSpec], layout: CheckpointLayout, config: ErnieConfig
) -> list[StoredTensor]:
    """The tensors of a file in a layout, in the order of `specs`, which are the tensors of the Hub.

    Raises CheckpointError if a linear layer that is stored with others has another element type, or one is missing.
    """
    if layout != "paddle":
        return [StoredTensor(spec, (spec,), False) for spec in specs]
    found: list[StoredTensor] = []
    by_name = {spec.name: spec for spec in specs}
    fused: set[str] = set()
    for spec in specs:
        part = _PART_NAME.search(spec.name)
        if part is None or not spec.name.startswith(_PADDLE_PREFIX[0]):
            found.append(_paddle_tensor(spec.name, [spec], config))
            continue
        leaf = next(leaf for leaf, parts in _FUSED.items() if part[1] in parts)
        start, end = spec.name[: part.start(1)], spec.name[part.end(1) :]
        name = f"{start}{leaf}{end}"
        if name not in fused:
            fused.add(name)
            names = [f"{start}{each}{end}" for each in _FUSED[leaf]]
            missing = next((each for each in names if each not in by_name), None)
            if missing is not None:
                raise CheckpointError(f"{spec.name} cannot be stored in the paddle layout without {missing}")
            found.append(_paddle_tensor(name, [by_name[each] for each in names], config))
    return found


def _paddle_tensor(name: str, parts: Sequence[TensorSpec], config: ErnieConfig) -> StoredTensor:
    first = parts[0]
    if any(part.dtype != first.dtype or part.shape[1:] != first.shape[1:] for part in parts):
        raise CheckpointError(
            f"{', '.join(part.name for part in parts)} differ in their element type or width, and are one tensor in "
            "the paddle layout; give them one with `erniekit export --dtype`"
        )
    shape = (sum(part.shape[0] for part in parts), *first.shape[1:])
    transposed = _is_transposed(first.name, config) and len(shape) == 2
    old, new = _PADDLE_PREFIX
    stored = new + name.removeprefix(old) if name.startswith(old) else name
    return StoredTensor(
        TensorSpec(stored, first.dtype, shape[::-1] if transposed else shape), tuple(parts), transposed
    )


def _is_transposed(name: str, config: ErnieConfig) -> bool:
    """Whether the paddle layout has a weight transposed. name: on the Hub."""
    if _TRANSPOSED.search(name):
        return True
    if _TEXT_ROUTER.search(name):
        return config.family == "moe"
    # A tied output matrix is the embedding, which is [vocabulary, hidden] in every layout.
    return name == OUTPUT and not config.tie_word_embeddings


def has_paddle_names(names: Iterable[str]) -> str | None:
    """The first name that only the paddle layout has, None without any."""
    return next((name for name in names if name.startswith("ernie.") or _FUSED_NAME.search(name)), None)


def layout_of(stored: Mapping[str, TensorInfo], config: ErnieConfig) -> CheckpointLayout:
    """The layout of the tensors of a checkpoint, from their names and shapes.

    Some tools write the paddle layout with the Hub's names: then every linear layer that is not square shows it.
    """
    if has_paddle_names(stored):
        return "paddle"
    if config.raw.get("text_config") is not None or any(map(_is_transformers_name, stored)):
        return "transformers"
    linear = [
        (stored[spec.name].shape, spec.shape)
        for spec in parameter_specs(config)
        if spec.name in stored and spec.name.endswith("_proj.weight") and spec.shape != spec.shape[::-1]
    ]
    return "paddle" if linear and all(shape == wanted[::-1] for shape, wanted in linear) else "hub"


def _is_transformers_name(name: str) -> bool:
    """Whether only transformers' classes give a tensor this name."""
    return _STACKED.search(name) is not None or any(theirs in name for theirs, _ in TRANSFORMERS_NAMES)


def transformers_name(name: str, config: ErnieConfig) -> str:
    """The name in transformers' classes of a module or tensor of the Hub, other than experts and routers."""
    if config.family != "vl":
        return name
    for theirs, ours in TRANSFORMERS_CLASSES:
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    for number, leaf in ((0, "fc1"), (2, "fc2")):
        name = re.sub(rf"(\.resampler_model\.\w+_linear)\.{number}(?=\.|$)", rf"\1.{leaf}", name)
    return name


def hub_index(stored: Mapping[str, TensorInfo], config: ErnieConfig) -> dict[str, TensorInfo]:
    """The tensors of a checkpoint in any layout, under the Hub's names and with the Hub's shapes.

    Nothing is read: the result says where in the files the values are. Raises CheckpointError if a tensor of the paddle
    layout has a size that does not fit the configuration.
    """
    layout = layout_of(stored, config)
    if layout == "hub":
        return dict(stored)
    view = _from_paddle if layout == "paddle" else _from_transformers
    found: dict[str, TensorInfo] = {}
    for name, info in stored.items():
        for hub in view(name, info, config):
            if hub.name in found and layout == "transformers" and _VL_BIAS.search(name):
                hub = _joined(found[hub.name], hub, "vision" in name)
            elif hub.name in found:
                raise CheckpointError(
                    f"{info.file}: {clipped(name)} has the values of {hub.name} a second time"
                )
            found[hub.name] = hub
    return found


def _from_paddle(name: str, info: TensorInfo, config: ErnieConfig) -> list[TensorInfo]:
    """The tensors of the Hub in a tensor of the paddle layout."""
    new, old = _PADDLE_PREFIX
    name = new + name.removeprefix(old) if name.startswith(old) else name
    fused = _FUSED_NAME.search(name)
    if fused is None:
        transposed = _is_transposed(name, config) and len(info.shape) == 2
        if transposed:
            return [_columns(info, name, 0, info.shape[1])]
        return [replace(info, name=name)]
    leaves = _FUSED[fused[1]]
    widths = _widths(fused[1], info, config)
    found, first = [], 0
    for leaf, width in zip(leaves, widths, strict=True):
        part = f"{name[: fused.start(1)]}{leaf}{name[fused.end(1) :]}"
        if len(info.shape) == 2:
            found.append(_columns(info, part, first, width))
        else:
            found.append(_rows(info, part, first, (width, *info.shape[1:])))
        first += width
    return found


def _widths(leaf: str, info: TensorInfo, config: ErnieConfig) -> list[int]:
    """The output features of the linear layers in a fused tensor."""
    total = info.shape[-1] if info.shape else 0
    if leaf == "qkv_proj":
        heads = (config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads)
        widths = [number * config.head_dim for number in heads]
    else:
        widths = [total // 2, total // 2]
    if sum(widths) != total or len(info.shape) not in (1, 2):
        raise CheckpointError(
            f"{info.file}: {clipped(info.name)} is {list(info.shape)}; config.json gives {sum(widths)} columns for "
            f"{', '.join(_FUSED[leaf])}"
        )
    return widths


def _from_transformers(name: str, info: TensorInfo, config: ErnieConfig) -> list[TensorInfo]:
    """The tensors of the Hub in a tensor with the names of transformers' classes."""
    for theirs, ours in TRANSFORMERS_NAMES:
        name = name.replace(theirs, ours)
    stacked = _STACKED.search(name)
    # A shape without values may name any number of experts.
    if stacked is not None and len(info.shape) == 3 and info.nbytes and config.moe is not None:
        first = config.moe.num_experts if stacked[1].startswith("vision") else 0
        path = f"{name[: stacked.start(1)]}experts"
        leaves = ("gate_proj", "up_proj") if stacked[2] == "gate_up_proj" else ("down_proj",)
        experts, rows, inner = info.shape
        shape = (rows // len(leaves), inner)
        names = [f"{path}.{first + expert}.{leaf}.weight" for expert in range(experts) for leaf in leaves]
        return [_rows(info, each, place * shape[0] * inner, shape) for place, each in enumerate(names)]
    router = _VL_ROUTER.search(name)
    if router is not None and len(info.shape) == 2:
        hub = f"{name[: router.start()]}.mlp.gate.weight" + ("_1" if router[1] == "vision" else "")
        return [_columns(info, hub, 0, info.shape[1])]
    bias = _VL_BIAS.search(name)
    if bias is not None:
        return [replace(info, name=f"{name[: bias.start()]}.mlp.moe_statics.e_score_correction_bias")]
    return [replace(info, name=name)]


def _joined(one: TensorInfo, other: TensorInfo, other_last: bool) -> TensorInfo:
    """The correction bias of both modalities, from that of each."""
    parts = (one, other) if other_last else (other, one)
    rows = sum(part.shape[0] for part in parts if part.shape)
    return replace(one, shape=(rows, *one.shape[1:]), nbytes=sum(part.nbytes for part in parts), parts=parts)


def _columns(info: TensorInfo, name: str, first: int, width: int) -> TensorInfo:
    """Columns of a stored matrix, transposed."""
    inner, total = info.shape
    nbytes = info.nbytes // total * width if total else 0
    return replace(info, name=name, shape=(width, inner), nbytes=nbytes, columns=Columns(first, total))


def _rows(info: TensorInfo, name: str, first: int, shape: tuple[int, ...]) -> TensorInfo:
    """A range of a stored tensor: `shape`, from the element `first` on."""
    itemsize = np.dtype(NUMPY_TYPES[info.dtype]).itemsize
    nbytes = int(np.prod(shape, dtype=np.int64)) * itemsize
    return replace(info, name=name, shape=shape, offset=info.offset + first * itemsize, nbytes=nbytes)
