"""Colour transfer, one image at a time, written out."""

import torch
from torch import Tensor

from scsco_fast.reference.color import lab_to_rgb, rgb_to_lab, rgb_to_ycbcr, ycbcr_to_rgb

LAB_FLOOR = 0.5  # of a source's standard deviation, in Lab units: a flat source is shifted, not amplified noise
RGB_RIDGE = 1e-4  # added to the covariances' diagonals: a deviation of 0.01 in each direction
BINS = 256  # of a histogram over [0, 1]


def transfer_color(source: Tensor, reference: Tensor, mask: Tensor, reference_mask: Tensor, method: str) -> Tensor:
    """See `scsco_fast.ops.transfer_color`; both masks are (B, 1, H, W) bool at the size of their image."""
    result = source.clone()
    for image in range(source.shape[0]):
        inside, there = mask[image, 0], reference_mask[image, 0]
        if inside.any() and there.any():
            pixels, examples = source[image][:, inside], reference[image][:, there]  # (3, n), (3, m)
            measurable = pixels.isfinite().all() and examples.isfinite().all()
            result[image][:, inside] = METHODS[method](pixels, examples).clamp(0, 1) if measurable else torch.nan
    return result


def reinhard(pixels: Tensor, examples: Tensor) -> Tensor:
    """Mean and deviation of every CIE Lab channel (Reinhard et al., 2001, in CIE Lab as Xiao and Ma use it)."""
    lab, wanted = rgb_to_lab(pixels[None])[0], rgb_to_lab(examples[None])[0]
    std, mean = torch.std_mean(lab, dim=1, correction=0, keepdim=True)
    wanted_std, wanted_mean = torch.std_mean(wanted, dim=1, correction=0, keepdim=True)
    return lab_to_rgb(((lab - mean) * (wanted_std / std.clamp(min=LAB_FLOOR)) + wanted_mean)[None])[0]


def gaussian(pixels: Tensor, examples: Tensor) -> Tensor:
    """The linear optimal transport between two Gaussians in RGB (Pitie and Kokaram, 2007, Monge-Kantorovich)."""
    mean, wanted_mean = pixels.mean(dim=1, keepdim=True), examples.mean(dim=1, keepdim=True)
    ridge = RGB_RIDGE * torch.eye(3, dtype=pixels.dtype, device=pixels.device)
    covariance = torch.cov(pixels, correction=0) + ridge
    wanted = torch.cov(examples, correction=0) + ridge
    root = _sqrt(covariance)
    inverse = torch.linalg.inv(root)
    transport = inverse @ _sqrt(root @ wanted @ root) @ inverse
    return transport @ (pixels - mean) + wanted_mean


def histogram(pixels: Tensor, examples: Tensor) -> Tensor:
    """The histogram of every YCbCr channel, through piecewise linear distribution functions of `BINS` bins."""
    channels = []
    for channel, wanted in zip(rgb_to_ycbcr(pixels[None])[0], rgb_to_ycbcr(examples[None])[0], strict=True):
        channels.append(_inverse(_distribution(wanted), _value(_distribution(channel), channel)))
    return ycbcr_to_rgb(torch.stack(channels)[None])[0]


METHODS = {"reinhard": reinhard, "gaussian": gaussian, "histogram": histogram}


def _sqrt(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ torch.diag(values.clamp(min=0).sqrt()) @ vectors.T


def _distribution(values: Tensor) -> Tensor:
    """The share of values below each of the BINS + 1 bin edges."""
    counts = torch.bincount((values.clamp(0, 1) * BINS).long().clamp(max=BINS - 1), minlength=BINS)
    shares = torch.cat([counts.new_zeros(1), counts.cumsum(0)]).to(values.dtype)
    return shares / values.numel()


def _value(distribution: Tensor, values: Tensor) -> Tensor:
    place = values.clamp(0, 1) * BINS
    left = place.long().clamp(max=BINS - 1)
    return distribution[left] + (place - left) * (distribution[left + 1] - distribution[left])


def _inverse(distribution: Tensor, shares: Tensor) -> Tensor:
    right = torch.searchsorted(distribution, shares).clamp(1, BINS)
    low, high = distribution[right - 1], distribution[right]
    inside = torch.where(high > low, (shares - low) / (high - low).clamp(min=torch.finfo(low.dtype).tiny), 0)
    return (right - 1 + inside.clamp(0, 1)) / BINS
