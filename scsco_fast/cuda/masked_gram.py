"""The Gram matrix of a feature map's foreground on the compiled kernels of csrc/masked_gram.cu."""

from torch import Tensor

from scsco_fast.cuda.launch import mask_rows, rows, tf32
from scsco_fast.cuda.library import operations


def forward(features: Tensor, foreground: Tensor | None) -> Tensor:
    """F_m F_m^T / (H W): (B, C, C), float32."""
    gram: Tensor = operations().masked_gram_forward(rows(features), _optional(foreground), tf32(features))
    return gram


def backward(grad: Tensor, features: Tensor, foreground: Tensor | None) -> Tensor:
    """dF = m (dG + dG^T) F_m / (H W)."""
    out: Tensor = operations().masked_gram_backward(grad, rows(features), _optional(foreground), tf32(features))
    return out.view(features.shape)


def _optional(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else mask_rows(mask)
