"""The Gram matrix of two feature maps, accumulated in float32 or wider."""

from torch import Tensor

from scsco_fast.eager.dtypes import accumulate_dtype
from scsco_fast.eager.products import product


def forward(a: Tensor, b: Tensor) -> Tensor:
    """a b^T / (H W): (B, Ca, Cb)."""
    dtype = accumulate_dtype(a, b)
    rows, columns = a.to(dtype).flatten(2), b.to(dtype).flatten(2).transpose(1, 2)
    return product(rows, columns) / (a.shape[2] * a.shape[3])


def backward(grad: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """da = dG b / (H W), db = dG^T a / (H W)."""
    scaled = grad / (a.shape[2] * a.shape[3])
    d_a = product(scaled, b.to(grad.dtype).flatten(2))
    d_b = product(scaled.transpose(1, 2), a.to(grad.dtype).flatten(2))
    return d_a.reshape(a.shape).to(a.dtype), d_b.reshape(b.shape).to(b.dtype)
