"""The architecture of an ERNIE 4.5 checkpoint, read from its `config.json` alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from erniekit.display.text import clipped
from erniekit.errors import CheckpointError
from erniekit.json_fields import read_flag, read_integer, read_number, read_object
from erniekit.local_files import read_json_object, require_model
from erniekit.models.config_keys import (
    DECODER_ALIASES,
    ROPE_KEYS,
    VISION_ALIASES,
    Family,
    canonical,
    check_keys,
    decoder_keys,
    outer_keys,
    vision_keys,
)
from erniekit.moe.config import MoeConfig
from erniekit.vl_checkpoint import MediaTokens, read_media_tokens

Json = dict[str, Any]
FAMILY_OF_MODEL_TYPE: dict[str, Family] = {
    "ernie4_5": "dense",
    "ernie4_5_moe": "moe",
    "ernie4_5_moe_vl": "vl",
    "ernie4_5_vl_moe": "vl",
}
VISION_ROPE_THETA = 10000.0
VISION_NORM_EPS = 1e-6
_SHOWN = 600  # characters of what is wrong
_MLP = ("sparse", "dense")
# Far above every model, and small enough that a list of the tensors is.
_MOST_LAYERS, _MOST_EXPERTS, _MOST_SIDE = 1000, 200_000, 1024
_ROPE_NAMES = ("rope_parameters", "rope_scaling")
_PADDLE_HINT = (
    "; the file looks like one of a -Paddle release, which may leave out a size: use config.json of the -PT release of "
    "the same model"
)


@dataclass(frozen=True)
class VisionConfig:
    """The vision transformer and the merges of the resampler that follows it."""

    depth: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    patch_size: int
    in_channels: int
    spatial_merge_size: int
    temporal_merge_size: int

    @property
    def patch_dim(self) -> int:
        """Values in one patch: channels x height x width."""
        return self.in_channels * self.patch_size**2

    @property
    def spatial_dim(self) -> int:
        """Width of the resampler: the patches of one spatial merge side by side."""
        return self.hidden_size * self.spatial_merge_size**2


@dataclass(frozen=True)
class ErnieConfig:
    """An architecture, read from any of the four forms of `config.json`.

    `raw` is the parsed `config.json`, from which exports are written; `unknown` are its keys that are not in
    `erniekit.models.config_keys`.
    """

    family: Family
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    mrope_section: tuple[int, int, int] | None
    tie_word_embeddings: bool
    use_bias: bool
    max_position_embeddings: int
    moe: MoeConfig | None = None
    vision: VisionConfig | None = None
    media: MediaTokens | None = None
    raw: Json = field(default_factory=dict, repr=False, compare=False)
    unknown: tuple[str, ...] = field(default=(), repr=False, compare=False)

    @classmethod
    def from_dir(cls, path: str | Path) -> ErnieConfig:
        """Read `config.json` of a checkpoint directory. Raises CheckpointError if it is missing or invalid."""
        require_model(Path(path))
        file = Path(path) / "config.json"
        return cls.from_json(read_json_object(file), where=str(file))

    @classmethod
    def from_json(cls, raw: Json, where: str = "config.json") -> ErnieConfig:
        """Interpret a parsed `config.json`.

        Raises CheckpointError with the key that is missing, invalid or unsupported.
        """
        model_type = raw.get("model_type")
        family = FAMILY_OF_MODEL_TYPE.get(model_type) if isinstance(model_type, str) else None
        if family is None:
            known = ", ".join(FAMILY_OF_MODEL_TYPE)
            raise CheckpointError(
                f"{where}: model_type {clipped(repr(model_type))} is not an ERNIE 4.5 model; known: {known}"
            )
        try:
            return _build(family, raw)
        except KeyError as error:
            hint = _PADDLE_HINT if is_paddle_config(raw) else ""
            raise CheckpointError(f"{where}: key {error.args[0]!r} is missing{hint}") from None
        except ValueError as error:
            raise CheckpointError(f"{where}: {clipped(str(error), _SHOWN)}") from None


def is_paddle_config(raw: Json) -> bool:
    """Whether a `config.json` is of a `-Paddle` release: `dtype` without torch's name and transformers' version.

    FastDeploy distinguishes the layouts in the same way.
    """
    return "dtype" in raw and not raw.get("torch_dtype") and not raw.get("transformers_version")


def _build(family: Family, raw: Json) -> ErnieConfig:
    nested = raw.get("text_config") is not None
    unknown: list[str] = []
    if nested:
        outer = canonical(raw, {})
        unknown += check_keys(outer, outer_keys())
        text = canonical(read_object(raw, "text_config"), DECODER_ALIASES, "text_config.")
        unknown += check_keys(text, decoder_keys(family), "text_config.")
        text["tie_word_embeddings"] = _tied(outer, text)
    else:
        outer = text = canonical(raw, DECODER_ALIASES)
        unknown += check_keys(text, decoder_keys(family))
    vision: Json = {}
    if family == "vl":
        vision = canonical(read_object(raw, "vision_config"), VISION_ALIASES, "vision_config.")
        unknown += check_keys(vision, vision_keys(), "vision_config.")
    rope = _rope(text, unknown)
    heads, hidden = read_integer(text, "num_attention_heads"), read_integer(text, "hidden_size")
    layers = read_integer(text, "num_hidden_layers", most=_MOST_LAYERS)
    head_dim = read_integer(text, "head_dim", hidden // heads)
    config = ErnieConfig(
        family=family,
        vocab_size=read_integer(text, "vocab_size"),
        hidden_size=hidden,
        intermediate_size=read_integer(text, "intermediate_size"),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=read_integer(text, "num_key_value_heads", heads),
        head_dim=head_dim,
        rms_norm_eps=read_number(text, "rms_norm_eps", 1e-5, most=1.0),
        rope_theta=read_number(rope, "rope_theta", 500000.0),
        mrope_section=_mrope_section(text, rope, head_dim) if family == "vl" else None,
        tie_word_embeddings=read_flag(text, "tie_word_embeddings", True),
        use_bias=False,
        max_position_embeddings=read_integer(text, "max_position_embeddings", 131072),
        moe=_moe(family, text, layers) if family != "dense" else None,
        vision=_vision(outer, vision, nested, unknown) if family == "vl" else None,
        media=read_media_tokens(outer, nested=nested) if family == "vl" else None,
        raw=raw,
        unknown=tuple(unknown),
    )
    if config.num_attention_heads % config.num_key_value_heads:
        raise ValueError(
            f"num_attention_heads {config.num_attention_heads} is not a multiple of "
            f"num_key_value_heads {config.num_key_value_heads}"
        )
    if head_dim % 2:
        raise ValueError(f"head_dim {head_dim}: rotary embedding needs an even one")
    if config.moe is not None:
        tensors = layers * config.moe.num_experts * len(config.moe.intermediate_sizes)
        if tensors > _MOST_EXPERTS:
            raise ValueError(
                f"{layers} layers of {config.moe.num_experts} experts are more than any model has"
            )
    return config


def _tied(outer: Json, text: Json) -> bool:
    """`tie_word_embeddings` of a nested file, where it may be in two places."""
    inner = read_flag(text, "tie_word_embeddings", outer.get("tie_word_embeddings", True))
    found = read_flag(outer, "tie_word_embeddings", inner)
    if found != inner:
        raise ValueError(
            f"tie_word_embeddings is {str(found).lower()}, text_config.tie_word_embeddings is {str(inner).lower()}: "
            "make them agree"
        )
    return found


def _rope(
    section: Json, unknown: list[str], prefix: str = "", default_types: tuple[str, ...] = ("default",)
) -> Json:
    """Settings of a rotary embedding, from `rope_parameters`, `rope_scaling` and `rope_theta`.

    Adds unknown keys to `unknown`. Raises ValueError for unsupported kinds, and if the places contradict each other.
    """
    merged: Json = {}
    for name in _ROPE_NAMES:
        found = (
            canonical(read_object(section, name), {"type": "rope_type"}, f"{name}.")
            if name in section
            else {}
        )
        kind = found.pop("rope_type", default_types[0])
        # A scale of 1, which is the default by another name, passes check_keys.
        kinds = (*default_types, "linear") if "factor" in found else default_types
        if kind not in kinds:
            raise ValueError(
                f"{prefix}{name} is {section[name]}, which is not supported: only the default rotary embedding is. No "
                f"released ERNIE 4.5 has another; where the model was not trained with it, remove {name} from the file"
            )
        if any(isinstance(value, dict) for value in found.values()):
            raise ValueError(
                f"{prefix}{name} has different settings for different kinds of layers, which is not supported"
            )
        unknown += check_keys(found, ROPE_KEYS, f"{prefix}{name}.")
        for key, value in found.items():
            if merged.setdefault(key, value) != value:
                raise ValueError(f"{prefix}rope_parameters and {prefix}rope_scaling have different {key}")
    theta = section.get("rope_theta")
    if theta is not None and merged.setdefault("rope_theta", theta) != theta:
        raise ValueError(
            f"{prefix}rope_theta is {theta}, and {merged['rope_theta']} in rope_parameters or rope_scaling"
        )
    return merged


def _mrope_section(text: Json, rope: Json, head_dim: int) -> tuple[int, int, int]:
    """Numbers of frequencies for height, width and time. A flat config may give the number for time only."""
    section = rope.get("mrope_section")
    if section is None:
        time = read_integer(text, "freq_allocation", 20)
        space = head_dim // 2 - time
        section = [space // 2, space - space // 2, time]
    if (
        not isinstance(section, list)
        or len(section) != 3
        or not all(type(part) is int and part >= 0 for part in section)
    ):
        raise ValueError("mrope_section must be three whole numbers")
    height, width, time = section
    if height + width + time != head_dim // 2 or height != width:
        raise ValueError(
            f"mrope_section {section} must hold equal shares of height and width and add up to "
            f"head_dim / 2 = {head_dim // 2}"
        )
    if read_integer(text, "freq_allocation", time) != time:
        raise ValueError(f"freq_allocation is {text['freq_allocation']}, mrope_section gives time {time}")
    return height, width, time


def _moe(family: Family, text: Json, layers: int) -> MoeConfig:
    modalities = 2 if family == "vl" else 1
    experts = _per_modality(text, "moe_num_experts")
    if len(set(experts)) != 1:
        raise ValueError(f"moe_num_experts {experts}: text and vision must have the same number of experts")
    widths = _per_modality(text, "moe_intermediate_size")
    if len(widths) != modalities:
        raise ValueError(f"moe_intermediate_size {widths}: a {family} model has {modalities} of them")
    top_k = read_integer(text, "moe_k")
    if top_k > experts[0]:
        raise ValueError(f"moe_k {top_k} must be between 1 and moe_num_experts {experts[0]}")
    return MoeConfig(
        num_experts=experts[0],
        top_k=top_k,
        intermediate_sizes=tuple(widths),
        num_shared_experts=read_integer(text, "moe_num_shared_experts", 0, least=0),
        norm_min=read_number(text, "moe_norm_min", 1e-12, most=1.0),
        sparse_layers=_sparse_layers(text, layers),
    )


def _per_modality(text: Json, key: str, default: int | None = None, least: int = 1) -> list[int]:
    """A number, or a list with one number for text and one for vision."""
    value = text.get(key, default)
    if value is None:
        raise KeyError(key)
    values = value if isinstance(value, list) and 1 <= len(value) <= 2 else [value]
    return [read_integer({key: one}, key, least=least) for one in values]


def _sparse_layers(text: Json, layers: int) -> tuple[int, ...]:
    types = text.get("mlp_layer_types")
    if types is not None:
        if not isinstance(types, list) or len(types) != layers or any(kind not in _MLP for kind in types):
            raise ValueError(f'mlp_layer_types must be "sparse" or "dense" for each of the {layers} layers')
        return tuple(index for index, kind in enumerate(types) if kind == "sparse")
    starts = _per_modality(text, "moe_layer_start_index", 1, least=0)
    ends = [
        layers - 1 if end == -1 else end for end in _per_modality(text, "moe_layer_end_index", -1, least=-1)
    ]
    interval = read_integer(text, "moe_layer_interval", 1)
    found = [
        tuple(i for i in range(layers) if start <= i <= end and (i + 1) % interval == 0)
        for start, end in zip(starts * (2 // len(starts)), ends * (2 // len(ends)), strict=True)
    ]
    if len(set(found)) > 1:
        raise ValueError(
            f"moe_layer_start_index {starts} and moe_layer_end_index {ends} give text and vision experts in different "
            "layers, which is not supported"
        )
    return found[0]


def _vision(outer: Json, vision: Json, nested: bool, unknown: list[str]) -> VisionConfig:
    width = read_integer(vision, "hidden_size")
    rope = _rope(vision, unknown, "vision_config.", ("default", "axial"))
    if read_number(rope, "rope_theta", VISION_ROPE_THETA) != VISION_ROPE_THETA:
        raise ValueError(
            f"vision_config.rope_theta is {rope['rope_theta']}: only {VISION_ROPE_THETA} is supported"
        )
    patch = vision.get("patch_size")
    if isinstance(patch, list) and len(patch) == 2 and patch[0] == patch[1]:
        vision = vision | {"patch_size": patch[0]}
    ratio = 0.0 if nested else read_number(vision, "mlp_ratio", 4.0, most=1000.0)
    found = VisionConfig(
        depth=read_integer(vision, "depth", most=_MOST_LAYERS),
        hidden_size=width,
        intermediate_size=read_integer(vision, "intermediate_size") if nested else int(width * ratio),
        num_heads=read_integer(vision, "num_heads"),
        patch_size=read_integer(vision, "patch_size", most=_MOST_SIDE),
        in_channels=read_integer(vision, "in_channels", most=_MOST_SIDE),
        spatial_merge_size=read_integer(vision, "spatial_merge_size", most=_MOST_SIDE),
        temporal_merge_size=2,
    )
    if found.intermediate_size < 1 or width % (4 * found.num_heads):
        raise ValueError(
            f"vision_config.hidden_size {width} must be a multiple of 4 x num_heads {found.num_heads} for the rotary "
            "embedding over rows and columns, and mlp_ratio must give a width"
        )
    same = (
        ("pixel_hidden_size", outer, "hidden_size", found.hidden_size),
        ("spatial_conv_size", outer, "spatial_merge_size", found.spatial_merge_size),
        ("embed_dim", vision, "hidden_size", found.hidden_size),
        ("in_chans", vision, "in_channels", found.in_channels),
        ("spatial_patch_size", vision, "patch_size", found.patch_size),
    )
    for key, section, other, value in same:
        if section.get(key, value) != value:
            raise ValueError(
                f"{key} is {section[key]}, vision_config.{other} is {value}: they must be the same"
            )
    return found
