"""Which recoloured foregrounds are kept: measures of a composite beside its real picture, and their limits.

The limits were set by looking at composites on either side of each (docs/synthesis.md); nobody looks at those that are
made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from scsco_fast.reference.color import LUMA, rgb_to_lab

_COLOURS = 8192  # foreground pixels, evenly spread over the region, whose Lab colours are compared
_SMOOTH = 2.0  # grey levels: neighbours that differ by less lie in a smooth area
_STEP = 7.0  # grey levels: neighbours that differ by more show a step
_NOISE = 0.5  # grey levels, added to both sides of a ratio of deviations: a flat region has no contrast to keep


@dataclass(frozen=True)
class Measures:
    """What is measured of a composite; `RULES` explains each."""

    foreground: float
    change: float
    clipped: float
    contrast: float
    edges: float
    grain: float
    chroma: float


class Rule(NamedTuple):
    """A composite is refused where the measure is below `low` or above `high`."""

    measure: str
    low: float
    high: float
    meaning: str


RULES = (
    Rule("foreground", 0.01, 0.8, "foreground's share of the picture"),
    Rule("change", 5.0, 30.0, "mean CIE76 colour difference between composite and real foreground"),
    Rule("clipped", 0.0, 0.05, "share of foreground pixels with a channel at 0 or 255 that was not there before"),
    Rule("contrast", 0.5, 2.0, "ratio of the luma's standard deviations, composite over real"),
    Rule("edges", 0.9, 1.0, "correlation of the luma's differences between neighbours, composite with real"),
    Rule("grain", 0.0, 0.02, "share of smooth neighbours (luma differs by at most 2) that differ by more than 7 after"),
    Rule("chroma", 0.0, 60.0, "90th percentile of the composite foreground's CIE Lab chroma"),
)


def measure(real: np.ndarray, composite: np.ndarray, mask: np.ndarray) -> Measures:
    """Compare two (H, W, 3) uint8 pictures on the pixels of a mask (H, W) bool, which must not be empty.

    Examples:
        >>> real = np.tile(np.arange(0, 240, 4, dtype=np.uint8)[:, None, None], (1, 60, 3))
        >>> half = np.arange(60)[None].repeat(60, axis=0) < 30
        >>> found = measure(real, np.where(half[:, :, None], real // 2, real), half)
        >>> found.foreground, round(found.contrast, 1), broken_rule(found)
        (0.5, 0.5, None)
    """
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    share, mask = float(mask.mean()), mask[box]
    before, after = real[box], composite[box]
    inside, moved = before[mask], after[mask]  # (n, 3)
    limits = ((moved == 0) & (inside != 0)) | ((moved == 255) & (inside != 255))
    lab, moved_lab = lab_of(_some(inside)), lab_of(_some(moved))
    luma, moved_luma = _luma(before), _luma(after)  # (h, w)
    steps, moved_steps = _differences(luma, mask), _differences(moved_luma, mask)
    smooth = np.abs(steps) <= _SMOOTH
    return Measures(
        foreground=share,
        change=float(np.linalg.norm(moved_lab - lab, axis=1).mean()),
        clipped=float(limits.any(axis=1).mean()),
        contrast=float((moved_luma[mask].std() + _NOISE) / (luma[mask].std() + _NOISE)),
        edges=_correlation(steps, moved_steps),
        grain=float((np.abs(moved_steps[smooth]) > _STEP).mean()) if smooth.any() else 0.0,
        chroma=float(np.percentile(np.linalg.norm(moved_lab[:, 1:], axis=1), 90)),
    )


def broken_rule(measures: Measures) -> str | None:
    """The first rule that is broken, as "change below" or "clipped above"; None where all are kept."""
    for name, low, high, _ in RULES:
        value = getattr(measures, name)
        if not low <= value <= high:
            return f"{name} {'below' if value < low else 'above'}"
    return None


def lab_of(colours: np.ndarray) -> np.ndarray:
    """CIE Lab (n, 3) of (n, 3) uint8 colours.

    Examples:
        >>> lab_of(np.full((1, 3), 255, np.uint8)).round().tolist()[0][0]
        100.0
    """
    return rgb_to_lab(torch.from_numpy(colours.T.astype(np.float32) / 255)[None])[0].T.numpy()


def _some(colours: np.ndarray) -> np.ndarray:
    return colours[:: max(1, len(colours) // _COLOURS)]


def _luma(rgb: np.ndarray) -> np.ndarray:
    return np.asarray(sum(np.float32(weight) * rgb[:, :, channel] for channel, weight in enumerate(LUMA)))


def _differences(luma: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """(n,) differences between horizontal and between vertical neighbours that both lie in the mask."""
    across, down = mask[:, 1:] & mask[:, :-1], mask[1:] & mask[:-1]
    return np.concatenate([(luma[:, 1:] - luma[:, :-1])[across], (luma[1:] - luma[:-1])[down]])


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Of two sets of differences, whose mean is taken as 0; 1 where either set has nothing but rounding."""
    size = np.sqrt(np.square(one).mean() * np.square(other).mean()) if len(one) else 0.0
    return float((one * other).mean() / size) if size > _NOISE**2 else 1.0
