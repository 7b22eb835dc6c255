"""Strips: pictures side by side with their labels, one row per example."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from scsco_fast.data.images import save_image
from scsco_fast.errors import ScscoError
from scsco_fast.system.files import replacing

_GAP = 6  # pixels between pictures
_LABEL_HEIGHT = 18
_ROW_HEIGHT = 256  # higher pictures are reduced to it


def make_strip(rows: Sequence[Sequence[np.ndarray]], labels: Sequence[str]) -> Image.Image:
    """Rows of (H, W, 3) uint8 pictures of one size per row, below their column labels.

    Examples:
        >>> grey = np.full((20, 30, 3), 128, np.uint8)
        >>> make_strip([[grey, grey]], ["before", "after"]).size
        (66, 38)
    """
    if not rows or any(len(row) != len(labels) for row in rows):
        raise ScscoError(f"a strip needs rows of {len(labels)} pictures ({', '.join(labels)})")
    pictures = [[_reduced(picture) for picture in row] for row in rows]
    width = max(sum(picture.width + _GAP for picture in row) for row in pictures) - _GAP
    height = _LABEL_HEIGHT + sum(max(picture.height for picture in row) + _GAP for row in pictures) - _GAP
    strip = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(strip)
    y = _LABEL_HEIGHT
    for index, row in enumerate(pictures):
        x = 0
        for label, picture in zip(labels, row, strict=True):
            if index == 0:
                draw.text((x + 2, 3), label, fill="black")
            strip.paste(picture, (x, y))
            x += picture.width + _GAP
        y += max(picture.height for picture in row) + _GAP
    return strip


def write_strip(rows: Sequence[Sequence[np.ndarray]], labels: Sequence[str], path: str | Path) -> None:
    """Write a strip as a PNG (or what the suffix says), atomically."""
    strip = make_strip(rows, labels)
    with replacing(path) as temporary:
        try:
            save_image(strip, temporary)
        except (KeyError, ValueError) as error:  # an unknown suffix, or a format without colours
            raise ScscoError(f"{path}: a strip cannot be written in the format of this suffix; name a .png") from error


def _reduced(picture: np.ndarray) -> Image.Image:
    image = Image.fromarray(picture)
    if image.height <= _ROW_HEIGHT:
        return image
    return image.resize(
        (max(1, round(image.width * _ROW_HEIGHT / image.height)), _ROW_HEIGHT), Image.Resampling.LANCZOS
    )
