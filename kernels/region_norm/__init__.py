"""Region normalisation. Here: what every backend returns, uninitialised, as the launcher and fake tensors take it."""

import torch
from torch import Tensor


def allocate(x: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """The output, contiguous, and mean and deviation (B, C, 2) of foreground and background in `dtype`."""
    mean = x.new_empty((*x.shape[:2], 2), dtype=dtype)
    return x.new_empty(x.shape), mean, torch.empty_like(mean)


def allocate_gradients(x: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Of x, contiguous, and of the affine (4, C) in `dtype`."""
    return x.new_empty(x.shape), x.new_empty((4, x.shape[1]), dtype=dtype)
