"""The formats that pictures are written in; without torch, so the command line knows them at once."""

from collections.abc import Mapping
from pathlib import Path

from scsco_fast.errors import ScscoError

# Lossless where the format can be; JPEG cannot, so there the background is near its input, not identical. Nor can AVIF
# as Pillow writes it: its codec is without loss at quality 100, but colours are turned to luma and chroma, which moves
# them by up to 3 of 255. HEIC keeps RGB as it is with matrix 0. Measured on a photograph of 12 megapixels: PNG takes
# 1.4 s and 12.9 MB at level 4, 3.9 s and 12.5 MB at Pillow's 6; lossless WebP 0.7 s at the least effort and 5.6 s at
# the most, for the same 9.8 MB.
SAVE_OPTIONS: Mapping[str, Mapping[str, object]] = {
    ".png": {"compress_level": 4},
    ".jpg": {"quality": 95, "subsampling": 0},
    ".jpeg": {"quality": 95, "subsampling": 0},
    ".tif": {"compression": "tiff_deflate"},
    ".tiff": {"compression": "tiff_deflate"},
    ".bmp": {},
    ".webp": {"lossless": True, "exact": True, "quality": 0, "method": 0},
    ".avif": {"quality": 100, "subsampling": "4:4:4", "speed": 8},
    ".heic": {"quality": -1, "chroma": 444, "matrix_coefficients": 0},
    ".heif": {"quality": -1, "chroma": 444, "matrix_coefficients": 0},
}
_MOST_SIDE = {".webp": 16383, ".jpg": 65500, ".jpeg": 65500}  # libwebp's and libjpeg's


def options_of_suffix(path: str | Path) -> dict[str, object]:
    """Pillow's options for the format that the suffix of a file names.

    Raises:
        ScscoError: no picture is written in such a format.

    Examples:
        >>> options_of_suffix("cat.PNG")
        {'compress_level': 4}
        >>> options_of_suffix("cat.gif")
        Traceback (most recent call last):
        scsco_fast.errors.ScscoError: cat.gif: cannot write .gif; name a .png
    """
    suffix = Path(path).suffix
    if suffix.lower() not in SAVE_OPTIONS:
        raise ScscoError(f"{path}: cannot write {suffix or 'a file without a suffix'}; name a .png")
    return dict(SAVE_OPTIONS[suffix.lower()])


def check_size(path: Path, size: tuple[int, int]) -> None:
    """ScscoError if the format of a suffix cannot hold so many pixels a side."""
    most = _MOST_SIDE.get(path.suffix.lower())
    if most is not None and max(size) > most:
        raise ScscoError(
            f"{path}: the picture is {size[0]}x{size[1]}, and {path.suffix} holds at most {most} pixels a side; "
            "name a .png"
        )
