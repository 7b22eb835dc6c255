"""What the GIMP plug-in has to send to scsco for each image of `gimp_cases`, and how the layers lie afterwards."""

from pathlib import Path
from typing import Any

import numpy as np
from gimp_cases import AT
from PIL import Image

SIZE = (40, 60)  # rows, columns
PICTURES = ("below", "top", "higher", "highest")

TREES: dict[str, list[Any]] = {
    "plain": ["top", "object harmonized", "object", "background"],
    "hidden": ["object harmonized", "object", "top", "background"],
    "in_groups": [
        "highest",
        ["outer group", ["higher", ["inner group", ["top", "object harmonized", "object"]], "below"]],
        "background",
    ],
    "selected": ["background harmonized", "background"],
    "masked": ["object harmonized", "object", "background"],
    "mask_off": ["object harmonized", "object", "background"],
    "beyond": ["object harmonized", "object", "background"],
    "on_nothing": ["object harmonized", "object", "background"],
    "small": ["below harmonized", "below", "background"],
    "linear": ["object harmonized", "object", "background"],
}
# The layers that are seen, from below, and where they lie.
SEEN = {
    "plain": {"background": (0, 0), "object": AT},
    "hidden": {"background": (0, 0), "object": AT},
    "in_groups": {"background": (0, 0), "below": (30, 20), "object": AT},
    "selected": {"background": (0, 0)},
    "masked": {"background": (0, 0), "object": AT},
    "mask_off": {"background": (0, 0), "object": AT},
    "beyond": {"background": (0, 0), "object": (-6, 30)},
    "on_nothing": {"object": AT},
    "small": {"below": (5, 6)},
    "linear": {"background": (0, 0), "object": AT},
}


def write_pictures(folder: Path) -> None:
    """The files of which the images are made: noise, so that no place is like another."""
    rng = np.random.default_rng(5)
    Image.fromarray(rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)).save(folder / "background.png")
    pixels = rng.integers(0, 256, (16, 20, 4), dtype=np.uint8)
    pixels[..., 3] = 255
    pixels[:2, :, 3], pixels[:, -3:, 3] = 128, 0
    Image.fromarray(pixels).save(folder / "object.png")
    for name in PICTURES:
        Image.fromarray(rng.integers(0, 256, (9, 30, 3), dtype=np.uint8)).save(folder / f"{name}.png")


def expected(case: str, folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The picture (H, W, 4), where it is certain (H, W), and the mask (H, W)."""
    picture, certain = np.zeros((*SIZE, 4), np.uint8), np.ones(SIZE, bool)
    alpha = np.full(SIZE, 255, np.uint8)
    for name, at in SEEN[case].items():
        layer = placed(np.array(Image.open(folder / f"{name}.png").convert("RGBA")), at)
        alpha = layer[..., 3]
        if case == "masked" and name == "object":
            alpha = alpha * rectangle(8, 10, 12, 16)
        certain &= (alpha == 0) | (alpha == 255)  # how soft edges are blended is GIMP's business
        picture[alpha == 255] = layer[alpha == 255]
    if case == "selected":
        alpha = 255 * rectangle(5, 6, 20, 10)
    if case == "masked":
        alpha = alpha * rectangle(10, 0, 30, 40)
    return picture, certain, alpha


def placed(pixels: np.ndarray, at: tuple[int, int]) -> np.ndarray:
    """The pixels at x, y of a transparent picture; what lies beyond is cut off."""
    wide = np.zeros((SIZE[0] + 100, SIZE[1] + 100, 4), np.uint8)
    top, left = at[1] + 50, at[0] + 50
    wide[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
    return wide[50 : 50 + SIZE[0], 50 : 50 + SIZE[1]]


def rectangle(x: int, y: int, width: int, height: int) -> np.ndarray:
    """(H, W) uint8, 1 inside."""
    inside = np.zeros(SIZE, np.uint8)
    inside[y : y + height, x : x + width] = 1
    return inside


def check_sent(case: str, folder: Path, picture: np.ndarray, mask: np.ndarray) -> None:
    """Compare what scsco was given, (H, W, 3 or 4) and (H, W)."""
    wanted, certain, wanted_mask = expected(case, folder)
    np.testing.assert_array_equal(mask, wanted_mask, err_msg=case)
    opaque = np.full((*SIZE, 1), 255, np.uint8)
    found = picture if picture.shape[2] == 4 else np.concatenate([picture, opaque], axis=2)
    np.testing.assert_array_equal(found[certain][:, 3], wanted[certain][:, 3], err_msg=case)
    seen = certain & (wanted[..., 3] > 0)
    off = np.abs(found[seen].astype(int) - wanted[seen]).max()
    assert off <= (13 if case == "linear" else 0), (case, off)  # a step of one near black is 13 in sRGB
