"""Region normalisation (RAIN; Ling et al., CVPR 2021, equations 4 to 6), written out."""

import torch
from torch import Tensor


def moments(x: Tensor, region: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and sqrt(variance + eps) of `x` (B, C, H, W), 0 outside `region` (B, 1, H, W) bool: (B, C, 1, 1) tensors.

    The variance is biased. An empty region has mean 0 and deviation 1.
    """
    count = region.sum(dim=(2, 3), keepdim=True)
    size = count.clamp(min=1)
    mean = x.sum(dim=(2, 3), keepdim=True) / size
    variance = torch.where(region, x - mean, 0).square().sum(dim=(2, 3), keepdim=True) / size
    return mean, torch.where(count > 0, torch.sqrt(variance + eps), torch.ones_like(variance))


def region_norm(x: Tensor, foreground: Tensor, valid: Tensor | None, affine: Tensor, eps: float, adapt: bool) -> Tensor:
    """See `scsco_fast.ops.region_norm`; `foreground` and `valid` are (B, 1, H, W) bool at the size of `x`.

    The rows of `affine` (4, C) are fg_weight, fg_bias, bg_weight and bg_bias.

    Each region is set apart before anything is computed of it: autograd multiplies what a later `where` leaves out
    by 0, which spoils the other region's gradient if it is NaN.
    """
    background = ~foreground if valid is None else ~foreground & valid
    inside, outside = torch.where(foreground, x, 0), torch.where(background, x, 0)
    mean_f, std_f = moments(inside, foreground, eps)
    mean_b, std_b = moments(outside, background, eps)
    own = (inside - mean_f) / std_f
    normalised = torch.where(foreground, own * std_b + mean_b if adapt else own, (outside - mean_b) / std_b)
    fg_weight, fg_bias, bg_weight, bg_bias = affine.reshape(4, 1, -1, 1, 1)
    gain, bias = torch.where(foreground, fg_weight, bg_weight), torch.where(foreground, fg_bias, bg_bias)
    y = normalised * gain + bias
    return y if valid is None else torch.where(valid, y, 0)
