"""BAIN's output from its statistics, written out."""

import torch
from torch import Tensor


def bain_norm(
    normalised: Tensor,
    mean: Tensor,
    std: Tensor,
    foreground: Tensor,
    valid: Tensor | None,
    fg_weight: Tensor,
    fg_bias: Tensor,
    bg_weight: Tensor,
    bg_bias: Tensor,
) -> Tensor:
    """See `scsco_fast.ops.bain_norm`; `foreground` and `valid` are (B, 1, H, W) bool at the size of `normalised`.

    Outside the foreground mean = 0 and std = 1, so (std * normalised + mean) is the background's branch as well. What
    is excluded is 0 from the start: in the gains' gradients it is multiplied by 0, and 0 * NaN is NaN.
    """
    if valid is not None:
        normalised = torch.where(valid, normalised, 0)
    gain = torch.where(foreground, _map(fg_weight), _map(bg_weight))
    bias = torch.where(foreground, _map(fg_bias), _map(bg_bias))
    y = torch.addcmul(bias, torch.addcmul(mean, std, normalised), gain)
    return y if valid is None else torch.where(valid, y, 0)


def _map(parameter: Tensor) -> Tensor:
    return parameter.reshape(1, -1, 1, 1)
