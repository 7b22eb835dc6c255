"""A change of colours at a small size, as a local affine colour transform that holds at any size.

The change that a network makes to a small picture is, near each pixel, much like an affine function of the colour:
warmer, brighter, more contrast. Enlarged as such, the *function* recolours details and colour edges that only the
full-size picture has; the enlarged change itself would smear over them.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW = 1 / 32  # of the small picture's long side: the reach of a window to each side
RIDGE = 3e-4  # a variance: colours that vary less than this are rather shifted than stretched


def fit_local_affine(
    colour: Tensor, change: Tensor, region: Tensor, radius: int, ridge: float = RIDGE
) -> tuple[Tensor, Tensor]:
    """Per pixel a matrix D and an offset b with change = D colour + b, exactly at each pixel of the region.

    Over the pixels k of the region in a window of (2 radius + 1)^2 around each of its pixels::

        D = argmin  mean_k |change_k - mean(change) - D (colour_k - mean(colour))|^2 + ridge |D|^2
          = cov(change, colour) (cov(colour, colour) + ridge I)^-1,   then the mean of D over the window
        b = change - D colour

    D is pulled to 0, so where colours hardly vary, or do not explain the change, the transform is a plain shift. A
    change of 0 has D = 0 and b = 0; a constant change has D = 0 and that constant up to rounding.

    Args:
        colour: (1, 3, H, W) in [0, 1].
        change: (1, 3, H, W), what is to be added to it; read inside the region only.
        region: (1, 1, H, W), 1 in the region and 0 elsewhere; at least one 1.
        radius: pixels from a window's centre to its sides.
        ridge: weight of |D|^2, in squared units of colour.

    Returns:
        matrix (1, 9, H, W) with D[i, j] at channel 3 i + j, and offset (1, 3, H, W), float32, 0 outside of the region.

    Examples:
        >>> colour, region = torch.rand(1, 3, 32, 32), torch.ones(1, 1, 32, 32)
        >>> matrix, _ = fit_local_affine(colour, 0.5 * colour - 0.1, region, radius=4)
        >>> [round(value, 2) for value in matrix[0, ::4, 16, 16].tolist()]  # the diagonal
        [0.5, 0.5, 0.5]
    """
    height, width = region.shape[-2:]
    inside = region.double()
    change = change.double() * inside
    # Centred before squaring: a variance of 1e-4 would drown in the rounding of a mean square of 1.
    centred = (colour.double() - (colour.double() * inside).sum((2, 3), keepdim=True) / inside.sum()) * inside
    count = _box_mean(inside, radius).clamp_min(1e-12)

    def mean(values: Tensor) -> Tensor:
        return _box_mean(values, radius) / count

    def covariance(a: Tensor, b: Tensor) -> Tensor:  # (1, 9, H, W)
        products = (a[:, :, None] * b[:, None]).reshape(1, 9, height, width)
        means = (mean(a)[:, :, None] * mean(b)[:, None]).reshape(1, 9, height, width)
        return mean(products) - means

    where = region[0, 0] > 0
    own = covariance(centred, centred)[0, :, where].T.reshape(-1, 3, 3) + ridge * torch.eye(3).to(inside)
    cross = covariance(change, centred)[0, :, where].T.reshape(-1, 3, 3)
    matrix = inside.new_zeros(1, 9, height, width)
    matrix[0, :, where] = torch.linalg.solve(own, cross, left=False).reshape(-1, 9).T
    matrix = mean(matrix) * inside
    offset = (change - _product(matrix, colour.double())) * inside
    return matrix.float(), offset.float()


def extend(values: Tensor, known: Tensor) -> Tensor:
    """Continue `values` (B, C, H, W) from where `known` (B, 1, H, W) is 1 to everywhere, by ever coarser means.

    Without it a transform would fade out along the border of the mask when it is enlarged, and leave a rim. An image
    that is known nowhere becomes 0.
    """
    # No look at the values: the host would wait for the device, and a compiled graph would break.
    if max(known.shape[-2:]) == 1:
        return values * known
    share = _halve(known)
    coarse = extend(_halve(values * known) / share.clamp_min(1e-6), (share > 0).to(known.dtype))
    filled = F.interpolate(coarse, size=values.shape[-2:], mode="bilinear", align_corners=False)
    return torch.where(known > 0, values, filled)


def enlarged_rows(
    values: Tensor, size: tuple[int, int], rows: tuple[int, int], columns: tuple[int, int], step: int
) -> Iterator[tuple[int, int, Tensor]]:
    """`F.interpolate(values, size, mode="bilinear")[0, :, rows, columns]`, `step` rows at a time: (top, bottom, part).

    Args:
        values: (1, C, h, w).
        size: height and width of the whole enlarged picture.
        rows, columns: first, and one past the last, that are wanted.

    Examples:
        >>> values = torch.rand(1, 2, 5, 4)
        >>> parts = [part for _, _, part in enlarged_rows(values, (50, 40), (10, 40), (0, 40), 7)]
        >>> whole = F.interpolate(values, (50, 40), mode="bilinear")[0, :, 10:40]
        >>> bool((torch.cat(parts, dim=1) - whole).abs().max() < 1e-6)
        True
    """
    left, right, share = _neighbours(columns, size[1], values.shape[3])
    wide = torch.lerp(values[0, :, :, left], values[0, :, :, right], share)  # (C, h, columns)
    for top in range(*rows, step):
        bottom = min(top + step, rows[1])
        above, below, weight = _neighbours((top, bottom), size[0], values.shape[2])
        yield top, bottom, torch.lerp(wide[:, above], wide[:, below], weight[:, None])


def apply_local_affine(coefficients: Tensor, colour: Tensor) -> Tensor:
    """The change D c + b of colours c.

    Args:
        coefficients: (..., 12, H, W) with D[i, j] at channel 3 i + j and b at 9 to 11, or (..., 3, H, W), b alone.
        colour: (..., 3, H, W).

    Returns:
        (..., 3, H, W).
    """
    if coefficients.shape[-3] == 3:
        return coefficients
    change = coefficients[..., 9:, :, :].clone()
    for channel in range(3):
        change.addcmul_(coefficients[..., channel:9:3, :, :], colour[..., channel : channel + 1, :, :])
    return change


def _neighbours(wanted: tuple[int, int], full: int, small: int) -> tuple[Tensor, Tensor, Tensor]:
    """For each of `full` pixels in `wanted`: the two of `small` that it lies between, and the share of the second."""
    at = ((torch.arange(*wanted, dtype=torch.float64) + 0.5) * small / full - 0.5).clamp(0, small - 1)
    first = at.floor().long()
    return first, (first + 1).clamp_max(small - 1), (at - first).float()


def _product(matrix: Tensor, colour: Tensor) -> Tensor:
    height, width = colour.shape[-2:]
    return (matrix.reshape(1, 3, 3, height, width) * colour[:, None]).sum(2)


def _box_mean(values: Tensor, radius: int) -> Tensor:
    """Mean over the window around each pixel; what lies outside of the picture counts as 0."""
    side = 2 * radius + 1
    rows = F.avg_pool2d(values, (side, 1), stride=1, padding=(radius, 0))
    return F.avg_pool2d(rows, (1, side), stride=1, padding=(0, radius))


def _halve(x: Tensor) -> Tensor:
    """Mean over 2x2 pixels; an odd last row or column counts as half empty."""
    height, width = x.shape[-2:]
    return F.avg_pool2d(F.pad(x, (0, width % 2, 0, height % 2)), 2)
