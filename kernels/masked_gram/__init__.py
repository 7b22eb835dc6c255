"""The Gram matrix of a foreground. Here: what is allocated, by the launcher and for fake tensors; needs only torch."""

import torch
from torch import Tensor


def allocate(features: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The matrix (B, C, C) of `features` (B, C, H, W)."""
    batch, channels = features.shape[:2]
    return features.new_empty((batch, channels, channels), dtype=dtype)
