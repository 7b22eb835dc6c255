"""Region normalisation on the compiled kernels of csrc/region_norm.cu."""

import torch
from torch import Tensor

from scsco_fast.cuda import refusal
from scsco_fast.cuda.launch import mask_rows, require, rows
from scsco_fast.cuda.library import operations


def supports(x: Tensor) -> str | None:
    """Why `forward` cannot serve x, or None."""
    return refusal("region_norm", x)


def forward(
    x: Tensor,
    foreground: Tensor,
    valid: Tensor | None,
    fg_weight: Tensor,
    fg_bias: Tensor,
    bg_weight: Tensor,
    bg_bias: Tensor,
    eps: float,
    adapt: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Output (B, C, H, W) in the dtype of x, and mean and deviation (B, C, 2) of foreground and background."""
    require(supports(x))
    parameters = (_parameter(p) for p in (fg_weight, fg_bias, bg_weight, bg_bias))
    y, mean, std = operations().region_norm_forward(
        rows(x), mask_rows(foreground), _optional(valid), *parameters, eps, adapt
    )
    return y.view(x.shape), mean, std


def backward(
    grad: Tensor,
    x: Tensor,
    foreground: Tensor,
    valid: Tensor | None,
    fg_weight: Tensor,
    bg_weight: Tensor,
    mean: Tensor,
    std: Tensor,
    adapt: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of x, and of fg_weight, fg_bias, bg_weight and bg_bias as (4, C) in float32."""
    if x.is_contiguous():  # gradients in another order than x would be read a few bytes at a time
        grad = grad.contiguous()
    elif x.is_contiguous(memory_format=torch.channels_last):
        grad = grad.contiguous(memory_format=torch.channels_last)
    dx, parameters = operations().region_norm_backward(
        *(rows(grad), rows(x), mask_rows(foreground), _optional(valid), _parameter(fg_weight), _parameter(bg_weight)),
        *(mean.contiguous(), std.contiguous(), adapt),
    )
    return dx.view(x.shape), parameters.sum(0)


def _parameter(parameter: Tensor) -> Tensor:
    return parameter.to(torch.float32).contiguous()


def _optional(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else mask_rows(mask)
