"""What widens the synthetic composites: drawn shapes as foregrounds, and tone curves as a retoucher bends them."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

_SIZES = (0.06, 0.35)  # mean radius of a shape, as a share of the picture's shorter side
_CORNERS = (4, 10)
_OUTLINE = 64  # points of a round shape's outline
_HARMONICS = 4


def drawn_shape(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """(height, width) uint8, 255 inside and 0 outside: a round shape or a polygon of 4 to 9 corners.

    Examples:
        >>> shape = drawn_shape(96, 128, np.random.default_rng(0))
        >>> shape.shape, sorted(set(shape.ravel().tolist()))
        ((96, 128), [0, 255])
    """
    corners = int(rng.integers(*_CORNERS)) if rng.random() < 0.4 else _OUTLINE
    angles = (
        np.sort(rng.uniform(0, 2 * np.pi, corners)) if corners < _OUTLINE else np.arange(corners) / corners * 2 * np.pi
    )
    radii = np.ones(corners)
    for order in range(2, 2 + _HARMONICS):
        radii += rng.normal(0, 0.25 / order) * np.cos(order * angles + rng.uniform(0, 2 * np.pi))
    size = np.exp(rng.uniform(*np.log(_SIZES))) * min(height, width)
    stretch, turn = np.exp(rng.uniform(-0.5, 0.5)), rng.uniform(0, 2 * np.pi)
    points = np.maximum(radii, 0.2)[:, None] * np.stack([np.cos(angles) * stretch, np.sin(angles) / stretch], axis=1)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    placed = size * points @ rotation.T + rng.uniform(0.15, 0.85, 2) * (width, height)
    image = Image.new("L", (width, height))
    ImageDraw.Draw(image).polygon([(float(x), float(y)) for x, y in placed], fill=255)
    return np.asarray(image)


def bent_tones(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(3, N) float32 in [0, 1] with a tone curve per channel: contrast, a lifted black, a lowered white.

    The curves of the three channels share most of their bend, as in a retouched picture, and differ a little, as under
    a cross-processed one. They rise everywhere, so edges keep their sign.

    Examples:
        >>> grey = np.full((3, 1), 0.5, np.float32)
        >>> float(abs(bent_tones(grey, np.random.default_rng(0)) - grey).max()) < 0.5
        True
    """
    contrast = np.exp(rng.normal(0, 0.3) + rng.normal(0, 0.06, 3)).astype(np.float32)
    pivot = np.float32(rng.uniform(0.25, 0.7))
    low = np.abs(rng.normal(0, 0.05)) + np.abs(rng.normal(0, 0.015, 3))
    high = 1 - np.abs(rng.normal(0, 0.05)) - np.abs(rng.normal(0, 0.015, 3))
    clipped = np.clip(pixels, 1e-4, 1 - 1e-4)
    # A power of the odds is an S whose slope at the pivot is the contrast; it maps 0 and 1 to themselves.
    odds = clipped / (1 - clipped)
    odds *= (1 - pivot) / pivot
    bent = np.power(odds, contrast[:, None], out=odds)
    bent *= pivot
    bent /= 1 - pivot + bent
    bent *= (high - low).astype(np.float32)[:, None]
    bent += low.astype(np.float32)[:, None]
    return bent
