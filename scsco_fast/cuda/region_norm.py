"""Region normalisation on the compiled kernels of csrc/region_norm.cu."""

import torch
from torch import Tensor

from scsco_fast.cuda.launch import mask_rows, rows
from scsco_fast.cuda.library import operations


def forward(
    x: Tensor, foreground: Tensor, valid: Tensor | None, affine: Tensor, eps: float, adapt: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Output (B, C, H, W) in the dtype of x, and mean and deviation (B, C, 2) of foreground and background."""
    y, mean, std = operations().region_norm_forward(
        rows(x), mask_rows(foreground), _optional(valid), _contiguous(affine), eps, adapt
    )
    return y.view(x.shape), mean, std


def backward(
    grad: Tensor,
    x: Tensor,
    foreground: Tensor,
    valid: Tensor | None,
    affine: Tensor,
    mean: Tensor,
    std: Tensor,
    adapt: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of x, and of affine (4, C) in float32."""
    if x.is_contiguous():  # gradients in another order than x would be read a few bytes at a time
        grad = grad.contiguous()
    elif x.is_contiguous(memory_format=torch.channels_last):
        grad = grad.contiguous(memory_format=torch.channels_last)
    dx, d_affine = operations().region_norm_backward(
        *(rows(grad), rows(x), mask_rows(foreground), _optional(valid), _contiguous(affine)),
        *(mean.contiguous(), std.contiguous(), adapt),
    )
    return dx.view(x.shape), d_affine.sum(0)


def _contiguous(affine: Tensor) -> Tensor:
    return affine.to(torch.float32).contiguous()


def _optional(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else mask_rows(mask)
