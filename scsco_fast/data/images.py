"""Pictures from files: every common mode is understood, everything else is refused in one line.

Sixteen-bit grey is scaled by 1/257, floats must lie in [0, 1], CMYK, palette and grey become RGB, the EXIF
orientation is applied, and the first frame of an animation is read. Masks are read in `masks`.
"""

from __future__ import annotations

import os
import struct
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from scsco_fast.data.avif_heic import SUFFIXES, formats_of
from scsco_fast.errors import ScscoError

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", *SUFFIXES)

# And those of `data.avif_heic`. What else Pillow opens are formats of no picture, or need another program: an EPS file
# is run by Ghostscript.
_FORMATS = ("BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")  # JPEG includes a phone's MPO
_PILLOWS_LIMIT = threading.Lock()
_ALPHA_MODES = ("RGBA", "RGBa", "LA", "La", "PA")
# What Pillow's decoders raise on damaged files, besides its own UnidentifiedImageError (an OSError).
_DAMAGE = (
    *(OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, OverflowError, RuntimeError),
    *(struct.error, zlib.error),
)


class Picture(NamedTuple):
    """An upright picture: `rgb` (H, W, 3) uint8, and `alpha` (H, W) uint8 where the file has transparency."""

    rgb: np.ndarray
    alpha: np.ndarray | None


def read_picture(path: str | os.PathLike[str]) -> Picture:
    """Read a picture file of any common format and mode as 8-bit RGB, upright, with its transparency apart.

    Args:
        path: a picture file.

    Returns:
        A `Picture`; `alpha` is None when the file has no transparency.

    Raises:
        ScscoError: no such file, a folder, an empty or damaged file, not a picture, too many pixels, NaN or infinite
            pixels, floats outside [0, 1], integers outside 16 bits. The message names the file.

    Examples:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "grey.png"
        >>> Image.new("L", (4, 2), 128).save(path)
        >>> read_picture(path).rgb.shape
        (2, 4, 3)
    """
    image = open_upright(path)
    if is_high_depth(image):
        grey = np.rint(unit_grey(image, path) * 255).astype(np.uint8)  # (H, W)
        return Picture(np.repeat(grey[:, :, None], 3, axis=2), None)
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        rgba = np.asarray(image.convert("RGBA"))  # (H, W, 4)
        return Picture(np.ascontiguousarray(rgba[:, :, :3]), np.ascontiguousarray(rgba[:, :, 3]))
    return Picture(np.array(image.convert("RGB")), None)


def image_to_tensor(rgb: np.ndarray) -> Tensor:
    """(H, W, 3) uint8 to a (3, H, W) float32 tensor in [0, 1].

    Examples:
        >>> image_to_tensor(np.full((2, 4, 3), 255, np.uint8)).shape
        torch.Size([3, 2, 4])
    """
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3:
        raise ScscoError(f"got an array of shape {rgb.shape} and type {rgb.dtype}; an (H, W, 3) uint8 array is wanted")
    return torch.from_numpy(np.ascontiguousarray(rgb.transpose(2, 0, 1))).float().div_(255)


def tensor_to_image(tensor: Tensor) -> np.ndarray:
    """A (3, H, W) tensor in [0, 1] on any device to (H, W, 3) uint8: clamped, then rounded to nearest.

    Raises:
        ScscoError: another shape, or NaN or infinite values.

    Examples:
        >>> tensor_to_image(torch.full((3, 2, 4), 2.0)).max()
        np.uint8(255)
    """
    if tensor.ndim != 3 or tensor.shape[0] != 3:
        raise ScscoError(f"got a tensor of shape {tuple(tensor.shape)}; a picture of shape (3, H, W) is wanted")
    values = tensor.detach().float().cpu()
    if not bool(torch.isfinite(values).all()):
        raise ScscoError("the picture to write holds NaN or infinite pixels; check the weights that made it")
    levels = values.clamp(0, 1).mul(255).round().to(torch.uint8)
    return np.ascontiguousarray(levels.permute(1, 2, 0).numpy())


def open_upright(
    path: str | os.PathLike[str],
    max_pixels: int | None = None,
    look: Callable[[Image.Image], None] | None = None,
) -> Image.Image:
    """The first frame, fully decoded and turned upright; ScscoError for anything that is not a whole picture.

    Args:
        max_pixels: a larger picture is refused before it is decoded; None is Pillow's own limit.
        look: called with the opened file before it is decoded; it may raise a ScscoError.
    """
    _check_file(path)
    name = os.fspath(path)
    try:
        with _opened(path, max_pixels) as opened:
            if look is not None:
                look(opened)
            opened.load()
            return _upright(opened)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ScscoError(
            f"{name}: the picture claims more pixels than is safe to decode ({_one_line(error)}); "
            "make it smaller, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust it"
        ) from error
    except ScscoError:
        raise
    except UnidentifiedImageError as error:
        if formats_of(path):  # it begins as one
            raise ScscoError(f"{name}: cannot be decoded, the file is truncated or damaged; replace it") from error
        raise ScscoError(
            f"{name}: not a picture of a known format and pixel type; save it as an 8-bit PNG or JPEG"
        ) from error
    except MemoryError as error:
        raise ScscoError(f"{name}: not enough memory to decode the picture; make it smaller") from error
    except _DAMAGE as error:
        raise ScscoError(
            f"{name}: cannot be decoded to its end, the file is truncated or damaged ({_one_line(error)}); replace it"
        ) from error


def stored_orientation(path: str | os.PathLike[str]) -> int:
    """The EXIF orientation of a picture file, 1 to 8; 1, which is upright, where it has none that can be read."""
    try:
        with open_unlimited(path) as opened:
            turned = opened.info.get("original_orientation")  # of HEIC, which is decoded upright
            return int(turned or opened.getexif().get(ExifTags.Base.Orientation, 1))
    except _DAMAGE:
        return 1


def open_unlimited(file: str | os.PathLike[str] | BinaryIO) -> Image.Image:
    """A file that Pillow has opened, not decoded, whatever number of pixels it claims: check that."""
    with _PILLOWS_LIMIT:  # it is one for the whole process
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(file, formats=(*_FORMATS, *formats_of(file)))
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _opened(path: str | os.PathLike[str], max_pixels: int | None) -> Image.Image:
    if max_pixels is None:
        return Image.open(path, formats=(*_FORMATS, *formats_of(path)))
    opened = open_unlimited(path)
    if opened.width * opened.height > max_pixels:
        opened.close()
        raise ScscoError(
            f"{os.fspath(path)}: the picture is {opened.width}x{opened.height}, "
            f"{opened.width * opened.height / 1e6:.0f} megapixels; the limit is {max_pixels / 1e6:g}: make it smaller, "
            "or raise --max-megapixels if there is memory for it"
        )
    return opened


def _check_file(path: str | os.PathLike[str]) -> None:
    file = Path(path)
    try:
        if file.is_dir():
            raise ScscoError(f"{file}: is a folder; a picture file is wanted")
        if not file.exists():
            raise ScscoError(f"{file}: no such file; check the path")
        if not file.is_file():
            raise ScscoError(f"{file}: is not a regular file; a picture file is wanted")
        if file.stat().st_size == 0:
            raise ScscoError(f"{file}: is empty (0 bytes); replace it")
    except OSError as error:
        raise ScscoError(
            f"{file}: cannot be looked at ({error.strerror}); check the path and its permissions"
        ) from error


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except _DAMAGE:
        # The pixels are whole and only the EXIF block is broken: every viewer shows such a picture as it is stored.
        return image.copy()


def is_high_depth(image: Image.Image) -> bool:
    """Whether a picture has one channel of more than 8 bits."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def unit_grey(image: Image.Image, path: str | os.PathLike[str]) -> np.ndarray:
    """(H, W) float32 in [0, 1] of a picture with one channel of 16 bits, 32 bits or floats.

    Pillow's own conversions of these modes to "L" clip at 255 instead of scaling.
    """
    values = np.asarray(image)
    if values.dtype.kind == "f":
        if not np.isfinite(values).all():
            raise ScscoError(f"{os.fspath(path)}: holds NaN or infinite pixels; save it as an 8-bit picture")
        limit, wanted = 1.0, "floats in [0, 1]"
    else:
        limit, wanted = 65535.0, "16-bit values in [0, 65535]"
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > limit:
        raise ScscoError(
            f"{os.fspath(path)}: pixels run from {low:g} to {high:g}, {wanted} are wanted; save it as an 8-bit picture"
        )
    return (values.astype(np.float64) / limit).astype(np.float32)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
