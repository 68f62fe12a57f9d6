"""An image or video of a document: where it comes from, and the tokens it takes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Media:
    """An image or video in a document.

    source: path, encoded bytes, or the frames of a video; grid_thw: patches (t, h, w), t = 1 for an image and
    the even number of frames of a video; start: index of its first placeholder, which its start marker
    precedes; tokens: number of placeholders, which its end marker follows; merge_size: patches a side of a
    token; frames: of a video, the number of each sampled frame in the file, () for an image; min_pixels, max_pixels:
    as in `ImagePart` and `VideoPart`; times: of a video given as frames taken at known times, the second of each
    sampled frame.
    """

    source: str | bytes | tuple[str | bytes, ...]
    grid_thw: tuple[int, int, int]
    start: int
    tokens: int
    merge_size: int
    frames: tuple[int, ...] = ()
    min_pixels: int | None = None
    max_pixels: int | None = None
    times: tuple[float, ...] = ()

    @property
    def is_video(self) -> bool:
        """Whether it has frames."""
        return bool(self.frames)

    @property
    def token_grid(self) -> tuple[int, int, int]:
        """Token times, rows and columns: two frames share a time, merge_size x merge_size patches a token."""
        rows, columns = self.grid_thw[1] // self.merge_size, self.grid_thw[2] // self.merge_size
        return self.tokens // (rows * columns), rows, columns

    @property
    def num_patches(self) -> int:
        """Patches that the vision tower sees."""
        t, h, w = self.grid_thw
        return t * h * w
