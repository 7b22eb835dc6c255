"""Harmonize a picture file: one composite and its mask."""

import struct
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from scsco_fast.data.deep_color import SUFFIXES, DeepPicture, read_deep, write_deep
from scsco_fast.data.images import open_upright, read_picture
from scsco_fast.data.masks import read_mask
from scsco_fast.errors import ScscoError
from scsco_fast.files import check_writable, replacing
from scsco_fast.harmonizing.pictures import RegionWarning, harmonize, has_transparency
from scsco_fast.nn.unet import HarmonizationUNet
from scsco_fast.strips import write_strip

MAX_PIXELS = 250_000_000  # about 6 GB at 8 bits; a file of a few kB can claim any size

# Lossless where the format can be; JPEG cannot, so there the background is near its input, not identical. Measured on a
# photograph of 12 megapixels: PNG takes 1.4 s and 12.9 MB at level 4, 3.9 s and 12.5 MB at Pillow's 6; lossless WebP
# 0.7 s at the least effort and 5.6 s at the most, for the same 9.8 MB.
_SAVE_OPTIONS: dict[str, dict[str, object]] = {
    ".png": {"compress_level": 4},
    ".jpg": {"quality": 95, "subsampling": 0},
    ".jpeg": {"quality": 95, "subsampling": 0},
    ".tif": {"compression": "tiff_deflate"},
    ".tiff": {"compression": "tiff_deflate"},
    ".bmp": {},
    ".webp": {"lossless": True, "exact": True, "quality": 0, "method": 0},
}
# What of a TIFF's tags says something about the picture; the others say how the file is laid out.
_TIFF_TAGS = (0x010E, 0x010F, 0x0110, 0x0131, 0x0132, 0x013B, 0x8298)  # description, camera, software, date, people
_TIFF_GROUPS = (0x8769, 0x8825)  # Exif, GPS


class DeepColorError(ScscoError):
    """A file that PIL images cannot hold; `data.deep_color` reads it."""


def read_image(path: str | Path, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """A picture file as a PIL image of its own mode, upright, with its colour profile and EXIF block.

    Raises:
        ScscoError: as `read_picture`; more than `max_pixels`; and files that would lose something: animations, and
            16-bit colour, which Pillow reads as 8-bit (`DeepColorError`).
    """
    exif_of_tiff: list[bytes] = []

    def look(opened: Image.Image) -> None:
        frames = getattr(opened, "n_frames", 1)
        # MPO is a phone's JPEG with a second view, which other programs ignore as well.
        if frames > 1 and opened.format != "MPO":
            raise ScscoError(f"{path}: holds {frames} frames or pages; save the one to harmonize as a file of its own")
        if _is_deep_colour(opened):
            raise DeepColorError(
                f"{path}: 16-bit colour would be cut to 8 bits; save it as 8-bit colour or 16-bit grey"
            )
        if opened.format == "TIFF":
            exif_of_tiff.append(_exif_of_tiff(opened))

    image = open_upright(path, max_pixels, look)
    if exif_of_tiff:  # Pillow puts all tags there when it turns a TIFF
        image.info["exif"] = exif_of_tiff[0]
    return image


def write_image(image: Image.Image, path: str | Path) -> None:
    """Write a PIL image in the format of the suffix, atomically, with its colour profile and EXIF block.

    Raises:
        ScscoError: a suffix that is not written, or a format that cannot hold the image's mode.
    """
    path = Path(path)
    options = dict(save_options(path))
    for key in ("icc_profile", "exif"):
        if image.info.get(key):
            options[key] = image.info[key]
    if path.suffix.lower() in (".jpg", ".jpeg", ".bmp") and image.mode not in ("L", "RGB"):
        kind = "16 bits" if image.mode.startswith(("I", "F")) else "transparency"
        raise ScscoError(f"{path}: {path.suffix} cannot hold {kind} (mode {image.mode}); name a .png")
    if "compression" in options and "exif" in options:
        groups = _groups(image.info["exif"])
        if groups is None:
            del options["exif"]  # damaged; other formats keep the block as it is
        elif groups:
            options["compression"] = "raw"  # libtiff, with which Pillow compresses, cannot write them
    with replacing(path) as temporary:
        image.save(temporary, **options)  # type: ignore[arg-type]


def harmonize_file(
    image_path: str | Path,
    mask_path: str | Path | None,
    output_path: str | Path,
    model: HarmonizationUNet,
    working_size: int | None = None,
    device: str | None = None,
    invert_mask: bool = False,
    *,
    native: bool = False,
    fit_mask: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> tuple[int, int]:
    """Harmonize one file into another; the output's suffix decides its format. The inputs are never overwritten.

    Args:
        mask_path: None: the picture's own alpha channel is its mask, and all its pixels count as opaque.
        working_size, device, native: as `harmonize`.
        invert_mask: swap foreground and background.
        fit_mask: resize a mask of another size to the picture's, with a warning, instead of refusing it.
        max_pixels: a larger file is refused.

    Returns:
        Width and height of what was written.

    Raises:
        ScscoError: a file that cannot be read or written, a mask of another size, without foreground or without
            background; the message names the file.
    """
    output_path = Path(output_path)
    save_options(output_path)
    for source in (image_path, mask_path):
        if source is not None and output_path.resolve() == Path(source).resolve():
            raise ScscoError(f"{output_path}: the output would overwrite an input; name another file")
    check_writable(output_path.parent)
    image, deep = _read(image_path, max_pixels)
    size = image.size if isinstance(image, Image.Image) else (image.shape[1], image.shape[0])
    alpha = None
    if mask_path is not None:
        mask = _read_mask(mask_path, size, fit_mask, max_pixels)
    elif isinstance(image, Image.Image):
        mask, alpha = _own_mask(image, image_path)
        image = _opaque(image)
    else:
        raise ScscoError(f"{image_path}: the alpha channel of 16-bit colour is not read as a mask; give a mask file")
    if invert_mask:
        mask = 1 - mask
    _check_mask(mask, image_path if mask_path is None else mask_path)
    if deep is not None and output_path.suffix.lower() not in SUFFIXES:
        raise ScscoError(f"{output_path}: {output_path.suffix} cannot hold 16-bit colour; name a .png or a .tif")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", RegionWarning)  # here: of a picture with transparent pixels
            result = harmonize(image, mask, model, working_size, device, native)
    except (ScscoError, RegionWarning) as error:
        raise ScscoError(f"{image_path}: {error}") from error
    if isinstance(result, Image.Image):
        if alpha is not None:
            result.putalpha(alpha)
        write_image(result, output_path)
    elif deep is not None:
        write_deep(replace(deep, pixels=result), output_path)
    return size


def write_file_strip(strip: str | Path, before: str | Path, after: str | Path, real: str | Path | None = None) -> None:
    """Write picture files side by side; a real picture of another size is an error."""
    paths = {name: path for name, path in (("before", before), ("after", after), ("real", real)) if path}
    images = {name: read_picture(path).rgb for name, path in paths.items()}  # (H, W, 3) uint8 each
    for image in images.values():
        if image.shape != images["before"].shape:
            size = f"{image.shape[1]}x{image.shape[0]}"
            raise ScscoError(f"{real}: is {size}, not of the picture's size; leave it out")
    write_strip([list(images.values())], list(images), strip)


def save_options(path: Path) -> dict[str, object]:
    """Pillow's options for the format of a suffix; ScscoError for one that is not written."""
    try:
        return _SAVE_OPTIONS[path.suffix.lower()]
    except KeyError:
        raise ScscoError(f"{path}: cannot write {path.suffix or 'a file without a suffix'}; name a .png") from None


def _read(path: str | Path, max_pixels: int) -> tuple[Any, DeepPicture | None]:
    """A PIL image; or an array (H, W, channels), and the file's profile and EXIF block, of 16-bit colour."""
    try:
        return read_image(path, max_pixels), None
    except DeepColorError:
        deep = read_deep(path, max_pixels)
        return deep.pixels, deep


def _read_mask(path: str | Path, size: tuple[int, int], fit: bool, max_pixels: int) -> np.ndarray:
    """(H, W) float32 in [0, 1] of `size`, width and height."""
    mask = read_mask(path, max_pixels=max_pixels)
    found = (mask.shape[1], mask.shape[0])
    if found == size:
        return mask
    sizes = f"{found[0]}x{found[1]} (width x height)", f"{size[0]}x{size[1]}"
    if not fit:
        raise ScscoError(
            f"{path}: the mask is {sizes[0]} but its picture is {sizes[1]}; give a mask of the picture's size, or "
            "--fit-mask to resize it"
        )
    warnings.warn(f"{path}: the mask is {sizes[0]}; resized to its picture's {sizes[1]}", stacklevel=3)
    fitted = Image.fromarray(mask).resize(size, Image.Resampling.BILINEAR)
    return np.asarray(fitted).clip(0, 1)


def _own_mask(image: Image.Image, path: str | Path) -> tuple[np.ndarray, Image.Image]:
    """The alpha channel, as a mask (H, W) in [0, 1] and as it is."""
    if not has_transparency(image):
        raise ScscoError(f"{path}: has no alpha channel to be its mask (mode {image.mode}); give a mask file")
    alpha = image.convert("RGBA").getchannel("A")
    return np.asarray(alpha, dtype=np.float32) / 255, alpha


def _opaque(image: Image.Image) -> Image.Image:
    grey = image.mode in ("1", "L", "LA", "La")
    opaque = image.convert("LA" if grey else "RGBA").convert("L" if grey else "RGB")
    opaque.info.pop("transparency", None)
    return opaque


def _check_mask(mask: np.ndarray, path: str | Path) -> None:
    low, high = float(mask.min()), float(mask.max())
    if high == 0:
        raise ScscoError(f"{path}: the mask is all black, there is nothing to harmonize; white is the foreground")
    if low == 1:
        raise ScscoError(f"{path}: the mask is all white, there is no background to adapt to; black is the background")


def _is_deep_colour(opened: Image.Image) -> bool:
    """Whether a file holds several channels of more than 8 bits, of which Pillow keeps 8."""
    if opened.format == "PNG":
        (tile, *_) = getattr(opened, "tile", ()) or (("", (), 0, ""),)
        return "16" in str(tile[3]) and not opened.mode.startswith("I")
    bits = opened.tag_v2.get(258, ()) if opened.format == "TIFF" else ()  # type: ignore[attr-defined]
    return isinstance(bits, tuple) and len(bits) > 1 and max(bits) > 8


def _exif_of_tiff(opened: Image.Image) -> bytes:
    """What a TIFF says about the picture, as the EXIF block of other formats; empty where it says nothing."""
    source, kept = opened.getexif(), Image.Exif()
    for tag in _TIFF_TAGS:
        if tag in source:
            kept[tag] = source[tag]
    for group in _TIFF_GROUPS:
        if source.get_ifd(group):
            kept[group] = source.get_ifd(group)
    return kept.tobytes() if len(kept) else b""


def _groups(exif: bytes) -> list[int] | None:
    """The groups of tags in an EXIF block; None where it cannot be read."""
    read = Image.Exif()
    try:
        read.load(exif)
    except (OSError, SyntaxError, ValueError, struct.error):
        return None
    return [group for group in _TIFF_GROUPS if group in read]
