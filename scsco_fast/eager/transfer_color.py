"""Colour transfer for a whole batch at once, without a step that makes the host wait for the device."""

import torch
from torch import Tensor

from scsco_fast.eager.dtypes import accumulate_dtype
from scsco_fast.reference.color import lab_to_rgb, rgb_to_lab, rgb_to_ycbcr, ycbcr_to_rgb
from scsco_fast.reference.transfer_color import BINS, LAB_FLOOR, RGB_RIDGE

SQRT_STEPS = 24  # of the Denman-Beavers iteration, which squares its error each step once it is near


def forward(source: Tensor, reference: Tensor, mask: Tensor, reference_mask: Tensor, method: str) -> Tensor:
    """Source with its masked pixels recoloured, (B, 3, H, W) in its dtype."""
    dtype = accumulate_dtype(source, reference)
    pixels, examples = source.to(dtype).flatten(2), reference.to(dtype).flatten(2)  # (B, 3, N), (B, 3, M)
    inside, there = mask.flatten(2), reference_mask.flatten(2)
    # What lies outside the masks may be NaN, which is no bin of a histogram; so may what lies inside.
    (measured, broken), (shown, also_broken) = _finite(pixels, inside), _finite(examples, there)
    moved = METHODS[method](measured, shown, inside, there).clamp(0, 1)
    moved = torch.where(broken | also_broken, torch.nan, moved)
    change = inside & inside.any(dim=2, keepdim=True) & there.any(dim=2, keepdim=True)
    return torch.where(change, moved, pixels).reshape(source.shape).to(source.dtype)


def _reinhard(pixels: Tensor, examples: Tensor, inside: Tensor, there: Tensor) -> Tensor:
    lab, wanted = rgb_to_lab(pixels), rgb_to_lab(examples)
    centred, mean = _centre(lab, inside)
    wanted_centred, wanted_mean = _centre(wanted, there)
    std, wanted_std = (
        (c.square().sum(dim=2, keepdim=True) / _size(m)).sqrt() for c, m in ((centred, inside), (wanted_centred, there))
    )
    return lab_to_rgb((lab - mean) * (wanted_std / std.clamp(min=LAB_FLOOR)) + wanted_mean)


def _gaussian(pixels: Tensor, examples: Tensor, inside: Tensor, there: Tensor) -> Tensor:
    centred, mean = _centre(pixels, inside)
    wanted_centred, wanted_mean = _centre(examples, there)
    root, inverse = _sqrt(_covariance(centred, inside))
    middle, _ = _sqrt(root @ _covariance(wanted_centred, there) @ root)
    return (inverse @ middle @ inverse).to(pixels.dtype) @ (pixels - mean) + wanted_mean


def _histogram(pixels: Tensor, examples: Tensor, inside: Tensor, there: Tensor) -> Tensor:
    values = rgb_to_ycbcr(pixels).clamp(0, 1)
    distribution = _distribution(values, inside)
    wanted = _distribution(rgb_to_ycbcr(examples).clamp(0, 1), there)

    place = values * BINS
    left = place.long().clamp(max=BINS - 1)
    low = distribution.gather(2, left)
    shares = low + (place - left) * (distribution.gather(2, left + 1) - low)

    right = torch.searchsorted(wanted, shares).clamp(1, BINS)
    low, high = wanted.gather(2, right - 1), wanted.gather(2, right)
    within = torch.where(high > low, (shares - low) / (high - low).clamp(min=torch.finfo(low.dtype).tiny), 0)
    return ycbcr_to_rgb((right - 1 + within.clamp(0, 1)) / BINS)


METHODS = {"reinhard": _reinhard, "gaussian": _gaussian, "histogram": _histogram}


def _finite(rows: Tensor, region: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (B, 3, N) with 0 outside the region and for what is not finite, and whether it held such: (B, 1, 1)."""
    finite = rows.isfinite()
    return torch.where(region & finite, rows, 0), (region & ~finite).any(dim=2, keepdim=True).any(dim=1, keepdim=True)


def _size(region: Tensor) -> Tensor:
    return region.sum(dim=2, keepdim=True).clamp(min=1)


def _centre(rows: Tensor, region: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (B, 3, N) minus their mean over the region, 0 outside it, and that mean (B, 3, 1)."""
    mean = torch.where(region, rows, 0).sum(dim=2, keepdim=True) / _size(region)
    return torch.where(region, rows - mean, 0), mean


def _covariance(centred: Tensor, region: Tensor) -> Tensor:
    ridge = RGB_RIDGE * torch.eye(3, dtype=torch.float64, device=centred.device)
    return (centred @ centred.transpose(1, 2) / _size(region)).double() + ridge


def _sqrt(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Square roots of symmetric positive matrices (B, 3, 3) float64 and their inverses.

    Denman-Beavers instead of an eigendecomposition, which makes the host wait on a GPU. The traces are scaled to 1
    first.
    """
    scale = matrices.diagonal(dim1=1, dim2=2).sum(dim=1).reshape(-1, 1, 1)
    root, inverse = matrices / scale, torch.eye(3, dtype=matrices.dtype, device=matrices.device).expand_as(matrices)
    for _ in range(SQRT_STEPS):
        of_root, of_inverse = torch.linalg.inv_ex(root).inverse, torch.linalg.inv_ex(inverse).inverse
        root, inverse = (root + of_inverse) / 2, (inverse + of_root) / 2
    return root * scale.sqrt(), inverse / scale.sqrt()


def _distribution(values: Tensor, region: Tensor) -> Tensor:
    """The share of a region's values below each of the BINS + 1 bin edges: (B, 3, BINS + 1)."""
    bins = (values * BINS).long().clamp(max=BINS - 1)
    counts = values.new_zeros((*values.shape[:2], BINS + 1))
    # Whole numbers up to 2^24 add without rounding, so the atomic additions of a GPU give the same bits every time.
    counts.scatter_add_(2, bins + 1, region.to(values.dtype).expand_as(values))
    return (counts.cumsum(dim=2) / _size(region)).contiguous()
