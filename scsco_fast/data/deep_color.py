"""PNG and TIFF files with several channels of 16 bits, of which Pillow would keep 8.

A PNG's filters work on bytes, each with the one `channels * 2` bytes before it and the one above. So the high half of
each pixel's bytes and the low half are two ordinary 8-bit PNGs with the same filters, and Pillow can undo them.
"""

import io
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from scsco_fast.data.images import XMP_TEXT, open_unlimited, opened_picture, orientation_of
from scsco_fast.data.metadata import MOST_PROFILE, kept_profile
from scsco_fast.errors import ScscoError
from scsco_fast.system.files import replacing

SUFFIXES = (".png", ".tif", ".tiff")
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {2: 3, 4: 2, 6: 4}  # of a PNG's colour types: RGB, grey and alpha, RGBA
_KEPT = (b"IHDR", b"IDAT", b"tRNS", b"iCCP", b"eXIf", b"IEND")
_ORIENTATION, _PROFILE = 0x0112, 34675


@dataclass(frozen=True)
class DeepPicture:
    """(H, W, 2 to 4) uint16: grey and alpha, RGB or RGBA, upright; and the file's colour profile and EXIF block."""

    pixels: np.ndarray
    icc_profile: bytes | None = None
    exif: bytes | None = None


def read_deep(path: str | os.PathLike[str], max_pixels: int) -> DeepPicture:
    """Read a picture with several channels of 16 bits.

    A colour profile that is too large is left out, with a `DroppedWarning`.

    Raises:
        ScscoError: as `read_picture`; more than `max_pixels`; or a kind of file that is not read: interlaced PNG, TIFF
            with compressions that need imagecodecs, 32 bits, planes, other colours than grey and RGB.
    """
    name = os.fspath(path)
    try:
        with opened_picture(path, max_pixels) as opened:  # for the limits
            if opened.format == "PNG":  # where Pillow decodes all to find that there is no EXIF block
                picture = _read_png(name, orientation_of(opened) if XMP_TEXT in opened.info else 1)
            else:
                picture = _read_tiff(name, orientation_of(opened))
    except ScscoError as error:
        raise ScscoError(f"{error}" if str(error).startswith(name) else f"{name}: {error}") from error
    except MemoryError as error:
        raise ScscoError(f"{name}: not enough memory to decode the picture; make it smaller") from error
    except Exception as error:  # tifffile can raise anything on a file made to break it
        raise ScscoError(
            f"{name}: 16-bit colour that cannot be read ({' '.join(str(error).split())}); save it as TIFF with ZIP "
            "compression, or as 8-bit colour"
        ) from error
    return replace(picture, icc_profile=kept_profile(picture.icc_profile, name))


def write_deep(picture: DeepPicture, path: str | Path) -> None:
    """Write a PNG or TIFF with 16 bits per channel, atomically. A TIFF keeps the colour profile, not the EXIF block.

    Raises:
        ScscoError: another suffix, or a file that cannot be written.

    Examples:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "deep.png"
        >>> write_deep(DeepPicture(np.full((4, 5, 3), 40000, np.uint16)), path)
        >>> read_deep(path, 100).pixels.max()
        np.uint16(40000)
    """
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise ScscoError(f"{path}: {suffix} cannot hold 16-bit colour; name a .png or a .tif")
    with replacing(path) as temporary:
        if suffix == ".png":
            _write_png(picture, temporary)
        else:
            _write_tiff(picture, temporary)


def _read_png(path: str, otherwise: int) -> DeepPicture:
    """Turned by its EXIF block, or, if that says nothing, as `otherwise`."""
    found: dict[bytes, bytes] = {}
    with open(path, "rb") as file:
        width, height, depth, kind, _, _, interlaced = struct.unpack(">IIBBBBB", file.read(29)[16:])
        channels = _CHANNELS.get(kind, 0)
        if depth != 16 or not channels or interlaced:
            raise ScscoError("an interlaced or unusual 16-bit PNG; save it without interlacing")
        row = 1 + 2 * channels * width
        raw, inflate = bytearray(), zlib.decompressobj()
        for name, content in _chunks(file):
            if name == b"IDAT":
                raw += inflate.decompress(content, row * height - len(raw) or 1)  # not more: a bomb has no end
            elif name in _KEPT:
                found[name] = content
    if b"tRNS" in found:
        raise ScscoError("a 16-bit PNG with a transparent colour; save it with an alpha channel")
    if len(raw) < row * height:
        raise ScscoError("the file is truncated or damaged; replace it")
    filtered = np.frombuffer(raw, np.uint8, row * height).reshape(height, row)
    halves = np.empty((height, width, 2, channels), np.uint8)
    for half in range(2):
        halves[:, :, half] = _unfiltered(filtered, half, width, channels, kind)
    pixels = halves.reshape(height, width, channels, 2)
    icc = found.get(b"iCCP")
    return _upright(
        pixels.view(">u2")[..., 0].astype(np.uint16),
        None if icc is None else zlib.decompressobj().decompress(icc[icc.index(0) + 2 :], MOST_PROFILE + 1),
        found.get(b"eXIf"),
        otherwise,
    )


def _unfiltered(filtered: np.ndarray, half: int, width: int, channels: int, kind: int) -> np.ndarray:
    """(H, W, channels) uint8: the first or the second half of each pixel's bytes."""
    height = len(filtered)
    part = filtered[:, 1:].reshape(height, width, 2, channels)[:, :, half].reshape(height, -1)
    scanlines = np.concatenate([filtered[:, :1], part], axis=1).tobytes()
    header = struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)
    file = io.BytesIO(_SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(scanlines, 0)))
    file.seek(0, io.SEEK_END)
    file.write(_chunk(b"IEND", b""))
    file.seek(0)
    with open_unlimited(file) as image:
        return np.asarray(image).reshape(height, width, channels)


def _chunks(file: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    """Name and content of what is read of a PNG; what stands behind its end is nothing."""
    file.seek(len(_SIGNATURE))
    name = b""
    while name != b"IEND" and (start := file.read(8)):
        length, name = struct.unpack(">I4s", start)
        if name not in _KEPT:
            file.seek(length + 4, os.SEEK_CUR)
            continue
        content = file.read(length)
        if file.read(4) != struct.pack(">I", zlib.crc32(name + content)):
            raise ScscoError("the file is truncated or damaged; replace it")
        yield name, content


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def _write_png(picture: DeepPicture, path: Path) -> None:
    height, width, channels = picture.pixels.shape
    kind = {count: kind for kind, count in _CHANNELS.items()}[channels]
    lines = picture.pixels.astype(">u2").view(np.uint8).reshape(height, -1)
    step = 2 * channels
    filtered = np.ones((height, 1 + lines.shape[1]), np.uint8)  # filter 1: less the pixel to the left
    filtered[:, 1 : 1 + step] = lines[:, :step]
    filtered[:, 1 + step :] = lines[:, step:] - lines[:, :-step]
    with path.open("wb") as file:
        file.write(_SIGNATURE + _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)))
        if picture.icc_profile:
            file.write(_chunk(b"iCCP", b"ICC Profile\0\0" + zlib.compress(picture.icc_profile)))
        if picture.exif:
            file.write(_chunk(b"eXIf", picture.exif.removeprefix(b"Exif\0\0")))
        file.write(_chunk(b"IDAT", zlib.compress(filtered.tobytes(), 4)) + _chunk(b"IEND", b""))


def _read_tiff(path: str, orientation: int) -> DeepPicture:
    import tifffile

    with tifffile.TiffFile(path) as file:
        page = file.pages.first
        if page.dtype != np.uint16 or page.photometric not in (1, 2) or page.planarconfig != 1 or page.ndim != 3:
            raise ScscoError("TIFF with unusual colours; save it as 16-bit RGB, not in planes")
        if not 2 <= page.shape[2] <= 4:
            raise ScscoError(f"TIFF with {page.shape[2]} channels; save it as 16-bit RGB")
        pixels = page.asarray()
        profile = page.tags[_PROFILE].value if _PROFILE in page.tags else None
    return DeepPicture(_turned(pixels, orientation), profile)


def _write_tiff(picture: DeepPicture, path: Path) -> None:
    import tifffile

    channels = picture.pixels.shape[2]
    tifffile.imwrite(
        path,
        picture.pixels,
        photometric="rgb" if channels > 2 else "minisblack",
        planarconfig="contig",
        extrasamples=("unassalpha",) if channels in (2, 4) else None,
        compression="zlib",
        compressionargs={"level": 4},
        iccprofile=picture.icc_profile,
        metadata=None,
    )


def _upright(pixels: np.ndarray, icc_profile: bytes | None, block: bytes | None, otherwise: int) -> DeepPicture:
    """Turned as the EXIF block says, which then says so no more; a block that cannot be read is kept as it is."""
    exif = Image.Exif()
    try:
        exif.load(block or b"")
        orientation = exif.get(_ORIENTATION, otherwise)
    except Exception:
        return DeepPicture(np.ascontiguousarray(pixels), icc_profile, block)
    if _ORIENTATION in exif:
        del exif[_ORIENTATION]
        block = _written(exif)
    return DeepPicture(_turned(pixels, orientation), icc_profile, block)


def _written(exif: Image.Exif) -> bytes | None:
    """The block without what was taken out of it; None where nothing is left, or Pillow cannot write the rest."""
    try:
        return exif.tobytes() if len(exif) else None
    except Exception:
        return None


def _turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Upright, from how EXIF says that they lie; other values than 1 to 8 say nothing."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)
