"""Parts of a VL checkpoint that data and models share: ids of media tokens, and normalization of pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

# CLIP's mean and standard deviation per channel, for values in 0..1, as in all released processors.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

# Ids of the tokenizer of all released ERNIE 4.5 models.
_RELEASED_IDS = {
    "im_patch_id": 100295,
    "image_start_token_id": 101304,
    "image_end_token_id": 101305,
    "video_start_token_id": 101306,
    "video_end_token_id": 101307,
}
_MARKERS = ("image_start_token_id", "image_end_token_id", "video_start_token_id", "video_end_token_id")


@dataclass(frozen=True, slots=True)
class MediaTokens:
    """Token ids of the placeholders of images and videos, and of their start and end markers."""

    image_placeholder: int
    image_start: int
    image_end: int
    video_placeholder: int
    video_start: int
    video_end: int


def read_media_tokens(config: Mapping[str, Any], *, nested: bool) -> MediaTokens:
    """The media tokens in config.json, which is flat (Hub) or nested (transformers).

    The flat layout has one placeholder for images and videos. Files of `-Paddle` releases have no ids: these are
    in the tokenizer, the same for all released models. Raises ValueError for missing ids.
    """
    image, video = ("image_token_id", "video_token_id") if nested else ("im_patch_id", "im_patch_id")
    size = config.get("vocab_size")
    if not set(_RELEASED_IDS) & set(config) and _is_id(size) and size > max(_RELEASED_IDS.values()):
        config = {**config, **_RELEASED_IDS}
    keys = dict.fromkeys((image, video, *_MARKERS))
    missing = [key for key in keys if not _is_id(config.get(key))]
    if missing:
        raise ValueError(f"a VL model needs the token ids {', '.join(missing)}")
    image_start, image_end, video_start, video_end = (config[key] for key in _MARKERS)
    return MediaTokens(config[image], image_start, image_end, config[video], video_start, video_end)


def _is_id(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
