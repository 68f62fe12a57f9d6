"""What is run: architectures, rows and methods. Without Paddle and torch, for both sides of a comparison."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from erniekit.data.encode.positions import media_positions, text_positions

IGNORE = -100
PLACEHOLDER, IMAGE_START, IMAGE_END, VIDEO_START, VIDEO_END = 9, 14, 15, 16, 17
_FIRST_TEXT = 32
RANK, ALPHA, BETA = 32, 64.0, 0.1
FULL_DEPTH = 28
"""Layers of both released models."""
METHODS = ("full", "attention", "experts")
ROWS = ("text", "mixed", "pairs")
DEFAULT = (
    *("vl/text/full", "vl/text/attention", "vl/text/experts", "vl/mixed/full", "vl/mixed/experts"),
    *("vl/pairs/experts", "text/text/full", "text/text/experts", "vl/text/full/direct"),
)
"""Ends in "direct": without recompute."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of a row and of the model's parts that differ in a trial on a CPU.

    picture: height and width of each picture in patches, as 1,024 x 768 pixels have.
    """

    tokens: int = 8192
    tiny: bool = False

    @property
    def vocab(self) -> int:
        return 512 if self.tiny else 103_424

    @property
    def picture(self) -> tuple[int, int]:
        return (4, 4) if self.tiny else (54, 74)

    @property
    def pictures(self) -> int:
        """So many that about half of the row are tokens of pictures."""
        return max(1, self.tokens // 2 // (self.picture[0] * self.picture[1] // 4))

    @property
    def pair(self) -> tuple[int, int]:
        """Tokens of a shared prompt, and of each of its two answers."""
        return (8, 4) if self.tiny else (1024, 512)


@dataclass(frozen=True)
class Case:
    """model: vl (VL-28B-A3B) or text (21B-A3B); row: one of ROWS; method: one of METHODS, LoRA but for full."""

    model: str
    row: str
    method: str
    recompute: bool = True

    @classmethod
    def of(cls, name: str) -> Case:
        """From a name as in DEFAULT. Raises ValueError."""
        model, row, method, *rest = name.split("/")
        known = model in ("vl", "text") and row in ROWS and method in METHODS and rest in ([], ["direct"])
        if not known or (model, row) == ("text", "mixed"):
            raise ValueError(f"no case {name}: model/row/method, such as {DEFAULT[0]}")
        return cls(model, row, method, not rest)


def architecture(case: Case, layers: int, sizes: Sizes) -> dict[str, Any]:
    """`config.json` with so many layers, of which the first is dense. The vision tower is whole in mixed rows only."""
    raw: dict[str, Any] = dict(
        model_type="ernie4_5_moe",
        vocab_size=sizes.vocab,
        hidden_size=2560,
        intermediate_size=12_288,
        num_hidden_layers=layers,
        num_attention_heads=20,
        num_key_value_heads=4,
        max_position_embeddings=131_072,
        rope_theta=500_000.0,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        moe_num_experts=64,
        moe_k=6,
        moe_intermediate_size=1536,
        moe_num_shared_experts=2,
        moe_layer_start_index=1,
        moe_layer_end_index=layers - 1,
    )
    if sizes.tiny:
        raw |= dict(hidden_size=256, intermediate_size=384, num_attention_heads=2, num_key_value_heads=1)
        raw |= dict(moe_num_experts=8, moe_k=3, moe_intermediate_size=96)
    if case.model == "text":
        return raw
    width, experts = raw["moe_intermediate_size"], raw["moe_num_experts"]
    depth = (2 if sizes.tiny else 32) if case.row == "mixed" else 1
    vision = dict(depth=depth, hidden_size=1280, num_heads=16, mlp_ratio=4, patch_size=14, in_channels=3)
    if sizes.tiny:
        vision |= dict(hidden_size=64, num_heads=2)
    return raw | dict(
        model_type="ernie4_5_moe_vl",
        moe_num_experts=[experts, experts],
        moe_intermediate_size=[width, width // 3],
        moe_layer_start_index=[1, 1],
        moe_layer_end_index=[layers - 1, layers - 1],
        rope_scaling={"type": "default", "mrope_section": [22, 22, 20]},
        im_patch_id=PLACEHOLDER,
        image_start_token_id=IMAGE_START,
        image_end_token_id=IMAGE_END,
        video_start_token_id=VIDEO_START,
        video_end_token_id=VIDEO_END,
        vision_config=vision | dict(spatial_merge_size=2),
    )


def make_row(case: Case, sizes: Sizes, seed: int = 0) -> dict[str, np.ndarray]:
    """The arrays of a packed row (erniekit.data.load.batch.PackedBatch): one document, or pairs with shared prompts."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(_FIRST_TEXT, sizes.vocab, sizes.tokens)
    branches, bounds = np.zeros((0, 2), np.int32), np.array([0, sizes.tokens], np.int32)
    modality = np.zeros(sizes.tokens, np.int8)
    positions = text_positions(0, sizes.tokens)[0]
    grids, places = np.zeros((0, 3), np.int32), np.zeros(0, np.int64)
    if case.row == "mixed":
        grids = np.array([[1, *sizes.picture]] * sizes.pictures, np.int32)
        places = _place_pictures(ids, modality, positions, sizes)
    if case.row == "pairs":
        prompt, answer = sizes.pair
        if sizes.tokens % (prompt + 2 * answer):
            raise ValueError(f"rows of pairs have a multiple of {prompt + 2 * answer} tokens")
        starts = np.arange(0, sizes.tokens, prompt + 2 * answer)
        bounds = np.append(starts, sizes.tokens).astype(np.int32)
        branches = (starts[:, None] + [prompt, prompt + answer]).astype(np.int32)
        document = np.concatenate([np.arange(prompt + answer), prompt + np.arange(answer)])
        positions = np.tile(document, (3, len(starts)))
    labels = np.append(ids[1:], IGNORE)
    labels[modality == 1] = IGNORE
    labels[:-1][modality[1:] == 1] = IGNORE
    labels[bounds[1:] - 1] = IGNORE
    for (first, second), start in zip(branches, bounds, strict=False):
        labels[start:first] = IGNORE
        labels[second - 1] = IGNORE
    patches = int(grids.prod(1).sum())
    row = dict(input_ids=ids, labels=labels, position_ids=positions, modality=modality, cu_seqlens=bounds)
    row |= dict(grid_thw=grids, media_positions=places, branches=branches)
    return row | dict(patches=rng.integers(0, 256, (patches, 588)).astype(np.uint8))


def _place_pictures(ids: np.ndarray, modality: np.ndarray, positions: np.ndarray, sizes: Sizes) -> np.ndarray:
    """Pictures with text between them, in place; returns the places of their tokens."""
    height, width = sizes.picture[0] // 2, sizes.picture[1] // 2
    tokens, pictures = height * width, sizes.pictures
    gap = (len(ids) - pictures * (tokens + 2)) // (pictures + 1)
    places, end, current = [], 0, 0
    for number in range(pictures):
        start = gap * (number + 1) + number * (tokens + 2) + 1
        ids[start - 1], ids[start : start + tokens], ids[start + tokens] = IMAGE_START, PLACEHOLDER, IMAGE_END
        modality[start - 1 : start + tokens + 1] = 1
        positions[:, end:start], current = text_positions(current, start - end)
        end = start + tokens
        positions[:, start:end], current = media_positions(current, 1, height, width)
        places.append(np.arange(start, end))
    positions[:, end:] = text_positions(current, len(ids) - end)[0]
    return np.concatenate(places)
