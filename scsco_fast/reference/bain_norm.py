"""BAIN's output from its statistics, written out."""

import torch
from torch import Tensor


def bain_norm(
    normalised: Tensor,
    mean: Tensor,
    std: Tensor,
    foreground: Tensor,
    valid: Tensor | None,
    affine: Tensor,
) -> Tensor:
    """See `scsco_fast.ops.bain_norm`; `foreground` and `valid` are (B, 1, H, W) bool at the size of `normalised`.

    The rows of `affine` (4, C) are fg_weight, fg_bias, bg_weight and bg_bias.

    Outside the foreground mean = 0 and std = 1, so (std * normalised + mean) is the background's branch as well. What
    is excluded is 0 from the start: in the gains' gradients it is multiplied by 0, and 0 * NaN is NaN.
    """
    if valid is not None:
        normalised = torch.where(valid, normalised, 0)
    fg_weight, fg_bias, bg_weight, bg_bias = affine.reshape(4, 1, -1, 1, 1)
    gain, bias = torch.where(foreground, fg_weight, bg_weight), torch.where(foreground, fg_bias, bg_bias)
    y = torch.addcmul(bias, torch.addcmul(mean, std, normalised), gain)
    return y if valid is None else torch.where(valid, y, 0)
