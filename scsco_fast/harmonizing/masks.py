"""From what a user gives as a mask to foreground weights: types, the floor, growing, and what is probably not meant."""

import warnings

import numpy as np
from PIL import Image

from scsco_fast.data.masks import mask_of
from scsco_fast.errors import ScscoError
from scsco_fast.regions import THRESHOLD

# Matting and JPEG leave values of 1 to 3 of 255 where a mask should be 0. They would change background pixels.
FLOOR = 3.5 / 255
MOST = 0.5  # share of the picture, or of its frame, above which a foreground is doubtful

PEAK = {"uint8": 255.0, "uint16": 65535.0, "float16": 1.0, "float32": 1.0, "float64": 1.0}


class RegionWarning(UserWarning):
    """A mask without foreground, or without background: `reason`, and what is done about it."""

    def __init__(self, reason: str, done: str) -> None:
        super().__init__(f"{reason}: {done}")
        self.reason = reason


class CoverageWarning(UserWarning):
    """A mask whose foreground is most of the picture or of its frame: it may be inverted."""


def mask_values(mask: np.ndarray | Image.Image) -> np.ndarray:
    """(H, W) float32 in [0, 1] of an array or PIL image; values up to 3/255 become 0. Colour is read as grey.

    Raises:
        ScscoError: another shape or type, NaN, values outside of [0, 1].

    Examples:
        >>> (mask_values(np.array([[0, 3, 4, 255]], np.uint8)) * 255).tolist()
        [[0.0, 0.0, 4.0, 255.0]]
    """
    values = _unit_mask(mask)
    return np.where(values < FLOOR, np.float32(0), values)


def _unit_mask(mask: np.ndarray | Image.Image) -> np.ndarray:
    if isinstance(mask, Image.Image):
        if mask.mode not in ("1", "L", "I;16", "RGB", "P"):
            raise ScscoError(f'the mask is a PIL image of mode {mask.mode}; wanted one channel: mask.convert("L")')
        return mask_of(mask, "the mask")
    mask = np.asarray(mask)
    if mask.ndim == 3 and mask.shape[2] == 1:
        mask = mask[:, :, 0]
    if mask.ndim != 2 or mask.size == 0:
        raise ScscoError(f"the mask is an array of shape {mask.shape}; wanted (H, W) or (H, W, 1)")
    if mask.dtype.kind == "f":
        check_range(mask, "the mask")
        return mask.astype(np.float32, copy=False)
    if mask.dtype.kind == "b" or (mask.dtype.kind in "iu" and mask.min() >= 0 and mask.max() <= 1):
        return mask.astype(np.float32)
    if mask.dtype.name not in ("uint8", "uint16"):
        raise ScscoError(f"the mask is an array of type {mask.dtype}; wanted bool, uint8, uint16 or float in [0, 1]")
    return mask.astype(np.float32) / np.float32(PEAK[mask.dtype.name])


def grown(mask: np.ndarray, pixels: int) -> np.ndarray:
    """The largest value within `pixels` rows and columns of each pixel; for negative `pixels` the smallest.

    What lies outside of the picture counts for nothing, so a foreground at the border does not shrink from there.

    Args:
        mask: (H, W) float32.

    Examples:
        >>> mask = np.zeros((5, 5), np.float32)
        >>> mask[2, 2] = 1
        >>> int(grown(mask, 1).sum()), int(grown(grown(mask, 1), -1).sum())
        (9, 1)
    """
    if pixels < 0:
        return 1 - grown(1 - mask, -pixels)
    if pixels == 0 or not mask.any():
        return mask
    result = np.zeros_like(mask)
    (top, bottom), (left, right) = bounds(mask)
    reach = np.s_[max(0, top - pixels) : bottom + pixels, max(0, left - pixels) : right + pixels]
    result[reach] = _largest(_largest(mask[reach], pixels).T, pixels).T
    return result


def _largest(values: np.ndarray, pixels: int) -> np.ndarray:
    """The largest of 2 pixels + 1 rows around each. Windows are doubled: the time grows with their logarithm."""
    padded = np.pad(values, ((pixels, pixels), (0, 0)))
    width, wanted = 1, 2 * pixels + 1
    while width < wanted:
        step = min(width, wanted - width)
        padded, width = np.maximum(padded[:-step], padded[step:]), width + step
    return padded


def check_regions(weight: np.ndarray, valid: np.ndarray | None, stacklevel: int) -> bool:
    """Whether there is a foreground; warns where a region is empty."""
    if not weight.any():
        hidden = "" if valid is None or valid.all() else " of visible pixels"
        warnings.warn(
            RegionWarning(f"the mask{hidden} is empty", "the picture is returned unchanged"), stacklevel=stacklevel
        )
        return False
    inside = weight > THRESHOLD
    if (inside if valid is None else inside[valid]).all():
        warnings.warn(RegionWarning("the mask is full", "there is no background to adapt to"), stacklevel=stacklevel)
    return True


def check_coverage(mask: np.ndarray, stacklevel: int = 2) -> None:
    """Warn of a mask whose foreground is most of its picture or of the picture's frame, as an inverted one's is.

    Examples:
        >>> mask = np.ones((10, 10), np.float32)
        >>> mask[3:7, 3:7] = 0
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     check_coverage(mask)
        >>> str(caught[0].message)[:68]
        'the mask covers 84 % of the picture and 100 % of its frame: if this '
    """
    inside = mask > THRESHOLD
    share = float(inside.mean())
    frame = float(np.concatenate([inside[0], inside[-1], inside[1:-1, 0], inside[1:-1, -1]]).mean())
    if max(share, frame) > MOST and share < 1:
        warnings.warn(
            f"the mask covers {100 * share:.0f} % of the picture and {100 * frame:.0f} % of its frame: if this is the "
            "background, invert the mask (--invert-mask); white is the foreground",
            CoverageWarning,
            stacklevel,
        )


def bounds(mask: np.ndarray) -> tuple[tuple[int, int], tuple[int, int]]:
    """Rows and columns, first and one past the last, of what is above 0 in a mask (H, W) with some of it.

    Examples:
        >>> bounds(np.eye(4)[:, ::-1][1:3])
        ((0, 2), (1, 3))
    """
    rows, columns = (np.flatnonzero(np.any(mask > 0, axis=axis)) for axis in (1, 0))
    return (int(rows[0]), int(rows[-1]) + 1), (int(columns[0]), int(columns[-1]) + 1)


def check_range(values: np.ndarray, name: str) -> None:
    """Refuse floats outside of [0, 1]."""
    if not np.isfinite(values).all():
        raise ScscoError(f"{name} holds NaN or infinite values; replace them")
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > 1:
        raise ScscoError(
            f"{name} has float values from {low:g} to {high:g}; wanted [0, 1] (divide 8-bit values by 255)"
        )
