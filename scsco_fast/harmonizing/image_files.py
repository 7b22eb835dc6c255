"""Read and write picture files with their colour profile and EXIF block, without loss where the format can be."""

import warnings
from pathlib import Path
from typing import Any

from PIL import Image

from scsco_fast.data.avif_heic import AVIF_SUFFIX, bits_of, check_written
from scsco_fast.data.images import is_high_depth, open_upright, save_image
from scsco_fast.data.metadata import DroppedWarning, kept_profile
from scsco_fast.errors import ScscoError
from scsco_fast.harmonizing.formats import check_size, options_of_suffix
from scsco_fast.harmonizing.settings import MAX_PIXELS
from scsco_fast.system.files import replacing

_JPEG = (".jpg", ".jpeg")
_JPEG_EXIF = 65533  # bytes of one segment
_JPEG_BUFFER = 65000  # bytes; of 65536, some hundreds are for its tables
_OPAQUE = (*_JPEG, ".bmp")
_TIFF = (".tif", ".tiff")
_DEEP = (".png", *_TIFF)
# What of a TIFF's tags says something about the picture; the others say how the file is laid out.
_TIFF_TAGS = (0x010E, 0x010F, 0x0110, 0x0131, 0x0132, 0x013B, 0x8298)  # description, camera, software, date, people
_TIFF_GROUPS = (0x8769, 0x8825)  # Exif, GPS


class DeepColorError(ScscoError):
    """A file that PIL images cannot hold; `data.deep_color` reads it."""


def read_image(path: str | Path, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """A picture file as a PIL image of its own mode, upright, with its colour profile and EXIF block.

    A colour profile that is too large is left out, with a `DroppedWarning`.

    Raises:
        ScscoError: as `read_picture`; more than `max_pixels`; and files that would be cut to 8 bits: among them 16-bit
            colour (`DeepColorError`).
    """
    exif_of_tiff: list[bytes] = []

    def look(opened: Image.Image) -> None:
        if _is_deep_colour(opened):
            raise DeepColorError(
                f"{path}: 16-bit colour would be cut to 8 bits; save it as 8-bit colour or 16-bit grey"
            )
        if (bits := bits_of(opened, path)) > 8 and not is_high_depth(opened):
            raise ScscoError(f"{path}: {bits}-bit pixels would be cut to 8 bits; save it as 8 bits or as 16-bit PNG")
        if opened.format == "TIFF":
            exif_of_tiff.append(_exif_of_tiff(opened, path))

    image = open_upright(path, max_pixels, look)
    exif = exif_of_tiff[0] if exif_of_tiff else image.info.get("exif")  # Pillow puts all tags of a turned TIFF there
    if exif == b"" and not exif_of_tiff:
        warnings.warn(f"{path}: its EXIF block cannot be written and is dropped", DroppedWarning, stacklevel=2)
    kept = {"exif": exif, "icc_profile": kept_profile(image.info.get("icc_profile"), str(path))}
    image.info.update(kept)
    for key in [key for key, value in kept.items() if not value]:
        image.info.pop(key, None)
    return image


def write_image(image: Image.Image, path: str | Path) -> None:
    """Write a PIL image in the format of the suffix, atomically, with its colour profile and EXIF block.

    An EXIF block or comment that the format cannot hold is left out, with a `DroppedWarning`.

    Raises:
        ScscoError: a suffix that is not written, or a format that cannot hold the image's mode or its size.
    """
    path = Path(path)
    check_size(path, image.size)
    _check_mode(path, image.mode)
    options = _options_of(image, path)
    if path.suffix.lower() in _JPEG and not _holds_comment(image, options):
        options["comment"] = b""
        message = f"the comment of {len(image.info['comment']) / 1e3:.0f} kB is dropped; a JPEG has no room for it"
        warnings.warn(f"{path}: {message}", DroppedWarning, stacklevel=2)
    with replacing(path) as temporary:
        _save(image, temporary, path, options)


def save_options(path: Path) -> dict[str, object]:
    """Pillow's options for the format of a suffix; ScscoError for one that is not written."""
    check_written(path)
    return options_of_suffix(path)


def _options_of(image: Image.Image, path: Path) -> dict[str, object]:
    """Pillow's options for writing an image, with what of its profile and EXIF block the format can hold."""
    options, suffix = dict(save_options(path)), path.suffix.lower()
    options |= {key: image.info[key] for key in ("icc_profile", "exif") if image.info.get(key)}
    if suffix == AVIF_SUFFIX and image.mode == "L":
        options["subsampling"] = "4:0:0"  # or it would be read as RGB
    if "exif" not in options:
        return options
    if suffix in (*_TIFF, AVIF_SUFFIX):
        groups = _groups(image.info["exif"])
        if groups is None:
            del options["exif"]  # damaged; other formats keep the block as it is
        elif groups and "compression" in options:
            options["compression"] = "raw"  # libtiff, with which Pillow compresses, cannot write them
    elif suffix in _JPEG and (size := len(image.info["exif"])) > _JPEG_EXIF:
        del options["exif"]
        message = f"the EXIF block of {size / 1e3:.0f} kB is dropped; JPEG holds at most {_JPEG_EXIF / 1e3:.0f} kB"
        warnings.warn(f"{path}: {message}", DroppedWarning, stacklevel=3)
    return options


def _holds_comment(image: Image.Image, options: dict[str, Any]) -> bool:
    """Whether a JPEG can be given the comment of a GIF or JPEG: Pillow has one buffer for that, EXIF and profile."""
    written = (image.info.get("comment"), options.get("exif"), options.get("icc_profile"))
    return not written[0] or sum(len(each) for each in written if each) <= _JPEG_BUFFER


def _check_mode(path: Path, mode: str) -> None:
    suffix = path.suffix.lower()
    if mode == "F" and suffix not in _TIFF:
        raise ScscoError(f"{path}: {path.suffix} cannot hold floating point numbers (mode F); name a .tif")
    if mode.startswith("I") and suffix not in _DEEP:
        raise ScscoError(f"{path}: {path.suffix} cannot hold 16 bits (mode {mode}); name a .png")
    if suffix in _OPAQUE and mode not in ("L", "RGB"):
        raise ScscoError(f"{path}: {path.suffix} cannot hold transparency (mode {mode}); name a .png")


def _save(image: Image.Image, temporary: Path, path: Path, options: dict[str, Any]) -> None:
    try:
        save_image(image, temporary, **options)
    except OSError:
        raise  # a full disk
    except Exception as error:  # an encoder refuses what no list of limits foresees
        raise ScscoError(
            f"{path}: {path.suffix} cannot hold this picture ({' '.join(str(error).split())}); name a .png"
        ) from error


def _is_deep_colour(opened: Image.Image) -> bool:
    """Whether a file holds several channels of more than 8 bits, of which Pillow keeps 8."""
    if opened.format == "PNG":
        (tile, *_) = getattr(opened, "tile", ()) or (("", (), 0, ""),)
        return "16" in str(tile[3]) and not opened.mode.startswith("I")
    bits = opened.tag_v2.get(258, ()) if opened.format == "TIFF" else ()  # type: ignore[attr-defined]
    return isinstance(bits, tuple) and len(bits) > 1 and max(bits) > 8


def _exif_of_tiff(opened: Image.Image, path: str | Path) -> bytes:
    """What a TIFF says about the picture, as the EXIF block of other formats; empty where it says nothing.

    Tags that cannot be read are left out, with a `DroppedWarning`.
    """
    try:
        source, kept = opened.getexif(), Image.Exif()
        for tag in _TIFF_TAGS:
            if tag in source:
                kept[tag] = source[tag]
        for group in _TIFF_GROUPS:
            if source.get_ifd(group):
                kept[group] = source.get_ifd(group)
        return kept.tobytes() if len(kept) else b""
    except Exception:  # Pillow raises whatever its parsing stumbles over
        warnings.warn(f"{path}: its tags cannot be read and are dropped", DroppedWarning, stacklevel=2)
        return b""


def _groups(exif: bytes) -> list[int] | None:
    """The groups of tags in an EXIF block; None where it cannot be read."""
    read = Image.Exif()
    try:
        read.load(exif)
    except Exception:
        return None
    return [group for group in _TIFF_GROUPS if group in read]
