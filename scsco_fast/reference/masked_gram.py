"""The Gram matrix of a feature map's foreground, written out."""

import torch
from torch import Tensor


def masked_gram(features: Tensor, foreground: Tensor | None) -> Tensor:
    """See `scsco_fast.ops.masked_gram`; `foreground` is (B, 1, H, W) bool at the size of `features`."""
    inside = features if foreground is None else torch.where(foreground, features, 0)
    rows = inside.flatten(2)
    return rows @ rows.transpose(1, 2) / rows.shape[2]
