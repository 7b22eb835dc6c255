"""16-bit colour: every filter of PNG, orientations, what is refused."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from malformed import chunk
from PIL import Image, ImageOps

from scsco_fast.data.deep_color import DeepPicture, read_deep, write_deep
from scsco_fast.errors import ScscoError

LIMIT = 10**6


def random_pixels(channels: int = 3, height: int = 23, width: int = 17) -> np.ndarray:
    return np.random.default_rng(channels).integers(0, 2**16, (height, width, channels), dtype=np.uint16)


def png(pixels: np.ndarray, filters: list[int], interlace: int = 0, extra: bytes = b"", parts: int = 1) -> bytes:
    """An encoder written from the specification, byte by byte, with one filter for each row."""
    height, width, channels = pixels.shape
    step = 2 * channels
    rows = [bytes(row) for row in pixels.astype(">u2").view(np.uint8).reshape(height, -1)]
    lines = []
    for index, row in enumerate(rows):
        above = rows[index - 1] if index else bytes(len(row))
        line = bytearray([filters[index]])
        for at, value in enumerate(row):
            left = row[at - step] if at >= step else 0
            corner = above[at - step] if at >= step else 0
            guess = left + above[at] - corner
            nearest = min((left, above[at], corner), key=lambda v, guess=guess: abs(guess - v))
            line.append((value - [0, left, above[at], (left + above[at]) // 2, nearest][filters[index]]) % 256)
        lines.append(bytes(line))
    packed = zlib.compress(b"".join(lines))
    cuts = [packed[len(packed) * i // parts : len(packed) * (i + 1) // parts] for i in range(parts)]
    header = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, interlace)
    body = b"".join(chunk(b"IDAT", cut) for cut in cuts)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + body + chunk(b"IEND", b"")


@pytest.mark.parametrize("channels", [2, 3, 4])
@pytest.mark.parametrize("kind", [0, 1, 2, 3, 4, "mixed"])
def test_every_filter(channels: int, kind: int | str, tmp_path: Path) -> None:
    pixels = random_pixels(channels)
    filters = [row % 5 for row in range(23)] if kind == "mixed" else [int(kind)] * 23
    (tmp_path / "a.png").write_bytes(png(pixels, filters, parts=3))
    assert np.array_equal(read_deep(tmp_path / "a.png", LIMIT).pixels, pixels)


def test_high_bytes_are_what_pillow_reads(tmp_path: Path) -> None:
    pixels = random_pixels()
    write_deep(DeepPicture(pixels), tmp_path / "a.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), pixels >> 8)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (40, 33)])
@pytest.mark.parametrize("suffix", [".png", ".tif", ".TIFF"])
def test_round_trip(size: tuple[int, int], suffix: str, tmp_path: Path) -> None:
    for channels in (3, 4):
        pixels = random_pixels(channels, *size)
        write_deep(DeepPicture(pixels, b"profile"), tmp_path / f"a{suffix}")
        read = read_deep(tmp_path / f"a{suffix}", LIMIT)
        assert np.array_equal(read.pixels, pixels)
        assert read.icc_profile == b"profile"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_pillows(orientation: int, tmp_path: Path) -> None:
    pixels = random_pixels()
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = orientation, "a maker"
    write_deep(DeepPicture(pixels, None, exif.tobytes()), tmp_path / "a.png")
    read = read_deep(tmp_path / "a.png", LIMIT)
    with Image.open(tmp_path / "a.png") as image:
        assert np.array_equal(read.pixels >> 8, np.asarray(ImageOps.exif_transpose(image)))
    kept = Image.Exif()
    kept.load(read.exif)
    assert dict(kept) == {0x010F: "a maker"}


def test_damaged_exif_is_kept(tmp_path: Path) -> None:
    write_deep(DeepPicture(random_pixels(), None, b"broken"), tmp_path / "a.png")
    assert read_deep(tmp_path / "a.png", LIMIT).exif == b"broken"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (png(random_pixels(), [0] * 23)[:-400], "truncated or damaged"),
        (png(random_pixels(), [0] * 23)[:-12], ""),
        (png(random_pixels(), [0] * 23, interlace=1), "without interlacing"),
        (png(random_pixels(), [0] * 23, extra=chunk(b"tRNS", bytes(6))), "with an alpha channel"),
        (b"\x89PNG\r\n\x1a\n", "not a picture"),
        (b"II*\0 not a TIFF", "not a picture"),
    ],
)
def test_damaged(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(content)
    if not message:  # only the end mark is missing
        assert read_deep(tmp_path / "a.png", LIMIT).pixels.shape == (23, 17, 3)
        return
    with pytest.raises(ScscoError, match=message) as caught:
        read_deep(tmp_path / "a.png", LIMIT)
    assert str(caught.value).startswith(str(tmp_path / "a.png"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_limit(suffix: str, tmp_path: Path) -> None:
    write_deep(DeepPicture(random_pixels()), tmp_path / f"a{suffix}")
    with pytest.raises(ScscoError, match=r"the picture is 17x23, 0.000391 megapixels; the limit is 0\.0001:"):
        read_deep(tmp_path / f"a{suffix}", 100)


def test_other_suffixes(tmp_path: Path) -> None:
    with pytest.raises(ScscoError, match="cannot hold 16-bit colour"):
        write_deep(DeepPicture(random_pixels()), tmp_path / "a.jpg")
