"""Turns an image into patches for the vision tower: target size, bicubic resampling, order of patches.

Agrees with transformers' models.ernie4_5_vl_moe.image_processing_pil_ernie4_5_vl_moe
(Ernie4_5_VLMoeImageProcessorPil).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from erniekit.display.text import clipped
from erniekit.errors import CheckpointError, ConfigError
from erniekit.json_fields import above_zero, read_integer, read_number, read_numbers, read_object
from erniekit.local_files import read_json_object
from erniekit.vl_checkpoint import CLIP_MEAN, CLIP_STD

Patches = npt.NDArray[np.uint8]
CHANNELS = 3
# Defaults of the released processor. In VL-28B-A3B-PT and -Thinking, preprocessor_config.json has neither key.
PATCH_SIZE, MERGE_SIZE = 14, 2
TOKEN_PIXELS = (PATCH_SIZE * MERGE_SIZE) ** 2
# Values in a patch of ERNIE 4.5's vision tower: the width of `patches` in a row without images.
PATCH_DIM = CHANNELS * PATCH_SIZE**2
# Settings that have one implementation.
_FIXED = {"do_resize": True, "do_rescale": True, "do_normalize": True, "do_center_crop": False, "resample": 3}
_LARGEST_ASPECT = 200
MAX_PATCH = 1024  # limit of patch_size and merge_size
MAX_AREA = 1 << 40  # pixels
# Ratio of the bounds of an area if one is derived from the other.
PIXELS_APART = 4


class Resizing(Protocol):
    """The bounds on the size of an image or frame: an ImageSpec or a VideoSpec."""

    @property
    def min_pixels(self) -> int:
        """The smallest area after resizing."""

    @property
    def max_pixels(self) -> int:
        """The largest area after resizing."""

    @property
    def patch_size(self) -> int:
        """Pixels per side of a patch."""

    @property
    def merge_size(self) -> int:
        """Patches per side of a token."""


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """How a checkpoint processes images. The defaults are the released processor's.

    min_pixels, max_pixels: bounds of the area after resizing; patch_size: pixels per side of a patch; merge_size:
    patches per side of a token; image_mean, image_std: per channel, for values in 0..1.
    """

    min_pixels: int = 4 * TOKEN_PIXELS
    max_pixels: int = 6177 * TOKEN_PIXELS
    patch_size: int = PATCH_SIZE
    merge_size: int = MERGE_SIZE
    image_mean: tuple[float, float, float] = CLIP_MEAN
    image_std: tuple[float, float, float] = CLIP_STD

    def __post_init__(self) -> None:
        if not 1 <= self.min_pixels <= self.max_pixels:
            raise ConfigError(
                f"data.min_pixels ({self.min_pixels}) must be at least 1 and at most data.max_pixels "
                f"({self.max_pixels})"
            )
        if self.max_pixels < self.factor**2:
            least = f"one token of {self.factor}x{self.factor} pixels"
            raise ConfigError(f"data.max_pixels ({self.max_pixels}) must allow {least}")

    @property
    def factor(self) -> int:
        """Pixels per side of a token. Both sides of a resized image are multiples of it."""
        return self.patch_size * self.merge_size

    @property
    def patch_dim(self) -> int:
        """Values in one patch."""
        return CHANNELS * self.patch_size**2

    @classmethod
    def from_checkpoint(
        cls, directory: Path, min_pixels: int | None = None, max_pixels: int | None = None
    ) -> ImageSpec:
        """The spec in preprocessor_config.json (or processor_config.json) of a checkpoint directory.

        Reads all shapes: `min_pixels`/`max_pixels`, also in `size`, and `size` with `shortest_edge`/`longest_edge`
        (areas, despite their names). min_pixels, max_pixels replace the checkpoint's. Raises CheckpointError.
        """
        path, found = read_processor(directory)
        try:
            size = read_object(found, "size") if found.get("size") else {}
            for key, wanted in _FIXED.items():
                if found.get(key, wanted) not in (wanted, None):
                    raise CheckpointError(
                        f"{path}: {key} is {clipped(repr(found[key]))}; only {wanted} is supported"
                    )
            rescale = read_number(found, "rescale_factor", 1 / 255)
            if abs(rescale * 255 - 1) > 1e-6:
                raise CheckpointError(f"{path}: rescale_factor is {rescale}; only 1/255 is supported")
            mean, std = (read_numbers(found, key, CHANNELS) for key in ("image_mean", "image_std"))
            for value in std:
                above_zero("image_std", value)
            return cls(
                min_pixels=_area(min_pixels, found, size, "min_pixels", "shortest_edge"),
                max_pixels=_area(max_pixels, found, size, "max_pixels", "longest_edge"),
                patch_size=read_integer(found, "patch_size", PATCH_SIZE, most=MAX_PATCH),
                merge_size=read_integer(found, "merge_size", MERGE_SIZE, most=MAX_PATCH),
                image_mean=(mean[0], mean[1], mean[2]),
                image_std=(std[0], std[1], std[2]),
            )
        except KeyError as error:
            raise CheckpointError(f"{path}: the key {error} is missing") from error
        except ValueError as error:
            raise CheckpointError(f"{path}: {error}") from error

    def normalise(self, patches: Patches) -> npt.NDArray[np.float32]:
        """Normalise patches [P, patch_dim] for the vision tower: (x / 255 - mean) / std per channel, float32."""
        mean = np.repeat(np.asarray(self.image_mean), self.patch_size**2)
        std = np.repeat(np.asarray(self.image_std), self.patch_size**2)
        return ((patches / 255.0 - mean) / std).astype(np.float32)


def _area(asked: int | None, found: dict[str, Any], size: dict[str, Any], flat: str, edge: str) -> int:
    if asked is not None:
        return asked
    for section in (found, size):
        if section.get(flat) is not None:
            return read_integer(section, flat, most=MAX_AREA)
    return read_integer(size, edge, most=MAX_AREA)


def read_processor(directory: Path) -> tuple[Path, dict[str, Any]]:
    """The file with a checkpoint's image settings, and the settings. Raises CheckpointError."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        path = Path(directory) / name
        if path.is_file():
            found = read_json_object(path)
            inner = found.get("image_processor", found)
            if not isinstance(inner, dict):
                raise CheckpointError(f"{path}: image_processor must be an object")
            return path, inner
    raise CheckpointError(
        f"{directory}: no preprocessor_config.json, so it is unknown how this model processes images"
    )


def limits(least: int | None, most: int | None, own: tuple[int, int], apart: int) -> tuple[int, int]:
    """(minimum, maximum) with defaults `own`. If only one is given and crosses the other's default, the default is
    replaced by the given one divided or multiplied by `apart`."""
    if least is None:
        least = own[0] if most is None or own[0] <= most else max(1, most // apart)
    if most is None:
        most = own[1] if least <= own[1] else least * apart
    return least, most


def smart_resize(height: int, width: int, spec: Resizing) -> tuple[int, int]:
    """The target size (height, width) of an image: multiples of a token's side, an area within the bounds, and about
    the same aspect ratio.

    Raises ValueError if one side is more than 200 times the other.
    """
    factor = spec.patch_size * spec.merge_size
    if max(height, width) > _LARGEST_ASPECT * min(height, width):
        raise ValueError(f"one side is more than {_LARGEST_ASPECT} times the other ({width}x{height} pixels)")
    rows, columns = round(height / factor) * factor, round(width / factor) * factor
    if rows * columns > spec.max_pixels:
        beta = math.sqrt(height * width / spec.max_pixels)
        rows = max(factor, math.floor(height / beta / factor) * factor)
        columns = max(factor, math.floor(width / beta / factor) * factor)
    elif rows * columns < spec.min_pixels:
        beta = math.sqrt(spec.min_pixels / (height * width))
        rows = math.ceil(height * beta / factor) * factor
        columns = math.ceil(width * beta / factor) * factor
    return rows, columns


def image_grid(height: int, width: int, spec: Resizing) -> tuple[int, int, int]:
    """The grid of an image in patches, (1, h, w). height, width: in pixels. Raises ValueError as `smart_resize`."""
    rows, columns = smart_resize(height, width, spec)
    return 1, rows // spec.patch_size, columns // spec.patch_size


def num_tokens(grid_thw: tuple[int, int, int], spec: ImageSpec) -> int:
    """The number of placeholder tokens of an image with this grid."""
    t, h, w = grid_thw
    return t * h * w // spec.merge_size**2


def patchify(image: Image.Image, spec: ImageSpec) -> tuple[Patches, tuple[int, int, int]]:
    """Turn an RGB image into patches uint8 [P, patch_dim] and their grid (1, h, w).

    The order of values is (gh, gw, mh, mw, C, ph, pw): merge groups, patches of a group, channels, pixels. Patches are
    uint8 to save memory; the model or `ImageSpec.normalise` normalises them. Raises ValueError as `smart_resize`.
    """
    grid = image_grid(image.height, image.width, spec)
    patches = np.empty((grid[1] * grid[2], spec.patch_dim), np.uint8)
    fill_patches(patches, image, grid, spec)
    return patches, grid


def fill_patches(
    patches: Patches, image: Image.Image, grid_thw: tuple[int, int, int], spec: Resizing
) -> None:
    """Resize an RGB image or frame to a grid and write its patches to `patches` [h * w, patch_dim].

    grid_thw: t is ignored. The order is that of `patchify`.
    """
    rows, columns = (patches_per_side * spec.patch_size for patches_per_side in grid_thw[1:])
    if (columns, rows) != image.size:
        image = image.resize((columns, rows), Image.Resampling.BICUBIC)
    merge, patch = spec.merge_size, spec.patch_size
    groups = rows // (merge * patch), columns // (merge * patch)
    # Move each row of a patch's channel as one item, which is several times faster than single bytes.
    run = np.dtype((np.void, patch))
    placed = patches.view(run).reshape(*groups, merge, merge, CHANNELS, patch)
    for channel, band in enumerate("RGB"):
        plane = np.frombuffer(image.tobytes("raw", band), run)
        runs = plane.reshape(groups[0], merge, patch, groups[1], merge)
        placed[:, :, :, :, channel] = runs.transpose(0, 3, 1, 4, 2)
