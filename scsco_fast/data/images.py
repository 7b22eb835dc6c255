"""Pictures from files: every common mode is understood, everything else is refused in one line.

Sixteen-bit grey is scaled by 1/257, floats must lie in [0, 1], CMYK, palette and grey become RGB, and the EXIF
orientation is applied. Files of several pictures, such as animations, are refused. Masks are read in `masks`.
"""

from __future__ import annotations

import io
import logging
import os
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from scsco_fast.data import metadata
from scsco_fast.data.avif_heic import SUFFIXES, formats_of
from scsco_fast.errors import ScscoError

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", *SUFFIXES)

# And those of `data.avif_heic`. What else Pillow opens are formats of no picture, or need another program: an EPS file
# is run by Ghostscript.
_FORMATS = ("BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")  # JPEG includes a phone's MPO
# Of a damaged file they also log what the ScscoError says; without a handler of any kind that would go to stderr.
for _name in ("PIL", "tifffile"):
    logging.getLogger(_name).addHandler(logging.NullHandler())

_PILLOWS_LIMIT = threading.Lock()
_ASIDE = (5, 6, 7, 8)  # EXIF orientations of pictures that lie on their side
XMP_TEXT = "XML:com.adobe.xmp"  # of a PNG
_EXIF_AS_TEXT = (XMP_TEXT, "Raw profile type exif")  # what is read for the orientation
_ALPHA_MODES = ("RGBA", "RGBa", "LA", "La", "PA")


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
        ScscoError: no such file, a folder, an empty or damaged file, not a picture, more than one picture, too many
            pixels, too much metadata, NaN or infinite pixels, floats outside [0, 1], integers outside 16 bits. The
            message names the file.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
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


def save_image(image: Image.Image, path: str | os.PathLike[str], **options: Any) -> None:
    """Write an image in the format of the path's suffix; the options are Pillow's.

    It is encoded to memory first. Given a path, Pillow (12.3) takes a JPEG or BMP for written of which a full disk took
    the first part only, and libtiff prints lines of its own.

    Raises:
        OSError: the file cannot be written; besides, whatever the encoder refuses an image with.

    Examples:
        >>> import tempfile
        >>> path = tempfile.mkdtemp() + "/a.png"
        >>> save_image(Image.new("L", (4, 2)), path)
        >>> read_picture(path).rgb.shape
        (2, 4, 3)
    """
    encoded = io.BytesIO()
    image.save(encoded, Image.registered_extensions()[os.path.splitext(path)[1].lower()], **options)
    with open(path, "wb") as file:
        file.write(encoded.getbuffer())


def open_upright(
    path: str | os.PathLike[str],
    max_pixels: int | None = None,
    look: Callable[[Image.Image], None] | None = None,
) -> Image.Image:
    """The picture of a file, decoded and turned upright; ScscoError for anything that is not one whole picture.

    Args:
        max_pixels: a larger picture is refused before it is decoded; None is Pillow's own limit.
        look: called with the opened file before it is decoded; it may raise a ScscoError.
    """
    with opened_picture(path, max_pixels) as opened:
        if look is not None:
            look(opened)
        opened.load()
        _forget_texts(opened)
        _turn_upright(opened)
        return opened


@contextmanager
def opened_picture(path: str | os.PathLike[str], max_pixels: int | None = None) -> Iterator[Image.Image]:
    """A picture file within the limits on pixels, metadata and frames, opened and not yet decoded.

    Raises:
        ScscoError: as `read_picture`; also for what the block raises on a damaged file.
    """
    name = os.fspath(path)
    try:
        # Pillow is not given the path: it would map an uncompressed file into memory, and end the process when another
        # one shortens it; and of a TIFF that is turned on its side it maps the pixels with sides swapped (Pillow 12.3).
        with _regular_file(path) as file:
            if (reason := metadata.too_much(file)) is not None:
                raise ScscoError(f"{name}: {reason}; save the picture without it")
            file.seek(0)
            with _within(file, name, max_pixels) as opened:
                if _holds_several(opened, file):
                    raise ScscoError(f"{name}: holds several frames or pages; save the one to use as a file of its own")
                _forget_texts(opened)
                yield opened
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ScscoError(
            f"{name}: the picture claims more pixels than is safe to decode ({_one_line(error)}); make it smaller, or "
            f"raise {'PIL.Image.MAX_IMAGE_PIXELS' if max_pixels is None else '--max-megapixels'} if you trust it"
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
    except Exception as error:  # a decoder can raise anything on a file made to break it
        if "MAX_TEXT" in str(error):  # of a PNG, unpacked
            raise ScscoError(
                f"{name}: a colour profile or text of it has more than is safe to unpack; save the picture without it"
            ) from error
        raise ScscoError(
            f"{name}: cannot be decoded to its end, the file is truncated or damaged ({_one_line(error)}); replace it"
        ) from error


def stored_orientation(path: str | os.PathLike[str], max_pixels: int | None = None) -> int:
    """The EXIF orientation of a picture file, 1 to 8; 1, which is upright, where it has none that can be read."""
    try:
        with opened_picture(path, max_pixels) as opened:
            return orientation_of(opened)
    except ScscoError:
        return 1


def orientation_of(opened: Image.Image) -> int:
    """The EXIF orientation of an opened picture, 1 to 8; 1 for values that are none."""
    try:
        found = opened.info.get("original_orientation")  # of HEIC, which is decoded upright
        found = found or opened.getexif().get(ExifTags.Base.Orientation)
    except Exception:
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def upright_size(path: str | os.PathLike[str], max_pixels: int | None = None) -> tuple[int, int]:
    """Height and width of a picture file as it is read, from its header alone.

    Raises:
        ScscoError: as `read_picture`, but for pixels, of which none is decoded.
    """
    with opened_picture(path, max_pixels) as opened:
        width, height = opened.size
        turned = orientation_of(opened) in _ASIDE
        # Pillow swaps the sides of a TIFF by this tag when it is opened, and pillow-heif those of HEIC.
        swapped = opened.format == "HEIF" or getattr(opened, "tag_v2", {}).get(ExifTags.Base.Orientation, 1) in _ASIDE
    return (width, height) if turned and not swapped else (height, width)


def open_unlimited(file: str | os.PathLike[str] | BinaryIO, most: int | None = None) -> Image.Image:
    """A file that Pillow has opened, not decoded, whatever number of pixels it claims: check that.

    With `most` it is Pillow that refuses more than twice as many.
    """
    with _PILLOWS_LIMIT:  # it is one for the whole process
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, most
        try:
            return Image.open(file, formats=(*_FORMATS, *formats_of(file)))
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _within(file: BinaryIO, name: str, max_pixels: int | None) -> Image.Image:
    if max_pixels is None:
        with _PILLOWS_LIMIT:  # or another thread may just have lifted it
            return Image.open(file, formats=(*_FORMATS, *formats_of(file)))
    # Of a GIF, memory for all pixels is taken as soon as it is opened.
    is_gif = file.read(4) == b"GIF8"
    file.seek(0)
    opened = open_unlimited(file, max_pixels if is_gif else None)
    if opened.width * opened.height > max_pixels:
        opened.close()
        raise ScscoError(
            f"{name}: the picture is {opened.width}x{opened.height}, "
            f"{opened.width * opened.height / 1e6:.4g} megapixels; the limit is {max_pixels / 1e6:g}: make it smaller, "
            "or raise --max-megapixels if there is memory for it"
        )
    return opened


def _regular_file(path: str | os.PathLike[str]) -> BinaryIO:
    """The file, opened; ScscoError for what is no file with something in it, without waiting for a pipe's writer."""
    name = os.fspath(path)
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise ScscoError(f"{name}: is a folder; a picture file is wanted")
        if not stat.S_ISREG(status.st_mode):
            raise ScscoError(f"{name}: is not a regular file; a picture file is wanted")
        if status.st_size == 0:
            raise ScscoError(f"{name}: is empty (0 bytes); replace it")
        return open(path, "rb")
    except ScscoError:
        raise
    except FileNotFoundError as error:
        raise ScscoError(f"{name}: no such file; check the path") from error
    except OSError as error:
        raise ScscoError(f"{name}: cannot be opened ({error.strerror}); check the path and its permissions") from error
    except ValueError as error:  # a NUL in the path
        raise ScscoError(f"{name}: cannot be opened ({error}); check the path") from error


def _holds_several(opened: Image.Image, file: BinaryIO) -> bool:
    """Whether a file has other pictures than the first; smaller copies of it are none."""
    if not getattr(opened, "is_animated", False) or opened.format == "MPO":
        return False  # MPO is a phone's JPEG with a second view, which other programs ignore as well
    return opened.format != "TIFF" or metadata.has_further_pictures(file)


def _forget_texts(opened: Image.Image) -> None:
    """Of a PNG, which Pillow keeps beside what it has read from other chunks: a text named "transparency" is none."""
    if opened.format == "PNG":
        for key in [key for key, value in opened.info.items() if isinstance(value, str) and key not in _EXIF_AS_TEXT]:
            del opened.info[key]


def _turn_upright(image: Image.Image) -> None:
    """By its EXIF block, which then says so no more; one that cannot be written without that becomes empty."""
    stored = image.im
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except MemoryError:
        raise
    except Exception:
        if image.im is not stored:
            image.info["exif"] = b""
        # Else only the EXIF block is broken: every viewer shows such a picture as it is stored.
    tags = getattr(image, "tag_v2", {})
    if ExifTags.Base.XMLPacket in tags:  # Pillow would write a TIFF's, which still has the orientation
        tags[ExifTags.Base.XMLPacket] = image.info["xmp"]


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
