"""Every picture mode is read as its user expects, and everything that is no whole picture is refused in one line."""

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from scsco_fast.data.images import image_to_tensor, read_picture, tensor_to_image
from scsco_fast.data.masks import read_mask
from scsco_fast.errors import ScscoError

GREY = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
RGB = np.stack([GREY, 255 - GREY, GREY // 2], axis=2)


def save(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def test_rgb_is_read_as_stored(tmp_path: Path) -> None:
    picture = read_picture(save(tmp_path / "a.png", Image.fromarray(RGB)))
    np.testing.assert_array_equal(picture.rgb, RGB)
    assert picture.alpha is None


def test_grey_becomes_three_equal_channels(tmp_path: Path) -> None:
    picture = read_picture(save(tmp_path / "a.png", Image.fromarray(GREY)))
    np.testing.assert_array_equal(picture.rgb, np.repeat(GREY[:, :, None], 3, axis=2))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path: Path, suffix: str) -> None:
    path = save(tmp_path / f"a.{suffix}", Image.fromarray(GREY.astype(np.uint16) * 257))
    np.testing.assert_array_equal(read_picture(path).rgb[:, :, 0], GREY)
    np.testing.assert_allclose(read_mask(path), GREY / 255, atol=1e-6)


def test_palette_becomes_its_colours(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    picture = read_picture(save(tmp_path / "a.png", image))
    assert picture.rgb.tolist() == [[[10, 20, 30], [200, 100, 50]]]
    transparent = read_picture(save(tmp_path / "b.png", image, transparency=0))
    assert transparent.alpha is not None
    assert transparent.alpha.tolist() == [[0, 255]]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_kept_apart_and_does_not_darken_the_colour(tmp_path: Path, mode: str) -> None:
    alpha = np.array([[0, 128, 255, 7]] * 3, dtype=np.uint8)
    image = Image.fromarray(GREY).convert(mode)
    image.putalpha(Image.fromarray(alpha))
    picture = read_picture(save(tmp_path / "a.png", image))
    assert picture.alpha is not None
    np.testing.assert_array_equal(picture.alpha, alpha)
    np.testing.assert_array_equal(picture.rgb[:, :, 1], GREY)


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    path = save(tmp_path / "a.tif", Image.new("CMYK", (4, 3), (0, 255, 255, 0)))
    assert read_picture(path).rgb[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("read", [lambda path: read_picture(path).rgb[:, :, 0], lambda path: read_mask(path) * 255])
def test_exif_orientation_is_applied(tmp_path: Path, read: object) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying: turned by 90 degrees clockwise to stand
    path = save(tmp_path / "a.png", Image.fromarray(GREY), exif=exif)
    np.testing.assert_allclose(read(path), np.rot90(GREY, -1), atol=1e-4)


def test_a_broken_exif_block_leaves_the_picture_as_stored(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", Image.fromarray(RGB), exif=b"Exif\0\0no header of a TIFF file")
    np.testing.assert_array_equal(read_picture(path).rgb, RGB)


def test_float_picture_in_unit_range(tmp_path: Path) -> None:
    path = save(tmp_path / "a.tif", Image.fromarray((GREY / 255).astype(np.float32)))
    np.testing.assert_array_equal(read_picture(path).rgb[:, :, 2], GREY)


@pytest.mark.parametrize(
    ("value", "said"),
    [(np.nan, "NaN"), (np.inf, "NaN or infinite"), (3.5, "floats in \\[0, 1\\]"), (-0.5, "from -0.5")],
)
def test_bad_float_pixels_are_refused(tmp_path: Path, value: float, said: str) -> None:
    pixels = np.full((3, 4), 0.5, np.float32)
    pixels[1, 2] = value
    path = save(tmp_path / "a.tif", Image.fromarray(pixels))
    for read in (read_picture, read_mask):
        with pytest.raises(ScscoError, match=said) as caught:
            read(path)
        assert_one_line_naming(caught.value, path)


def test_integers_beyond_sixteen_bits_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.tif", Image.fromarray(np.full((3, 4), 70000, np.int32)))
    with pytest.raises(ScscoError, match="70000") as caught:
        read_picture(path)
    assert_one_line_naming(caught.value, path)


def truncated_jpeg(path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path, format="JPEG")
    path.write_bytes(path.read_bytes()[:-800])


def truncated_png(path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path, format="PNG")
    path.write_bytes(path.read_bytes()[:3000])


def png_with_a_flipped_bit(path: Path) -> None:
    Image.fromarray(RGB).save(path, format="PNG")
    content = bytearray(path.read_bytes())
    content[-20] ^= 0xFF
    path.write_bytes(bytes(content))


def decompression_bomb(path: Path) -> None:
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b"")]
    packed = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: path.write_bytes(b""), "0 bytes"),
        (lambda path: path.write_bytes(b"\0" * 500), "not a picture"),
        (lambda path: path.write_text("hello"), "not a picture"),
        (os.mkfifo, "not a regular file"),
        (truncated_jpeg, "truncated or damaged"),
        (truncated_png, "truncated or damaged"),
        (png_with_a_flipped_bit, "truncated or damaged"),
        (decompression_bomb, "more pixels than is safe"),
    ],
)
def test_what_is_no_whole_picture_is_refused_in_one_line(tmp_path: Path, make: object, said: str) -> None:
    path = tmp_path / "bad picture.png"
    make(path)
    for read in (read_picture, read_mask):
        with pytest.raises(ScscoError, match=said) as caught:
            read(path)
        assert_one_line_naming(caught.value, path)


def assert_one_line_naming(error: ScscoError, path: Path) -> None:
    assert str(path) in str(error)
    assert "\n" not in str(error)


def test_tensors_round_trip_every_level() -> None:
    rgb = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2)
    rgb[:, :, 1] = rgb[::-1, :, 1]
    tensor = image_to_tensor(rgb)
    assert tensor.shape == (3, 16, 16)
    assert tensor.dtype == torch.float32
    np.testing.assert_array_equal(tensor_to_image(tensor), rgb)
    assert tensor_to_image(tensor * 2 - 1).min() == 0


def test_tensors_that_are_no_pictures_are_refused() -> None:
    with pytest.raises(ScscoError, match="uint8"):
        image_to_tensor(np.zeros((4, 4, 3), np.float32))
    with pytest.raises(ScscoError, match="shape"):
        image_to_tensor(np.zeros((4, 4), np.uint8))
    with pytest.raises(ScscoError, match="shape"):
        tensor_to_image(torch.zeros(1, 3, 4, 4))
    with pytest.raises(ScscoError, match="NaN"):
        tensor_to_image(torch.full((3, 4, 4), float("nan")))
