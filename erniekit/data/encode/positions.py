"""Positions of tokens for 3-D RoPE (M-RoPE)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Positions = npt.NDArray[np.int64]


def text_positions(start: int, tokens: int) -> tuple[Positions, int]:
    """Positions [3, tokens] (t, h, w) of text that begins at `start`, and the position that follows it."""
    stop = start + tokens
    return np.tile(np.arange(start, stop), (3, 1)), stop


def media_positions(start: int, times: int, rows: int, columns: int) -> tuple[Positions, int]:
    """Positions [3, times * rows * columns] (t, h, w) of an image or video, and the position that follows it.

    times: token times, 1 for an image and half the frames of a video; rows, columns: of tokens. t, h and w count
    from `start` along each side of this box, and the text after it continues behind its longest side:
    start + max(times, rows, columns).

    This is the rule of the released processing code, ERNIEKit, FastDeploy, vLLM and SGLang. transformers' own
    Ernie4_5_VLMoeModel.get_rope_index continues at start + max(rows, columns), so that text after a video of more
    token times than rows and columns overlaps it in t. For all other videos, and for images, both are the same.
    """
    box = np.indices((times, rows, columns), np.int64).reshape(3, -1) + start
    return box, start + max(times, rows, columns)
