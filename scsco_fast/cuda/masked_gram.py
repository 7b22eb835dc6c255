"""The Gram matrix of a feature map's foreground on the compiled kernels of csrc/masked_gram.cu."""

from torch import Tensor

from scsco_fast.cuda import refusal
from scsco_fast.cuda.launch import mask_rows, require, rows, tf32
from scsco_fast.cuda.library import operations


def supports(features: Tensor) -> str | None:
    """Why `forward` cannot serve the features, or None."""
    return refusal("masked_gram", features)


def forward(features: Tensor, foreground: Tensor | None) -> Tensor:
    """F_m F_m^T / (H W): (B, C, C), float32."""
    require(supports(features))
    gram: Tensor = operations().masked_gram_forward(rows(features), _optional(foreground), tf32(features))
    return gram


def backward(grad: Tensor, features: Tensor, foreground: Tensor | None) -> Tensor:
    """dF = m (dG + dG^T) F_m / (H W)."""
    out: Tensor = operations().masked_gram_backward(grad, rows(features), _optional(foreground), tf32(features))
    return out.view(features.shape)


def _optional(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else mask_rows(mask)
