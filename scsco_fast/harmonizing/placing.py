"""A foreground laid on a background: placed, scaled, blended at its edges; and the mask of what an edit has changed."""

from typing import Any, NamedTuple

import numpy as np
import torch.nn.functional as F
from PIL import Image

from scsco_fast.errors import ScscoError
from scsco_fast.harmonizing.masks import PEAK, bounds, grown
from scsco_fast.harmonizing.recolour import LUMA, unit_rgb

MOST_SCALE = 1000.0
# Of an edited picture, whose other pixels may have been through JPEG or a network's encoder and decoder:
_LEAST_CHANGE, _MOST_NOISE = 6 / 255, 24 / 255  # smaller differences are rounding, larger ones no noise
_TIMES_NOISE = 3.0  # how far above the median difference of all pixels a change is one
_REACH = 0.004  # of the long side: differences are averaged, and gaps closed, over so many pixels


class Layer(NamedTuple):
    """A foreground at its place in a background.

    Attributes:
        colours: (h, w, 3) float32 in [0, 1], not multiplied by `alpha`.
        alpha: (h, w) float32 in [0, 1].
        corner: row and column of its first pixel in the background; all of it lies inside.
    """

    colours: np.ndarray
    alpha: np.ndarray
    corner: tuple[int, int]

    @property
    def box(self) -> tuple[slice, slice]:
        """Rows and columns of the background that it covers."""
        (top, left), (height, width) = self.corner, self.alpha.shape
        return np.s_[top : top + height, left : left + width]


def place(
    colours: np.ndarray, alpha: np.ndarray, size: tuple[int, int], at: tuple[int, int] | None, scale: float
) -> Layer:
    """Scale a cut-out and lay it at a place; what sticks out of the background is cut off.

    It is resized with its colours multiplied by alpha (bicubic, antialiased), so that hidden colours do not bleed in.

    Args:
        colours: (h, w, 3) float32 in [0, 1].
        alpha: (h, w) float32 in [0, 1].
        size: height and width of the background.
        at: x and y of the cut-out's upper left corner in the background, in pixels, also negative ones; None is the
            background's middle.
        scale: of both sides of the cut-out.

    Raises:
        ScscoError: a scale that is not above 0, or nothing of the cut-out lies on the background.

    Examples:
        >>> layer = place(np.ones((4, 6, 3), np.float32), np.ones((4, 6), np.float32), (10, 10), (-2, 1), 1)
        >>> layer.alpha.shape, layer.corner
        ((4, 4), (1, 0))
    """
    if not 0 < scale <= MOST_SCALE:
        raise ScscoError(f"the scale is {scale:g}; wanted a number above 0, at most {MOST_SCALE:g}")
    height, width = (max(1, round(side * scale)) for side in alpha.shape)
    left, top = ((size[1] - width) // 2, (size[0] - height) // 2) if at is None else at
    rows = max(0, top), min(size[0], top + height)
    columns = max(0, left), min(size[1], left + width)
    if rows[0] >= rows[1] or columns[0] >= columns[1]:
        raise ScscoError(
            f"the foreground of {width}x{height} at {left},{top} lies outside of the background of "
            f"{size[1]}x{size[0]}; give another place"
        )
    part = (rows[0] - top, rows[1] - top), (columns[0] - left, columns[1] - left)
    if (height, width) == alpha.shape:
        inside = np.s_[slice(*part[0]), slice(*part[1])]
        return Layer(colours[inside], alpha[inside], (rows[0], columns[0]))
    planes = [
        _resized(plane, (height, width), *part) for plane in (*np.moveaxis(colours * alpha[..., None], 2, 0), alpha)
    ]
    plain = np.stack(planes[:3], axis=2) / np.maximum(planes[3], 1e-6)[..., None]  # bicubic alpha overshoots 1
    covered = np.where(planes[3] > 1e-6, planes[3], 0).clip(0, 1)
    return Layer(plain.clip(0, 1), covered, (rows[0], columns[0]))


def whole_layer(colours: np.ndarray, alpha: np.ndarray) -> Layer:
    """The part of a picture (H, W, 3) where `alpha` (H, W) is not 0, at its place in a background of the same size."""
    rows, columns = bounds(alpha)
    box = np.s_[slice(*rows), slice(*columns)]
    return Layer(colours[box], alpha[box], (rows[0], columns[0]))


def over(layer: Layer, background: np.ndarray, linear_light: bool = False) -> np.ndarray:
    """The layer on the background: alpha F + (1 - alpha) B, in the background's shape and type.

    Pixels where the layer's alpha is 0 keep their exact values. On a background with alpha b the colours are weighted
    by alpha and (1 - alpha) b, and the result's alpha is their sum. A grey background takes the layer's luma.

    Args:
        background: (H, W, 1 to 4) of a type in `PEAK`.
        linear_light: blend light, not sRGB values: c_linear = sRGB^-1(c), and back.
    """
    result, box = background.copy(), layer.box
    peak = PEAK[background.dtype.name]
    precise: Any = np.float64 if background.dtype == np.float64 else np.float32
    below = background[box].astype(precise) / precise(peak)
    channels = 3 if background.shape[2] >= 3 else 1
    colours: np.ndarray = layer.colours if channels == 3 else (layer.colours @ LUMA)[..., None]
    front = layer.alpha[..., None].astype(precise)
    behind = (1 - front) * (below[..., channels:] if background.shape[2] in (2, 4) else 1)
    total = front + behind
    share = front / np.maximum(total, 1e-12)
    if linear_light:
        blended = _encoded(share * _decoded(colours) + (1 - share) * _decoded(below[..., :channels]))
        mixed = np.where(share == 1, colours, blended)
    else:
        mixed = share * colours + (1 - share) * below[..., :channels]
    after = np.concatenate([mixed, total], axis=2)[..., : background.shape[2]].clip(0, 1) * precise(peak)
    if background.dtype.kind == "u":
        np.rint(after, out=after)
    np.copyto(result[box], after.astype(background.dtype), where=front > 0)
    return result


def canvas(layer: Layer, size: tuple[int, int], dtype: np.dtype[Any]) -> np.ndarray:
    """The layer alone: (H, W, 4) RGBA of `size` and `dtype`, 0 outside of it."""
    peak = PEAK[dtype.name]
    result = np.zeros((*size, 4), dtype)
    pixels = np.dstack([layer.colours, layer.alpha]) * np.float32(peak)
    if dtype.kind == "u":
        np.rint(pixels, out=pixels)
    np.copyto(result[layer.box], pixels.astype(dtype), where=pixels[..., 3:] > 0)
    return result


def changed_mask(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """(H, W) float32: 1 where an edit has changed a picture, 0 elsewhere.

    The largest difference of a pixel's three colours, averaged over a small window, is compared with a bound: 6/255, or
    three times its median over the picture if that is more (at most 24/255), so that what JPEG or a generator's encoder
    did to all pixels does not count. Gaps that are narrower than two windows are closed. The window's half side is
    0.4 % of the long side; by so much the region is then shrunk, as the windows had made it wider, but for pixels that
    differ themselves.

    Args:
        before, after: (H, W, 1 to 4) of types in `PEAK`, of the same height and width.

    Examples:
        >>> before = np.zeros((50, 50, 3), np.uint8)
        >>> after = before.copy()
        >>> after[10:30, 20:40] = 99
        >>> mask = changed_mask(before, after)
        >>> bool(mask[10:30, 20:40].all()), int(mask.sum())
        (True, 400)
    """
    difference = (unit_rgb(before) - unit_rgb(after)).abs().amax(dim=0)  # (H, W)
    reach = max(1, round(_REACH * max(difference.shape)))
    mean = difference[None, None]
    for window in ((2 * reach + 1, 1), (1, 2 * reach + 1)):
        padding = (window[0] // 2, window[1] // 2)
        mean = F.avg_pool2d(mean, window, stride=1, padding=padding, count_include_pad=False)
    mean = mean[0, 0]
    bound = min(max(_LEAST_CHANGE, _TIMES_NOISE * float(mean.median())), _MOST_NOISE)
    closed = grown(grown((mean > bound).float().numpy(), 2 * reach), -2 * reach)
    return np.where((difference > bound).numpy(), closed, grown(closed, -reach))


def _resized(plane: np.ndarray, size: tuple[int, int], rows: tuple[int, int], columns: tuple[int, int]) -> np.ndarray:
    """Rows and columns of a plane (h, w) that is resized to `size`; nothing else of it is computed."""
    down, right = plane.shape[0] / size[0], plane.shape[1] / size[1]
    box = (columns[0] * right, rows[0] * down, columns[1] * right, rows[1] * down)
    image = Image.fromarray(np.ascontiguousarray(plane, dtype=np.float32))
    part = image.resize((columns[1] - columns[0], rows[1] - rows[0]), Image.Resampling.BICUBIC, box=box)
    return np.asarray(part)


def _decoded(colours: np.ndarray) -> np.ndarray:
    """Light of sRGB values (IEC 61966-2-1)."""
    return np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)


def _encoded(light: np.ndarray) -> np.ndarray:
    """sRGB values of light, the inverse of `_decoded`."""
    bright = 1.055 * np.maximum(light, 0.0031308) ** (1 / 2.4) - 0.055
    return np.where(light <= 0.0031308, light * 12.92, bright)
