"""Where the network looks: the map of one foreground pixel, drawn over the picture."""

import numpy as np
from PIL import Image, ImageDraw

from scsco_fast.demo.previews import resized
from scsco_fast.nn.norm import BAIN
from scsco_fast.nn.unet import HarmonizationUNet
from scsco_fast.reference.color import LUMA


def attention_levels(model: HarmonizationUNet) -> dict[str, str]:
    """What the page calls the resolutions of the decoder's BAINs, finest first, to the names of the modules."""
    return {f"1/{2 ** (level + 1)}": f"norm.{level}" for level, norm in enumerate(model.norm) if isinstance(norm, BAIN)}


def attention_picture(rgb: np.ndarray, inside: np.ndarray, rows: np.ndarray, point: tuple[int, int]) -> np.ndarray:
    """Heat over a darkened background, the foreground as it is, an outline between them and a ring at the point.

    Args:
        rgb: (H, W, 3) uint8.
        inside: (H, W) bool, the foreground.
        rows: (h, w), weights of the background from `attention_map`; the heat is their share of the largest one.
        point: row and column.

    Returns:
        (H, W, 3) uint8.
    """
    from matplotlib import colormaps

    heat = resized(rows / max(float(rows.max()), 1e-12), inside.shape)[..., None]  # (H, W, 1)
    grey = (rgb @ np.array(LUMA))[..., None] * 0.45
    background = grey * (1 - heat) + colormaps["inferno"](0.25 + 0.75 * heat[..., 0])[..., :3] * 255 * heat
    picture = np.where(inside[..., None], rgb, background).astype(np.uint8)
    picture[_outline(inside)] = 255
    image = Image.fromarray(picture)
    draw, radius = ImageDraw.Draw(image), max(4, max(inside.shape) // 80)
    for grown, colour in ((2, "black"), (0, "white")):
        corners = [(point[1] + sign * (radius + grown), point[0] + sign * (radius + grown)) for sign in (-1, 1)]
        draw.ellipse(corners, outline=colour, width=2 + grown)
    return np.asarray(image)


def middle(inside: np.ndarray) -> tuple[int, int]:
    """The foreground pixel next to the mean of all; the picture's middle where there is none."""
    rows, columns = np.nonzero(inside)
    if not len(rows):
        return inside.shape[0] // 2, inside.shape[1] // 2
    nearest = np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2)
    return int(rows[nearest]), int(columns[nearest])


def _outline(inside: np.ndarray) -> np.ndarray:
    padded = np.pad(inside, 1, mode="edge")
    neighbours = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    return inside & ~np.logical_and.reduce(neighbours)
