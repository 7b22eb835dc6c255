"""The colour transfers of `scsco_fast.ops.transfer_color` for the pixels of one foreground, in numpy.

`synthetic` recolours two thousand pixels at a time. On so few a call of torch takes longer to start than to compute:
here a transfer takes 0.05 to 0.2 ms, by the operation 0.5 to 1.3 ms, which is why the formulas are here a second time;
the result does not depend on the number of threads either. They are those of `scsco_fast.reference.transfer_color` and
`scsco_fast.reference.color`, whose constants are used, and tests/synthesis/test_pixel_transfer.py holds them to it.
"""

import numpy as np

from scsco_fast.reference import color
from scsco_fast.reference.transfer_color import BINS, LAB_FLOOR, RGB_RIDGE

_CELLS = 16 * BINS


def transfer_pixels(pixels: np.ndarray, examples: np.ndarray, method: str) -> np.ndarray:
    """Pixels with the colour statistics of the examples.

    Args:
        pixels: (3, N) float32 in [0, 1], N at least 1.
        examples: (3, M) float32 in [0, 1], M at least 1.
        method: one of `scsco_fast.ops.transfer_color.TRANSFERS`.

    Returns:
        (3, N) float32 in [0, 1].

    Examples:
        >>> rng = np.random.default_rng(0)
        >>> pixels, examples = rng.random((3, 500), np.float32), rng.random((3, 400), np.float32) / 2
        >>> bool(np.abs(transfer_pixels(pixels, examples, "gaussian").mean(axis=1) - 0.25).max() < 0.02)
        True
    """
    return np.clip(_METHODS[method](pixels, examples), 0, 1)


def mix(matrix: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """`matrix @ pixels`, (3, 3) and (3, N), in float32 without BLAS, whose last bits depend on its threads."""
    columns = matrix.astype(np.float32)[:, :, None]
    mixed: np.ndarray = columns[:, 0] * pixels[0]
    mixed += columns[:, 1] * pixels[1]
    mixed += columns[:, 2] * pixels[2]
    return mixed


def _reinhard(pixels: np.ndarray, examples: np.ndarray) -> np.ndarray:
    lab = _rgb_to_lab(np.concatenate([pixels, examples], axis=1))
    measured, wanted = lab[:, : pixels.shape[1]], lab[:, pixels.shape[1] :]
    centred, _, deviation = _moments(measured)
    _, wanted_mean, wanted_deviation = _moments(wanted)
    return _lab_to_rgb(centred * (wanted_deviation / np.maximum(deviation, LAB_FLOOR)) + wanted_mean)


def _moments(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows minus their mean, that mean, and their standard deviation."""
    mean = rows.mean(axis=1, keepdims=True)
    centred = rows - mean
    return centred, mean, np.sqrt(np.square(centred).mean(axis=1, keepdims=True))


def _gaussian(pixels: np.ndarray, examples: np.ndarray) -> np.ndarray:
    mean, wanted_mean = pixels.mean(axis=1, keepdims=True), examples.mean(axis=1, keepdims=True)
    centred = pixels - mean
    root, inverse = _roots(_covariance(centred))
    middle, _ = _roots(root @ _covariance(examples - wanted_mean) @ root)
    return mix(inverse @ middle @ inverse, centred) + wanted_mean


def _covariance(centred: np.ndarray) -> np.ndarray:
    products = (centred[[0, 0, 0, 1, 1, 2]] * centred[[0, 1, 2, 1, 2, 2]]).mean(axis=1)
    return products[[[0, 1, 2], [1, 3, 4], [2, 4, 5]]].astype(np.float64) + RGB_RIDGE * np.eye(3)


def _roots(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The square root of a symmetric positive matrix, and the inverse of that."""
    values, vectors = np.linalg.eigh(matrix)
    roots = np.sqrt(values)
    return (vectors * roots) @ vectors.T, (vectors / roots) @ vectors.T


def _histogram(pixels: np.ndarray, examples: np.ndarray) -> np.ndarray:
    measured, wanted = (np.clip(_rgb_to_ycbcr(rows), 0, 1) * np.float32(BINS) for rows in (pixels, examples))
    moved = [_match(*channels) for channels in zip(measured, wanted, strict=True)]
    return mix(_YCBCR_TO_RGB, np.stack(moved) - _GREY)


def _match(values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """One channel in [0, BINS] with the distribution of another, in [0, 1]."""
    left, distribution = _distribution(values)
    shares = distribution.take(left) + (values - left.astype(np.float32)) * np.diff(distribution).take(left)
    _, aim = _distribution(wanted)
    right = np.clip(_first_not_below(aim, shares), 1, BINS)
    low = aim.take(right - 1)
    # A bin of no pixels is passed over, as the bin before it reaches the share already.
    within = (shares - low) / np.maximum(aim.take(right) - low, np.finfo(np.float32).tiny)
    return ((right - 1).astype(np.float32) + np.clip(within, 0, 1)) / np.float32(BINS)


def _first_not_below(edges: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """`np.searchsorted(edges, shares)` of values in [0, 1]: of 2,300 in 0.02 ms, not in 0.12.

    A search mispredicts its branches. In a cell of 1 / `_CELLS` without an edge, fifteen of sixteen, the place is that
    of the cell's beginning, and only the others are searched for.
    """
    below = np.cumsum(np.bincount((edges * np.float32(_CELLS)).astype(np.int64) + 1, minlength=_CELLS + 2))
    cells = (shares * np.float32(_CELLS)).astype(np.int64)  # exact: a power of 2
    places = below.take(cells)
    unsure = np.flatnonzero(below.take(cells + 1) != places)
    places[unsure] = np.searchsorted(edges, shares[unsure])
    return places


def _distribution(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The bin of each value, and the share of values below each of the BINS + 1 bin edges."""
    bins = np.minimum(values.astype(np.int64), BINS - 1)
    counts = np.bincount(bins, minlength=BINS)
    shares = np.concatenate([[0], np.cumsum(counts)]).astype(np.float32) / np.float32(len(values))
    return bins, shares


_METHODS = {"reinhard": _reinhard, "gaussian": _gaussian, "histogram": _histogram}

_WHITE = np.array(color.WHITE)
_RGB_TO_XYZ = np.array(color.RGB_TO_XYZ) / _WHITE[:, None]  # with white at 1
_XYZ_TO_RGB = np.array(color.XYZ_TO_RGB) * _WHITE
_RGB_TO_YCBCR, _YCBCR_TO_RGB = np.array(color.RGB_TO_YCBCR), np.array(color.YCBCR_TO_RGB)
_GREY = np.array([[0], [color.GREY], [color.GREY]], dtype=np.float32)


def _rgb_to_lab(rgb: np.ndarray) -> np.ndarray:
    curved = np.power((rgb + 0.055) / 1.055, np.float32(2.4))
    shares = mix(_RGB_TO_XYZ, np.where(rgb <= 0.04045, rgb / 12.92, curved))
    x, y, z = np.where(shares > color.EPSILON, np.cbrt(shares), (color.KAPPA * shares + 16) / 116)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def _lab_to_rgb(lab: np.ndarray) -> np.ndarray:
    lightness, a, b = lab
    y = (lightness + 16) / 116
    roots = np.stack([y + a / 500, y, y - b / 200])
    cubes = roots * roots * roots
    linear = mix(_XYZ_TO_RGB, np.where(cubes > color.EPSILON, cubes, (116 * roots - 16) / color.KAPPA))
    curved = 1.055 * np.power(np.maximum(linear, 0.0031308), np.float32(1 / 2.4)) - 0.055
    return np.where(linear <= 0.0031308, linear * 12.92, curved)


def _rgb_to_ycbcr(rgb: np.ndarray) -> np.ndarray:
    return mix(_RGB_TO_YCBCR, rgb) + _GREY
