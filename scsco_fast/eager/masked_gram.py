"""The Gram matrix of a feature map's foreground, accumulated in float32 or wider."""

import torch
from torch import Tensor

from scsco_fast.eager.dtypes import accumulate_dtype
from scsco_fast.eager.products import product


def forward(features: Tensor, foreground: Tensor | None) -> Tensor:
    """F_m F_m^T / (H W): (B, C, C)."""
    rows = _inside(features, foreground, accumulate_dtype(features))
    return product(rows, rows.transpose(1, 2)) / rows.shape[2]


def backward(grad: Tensor, features: Tensor, foreground: Tensor | None) -> Tensor:
    """dF = m (dG + dG^T) F_m / (H W)."""
    rows = _inside(features, foreground, grad.dtype)
    d_rows = product((grad + grad.transpose(1, 2)) / rows.shape[2], rows)
    if foreground is not None:
        d_rows = torch.where(foreground.flatten(2), d_rows, 0)
    return d_rows.reshape(features.shape).to(features.dtype)


def _inside(features: Tensor, foreground: Tensor | None, dtype: torch.dtype) -> Tensor:
    rows = features.to(dtype).flatten(2)
    return rows if foreground is None else torch.where(foreground.flatten(2), rows, 0)
