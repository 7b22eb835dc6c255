"""AVIF and HEIC: one container for still pictures of two video codecs, AV1 and HEVC.

Pillow reads and writes AVIF where it was built with libavif, as its wheels are since 11.3. HEIC, and HEIF as it is also
called, is read and written with the package pillow-heif (the extra `heif`), which is imported when a file needs it.
"""

import os
from functools import cache
from pathlib import Path
from typing import BinaryIO

from PIL import Image, features

from scsco_fast.errors import ScscoError
from scsco_fast.system.extras import require

AVIF_SUFFIX, HEIF_SUFFIXES = ".avif", (".heic", ".heif")
SUFFIXES = (AVIF_SUFFIX, *HEIF_SUFFIXES)

# Four letters each, of the box at a file's start that says what the file is (ISO/IEC 14496-12).
_AVIF_BRANDS = {b"avif", b"avis"}
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
_BRANDS_END = 64  # bytes: a dozen brands, where files have about six


def formats_of(file: str | os.PathLike[str] | BinaryIO) -> tuple[str, ...]:
    """The name of this file's format for `PIL.Image.open`, which can then read it; () for files of other formats.

    Args:
        file: a path, or an open file, whose position stays.

    Raises:
        ScscoError: it is AVIF or HEIC, and what reads it is not installed.

    Examples:
        >>> import io
        >>> formats_of(io.BytesIO(b"\\x89PNG and so on"))
        ()
    """
    brands = _brands(_head(file))
    named = getattr(file, "name", "the picture") if hasattr(file, "read") else os.fspath(file)
    if brands & _AVIF_BRANDS:
        _require_avif(f"{named}: this is an AVIF file, and")
        return ("AVIF",)
    if brands & _HEIF_BRANDS:
        _require_heif(f"{named}: HEIC")
        return ("HEIF",)
    return ()


def check_written(path: Path) -> None:
    """ScscoError if the format of a suffix is AVIF or HEIC and what writes it is not installed."""
    suffix = path.suffix.lower()
    if suffix == AVIF_SUFFIX:
        _require_avif(f"{path}:")
    if suffix in HEIF_SUFFIXES:
        _require_heif(f"{path}: HEIC")
        if not _writes_heif():
            raise ScscoError(f"{path}: this pillow-heif reads HEIC and does not write it; name a .png")


def bits_of(opened: Image.Image, path: str | os.PathLike[str]) -> int:
    """Bits of each channel of an opened AVIF or HEIC file, of which Pillow decodes 8; 8 for files of other formats."""
    if opened.format == "AVIF":
        return _bits_of_av1(Path(path).read_bytes())
    return int(opened.info.get("bit_depth", 8)) if opened.format == "HEIF" else 8


def _head(file: str | os.PathLike[str] | BinaryIO) -> bytes:
    if isinstance(file, str | os.PathLike):
        with open(file, "rb") as opened:
            return opened.read(_BRANDS_END)
    position = file.tell()
    head = file.read(_BRANDS_END)
    file.seek(position)
    return head


def _brands(head: bytes) -> set[bytes]:
    """The main brand, and the ones that the file is compatible with."""
    if head[4:8] != b"ftyp":
        return set()
    end = min(int.from_bytes(head[:4]), len(head))
    return {head[8:12], *(head[start : start + 4] for start in range(16, end, 4))}


def _bits_of_av1(data: bytes) -> int:
    """From the codec's first configuration, which is the picture's; an alpha channel's stands behind it."""
    flags = data[data.find(b"av1C") + 6]
    return 8 + 2 * (flags >> 6 & 1) + 2 * (flags >> 5 & 1)


@cache
def _has_avif() -> bool:
    return "avif" in features.modules and features.check_module("avif")


def _require_avif(what: str) -> None:
    if not _has_avif():
        raise ScscoError(f'{what} this Pillow was built without AVIF; pip install "pillow>=11.3", or use PNG')


def _require_heif(what: str) -> None:
    require(what, "heif", "pillow-heif")
    _register_heif()


@cache
def _register_heif() -> None:
    from pillow_heif import register_heif_opener

    register_heif_opener()


@cache
def _writes_heif() -> bool:
    from pillow_heif import libheif_info

    return bool(libheif_info()["HEIF"])
