"""The prompts that engines are compared on: a text, a tool call, and for VL models an image and a video."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from erniekit.data.chat.conversation import Conversation, ImagePart, Message, TextPart, VideoPart
from erniekit.data.encode.document import Document
from erniekit.data.encode.encoder import Encoder
from erniekit.data.load.loader import load_row

_QUESTION = "What is in the picture? Describe it in one sentence. 图片里有什么 1 + 2 = ?"
_TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}
# Multiples of the side of a token, within the bounds of the released processors: no processor resizes them.
_IMAGE_SIDES = (84, 112)
_FRAMES = 4


@dataclass(frozen=True)
class Prompt:
    """A prompt for all engines.

    `images` and `videos` are those in the document, as PNG files in bytes. A video is its frames, as the model sees
    them: with the times that training writes on them.
    """

    name: str
    document: Document
    images: tuple[bytes, ...] = ()
    videos: tuple[tuple[bytes, ...], ...] = ()


def make_prompts(encoder: Encoder) -> list[Prompt]:
    """The prompts that a model can be asked, by its encoder: without media of text models, and none too long for it."""
    return [prompt for prompt in _all_prompts(encoder) if encoder.limits.fits(prompt.document)]


def _all_prompts(encoder: Encoder) -> list[Prompt]:
    question = TextPart(_QUESTION)

    def encode(name: str, *media: ImagePart | VideoPart, tools: tuple[dict[str, Any], ...] = ()) -> Document:
        message = Message("user", (*media, question), False)
        return encoder.encode_prompt(Conversation((message,), f"{name} prompt", tools=tools))

    prompts = [Prompt("text", encode("text")), Prompt("tool call", encode("tool call", tools=(_TOOL,)))]
    if encoder.image_spec is None:
        return prompts
    image, frames = _picture(0), tuple(_picture(seed) for seed in range(_FRAMES))
    area = _IMAGE_SIDES[0] * _IMAGE_SIDES[1]
    video = VideoPart(
        frames, fps=2.0, min_frames=_FRAMES, max_frames=_FRAMES, min_pixels=area, max_pixels=area
    )
    prompts.append(Prompt("image", encode("image", ImagePart(image)), images=(image,)))
    document = encode("video", video)
    prompts.append(Prompt("video", document, videos=(_seen_frames(document, encoder),)))
    return prompts


def _seen_frames(document: Document, encoder: Encoder) -> tuple[bytes, ...]:
    """The frames of a document with one video, from its patches."""
    batch = load_row([document], encoder.media_spec)
    times, rows, columns = batch.grid_thw[0].tolist()
    merge = document.media[0].merge_size
    side = math.isqrt(batch.patches.shape[1] // 3)
    blocks = batch.patches.reshape(times, rows // merge, columns // merge, merge, merge, 3, side, side)
    # Row of tokens, row of patches in it, row of pixels; then the same for columns; then colours.
    frames = blocks.transpose(0, 1, 3, 6, 2, 4, 7, 5).reshape(times, rows * side, columns * side, 3)
    return tuple(_png(frame) for frame in frames)


def _picture(seed: int) -> bytes:
    """A PNG with smooth and noisy parts."""
    height, width = _IMAGE_SIDES
    rows, columns = np.mgrid[0:height, 0:width]
    smooth = np.stack([rows * 3, columns * 2, 255 - rows - columns], axis=-1)
    noise = np.random.default_rng(seed).integers(0, 64, (height, width, 3))
    return _png((smooth + noise).clip(0, 255).astype(np.uint8))


def _png(pixels: np.ndarray) -> bytes:
    """An image [height, width, 3] of uint8."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    return stream.getvalue()
