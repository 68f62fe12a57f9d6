import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from erniekit.data.media.images import image_size, open_image
from erniekit.data.media.patches import ImageSpec, image_grid, num_tokens, patchify, smart_resize
from erniekit.data.media.video import VideoSpec
from erniekit.errors import CheckpointError, ConfigError
from tests.closeness import assert_close
from tests.unit.data.helpers import PROCESSOR, SHARED, encoded, noise, write_json

NESTED: dict[str, Any] = {
    "image_processor_type": "Ernie4_5_VLMoeImageProcessor",
    "size": {"shortest_edge": 3136, "longest_edge": 4842768},
    **{key: value for key, value in PROCESSOR.items() if not key.endswith("_pixels")},
}


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> ImageSpec:
    directory = tmp_path_factory.mktemp("spec")
    write_json(directory / "preprocessor_config.json", NESTED)
    return ImageSpec.from_checkpoint(directory)


def reference_patches(image: Image.Image, spec: ImageSpec) -> tuple[np.ndarray, tuple[int, ...]]:
    module = pytest.importorskip("transformers.models.ernie4_5_vl_moe.image_processing_pil_ernie4_5_vl_moe")
    size = {"shortest_edge": spec.min_pixels, "longest_edge": spec.max_pixels}
    found = module.Ernie4_5_VLMoeImageProcessorPil()([image], size=size, return_tensors="np")
    return found["pixel_values"], tuple(found["image_grid_thw"][0].tolist())


def assert_equals_reference(image: Image.Image, source: str | bytes, spec: ImageSpec) -> None:
    patches, grid = patchify(open_image(source, "f:1"), spec)
    expected, expected_grid = reference_patches(image, spec)
    assert patches.dtype == np.uint8
    assert grid == expected_grid == image_grid(*image_size(source, "f:1"), spec)
    assert len(patches) == 4 * num_tokens(grid, spec)
    assert_close(spec.normalise(patches), expected)


SIZES = [
    (8, 8),
    (1, 1),
    (56, 56),
    (84, 112),
    (30, 1000),
    (1000, 30),
    (10, 2000),
    (333, 517),
    (55, 57),
    (14, 42),
]


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_patches_equal_the_reference_processor(spec: ImageSpec, height: int, width: int) -> None:
    image = noise(height, width, seed=height + width)
    assert_equals_reference(image, encoded(image), spec)


@pytest.mark.parametrize("max_pixels", [28 * 28, 28 * 28 * 7, 200_000])
@pytest.mark.parametrize(("height", "width"), [(400, 400), (1000, 30), (517, 333)])
def test_upper_limit_equals_the_reference_processor(
    spec: ImageSpec, height: int, width: int, max_pixels: int
) -> None:
    spec = dataclasses.replace(spec, min_pixels=28 * 28, max_pixels=max_pixels)
    image = noise(height, width)
    assert_equals_reference(image, encoded(image), spec)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "RGBA", "LA"])
def test_modes_equal_the_reference_processor(spec: ImageSpec, mode: str) -> None:
    image = noise(70, 90, mode=mode)
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    assert_equals_reference(image, encoded(image, "TIFF" if mode == "CMYK" else "PNG"), spec)


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/testdata")
@pytest.mark.parametrize("name", ["1.jpg", "2.jpg", "3.jpg"])
def test_photographs_equal_the_reference_processor(spec: ImageSpec, name: str) -> None:
    path = SHARED / "testdata" / "mllm_demo_data" / name
    assert_equals_reference(Image.open(path), str(path), spec)


def test_smart_resize_agrees_with_the_reference_over_many_sizes(spec: ImageSpec) -> None:
    module = pytest.importorskip("transformers.models.ernie4_5_vl_moe.image_processing_pil_ernie4_5_vl_moe")
    generator = np.random.default_rng(0)
    for height, width in np.exp(generator.uniform(0, np.log(9000), (3000, 2))).astype(int).tolist():
        if max(height, width) / min(height, width) > 200:
            with pytest.raises(ValueError, match="more than 200 times"):
                smart_resize(height, width, spec)
            continue
        expected = module.smart_resize(height, width, 28, spec.min_pixels, spec.max_pixels)
        assert smart_resize(height, width, spec) == expected


def test_patch_order_by_hand(spec: ImageSpec) -> None:
    rows, columns = np.mgrid[0:56, 0:84]
    image = Image.fromarray(np.stack([rows, columns, rows // 14 * 6 + columns // 14], -1).astype(np.uint8))
    patches, grid = patchify(image, spec)
    assert grid == (1, 4, 6)
    values = patches.reshape(24, 3, 14, 14)
    # Merge groups of 2 x 2 patches, row by row; in a group its patches row by row.
    order = [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11], [12, 13, 18, 19], [14, 15, 20, 21], [16, 17, 22, 23]]
    assert values[:, 2, 0, 0].tolist() == [place for group in order for place in group]
    np.testing.assert_array_equal(values[3, 0, :, 0], np.arange(14, 28))
    np.testing.assert_array_equal(values[3, 1, 0, :], np.arange(14, 28))


def test_spec_from_both_shapes_of_the_file(tmp_path: Path) -> None:
    write_json(tmp_path / "preprocessor_config.json", PROCESSOR)
    flat = ImageSpec.from_checkpoint(tmp_path)
    assert (flat.min_pixels, flat.max_pixels, flat.factor, flat.patch_dim) == (3136, 1003520, 28, 588)
    own = ImageSpec.from_checkpoint(tmp_path, min_pixels=784, max_pixels=7840)
    assert (own.min_pixels, own.max_pixels) == (784, 7840)
    write_json(tmp_path / "preprocessor_config.json", NESTED)
    assert ImageSpec.from_checkpoint(tmp_path).max_pixels == 4842768
    (tmp_path / "preprocessor_config.json").unlink()
    write_json(tmp_path / "processor_config.json", {"image_processor": NESTED})
    assert ImageSpec.from_checkpoint(tmp_path).max_pixels == 4842768


def test_the_released_files_without_patch_sizes(tmp_path: Path) -> None:
    """preprocessor_config.json of VL-28B-A3B-PT and -Thinking: its processor's defaults hold."""
    released = {key: PROCESSOR[key] for key in ("image_mean", "image_std", "min_pixels")}
    released |= dict(max_pixels=4816896, size={"height": 224, "width": 224}, resample=3, do_center_crop=False)
    released |= dict(do_resize=True, do_rescale=True, do_normalize=True, rescale_factor=0.00392156862745098)
    write_json(tmp_path / "preprocessor_config.json", released)
    spec = ImageSpec.from_checkpoint(tmp_path)
    assert (spec.patch_size, spec.merge_size, spec.min_pixels, spec.max_pixels) == (14, 2, 3136, 4816896)
    video = VideoSpec.from_checkpoint(tmp_path)
    assert (video.patch_size, video.merge_size) == (14, 2)
    inner = {key: value for key, value in released.items() if not key.endswith("_pixels")}
    inner["size"] = {"min_pixels": 3136, "max_pixels": 7840}
    write_json(tmp_path / "preprocessor_config.json", inner)
    assert ImageSpec.from_checkpoint(tmp_path).max_pixels == 7840


def test_bad_specs(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no preprocessor_config\.json"):
        ImageSpec.from_checkpoint(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    changes: list[tuple[dict[str, Any], str]] = [
        ({"patch_size": "x"}, "patch_size must be a whole number"),
        ({"patch_size": -14}, "patch_size must be a whole number from 1"),
        ({"patch_size": 10**9}, "patch_size must be a whole number from 1 to 1,024"),
        ({"merge_size": 2.5}, "merge_size must be a whole number"),
        ({"image_std": [0, 0, 0]}, "image_std must be a number above 0"),
        ({"image_std": [float("nan")] * 3}, "image_std must be numbers"),
        ({"image_mean": "abc"}, "image_mean must be a list of 3 numbers"),
        ({"size": [1]}, "size must be an object"),
        ({"image_processor": []}, "image_processor must be an object"),
        ({"do_resize": False}, "do_resize is False; only True is supported"),
        ({"do_normalize": False}, "do_normalize is False"),
        ({"do_center_crop": True}, "do_center_crop is True"),
        ({"resample": 2}, "resample is 2; only 3 is supported"),
        ({"rescale_factor": 1.0}, "only 1/255"),
        ({"image_mean": [0.5]}, "a list of 3 numbers"),
    ]
    for change, message in changes:
        write_json(path, {**PROCESSOR, **change})
        with pytest.raises(CheckpointError, match=message):
            ImageSpec.from_checkpoint(tmp_path)
    write_json(path, {key: value for key, value in PROCESSOR.items() if key != "max_pixels"})
    with pytest.raises(CheckpointError, match="the key 'longest_edge' is missing"):
        ImageSpec.from_checkpoint(tmp_path)
    path.write_text("{")
    with pytest.raises(CheckpointError, match="not valid JSON"):
        ImageSpec.from_checkpoint(tmp_path)
    write_json(path, PROCESSOR)
    with pytest.raises(ConfigError, match=r"data\.min_pixels \(9999999\)"):
        ImageSpec.from_checkpoint(tmp_path, min_pixels=9999999)
    with pytest.raises(ConfigError, match=r"data\.max_pixels \(100\) must allow one token"):
        ImageSpec.from_checkpoint(tmp_path, min_pixels=1, max_pixels=100)


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/reference_models")
def test_spec_of_the_reference_models() -> None:
    flat = ImageSpec.from_checkpoint(SHARED / "reference_models" / "vl_hub")
    nested = ImageSpec.from_checkpoint(SHARED / "reference_models" / "vl_hf")
    stored = json.loads((SHARED / "reference_models" / "vl_hf" / "preprocessor_config.json").read_text())
    assert (flat.max_pixels, nested.max_pixels) == (1003520, stored["size"]["longest_edge"])
    assert flat.image_mean == nested.image_mean
