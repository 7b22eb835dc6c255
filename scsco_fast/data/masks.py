"""Masks from files, and one rule for what a mask means: training, checking and harmonizing all read them here.

White is the foreground, black is the background, grey blends (docs/masks.md). A mask is never converted to PIL's mode
"1": that conversion dithers soft edges, and resizing a mode-1 image is nearest-neighbour whatever filter is asked for.
"""

from __future__ import annotations

import os

import numpy as np
from PIL import Image

from scsco_fast.data.images import is_high_depth, open_upright, unit_grey
from scsco_fast.errors import ScscoError
from scsco_fast.regions import THRESHOLD

_ALPHA_MODES = ("RGBA", "RGBa", "LA", "La", "PA")
_NEARLY_GREY = 8  # levels between a palette colour's channels; an optimised palette of greys is not exact


def read_mask(
    path: str | os.PathLike[str], size: tuple[int, int] | None = None, max_pixels: int | None = None
) -> np.ndarray:
    """Read a mask file as grey value / 255: 1 is foreground, 0 is background, values between are soft edges.

    Colour is turned to grey. These are read by what they mean:

    - integers of which none is above 1: 0 is background and 1 is foreground;
    - a palette with colours that are not grey: index 0 is background, and the one other index in use is foreground;
    - the same colour everywhere with a transparency that varies: the transparency is the mask. Other transparency is
      ignored.

    Args:
        path: a picture file of any mode.
        size: (height, width) that the mask must have; None accepts any.
        max_pixels: as `open_upright`.

    Returns:
        (H, W) float32 in [0, 1].

    Raises:
        ScscoError: as `read_picture`; another size than `size`; a palette with more than one index besides 0, or one
            whose colours say the opposite of its indices. The message names the file.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> path = Path(tempfile.mkdtemp()) / "mask.png"
        >>> Image.new("L", (4, 2), 255).save(path)
        >>> float(read_mask(path, size=(2, 4)).min())
        1.0
    """
    image = open_upright(path, max_pixels)
    if size is not None and (image.height, image.width) != tuple(size):
        raise ScscoError(
            f"{os.fspath(path)}: the mask is {image.width}x{image.height} (width x height) but its picture is "
            f"{size[1]}x{size[0]}; give a mask of the picture's size"
        )
    return mask_of(image, os.fspath(path))


def mask_of(image: Image.Image, name: str) -> np.ndarray:
    """(H, W) float32 in [0, 1] of a decoded picture, by the rules of `read_mask`; errors begin with `name`."""
    if is_high_depth(image):
        values = unit_grey(image, name)
        return values if image.mode == "F" else _zeros_and_ones(values, 65535)
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        rgba = image.convert("RGBA")
        constant = np.ptp(np.asarray(rgba).reshape(-1, 4), axis=0) == 0  # (4,)
        if constant[:3].all() and not constant[3]:
            return _unit(rgba.getchannel("A"))
    if image.mode == "P":
        labels = _labels(image, name)
        if labels is not None:
            return labels
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        image = image.convert("RGBA").convert("RGB")  # drops the transparency, does not blend it
    return _unit(image.convert("L"))


def binary_mask(mask: np.ndarray) -> np.ndarray:
    """(H, W) bool of a mask in [0, 1]: True where it is above a half, which is 8-bit grey above 127."""
    return mask > THRESHOLD


def one_sided(coverage: float) -> str | None:
    """Why a mask tells no foreground from a background, by the share of its pixels above a half; None where it does.

    Examples:
        >>> one_sided(0.0), one_sided(0.2)
        ('the mask is empty, no pixel is above 127 of 255', None)
    """
    return {0.0: "the mask is empty, no pixel is above 127 of 255", 1.0: "the mask is full, no background is left"}.get(
        coverage
    )


def check_two_sided(mask: np.ndarray, path: str | os.PathLike[str]) -> None:
    """Refuse a mask in [0, 1], read from `path`, without foreground or without background.

    Raises:
        ScscoError: in one line, with the largest value of an empty mask.
    """
    reason = one_sided(float(binary_mask(mask).mean(dtype=np.float64)))
    if reason is not None:
        largest = f" (the largest is {round(float(mask.max()) * 255)})" if mask.max() <= THRESHOLD else ""
        raise ScscoError(f"{os.fspath(path)}: {reason}{largest}; white is the foreground, black is the background")


def _unit(grey: Image.Image) -> np.ndarray:
    """(H, W) float32 in [0, 1] of 8 bits."""
    return _zeros_and_ones(np.asarray(grey, dtype=np.float32) / 255, 255)


def _zeros_and_ones(values: np.ndarray, peak: int) -> np.ndarray:
    """Grey over `peak`; where no grey value is above 1 they are the mask themselves."""
    return np.rint(values * peak) if values.max() * peak < 1.5 else values


def _labels(image: Image.Image, name: str) -> np.ndarray | None:
    """(H, W) float32 of a palette image whose indices are labels; None where its colours are greys."""
    indices = np.asarray(image)  # (H, W)
    used = np.unique(indices)
    palette = np.zeros((256, 3), np.int32)
    stored = np.reshape(image.getpalette("RGB") or [], (-1, 3))
    palette[: len(stored)] = stored
    if (np.ptp(palette[used], axis=1) <= _NEARLY_GREY).all():
        return None
    others = used[used > 0]
    if len(others) > 1:
        shown = ", ".join(map(str, used[:5])) + (", ..." if len(used) > 5 else "")
        raise ScscoError(
            f"{name}: a palette with {len(used)} labels ({shown}); save the one to harmonize as white on black"
        )
    luma = palette @ np.array([299, 587, 114]) / 1000  # as Pillow turns colours to grey
    if len(others) and luma[0] > THRESHOLD * 255 >= luma[others[0]]:
        raise ScscoError(
            f"{name}: a palette whose index 0, the background, is light and whose index {others[0]} is dark; save the "
            "mask as white (foreground) on black"
        )
    return (indices > 0).astype(np.float32)
