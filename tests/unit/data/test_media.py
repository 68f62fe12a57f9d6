import base64
import io
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from erniekit.data.conversation import SampleError
from erniekit.data.media import image_size, open_image, resolve_source
from tests.unit.data.helpers import encoded, noise


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB")).astype(int)


def test_path_and_bytes_are_the_same_picture(tmp_path: Path) -> None:
    image = noise(20, 30)
    image.save(tmp_path / "a.png")
    for source in (str(tmp_path / "a.png"), encoded(image)):
        assert image_size(source, "f:1") == (20, 30)
        np.testing.assert_array_equal(pixels(open_image(source, "f:1")), pixels(image))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_to_size_and_pixels_alike(format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    source = encoded(noise(20, 30), format, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(source)))
    found = open_image(source, "f:1")
    assert image_size(source, "f:1") == (found.height, found.width) == (upright.height, upright.width)
    np.testing.assert_array_equal(pixels(found), pixels(upright))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_does_not_cost_the_picture() -> None:
    source = encoded(noise(20, 30), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert image_size(source, "f:1") == (20, 30)
    assert open_image(source, "f:1").size == (30, 20)


def test_reading_the_size_does_not_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    source = encoded(noise(20, 30))

    def refuse(self: Image.Image) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", refuse)
    assert image_size(source, "f:1") == (20, 30)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr"])
def test_modes_become_rgb(mode: str) -> None:
    image = noise(20, 30, mode=mode)
    source = encoded(image, "JPEG" if mode in ("CMYK", "YCbCr") else "PNG")
    found = open_image(source, "f:1")
    assert found.mode == "RGB"
    np.testing.assert_array_equal(pixels(found), pixels(Image.open(io.BytesIO(source))))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P", "RGB", "L"])
def test_transparency_is_white(mode: str) -> None:
    image = Image.new("RGBA", (4, 2), (10, 20, 30, 255))
    image.paste((200, 0, 0, 0), (0, 0, 2, 2))
    if mode == "P":
        source = encoded(image.convert("P", palette=Image.Palette.ADAPTIVE))
    elif mode in ("RGB", "L"):
        key = (
            (200, 0, 0)
            if mode == "RGB"
            else Image.new("RGB", (1, 1), (200, 0, 0)).convert("L").getpixel((0, 0))
        )
        source = encoded(image.convert("RGB").convert(mode), transparency=key)
    else:
        source = encoded(image.convert(mode), "TIFF" if mode == "PA" else "PNG")
    found = pixels(open_image(source, "f:1"))
    assert (found[:, :2] == 255).all()
    assert (abs(found[:, 2:] - [10, 20, 30]) < 15).all()


def test_16_bit_grey_keeps_its_high_byte() -> None:
    values = np.arange(0, 65536, 65536 // 12, dtype=np.uint16)[:12].reshape(3, 4)
    found = open_image(encoded(Image.fromarray(values)), "f:1")
    np.testing.assert_array_equal(np.asarray(found)[..., 0], values >> 8)


def test_floating_point_pixels_are_refused() -> None:
    source = encoded(Image.new("F", (4, 4)), "TIFF")
    with pytest.raises(SampleError, match=r"f:1: .* pixels of type F: save it with 8 bits"):
        open_image(source, "f:1")


def test_missing_picture_names_sample_and_path(tmp_path: Path) -> None:
    for read in (image_size, open_image):
        with pytest.raises(SampleError, match=r"^f:1: no such picture: .*/none\.png") as caught:
            read(str(tmp_path / "none.png"), "f:1")
        assert caught.value.reason == "missing image"


def test_truncated_jpeg_names_sample_and_file(tmp_path: Path) -> None:
    path = tmp_path / "cut.jpg"
    path.write_bytes(encoded(noise(200, 300), "JPEG")[:-500])
    assert image_size(str(path), "f:1") == (200, 300)
    with pytest.raises(SampleError, match=r"^f:1: damaged picture .*/cut\.jpg: .*truncated"):
        open_image(str(path), "f:1")


@pytest.mark.parametrize("cut", [40, 60, 200])
def test_truncated_png(cut: int) -> None:
    with pytest.raises(SampleError, match=r"^f:1: .*base64 in the sample, \d+ bytes"):
        open_image(encoded(noise(64, 64))[:cut], "f:1")


@pytest.mark.parametrize(
    "content", [b"", b"not a picture", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"]
)
def test_what_is_no_picture(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(SampleError, match=r"^f:1: not a picture that can be read: .*/a\.png"):
        image_size(str(path), "f:1")


def test_a_directory_is_no_picture(tmp_path: Path) -> None:
    with pytest.raises(SampleError, match=r"^f:1: cannot open the picture"):
        image_size(str(tmp_path), "f:1")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [9_500, 20_000])
def test_decompression_bomb_is_refused(side: int) -> None:
    # Enough of a header: the size alone decides, nothing is decoded.
    small = encoded(Image.new("1", (8, 8)))
    header = side.to_bytes(4, "big") * 2
    chunk = b"IHDR" + header + small[24:29]
    bomb = small[:12] + chunk + zlib.crc32(chunk).to_bytes(4, "big") + small[33:]
    for read in (image_size, open_image):
        with pytest.raises(SampleError, match="more than 89,478,485 pixels"):
            read(bomb, "f:1")


def test_base64_text_with_line_breaks() -> None:
    png = encoded(noise(8, 8))
    wrapped = base64.encodebytes(png).decode()
    assert "\n" in wrapped.strip()
    assert resolve_source("data:image/png;base64," + wrapped, Path("/"), "f:1") == png


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP"])
def test_damaged_bytes_never_give_another_error(format: str) -> None:
    whole = encoded(noise(24, 32), format)
    generator = np.random.default_rng(1)
    refused = 0
    for _ in range(300):
        damaged = np.frombuffer(whole, np.uint8).copy()
        places = generator.integers(0, len(damaged), 1 + int(generator.integers(0, 12)))
        damaged[places] = generator.integers(0, 256, len(places))
        try:
            picture = open_image(damaged.tobytes(), "f:1")
            assert (picture.height, picture.width) == image_size(damaged.tobytes(), "f:1")
        except SampleError:
            refused += 1
    assert refused
