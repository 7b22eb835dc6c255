"""The Gram matrix of two feature maps on the compiled kernels of csrc/cross_gram.cu."""

from torch import Tensor

from scsco_fast.cuda.launch import common_dtype, rows, tf32
from scsco_fast.cuda.library import operations


def forward(a: Tensor, b: Tensor) -> Tensor:
    """a b^T / (H W): (B, Ca, Cb), float32."""
    dtype = common_dtype(a, b)
    parts: Tensor = operations().cross_gram_forward(rows(a.to(dtype)), rows(b.to(dtype)), tf32(a))
    return parts[0] if parts.shape[0] == 1 else parts.sum(0)


def backward(grad: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """da = dG b / (H W), db = dG^T a / (H W)."""
    return _times(grad, b, a), _times(grad.transpose(1, 2), a, b)


def _times(grad: Tensor, features: Tensor, like: Tensor) -> Tensor:
    """grad @ features / (H W) in the dtype and shape of `like`."""
    # A float32 gradient is worth float32 products, whatever the other map is.
    dtype = common_dtype(features, like)
    out: Tensor = operations().cross_gram_backward(grad, rows(features.to(dtype)), tf32(features))
    return out.to(like.dtype).view(like.shape)
